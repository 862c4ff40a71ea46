//! Pages that workers answer: connections, clusters, and taking an endpoint out of use. Waits a moment for each of
//! them; one that stands still is named instead of waited for. Never asks them more often than once a second for what
//! anybody on this machine may ask: an answer takes a turn of theirs.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::State;
use super::fresh::Fresh;
use super::pages::json_answer;
use crate::sys::clock;
use crate::worker::view::{ClusterView, ConnectionView, EndpointView, Question, Replies};

/// How long workers are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const CONNECTIONS_DEFAULT: usize = 1_000;
/// Connections in one answer.
const CONNECTIONS_MAX: usize = 10_000;

/// The last answers of the workers.
#[derive(Default)]
pub struct Views {
    /// Up to [`CONNECTIONS_DEFAULT`] of them, and more: not one for each number that is asked for.
    connections: Fresh<Oldest>,
    connections_max: Fresh<Oldest>,
    clusters: Fresh<Value>,
}

/// Connections of all workers.
struct Oldest {
    total: usize,
    /// With their worker, the oldest first.
    listed: Vec<(u32, ConnectionView)>,
    silent_workers: Vec<u32>,
}

#[derive(Serialize)]
struct Connection<'a> {
    worker: u32,
    listener: &'a str,
    client: Option<String>,
    doing: &'static str,
    age_ms: u64,
    exchanges: u32,
}

#[derive(Serialize)]
struct Cluster {
    name: Box<str>,
    endpoints: Vec<Endpoint>,
}

/// An endpoint over all workers.
#[derive(Default, Serialize)]
struct Endpoint {
    endpoint: String,
    /// `serving`, `ejected` by some worker, `unhealthy` as probes found, or `draining` by hand.
    state: &'static str,
    in_flight: u32,
    connections_idle: u32,
    connections_http2: u32,
    /// Workers that give it no requests now because it failed.
    ejecting_workers: Vec<u32>,
    /// Until the last of them tries it again.
    ejected_for_ms: u64,
}

/// The oldest connections of each worker, the oldest first.
pub async fn connections(state: &State, asked: &Parts) -> Response {
    let asked = asked.uri.query().unwrap_or("").split('&').find_map(|pair| pair.strip_prefix("max="));
    let max = asked.map_or(Ok(CONNECTIONS_DEFAULT), str::parse);
    let Some(max) = max.ok().filter(|max| (1..=CONNECTIONS_MAX).contains(max)) else {
        let text = format!("max is a number from 1 to {CONNECTIONS_MAX}\n");
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let (last, listed_max) = match max {
        ..=CONNECTIONS_DEFAULT => (&state.views.connections, CONNECTIONS_DEFAULT),
        _ => (&state.views.connections_max, CONNECTIONS_MAX),
    };
    let Oldest { total, listed, silent_workers } = &*last.get(oldest(state, listed_max)).await;
    let now = clock::now();
    let shown = listed.iter().take(max).map(|(worker, view)| Connection {
        worker: *worker,
        listener: &view.listener,
        client: view.client.map(|client| client.to_string()),
        doing: view.doing,
        age_ms: now.since(view.since).as_millis() as u64,
        exchanges: view.exchanges,
    });
    let connections: Vec<Connection<'_>> = shown.collect();
    let body = json!({ "total": total, "connections": connections, "silent_workers": silent_workers });
    json_answer(StatusCode::OK, &body)
}

async fn oldest(state: &State, max: usize) -> Oldest {
    let (answers, silent_workers) = ask(state, |replies| Question::Connections { max, replies }).await;
    let total = answers.iter().map(|(_, (count, _))| count).sum();
    let mut listed: Vec<_> = answers
        .into_iter()
        .flat_map(|(worker, (_, oldest))| oldest.into_iter().map(move |view| (worker, view)))
        .collect();
    listed.sort_by_key(|(_, view)| view.since);
    listed.truncate(max);
    Oldest { total, listed, silent_workers }
}

/// Endpoints with their health and their pools.
pub async fn clusters(state: &State) -> Response {
    let body = state.views.clusters.get(async {
        let (answers, silent) = ask(state, Question::Clusters).await;
        json!({ "clusters": merged(answers), "silent_workers": silent })
    });
    json_answer(StatusCode::OK, &*body.await)
}

fn merged(answers: Vec<(u32, Vec<ClusterView>)>) -> Vec<Cluster> {
    // In the order of the configuration, which is that of every worker.
    let names: Vec<Box<str>> =
        answers.first().map_or(Vec::new(), |(_, views)| views.iter().map(|view| view.name.clone()).collect());
    let mut clusters: BTreeMap<Box<str>, BTreeMap<SocketAddr, Endpoint>> = BTreeMap::new();
    for (worker, views) in answers {
        for ClusterView { name, endpoints } in views {
            let cluster = clusters.entry(name).or_default();
            for view in endpoints {
                cluster.entry(view.address).or_default().add(worker, &view);
            }
        }
    }
    let cluster = |name: Box<str>| {
        let endpoints = clusters.remove(&name).unwrap_or_default().into_values().collect();
        Cluster { name, endpoints }
    };
    names.into_iter().map(cluster).collect()
}

impl Endpoint {
    fn add(&mut self, worker: u32, view: &EndpointView) {
        self.endpoint = view.address.to_string();
        self.in_flight += view.in_flight;
        self.connections_idle += view.idle;
        self.connections_http2 += view.multiplexed;
        if let Some(length) = view.ejected_for {
            self.ejecting_workers.push(worker);
            self.ejected_for_ms = self.ejected_for_ms.max(length.as_millis() as u64);
        }
        self.state = match self.ejecting_workers.is_empty() {
            _ if view.drains => "draining",
            _ if view.is_unhealthy => "unhealthy",
            true => "serving",
            false => "ejected",
        };
    }
}

/// `/clusters/NAME/endpoints/ADDR/drain`, or `/undrain`.
pub async fn drain_endpoint(state: &State, asked: &Parts, drains: bool) -> Response {
    let Some((cluster, address)) = named(asked.uri.path()) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "ADDR is an address and a port, such as 127.0.0.1:9000 or [::1]:9000",
        );
    };
    let question =
        |replies| Question::DrainEndpoint { cluster: cluster.as_str().into(), address, drains, replies };
    let (answers, silent) = ask(state, question).await;
    // Whoever looks now is to see it.
    state.views.clusters.forget();
    if !answers.iter().any(|(_, found)| *found) {
        return match silent.is_empty() {
            true => refuse(
                StatusCode::NOT_FOUND,
                format!("cluster \"{cluster}\" has no endpoint {address}; GET /clusters lists them"),
            ),
            false => {
                refuse(StatusCode::SERVICE_UNAVAILABLE, "no worker answered; they will do it when they can")
            }
        };
    }
    let body = json!({
        "cluster": cluster, "endpoint": address.to_string(), "draining": drains, "silent_workers": silent,
    });
    json_answer(StatusCode::OK, &body)
}

fn refuse(status: StatusCode, text: impl Display) -> Response {
    (status, format!("{text}\n")).into_response()
}

/// The cluster and the endpoint of a path; clients may percent-encode what they like.
fn named(path: &str) -> Option<(String, SocketAddr)> {
    let mut parts = path.strip_prefix("/clusters/")?.split('/');
    let (name, endpoints, address) = (parts.next()?, parts.next()?, parts.next()?);
    let address = decoded(address)?.parse().ok()?;
    (endpoints == "endpoints").then_some((decoded(name)?, address))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// The answers of the workers in their order, and those that gave none in time.
async fn ask<T>(state: &State, question: impl FnOnce(Replies<T>) -> Question) -> (Vec<(u32, T)>, Vec<u32>) {
    let (replies, mut answered) = mpsc::unbounded_channel();
    state.ask_workers(question(replies));
    let mut answers = Vec::new();
    // Ends early once every copy of the question is answered and dropped.
    let all = async {
        while let Some(answer) = answered.recv().await {
            answers.push(answer);
        }
    };
    let _ = tokio::time::timeout(PATIENCE, all).await;
    answers.sort_by_key(|(worker, _)| *worker);
    let silent = state.workers().iter().map(|facts| facts.worker);
    let silent = silent.filter(|worker| !answers.iter().any(|(answered, _)| answered == worker)).collect();
    (answers, silent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn endpoints_are_named_by_a_path() {
        let named = |path| named(path).map(|(name, address)| format!("{name} {address}"));
        let told = |text: &str| Some(text.to_owned());
        assert_eq!(named("/clusters/site/endpoints/127.0.0.1:9000/drain"), told("site 127.0.0.1:9000"));
        assert_eq!(named("/clusters/a%20b/endpoints/%5B::1%5D:80/drain"), told("a b [::1]:80"));
        assert_eq!(named("/clusters/a/endpoints/[::1]:80/undrain"), told("a [::1]:80"));
        for path in [
            "/clusters/a/endpoints/b:80/drain",
            "/clusters/a/endpoints/1%2/drain",
            "/clusters/a/x/1.1.1.1:1/drain",
        ] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn workers_are_merged_by_endpoint() {
        let endpoint = |port: u16, ejected_ms: Option<u64>| EndpointView {
            address: ([127, 0, 0, 1], port).into(),
            in_flight: 1,
            idle: 2,
            multiplexed: 0,
            ejected_for: ejected_ms.map(Duration::from_millis),
            is_unhealthy: false,
            drains: port == 3,
        };
        let view = |endpoints| vec![ClusterView { name: "site".into(), endpoints }];
        let clusters = merged(vec![
            (0, view(vec![endpoint(1, None), endpoint(2, Some(500)), endpoint(3, None)])),
            (1, view(vec![endpoint(1, None), endpoint(2, Some(900)), endpoint(3, None)])),
        ]);
        let json: Value = serde_json::to_value(&clusters).unwrap();
        assert_eq!(
            json[0]["endpoints"][1],
            json!({
                "endpoint": "127.0.0.1:2", "state": "ejected", "in_flight": 2, "connections_idle": 4,
                "connections_http2": 0, "ejecting_workers": [0, 1], "ejected_for_ms": 900,
            })
        );
        assert_eq!(
            (&json[0]["endpoints"][0]["state"], &json[0]["endpoints"][2]["state"]),
            (&json!("serving"), &json!("draining"))
        );
    }
}
