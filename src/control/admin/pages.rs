//! The answers of the admin endpoints, each made from the state alone.

use std::fmt::Write;

use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use super::state::{Phase, State};
use super::{ENDPOINTS, Endpoint};
use crate::metrics::{Gauge, Shard, WorkerFacts, render};

pub fn healthz(_: &State) -> Response {
    "ok\n".into_response()
}

pub fn readyz(state: &State) -> Response {
    match state.phase() {
        Phase::Serving => json_answer(StatusCode::OK, &json!({ "ready": true })),
        phase => {
            let body = json!({ "ready": false, "reason": phase.word() });
            json_answer(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

pub fn metrics(state: &State) -> Response {
    let shards: Vec<&Shard> = state.shards().iter().map(AsRef::as_ref).collect();
    let text = render::text(&shards, state.workers(), &state.process_facts());
    ([(header::CONTENT_TYPE, render::CONTENT_TYPE)], text).into_response()
}

pub fn workers(state: &State) -> Response {
    let workers: Vec<Value> = live(state).map(|live| live.json()).collect();
    json_answer(StatusCode::OK, &json!({ "workers": workers }))
}

pub fn config(state: &State) -> Response {
    json_answer(StatusCode::OK, state.config())
}

pub fn drain(state: &State) -> Response {
    state.ask_to_drain();
    json_answer(StatusCode::ACCEPTED, &json!({ "draining": true }))
}

/// Plain list of what there is, for a path that is not there.
pub fn list() -> String {
    let mut text = String::from("no such endpoint; there are:\n");
    for Endpoint { method, path, help, .. } in &ENDPOINTS {
        let _ = writeln!(text, "{method:4} {path:10} {help}");
    }
    text
}

pub fn index(state: &State) -> Response {
    let mut rows = String::new();
    for endpoint in &ENDPOINTS {
        let Endpoint { method, path, help, .. } = endpoint;
        let name = if endpoint.changes_state() {
            format!("{method} {path} (admin Unix socket only)")
        } else {
            format!("<a href=\"{path}\">{path}</a>")
        };
        let _ = write!(rows, "<tr><td>{name}<td>{}\n", escape(help));
    }
    let mut workers = String::new();
    for Live { facts, connections, requests_total, loop_gap_max_ms } in live(state) {
        let cpu = facts.cpu.map_or_else(|| "any".to_string(), |cpu| cpu.to_string());
        let _ = write!(
            workers,
            "<tr><td>{}<td>{cpu}<td>{}<td>{connections}<td>{requests_total}<td>{loop_gap_max_ms:.3}\n",
            facts.worker, facts.engine
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

/// One worker as it is now.
struct Live<'a> {
    facts: &'a WorkerFacts,
    connections: u64,
    requests_total: u64,
    loop_gap_max_ms: f64,
}

impl Live<'_> {
    fn json(&self) -> Value {
        json!({
            "worker": self.facts.worker,
            "cpu": self.facts.cpu,
            "engine": self.facts.engine,
            "connections": self.connections,
            "requests_total": self.requests_total,
            "loop_gap_max_ms": self.loop_gap_max_ms,
            // A worker takes its full share of new connections; nothing lowers it in this version.
            "accept_weight": 1.0,
            "level": 0,
        })
    }
}

fn live(state: &State) -> impl Iterator<Item = Live<'_>> {
    state.workers().iter().zip(state.shards()).map(|(facts, shard)| Live {
        facts,
        connections: shard.connections_active(),
        requests_total: shard.requests_total(),
        loop_gap_max_ms: shard.gauge(Gauge::LoopGapMax) as f64 / 1e6,
    })
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    let text = format!("{body:#}\n");
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
