//! Tests of the catalogue: every metric is written, and what is counted by class falls into one.

use super::*;
use std::collections::HashSet;
use std::path::Path;

fn all() -> Vec<Metric> {
    let mut all = vec![
        SESSIONS_ENDED,
        TUNNELS_ENDED,
        CERTIFICATE_NOT_AFTER,
        RELOADS,
        CERTIFICATE_RELOADS,
        CERTIFICATE_RELOAD_FAILURES,
        WORKER_ENGINE,
        BUILD_INFO,
        CPU_STEAL,
        CPU_STEAL_RATIO,
        CPU_LOST_RATIO,
        RUN_QUEUE_WAIT,
        THROTTLE_LEVEL,
        ACCEPT_WEIGHT,
        THROTTLE_TRANSITIONS,
        IN_TIME_RATIO,
        STEAL_SOURCE,
        CGROUP_THROTTLED,
        STEAL_SAMPLE_AGE,
        STEAL_SAMPLER_CPU,
        HEALTH_PROBES,
        HEALTH_ENDPOINTS,
        HEALTH_ENDPOINTS_HEALTHY,
    ];
    all.extend(Counter::TABLE);
    all.extend(Gauge::TABLE);
    all.extend(Histogram::TABLE);
    all.extend(ListenerCounter::TABLE);
    all.extend(ListenerGauge::TABLE);
    all.extend(ClusterCounter::TABLE);
    all.extend(ClusterGauge::TABLE);
    all.extend(ClusterHistogram::TABLE);
    all.extend(Process::TABLE);
    all
}

#[test]
fn names_are_unique_and_follow_the_prometheus_rules() {
    let mut seen = HashSet::new();
    for metric in all() {
        assert!(seen.insert(metric.name), "{} is declared twice", metric.name);
        assert!(metric.name.starts_with("ringfort_"), "{}", metric.name);
        assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
        assert!(metric.help.ends_with('.'), "{}: help is a sentence", metric.name);
        assert_eq!(metric.unit == Unit::Bytes, metric.name.contains("_bytes"), "{}", metric.name);
    }
}

#[test]
fn statuses_fall_into_their_class() {
    let class = |status| CLASS.values[class_index(status)];
    assert_eq!(class(Some(101)), "1xx");
    assert_eq!(class(Some(204)), "2xx");
    assert_eq!(class(Some(599)), "5xx");
    assert_eq!(class(Some(600)), "none");
    assert_eq!(class(Some(0)), "none");
    assert_eq!(class(None), "none");
}

#[test]
fn every_declared_metric_is_written_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut source = String::new();
    read_sources(&root, &mut source);
    let unwritten = unwritten(&source);
    assert!(unwritten.is_empty(), "declared in catalog.rs but written nowhere: {unwritten:?}");
}

#[test]
fn an_unwritten_metric_is_found() {
    let found = unwritten("shard.add(Counter::LoopTurns, 1); listener.add(ListenerCounter::SentBytes, n)");
    assert!(found.contains(&"ClusterCounter::SentBytes".to_string()));
    assert!(!found.contains(&"ListenerCounter::SentBytes".to_string()));
    assert!(!found.contains(&"Counter::LoopTurns".to_string()));
}

/// Variants of the catalogue that `source` never names. Those with a method of their own count by its call.
fn unwritten(source: &str) -> Vec<String> {
    let families: [(&str, &[&str]); 18] = [
        ("Counter", Counter::NAMES),
        ("Gauge", Gauge::NAMES),
        ("Histogram", Histogram::NAMES),
        ("ListenerCounter", ListenerCounter::NAMES),
        ("ListenerGauge", ListenerGauge::NAMES),
        ("ClusterCounter", ClusterCounter::NAMES),
        ("ClusterGauge", ClusterGauge::NAMES),
        ("ClusterHistogram", ClusterHistogram::NAMES),
        ("Process", Process::NAMES),
        ("Shed", Shed::NAMES),
        ("Drained", Drained::NAMES),
        ("AcceptError", AcceptError::NAMES),
        ("HandshakeFailure", HandshakeFailure::NAMES),
        ("LogDrop", LogDrop::NAMES),
        ("ProxyHeader", ProxyHeader::NAMES),
        ("RateLimited", RateLimited::NAMES),
        ("ProbeResult", ProbeResult::NAMES),
        ("Overflow", Overflow::NAMES),
    ];
    let by_method = [
        ("Counter::Shed", ".shed("),
        ("Counter::Drained", ".drained("),
        ("Counter::AcceptErrors", ".accept_error("),
        ("Counter::AccessLogDropped", ".log_dropped("),
        ("ListenerCounter::Requests", ".request("),
        ("ListenerCounter::TlsFailures", ".handshake_failed("),
        ("ListenerCounter::ProxyHeaders", ".proxy_header("),
        ("ListenerCounter::RateLimited", ".rate_limited("),
        ("ListenerCounter::Tunnels", ".tunnel_opened("),
        ("ClusterCounter::Requests", ".response("),
        ("ClusterCounter::GrpcStatus", ".grpc_status("),
        ("ClusterCounter::Overflows", ".overflowed("),
    ];
    let mut unwritten = Vec::new();
    for (family, names) in families {
        for name in names {
            let path = format!("{family}::{name}");
            let method = by_method.iter().find(|(by, _)| *by == path).map(|(_, method)| *method);
            let needle = method.unwrap_or(&path);
            if !source.match_indices(needle).any(|(at, _)| whole_path(source, at, needle)) {
                unwritten.push(path);
            }
        }
    }
    unwritten
}

/// Whether the match is not the tail or the head of a longer name (`ListenerCounter::…`, `Gauge::MemoryBytesX`).
fn whole_path(source: &str, at: usize, needle: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let before = source[..at].chars().next_back().is_some_and(word);
    let after = source[at + needle.len()..].chars().next().is_some_and(word);
    needle.starts_with('.') || (!before && !after)
}

fn read_sources(folder: &Path, source: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("metrics") {
                read_sources(&path, source);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            source.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
