//! `[[cluster]]`.

use super::{Files, Names, millis, millis_or, number, number_u32, tell, tls};
use crate::config::node::{Node, shorten};
use crate::config::problem::{Finding, Findings};
use crate::config::values;
use crate::health::EjectionSpec;
use crate::health::check::{CheckSpec, HttpProbe, Probe};
use crate::proxy::snapshot::{Cluster, ClusterProtocol, EndpointAddress};

/// Clusters are counted in 16 bits.
const CLUSTERS_MAX: usize = u16::MAX as usize;
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
        let endpoints = endpoints(node, findings);
        clusters.push(Cluster {
            name: name.into(),
            tls: tls::client(node, &endpoints, files, findings),
            health_check: health_check(node, findings),
            endpoints,
            connect_timeout: millis_or(node, &all, "connect_timeout_ms"),
            request_timeout: millis_or(node, &all, "request_timeout_ms"),
            idle_timeout: millis_or(node, &all, "pool_idle_timeout_ms"),
            idle_per_worker_max: number_u32(node, "pool_idle_per_worker_max"),
            connections_max: number_u32(node, "connections_max"),
            retries_max: number_u32(node, "retries_max"),
            resolve_interval: millis(node, "resolve_interval_ms"),
            ejection: ejection(&node.table("ejection"), findings),
            protocol: match node.text("protocol").map(|text| text.text) {
                Some("h2") => ClusterProtocol::H2,
                Some("auto") => ClusterProtocol::Auto,
                _ => ClusterProtocol::Http1,
            },
            http2_connections_max: number_u32(node, "http2_connections_max"),
            http2_streams_max: number_u32(node, "http2_streams_max"),
            socket: super::socket_options(node, findings),
        });
    }
    (clusters, names)
}

fn endpoints(node: &Node<'_>, findings: &mut Findings) -> Vec<EndpointAddress> {
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
    let mut endpoints: Vec<EndpointAddress> = Vec::new();
    for text in texts.iter().take(ENDPOINTS_MAX) {
        let Some(endpoint) = tell(values::endpoint(text.text), &text.span, findings) else { continue };
        if endpoints.contains(&endpoint) {
            let what = format!("endpoint \"{}\" is there twice", shorten(text.text));
            findings
                .push(Finding::warning(&text.span, what).cure("remove one: it does not get a double share"));
            continue;
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn ejection(node: &Node<'_>, findings: &mut Findings) -> EjectionSpec {
    let spec = EjectionSpec {
        consecutive_failures: number_u32(node, "consecutive_failures"),
        base: millis(node, "base_ms"),
        max: millis(node, "max_ms"),
        max_ejected_percent: number(node, "max_ejected_percent") as u8,
    };
    if spec.base > spec.max {
        let key = if node.has("base_ms") { "base_ms" } else { "max_ms" };
        let what = "the first ejection is longer than the longest";
        findings.push(Finding::error(&node.value_span(key), what).cure("make max_ms at least base_ms"));
    }
    spec
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
