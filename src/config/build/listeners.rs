//! `[[listener]]`.

use std::net::SocketAddr;

use super::{Files, Names, millis_or, tell, tls};
use crate::config::node::{Node, Text, shorten};
use crate::config::problem::{Finding, Findings};
use crate::config::values;
use crate::proxy::snapshot::{
    Cidr, ForwardedPolicy, Listener, Protocol, ProxyProtocol, Timeouts, TracePolicy, Untrusted,
};

/// Listeners of one configuration; each takes a socket a worker.
const LISTENERS_MAX: usize = 1_024;

/// The listeners and what routes need to know of them, by position in the file.
pub(super) struct Listeners<'t> {
    pub list: Vec<Listener>,
    pub names: Names<'t>,
    pub kinds: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Http,
    Tcp,
    Passthrough,
    /// Wrong: told already, so that routes to it are not.
    Unknown,
}

impl Kind {
    /// The protocol's word where bytes are passed on that are not looked into.
    const fn relayed(self) -> Option<&'static str> {
        match self {
            Self::Tcp => Some("tcp"),
            Self::Passthrough => Some("tls-passthrough"),
            Self::Http | Self::Unknown => None,
        }
    }
}

pub(super) fn build<'t>(
    root: &Node<'t>,
    admin: Option<SocketAddr>,
    clusters: &mut Names<'_>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Listeners<'t> {
    let mut listeners = Listeners { list: Vec::new(), names: Names::new("listener"), kinds: Vec::new() };
    let nodes = root.tables("listener");
    if !root.has("listener") || root.is_empty_list("listener") {
        let finding = Finding::error(&root.span(), super::NO_LISTENER);
        findings.push(finding.cure("add [[listener]] with name, listen and protocol").absence());
    }
    if let Some(node) = nodes.get(LISTENERS_MAX) {
        let what = format!("more than {LISTENERS_MAX} listeners");
        findings.push(Finding::error(&node.span(), what).cure("use fewer"));
    }
    let mut taken = Taken { admin, listeners: Vec::new() };
    for node in nodes.iter().take(LISTENERS_MAX) {
        let name = listeners.names.add(node, findings);
        let address = taken.take(node, name, findings);
        let kind = match node.text("protocol").map(|text| text.text) {
            Some("http") => Kind::Http,
            Some("tcp") => Kind::Tcp,
            Some("tls-passthrough") => Kind::Passthrough,
            _ => Kind::Unknown,
        };
        let cluster = cluster(node, kind, name, clusters, findings);
        let (forwarded, trusted_proxies) = forwarded(node, kind, findings);
        listeners.kinds.push(kind);
        listeners.list.push(Listener {
            name: name.into(),
            address: address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            protocol: match (kind, cluster) {
                (Kind::Passthrough, _) => Protocol::TlsPassthrough,
                (_, Some(cluster)) => Protocol::Tcp { cluster },
                (_, None) => Protocol::Http,
            },
            tls: tls::server(node, files, findings),
            backlog: super::number_u32(node, "backlog"),
            connections_max: node
                .integer("connections_max")
                .map(|max| u32::try_from(max).unwrap_or(u32::MAX)),
            forwarded,
            trusted_proxies,
            proxy_protocol: proxy_protocol(node, findings),
            traceparent: traceparent(node, kind, findings),
            timeouts: timeouts(&node.table("timeouts"), &root.table("timeouts")),
            socket: super::socket_options(node, findings),
        });
    }
    listeners
}

/// Addresses that are listened on already.
struct Taken<'t> {
    admin: Option<SocketAddr>,
    listeners: Vec<(SocketAddr, &'t str)>,
}

impl<'t> Taken<'t> {
    fn take(&mut self, node: &Node<'t>, name: &'t str, findings: &mut Findings) -> Option<SocketAddr> {
        let text = node.text("listen")?;
        let address = tell(values::listen(text.text), &text.span, findings)?;
        let by = match self.listeners.iter().find(|(other, _)| overlap(*other, address)) {
            Some((other, name)) if *other == address => Some(format!("listener \"{}\"", shorten(name))),
            Some((other, name)) => Some(format!("listener \"{}\", which listens on {other}", shorten(name))),
            None if self.admin.is_some_and(|admin| overlap(admin, address)) => {
                Some("admin.listen".to_owned())
            }
            None => None,
        };
        if let Some(by) = by {
            let what = format!("{address} is taken by {by}");
            findings.push(Finding::error(&text.span, what).cure("choose another port or address"));
        }
        self.listeners.push((address, name));
        Some(address)
    }
}

/// Whether two sockets would be given the same connections. An IPv6 socket takes IPv6 alone, so families never meet.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // Port 0 is another port each time.
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// Where a TCP listener relays to.
fn cluster(
    node: &Node<'_>,
    kind: Kind,
    name: &str,
    clusters: &mut Names<'_>,
    findings: &mut Findings,
) -> Option<u16> {
    let cluster = node.text("cluster");
    match (kind, cluster) {
        (Kind::Tcp, Some(cluster)) => clusters.find(&cluster, findings),
        (Kind::Tcp, None) => {
            if !node.has("cluster") {
                let what = format!("listener \"{}\" of protocol \"tcp\" has no cluster", shorten(name));
                let finding = Finding::error(&node.span(), what).cure("add cluster = \"NAME\"");
                findings.push(finding.absence());
            }
            None
        }
        (Kind::Http | Kind::Passthrough, Some(cluster)) => {
            let what = "\"cluster\" is for listeners of protocol \"tcp\"";
            let cure = format!(
                "move it to a [[route]] with listener = \"{}\", or set protocol = \"tcp\"",
                shorten(name)
            );
            findings.push(
                Finding::error(&node.key_span("cluster").unwrap_or_else(|| node.span()), what).cure(cure),
            );
            clusters.find(&cluster, findings);
            None
        }
        _ => None,
    }
}

fn forwarded(node: &Node<'_>, kind: Kind, findings: &mut Findings) -> (ForwardedPolicy, Vec<Cidr>) {
    let policy = match node.text("forwarded").map(|text| text.text) {
        Some("append") => ForwardedPolicy::Append,
        Some("off") => ForwardedPolicy::Off,
        _ => ForwardedPolicy::Replace,
    };
    let trusted = cidrs(&node.texts("trusted_proxies"), findings);
    if let Some(protocol) = kind.relayed() {
        for key in ["forwarded", "trusted_proxies"] {
            if let Some(span) = node.key_span(key) {
                let what = format!("\"{key}\" has no effect on a listener of protocol \"{protocol}\"");
                findings.push(Finding::warning(&span, what).cure("remove it"));
            }
        }
    } else if policy != ForwardedPolicy::Replace
        && let Some(span) = node.key_span("trusted_proxies")
    {
        let what = "\"trusted_proxies\" has no effect: \"forwarded\" treats every peer alike";
        findings.push(
            Finding::warning(&span, what).cure("set forwarded = \"replace\", or remove trusted_proxies"),
        );
    }
    (policy, trusted)
}

fn cidrs(texts: &[Text<'_>], findings: &mut Findings) -> Vec<Cidr> {
    let cidr = |text: &Text<'_>| {
        let parsed: Result<Cidr, &str> = text.text.parse();
        parsed
            .map_err(|error| {
                let what = format!("\"{}\": {error}", shorten(text.text));
                let cure = "write blocks such as \"10.0.0.0/8\" or \"fd00::/8\", or single addresses";
                findings.push(Finding::error(&text.span, what).cure(cure));
            })
            .ok()
    };
    texts.iter().filter_map(cidr).collect()
}

fn proxy_protocol(node: &Node<'_>, findings: &mut Findings) -> Option<ProxyProtocol> {
    const KEY: &str = "proxy_protocol";
    if !node.has(KEY) {
        return None;
    }
    let node = node.table(KEY);
    let texts = node.texts("trusted");
    let trusted = cidrs(&texts, findings);
    if texts.is_empty() && node.has("trusted") {
        let finding =
            Finding::error(&node.value_span("trusted"), "no peer is trusted to send a PROXY header");
        findings.push(finding.cure("name the proxies in front, such as \"10.0.0.0/8\"").absence());
    }
    let is_everybody = |text: &&Text<'_>| text.text.parse().is_ok_and(|cidr: Cidr| cidr.is_everybody());
    for text in texts.iter().filter(is_everybody) {
        let what = format!("{}: every peer may say who it is", text.text);
        let cure = "name the proxies in front alone, or keep others from the port by a firewall";
        findings.push(Finding::warning(&text.span, what).cure(cure));
    }
    let untrusted = match node.text("untrusted").map(|text| text.text) {
        Some("plain") => Untrusted::Plain,
        _ => Untrusted::Refuse,
    };
    Some(ProxyProtocol { trusted, untrusted })
}

fn traceparent(node: &Node<'_>, kind: Kind, findings: &mut Findings) -> TracePolicy {
    if let (Some(protocol), Some(span)) = (kind.relayed(), node.key_span("traceparent")) {
        let what = format!("\"traceparent\" has no effect on a listener of protocol \"{protocol}\"");
        findings.push(Finding::warning(&span, what).cure("remove it"));
    }
    match node.text("traceparent").map(|text| text.text) {
        Some("begin") => TracePolicy::Begin,
        Some("replace") => TracePolicy::Replace,
        _ => TracePolicy::Pass,
    }
}

fn timeouts(own: &Node<'_>, all: &Node<'_>) -> Timeouts {
    let millis = |key| millis_or(own, all, key);
    let rate = "body_rate_min_bytes_per_s";
    Timeouts {
        header: millis("header_timeout_ms"),
        idle: millis("idle_timeout_ms"),
        body_idle: millis("body_idle_timeout_ms"),
        body_rate_min_bytes_per_s: own.integer(rate).unwrap_or_else(|| super::number(all, rate)),
        write_stall: millis("write_stall_timeout_ms"),
        tcp_idle: millis("tcp_idle_timeout_ms"),
        tunnel_idle: millis("tunnel_idle_timeout_ms"),
        handshake: millis("handshake_timeout_ms"),
    }
}
