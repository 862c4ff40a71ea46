//! `[[cluster]]`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Files, Names, millis, millis_or, number, number_u32, tell, tls};
use crate::config::nearest::nearest;
use crate::config::node::{Node, shorten};
use crate::config::problem::{Finding, Findings};
use crate::config::values;
use crate::health::check::{CheckSpec, HttpProbe, Probe};
use crate::health::success_rate::SuccessRateSpec;
use crate::health::{EjectionSpec, SlowStart};
use crate::limit::circuit::Pool;
use crate::limit::retry::{RetryOn, RetrySpec};
use crate::proxy::snapshot::{Cluster, ClusterProtocol, EndpointAddress, HashKey};
use crate::proxy_protocol::Version;

/// Clusters are counted in 16 bits.
const CLUSTERS_MAX: usize = u16::MAX as usize;
/// Words of `on`.
const RETRY_ON: [&str; 7] =
    ["connect-failure", "refused-stream", "reset-before-request", "reset", "timeout", "gateway-error", "5xx"];
/// Endpoints of one cluster.
const ENDPOINTS_MAX: usize = 4_096;

pub(super) fn build<'t>(
    root: &Node<'t>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> (Vec<Cluster>, Names<'t>) {
    let all = root.table("timeouts");
    let mut names = Names::new("cluster");
    let nodes = root.tables("cluster");
    if let Some(node) = nodes.get(CLUSTERS_MAX) {
        let what = format!("more than {CLUSTERS_MAX} clusters");
        findings.push(Finding::error(&node.span(), what).cure("merge some of them"));
    }
    let mut clusters = Vec::new();
    for node in nodes.iter().take(CLUSTERS_MAX) {
        let name = names.add(node, findings);
        let (endpoints, weights) = endpoints(node, findings);
        let protocol = match node.text("protocol").map(|text| text.text) {
            Some("h2") => ClusterProtocol::H2,
            Some("auto") => ClusterProtocol::Auto,
            _ => ClusterProtocol::Http1,
        };
        clusters.push(Cluster {
            name: name.into(),
            tls: tls::client(node, &endpoints, files, findings),
            slow_start: slow_start(node, findings),
            health_check: health_check(node, findings),
            endpoints,
            weights,
            hash: hash(node, findings),
            connect_timeout: millis_or(node, &all, "connect_timeout_ms"),
            request_timeout: millis_or(node, &all, "request_timeout_ms"),
            idle_timeout: millis_or(node, &all, "pool_idle_timeout_ms"),
            idle_per_worker_max: number_u32(node, "pool_idle_per_worker_max"),
            connections_max: number_u32(node, "connections_max"),
            pending_max: number_u32(node, "pending_max"),
            requests: Arc::new(Pool::new(number_u32(node, "requests_max"))),
            retries_max: number_u32(node, "retries_max"),
            retry: retry(&node.table("retry"), findings),
            resolve_interval: millis(node, "resolve_interval_ms"),
            ejection: ejection(&node.table("ejection"), findings),
            protocol,
            proxy_protocol: proxy_protocol(node, protocol, findings),
            http2_connections_max: number_u32(node, "http2_connections_max"),
            http2_streams_max: number_u32(node, "http2_streams_max"),
            socket: super::socket_options(node, findings),
        });
    }
    (clusters, names)
}

fn proxy_protocol(node: &Node<'_>, protocol: ClusterProtocol, findings: &mut Findings) -> Option<Version> {
    let text = node.text("proxy_protocol")?;
    let version = match text.text {
        "v1" => Version::V1,
        "v2" => Version::V2,
        _ => return None,
    };
    if protocol != ClusterProtocol::Http1 {
        let what = "a PROXY header names one client, and a connection in HTTP/2 is for many";
        let finding = Finding::error(&text.span, what);
        findings.push(finding.cure("set protocol = \"http1\", or leave proxy_protocol out"));
    }
    Some(version)
}

type Weights = Vec<(SocketAddr, u32)>;

fn endpoints(node: &Node<'_>, findings: &mut Findings) -> (Vec<EndpointAddress>, Weights) {
    let texts = node.texts("endpoints");
    if texts.is_empty() && node.has("endpoints") {
        let finding =
            Finding::error(&node.value_span("endpoints"), "a cluster without endpoints serves nothing");
        findings.push(finding.cure("name at least one, such as \"127.0.0.1:9000\"").absence());
    }
    if let Some(text) = texts.get(ENDPOINTS_MAX) {
        let what = format!("more than {ENDPOINTS_MAX} endpoints in one cluster");
        findings.push(Finding::error(&text.span, what).cure("split the cluster"));
    }
    let (mut endpoints, mut weights): (Vec<EndpointAddress>, Weights) = Default::default();
    for text in texts.iter().take(ENDPOINTS_MAX) {
        let Some((endpoint, weight)) = tell(values::weighed(text.text), &text.span, findings) else {
            continue;
        };
        if endpoints.contains(&endpoint) {
            let what = format!("endpoint \"{}\" is there twice", shorten(text.text));
            findings
                .push(Finding::warning(&text.span, what).cure("remove one: it does not get a double share"));
            continue;
        }
        if let EndpointAddress::Socket(address) = endpoint
            && weight != 1
        {
            weights.push((address, weight));
        }
        endpoints.push(endpoint);
    }
    (endpoints, weights)
}

fn hash(node: &Node<'_>, findings: &mut Findings) -> Option<HashKey> {
    if !node.has("hash") {
        return None;
    }
    let node = node.table("hash");
    let by = node.text("by")?;
    let name = node.text("name");
    match (by.text, name) {
        ("header" | "cookie", None) => {
            if !node.has("name") {
                let what = format!("requests are hashed by a {} without a name", by.text);
                findings.push(Finding::error(&by.span, what).cure("add name = \"NAME\"").absence());
            }
            None
        }
        ("header", Some(name)) => {
            tell(values::field_name(name.text), &name.span, findings).map(HashKey::Field)
        }
        ("cookie", Some(name)) if values::is_token(name.text) => Some(HashKey::Cookie(name.text.into())),
        ("cookie", Some(name)) => {
            let what = format!("\"{}\" is not the name of a cookie", shorten(name.text));
            findings.push(Finding::error(&name.span, what).cure("write it as the cookie is called"));
            None
        }
        (by, name) => {
            if let Some(name) = name {
                let what = format!("\"name\" has no effect where requests are hashed by \"{by}\"");
                findings.push(Finding::warning(&name.span, what).cure("remove it"));
            }
            Some(if by == "path" { HashKey::Path } else { HashKey::ClientAddress })
        }
    }
}

fn ejection(node: &Node<'_>, findings: &mut Findings) -> EjectionSpec {
    let spec = EjectionSpec {
        consecutive_failures: number_u32(node, "consecutive_failures"),
        base: millis(node, "base_ms"),
        max: millis(node, "max_ms"),
        max_ejected_percent: number(node, "max_ejected_percent") as u8,
        success_rate: node.boolean("success_rate").unwrap_or_default().then(|| SuccessRateSpec {
            interval: millis(node, "success_rate_interval_ms"),
            stdev_factor_thousandths: number_u32(node, "success_rate_stdev_factor_thousandths"),
            endpoints_min: number_u32(node, "success_rate_endpoints_min"),
            requests_min: number_u32(node, "success_rate_requests_min"),
        }),
    };
    if spec.base > spec.max {
        let key = if node.has("base_ms") { "base_ms" } else { "max_ms" };
        let what = "the first ejection is longer than the longest";
        findings.push(Finding::error(&node.value_span(key), what).cure("make max_ms at least base_ms"));
    }
    spec
}

fn slow_start(node: &Node<'_>, findings: &mut Findings) -> Option<SlowStart> {
    let window = millis(node, "slow_start_ms");
    if let (Some(span), true) = (node.key_span("slow_start_floor_percent"), window.is_zero()) {
        let what = "\"slow_start_floor_percent\" has no effect without \"slow_start_ms\"";
        findings.push(Finding::warning(&span, what).cure("set slow_start_ms, or remove it"));
    }
    let floor_percent = number(node, "slow_start_floor_percent") as u8;
    (!window.is_zero()).then_some(SlowStart { window, floor_percent })
}

/// Of [`CheckSpec`] what `health_check` asks for. `None`: nothing, or an error among the findings.
fn health_check(cluster: &Node<'_>, findings: &mut Findings) -> Option<CheckSpec> {
    cluster.key_span("health_check")?;
    let node = cluster.table("health_check");
    let kind = node.text("type");
    let probe = match kind.as_ref().map(|text| text.text) {
        Some("http") => Probe::Http(http_probe(&node, findings)?),
        Some("tls") => Probe::Tls,
        _ => Probe::Tcp,
    };
    if probe == Probe::Tls && !cluster.has("tls") {
        let finding =
            Finding::error(&node.value_span("type"), "a check of type \"tls\" of a cluster without \"tls\"");
        findings.push(finding.cure("add [cluster.tls], or set type = \"tcp\"").absence());
    }
    for key in ["path", "host", "expected_status"] {
        if let (Some(span), Probe::Tcp | Probe::Tls) = (node.key_span(key), &probe) {
            let what = format!("\"{key}\" has no effect: the check asks for nothing");
            findings.push(Finding::warning(&span, what).cure("set type = \"http\", or remove it"));
        }
    }
    Some(CheckSpec {
        probe,
        interval: millis(&node, "interval_ms"),
        timeout: millis(&node, "timeout_ms"),
        jitter_percent: number(&node, "jitter_percent") as u8,
        rise: number_u32(&node, "rise"),
        fall: number_u32(&node, "fall"),
        panic_percent: number(&node, "panic_percent") as u8,
    })
}

fn http_probe(node: &Node<'_>, findings: &mut Findings) -> Option<HttpProbe> {
    let path = node.text("path").and_then(|text| tell(values::target(text.text), &text.span, findings));
    let host = node.text("host");
    if let Some(text) = &host {
        tell(values::authority(text.text), &text.span, findings);
    }
    let texts = node.texts("expected_status");
    if node.is_empty_list("expected_status") {
        let finding = Finding::error(
            &node.value_span("expected_status"),
            "no status passes: no endpoint is ever healthy",
        );
        findings.push(finding.cure("name at least one, such as \"200-399\", or leave it out"));
    }
    let ranges = texts.iter().filter_map(|text| tell(values::statuses(text.text), &text.span, findings));
    let mut expected: Vec<(u16, u16)> = ranges.collect();
    if !node.has("expected_status") {
        expected.push((200, 399));
    }
    Some(HttpProbe { path: path?.into(), host: host.map(|text| text.text.into()), expected })
}

fn retry(node: &Node<'_>, findings: &mut Findings) -> RetrySpec {
    let mut on = RetryOn::default();
    if !node.has("on") {
        (on.connect_failure, on.refused_stream, on.reset_before_request) = (true, true, true);
    }
    for text in node.texts("on") {
        match text.text {
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "reset-before-request" => on.reset_before_request = true,
            "reset" => on.reset = true,
            "timeout" => on.timeout = true,
            "gateway-error" => on.statuses.push((502, 504)),
            "5xx" => on.statuses.push((500, 599)),
            word if word.starts_with(|c: char| c.is_ascii_digit()) => {
                on.statuses.extend(tell(values::statuses(word), &text.span, findings));
            }
            word => {
                let what = format!("\"{}\" is no failure that is known", shorten(word));
                let nearest = nearest(word, RETRY_ON);
                let cure = format!("known: {}, or a status such as \"503\"", RETRY_ON.join(", "));
                findings.push(Finding::error(&text.span, what).nearest(nearest).cure(cure));
            }
        }
    }
    let per_try_timeout = node.integer("per_try_timeout_ms").map(Duration::from_millis);
    if let (Some(span), false) = (node.key_span("per_try_timeout_ms"), on.timeout) {
        let what = "a try ends by \"per_try_timeout_ms\" and none follows: \"on\" has no \"timeout\"";
        findings.push(Finding::warning(&span, what).cure("add \"timeout\" to on"));
    }
    RetrySpec {
        on,
        non_idempotent: node.boolean("non_idempotent").unwrap_or_default(),
        per_try_timeout,
        budget_percent: number_u32(node, "budget_percent"),
        budget_min_per_s: number_u32(node, "budget_min_per_s"),
    }
}
