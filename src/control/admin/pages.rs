//! The answers of the admin endpoints, each made from the state alone.

use std::fmt::Write;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::state::{Phase, State};
use super::{ENDPOINTS, Endpoint};
use crate::control::data::reload::{Asked, Outcome};
use crate::control::steal::page;
use crate::metrics::{Gauge, Shard, render};
use crate::sys::clock;

pub fn healthz(_: &State, _: &Parts) -> Response {
    "ok\n".into_response()
}

pub fn readyz(state: &State, _: &Parts) -> Response {
    match state.phase() {
        // The last good certificates serve: that is ready, and somebody should know all the same.
        // Likewise where the configuration that was read last is not the one in use.
        Phase::Serving => {
            let mut body = json!({ "ready": true });
            let notes = [
                ("certificates", state.certificate_problems()),
                ("reload", state.reload_problems()),
                ("upgrade", state.upgrade_problems()),
            ];
            for (name, problems) in notes.into_iter().filter(|(_, problems)| !problems.is_empty()) {
                body[name] = problems.into();
            }
            json_answer(StatusCode::OK, &body)
        }
        phase => {
            let body = json!({ "ready": false, "reason": phase.word() });
            json_answer(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

pub fn metrics(state: &State, _: &Parts) -> Response {
    let shards: Vec<&Shard> = state.shards().iter().map(AsRef::as_ref).collect();
    let text = render::text(&shards, state.workers(), &state.process_facts());
    ([(header::CONTENT_TYPE, render::CONTENT_TYPE)], text).into_response()
}

pub fn workers(state: &State, _: &Parts) -> Response {
    json_answer(StatusCode::OK, &Workers { workers: live(state).collect() })
}

pub fn config(state: &State, _: &Parts) -> Response {
    json_answer(StatusCode::OK, &*state.config())
}

/// As the query asks for; else a page for browsers, and JSON for the rest.
pub fn steal(state: &State, asked: &Parts) -> Response {
    let format = asked.uri.query().unwrap_or("").split('&').find_map(|pair| pair.strip_prefix("format="));
    match format {
        Some("csv") => steal_csv(state),
        None if takes_html(asked) => Html(page::html(&state.steal(), clock::now())).into_response(),
        None | Some("json") => json_answer(StatusCode::OK, &state.steal().json(clock::now())),
        Some(_) => (StatusCode::BAD_REQUEST, "format is json or csv\n").into_response(),
    }
}

/// A browser names HTML first; other callers take anything.
fn takes_html(asked: &Parts) -> bool {
    let accept = asked.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// The file's name holds when the trace begins.
fn steal_csv(state: &State) -> Response {
    let (text, start) = state.steal().trace.csv();
    let age = start.map_or(Duration::ZERO, |start| clock::now().since(start));
    let name =
        format!("inline; filename=\"steal-{}.csv\"", clock::unix_seconds().saturating_sub(age.as_secs()));
    let name = HeaderValue::from_str(&name).unwrap_or_else(|_| HeaderValue::from_static("inline"));
    let kind = HeaderValue::from_static("text/csv; charset=utf-8");
    ([(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)], text).into_response()
}

pub fn drain(state: &State, _: &Parts) -> Response {
    state.ask_to_drain();
    json_answer(StatusCode::ACCEPTED, &json!({ "draining": true }))
}

/// Asks for a reload or an upgrade, and tells what came of it.
pub async fn change(state: &State, path: &str, what: fn(oneshot::Sender<Outcome>) -> Asked) -> Response {
    let outcome = match state.ask(what) {
        Some(outcome) if state.phase() == Phase::Serving => outcome.await.ok(),
        _ => None,
    };
    let done = if path == "/reload" { "reloaded" } else { "upgraded" };
    let (status, rest) = match outcome {
        Some(Ok(change)) => {
            return json_answer(StatusCode::OK, &json!({ done: true, "change": change }));
        }
        Some(Err(problems)) => (StatusCode::UNPROCESSABLE_ENTITY, problems),
        None => {
            let problem = format!("the gateway is {}: try again when it serves", state.phase().word());
            (StatusCode::SERVICE_UNAVAILABLE, vec![problem])
        }
    };
    json_answer(status, &json!({ done: false, "problems": rest }))
}

/// Plain list of what there is, for a path that is not there.
pub fn list() -> String {
    let mut text = String::from("no such endpoint; there are:\n");
    for Endpoint { method, path, help, .. } in &ENDPOINTS {
        let _ = writeln!(text, "{method:4} {path:10} {help}");
    }
    text
}

pub fn index(state: &State, _: &Parts) -> Response {
    let mut rows = String::new();
    for endpoint in &ENDPOINTS {
        let Endpoint { method, path, help, .. } = endpoint;
        let name = if endpoint.changes_state() {
            format!("{method} {path} (admin Unix socket only)")
        } else {
            format!("<a href=\"{path}\">{path}</a>")
        };
        let _ = writeln!(rows, "<tr><td>{name}<td>{}", escape(help));
    }
    let mut workers = String::new();
    for Live { worker, cpu, engine, connections, requests_total, loop_gap_max_ms, .. } in live(state) {
        let cpu = cpu.map_or_else(|| "any".to_string(), |cpu| cpu.to_string());
        let _ = writeln!(
            workers,
            "<tr><td>{worker}<td>{cpu}<td>{engine}<td>{connections}<td>{requests_total}<td>{loop_gap_max_ms:.3}",
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    let phase = state.phase().word();
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Ringfort</title>\n\
         <meta http-equiv=\"refresh\" content=\"5\">\n<style>{STYLE}</style>\n\
         <h1>Ringfort {version}: {phase}</h1>\n\
         <table><caption>Workers</caption>\n\
         <tr><th>worker<th>CPU<th>engine<th>connections<th>requests<th>longest loop gap, ms\n{workers}</table>\n\
         <table><caption>Endpoints</caption>\n{rows}</table>\n"
    ))
    .into_response()
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;\
     color:CanvasText;background:Canvas;color-scheme:light dark}\
     table{border-collapse:collapse;margin:0 0 2rem;width:100%}caption{text-align:left;font-weight:bold}\
     td,th{text-align:left;padding:.3rem 1rem .3rem 0;border-bottom:1px solid #8886;vertical-align:top}";

/// The answer to `/workers`.
#[derive(Serialize)]
struct Workers {
    workers: Vec<Live>,
}

/// One worker as it is now. The keys are part of the outward contract.
#[derive(Serialize)]
struct Live {
    worker: u32,
    cpu: Option<usize>,
    engine: &'static str,
    connections: u64,
    requests_total: u64,
    loop_gap_max_ms: f64,
    /// The share of new connections that the worker gets against an even one.
    accept_weight: f64,
    /// Level of lost CPU time: 0 normal, 1 elevated, 2 stolen; 3: its queue stands, whatever it loses.
    level: u8,
}

fn live(state: &State) -> impl Iterator<Item = Live> {
    let losses: Vec<_> = state.steal().workers.iter().map(|loss| (loss.accept_weight, loss.level)).collect();
    let losses = losses.into_iter().chain(std::iter::repeat((1.0, 0)));
    let workers = state.workers().iter().zip(state.shards());
    workers.zip(losses).map(|((facts, shard), (accept_weight, level))| Live {
        worker: facts.worker,
        cpu: facts.cpu,
        engine: facts.engine,
        connections: shard.connections_active(),
        requests_total: shard.requests_total(),
        loop_gap_max_ms: shard.gauge(Gauge::LoopGapMax) as f64 / 1e6,
        accept_weight,
        level,
    })
}

pub(super) fn json_answer(status: StatusCode, body: &impl Serialize) -> Response {
    let text = serde_json::to_string_pretty(body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
