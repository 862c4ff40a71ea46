//! `[[cluster]]`.

use std::net::SocketAddr;

use super::{Files, Names, millis, millis_or, number, number_u32, tell, tls};
use crate::config::node::{Node, shorten};
use crate::config::problem::{Finding, Findings};
use crate::config::values;
use crate::health::EjectionSpec;
use crate::proxy::snapshot::{Cluster, ClusterProtocol, EndpointAddress, HashKey};
use crate::proxy_protocol::Version;

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
        let (endpoints, weights) = endpoints(node, findings);
        let protocol = match node.text("protocol").map(|text| text.text) {
            Some("h2") => ClusterProtocol::H2,
            Some("auto") => ClusterProtocol::Auto,
            _ => ClusterProtocol::Http1,
        };
        clusters.push(Cluster {
            name: name.into(),
            tls: tls::client(node, &endpoints, files, findings),
            endpoints,
            weights,
            hash: hash(node, findings),
            connect_timeout: millis_or(node, &all, "connect_timeout_ms"),
            request_timeout: millis_or(node, &all, "request_timeout_ms"),
            idle_timeout: millis_or(node, &all, "pool_idle_timeout_ms"),
            idle_per_worker_max: number_u32(node, "pool_idle_per_worker_max"),
            connections_max: number_u32(node, "connections_max"),
            retries_max: number_u32(node, "retries_max"),
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
    };
    if spec.base > spec.max {
        let key = if node.has("base_ms") { "base_ms" } else { "max_ms" };
        let what = "the first ejection is longer than the longest";
        findings.push(Finding::error(&node.value_span(key), what).cure("make max_ms at least base_ms"));
    }
    spec
}
