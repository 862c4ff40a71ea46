//! What texts of the file mean: addresses, CPU lists, hosts, field names. Each says what is wrong and how to mend it.

use std::net::{IpAddr, SocketAddr};

use rustls::pki_types::ServerName;

use super::Cpus;
use crate::balance::WEIGHT_MAX;
use crate::base::identity::IdentityPattern;
use crate::proxy::snapshot::EndpointAddress;
use crate::route::HostPattern;

/// What is wrong, and the cure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    pub what: String,
    pub cure: String,
}

fn fault<T>(what: impl Into<String>, cure: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { what: what.into(), cure: cure.into() })
}

/// Highest CPU number: what the kernel's largest configuration has.
const CPU_MAX: u16 = 8_191;

/// The name of a congestion control: `TCP_CA_NAME_MAX` of the kernel is 16 with the NUL at the end.
pub(super) fn congestion_control(text: &str) -> Result<Box<str>, Fault> {
    let is_name =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    if (1..16).contains(&text.len()) && text.bytes().all(is_name) {
        return Ok(text.into());
    }
    fault(
        format!("\"{}\" is no name of a congestion control", super::node::shorten(text)),
        "write one that net.ipv4.tcp_available_congestion_control shows, such as \"bbr\" or \"cubic\"",
    )
}

/// First and last port.
pub(super) fn ports(text: &str) -> Result<(u16, u16), Fault> {
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0 && !text.contains('+'));
    let ends = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
    match ends {
        Some((first, last)) if first <= last => Ok((first, last)),
        Some((first, last)) => {
            fault(format!("the range {first}-{last} is backwards"), format!("write \"{last}-{first}\""))
        }
        None => fault(
            format!("\"{}\" is no range of ports", super::node::shorten(text)),
            "write first and last, such as \"40000-49999\"",
        ),
    }
}

/// `all`, or numbers and ranges separated by commas.
pub(super) fn cpus(text: &str) -> Result<Cpus, Fault> {
    if text.trim() == "all" {
        return Ok(Cpus::All);
    }
    let cure = "write \"all\" or a list with ranges such as \"0-3,6\"";
    let number = |text: &str| match text.trim().parse::<u16>() {
        Ok(cpu) if cpu <= CPU_MAX && !text.contains('+') => Ok(cpu),
        _ => fault(
            format!("\"{}\" is not a CPU number from 0 to {CPU_MAX}", super::node::shorten(text.trim())),
            cure,
        ),
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return fault(
                format!("the range {first}-{last} is backwards"),
                format!("write \"{last}-{first}\""),
            );
        }
        list.extend(first..=last);
        if list.len() > 2 * usize::from(CPU_MAX) {
            break;
        }
    }
    list.sort_unstable();
    match list.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => fault(format!("CPU {} is named twice", pair[0]), "name each CPU once"),
        None => Ok(Cpus::List(list)),
    }
}

/// An IP address with port to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Fault> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let what = format!("\"{}\" is not an IP address with port", super::node::shorten(text));
    let cure = match text.rsplit_once(':') {
        Some(("" | "*", port)) if port.parse::<u16>().is_ok() => {
            format!("write \"0.0.0.0:{port}\" for every IPv4 address, \"[::]:{port}\" for every IPv6 one")
        }
        Some(("localhost", port)) if port.parse::<u16>().is_ok() => format!("write \"127.0.0.1:{port}\""),
        _ if text.parse::<IpAddr>().is_ok() => format!("add a port, such as \"{}\"", with_port(text)),
        _ => "write it as \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned(),
    };
    fault(what, cure)
}

fn with_port(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:8080") } else { format!("{ip}:8080") }
}

/// An address or name with port to connect to.
pub(super) fn endpoint(text: &str) -> Result<EndpointAddress, Fault> {
    let shown = super::node::shorten(text);
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return fault(format!("\"{shown}\" has port 0"), "name the port that the endpoint listens on");
        }
        if address.ip().is_unspecified() {
            let cure = "name the endpoint's own address, such as 127.0.0.1";
            return fault(format!("\"{shown}\" stands for every address of a host"), cure);
        }
        return Ok(EndpointAddress::Socket(address));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        let cure = "write host:port alone, such as \"origin.internal:9000\"";
        return fault(format!("\"{shown}\" has a scheme, {scheme}"), cure);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return fault(format!("\"{shown}\" has no port"), "add the port, such as \"origin.internal:9000\"");
    };
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port > 0) else {
        return fault(format!("\"{shown}\" has no port from 1 to 65535"), "write host:port");
    };
    if !is_host_name(host) || looks_like_ip(host) {
        let cure = "write \"127.0.0.1:9000\", \"[::1]:9000\" or \"origin.internal:9000\"";
        return fault(format!("\"{shown}\" is neither an address nor a name with port"), cure);
    }
    Ok(EndpointAddress::Name { host: host.to_ascii_lowercase().into(), port })
}

/// An endpoint and its weight: `127.0.0.1:9000 weight=3`, without it 1.
pub(super) fn weighed(text: &str) -> Result<(EndpointAddress, u32), Fault> {
    let Some((address, weight)) = text.split_once(" weight=") else { return Ok((endpoint(text)?, 1)) };
    let shown = super::node::shorten(text);
    let endpoint = endpoint(address)?;
    let Some(weight) = weight.parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight)) else {
        return fault(
            format!("\"{shown}\" has no weight from 1 to {WEIGHT_MAX}"),
            format!("write it as \"{address} weight=3\""),
        );
    };
    if let (EndpointAddress::Name { .. }, 2..) = (&endpoint, weight) {
        let what = format!("\"{shown}\": a name may have any number of addresses, and has no weight");
        let cure = "name its addresses, or give it a cluster of its own and weigh the clusters in the route";
        return fault(what, cure);
    }
    Ok((endpoint, weight))
}

/// A host to match: a name, `*.` and a name, or an IP address. Any case.
pub(super) fn host(text: &str) -> Result<HostPattern, Fault> {
    let shown = super::node::shorten(text);
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    if lower == "*" {
        return fault("\"*\" is any host", "leave hosts out: a route without it takes any");
    }
    if let Some(bare) = lower.strip_prefix("*.") {
        if is_host_name(bare) {
            return Ok(HostPattern::Wildcard(format!(".{bare}").into()));
        }
    } else if is_host_name(lower) || is_bracketed_ipv6(lower) {
        return Ok(HostPattern::Exact(lower.into()));
    }
    let cure = match lower.rsplit_once(':') {
        _ if lower.contains("://") => "write the host name alone".to_owned(),
        Some((name, port))
            if port.parse::<u16>().is_ok() && (is_host_name(name) || is_bracketed_ipv6(name)) =>
        {
            format!("leave the port out: \"{name}\"")
        }
        _ if lower.parse::<IpAddr>().is_ok() => format!("write \"[{lower}]\""),
        _ if lower.contains('*') => "\"*.\" may only stand for the first labels: \"*.api.test\"".to_owned(),
        _ if !lower.is_ascii() => "write the name in its ASCII form, xn--…".to_owned(),
        _ => "write it as \"api.test\" or \"*.api.test\"".to_owned(),
    };
    fault(format!("\"{shown}\" is not a host name"), cure)
}

fn is_bracketed_ipv6(text: &str) -> bool {
    text.strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
}

/// RFC 1123 §2.1, and underscores, which internal names have. Also dotted-decimal addresses.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A last label of digits is no name (RFC 1123 §2.1): a mistyped address is not to be looked up.
fn looks_like_ip(text: &str) -> bool {
    text.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Host, or host and port, for `Location`.
pub(super) fn authority(text: &str) -> Result<(), Fault> {
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => host,
        _ => text,
    };
    if is_host_name(host) || is_bracketed_ipv6(host) {
        return Ok(());
    }
    let what = format!("\"{}\" is not a host", super::node::shorten(text));
    fault(what, "write it as \"www.api.test\" or \"www.api.test:8443\"")
}

/// A name for SNI and for the endpoint's certificate; also an IP address.
pub(super) fn server_name(text: &str) -> Result<ServerName<'static>, Fault> {
    let name = text.to_ascii_lowercase();
    ServerName::try_from(name).map_err(|_| Fault {
        what: format!("\"{}\" is no name that a certificate can have", super::node::shorten(text)),
        cure: "write a host name alone, such as \"origin.internal\", or an IP address".to_owned(),
    })
}

/// A SPIFFE id, or a whole trust domain.
pub(super) fn identity(text: &str) -> Result<IdentityPattern, Fault> {
    IdentityPattern::parse(text).map_err(|error| Fault {
        what: format!("\"{}\" is no SPIFFE identity: {error}", super::node::shorten(text)),
        cure: "write \"spiffe://cluster.local/ns/shop/sa/web\", or \"cluster.local/*\" for all of a trust domain".to_owned(),
    })
}

/// A path that requests can have: visible ASCII from `/` on.
pub(super) fn path(text: &str) -> Result<(), Fault> {
    let shown = super::node::shorten(text);
    if !text.starts_with('/') {
        return fault(format!("\"{shown}\" does not begin with \"/\""), format!("write \"/{shown}\""));
    }
    if let Some(end) = text.find(['?', '#']) {
        let what = format!("\"{shown}\" has a query or fragment");
        return fault(
            what,
            format!("routes compare the path alone: \"{}\"", super::node::shorten(&text[..end])),
        );
    }
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
        let what = format!("\"{shown}\" has {odd:?}, which no request's path has");
        return fault(what, "write it percent-encoded, as clients send it");
    }
    Ok(())
}

/// What a request can ask an origin for: a path, with a query or without.
pub(super) fn target(text: &str) -> Result<&str, Fault> {
    let (before, query) = text.split_once('?').unwrap_or((text, ""));
    path(before)?;
    match query.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        Some(odd) => {
            let what = format!("\"{}\" has {odd:?}, which no request has", super::node::shorten(text));
            fault(what, "write it percent-encoded, as clients send it")
        }
        None => Ok(text),
    }
}

/// A final status, or a range of them with both ends.
pub(super) fn statuses(text: &str) -> Result<(u16, u16), Fault> {
    let status = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|status| digits && (200..=599).contains(status))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        (Some(first), Some(last)) => {
            fault(format!("the range {first}-{last} is backwards"), format!("write \"{last}-{first}\""))
        }
        _ => fault(
            format!("\"{}\" is no status from 200 to 599, nor a range of them", super::node::shorten(text)),
            "write it as \"204\" or \"200-399\"",
        ),
    }
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// A field name, in lower case.
pub(super) fn field_name(text: &str) -> Result<Box<str>, Fault> {
    if is_token(text) {
        return Ok(text.to_ascii_lowercase().into());
    }
    let what = format!("\"{}\" is not a field name", super::node::shorten(text));
    fault(what, "use letters, digits and dashes, such as \"x-edge\"")
}

/// RFC 9110 §5.5: no control characters, no space at either end.
pub(super) fn field_value(text: &str) -> Result<(), Fault> {
    if let Some(control) = text.chars().find(|c| c.is_control() && *c != '\t') {
        return fault(format!("the value has the control character {control:?}"), "take it out");
    }
    if text.trim_matches([' ', '\t']) != text {
        return fault("the value begins or ends with a space", "take it out: receivers do");
    }
    Ok(())
}

/// Fields that make up the connection or the framing of a message; the proxy sets them from what it decides.
pub(super) fn is_own_field(lower_case_name: &str) -> bool {
    matches!(
        lower_case_name,
        "connection"
            | "content-length"
            | "expect"
            | "host"
            | "http2-settings"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// A name of a listener, route or cluster: it stands in metric labels and messages.
pub(super) fn name(text: &str) -> Result<(), Fault> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(valid) {
        return Ok(());
    }
    let what = format!("\"{}\" cannot be a name", super::node::shorten(text));
    fault(what, "use 1 to 64 letters, digits, dots, dashes and underscores")
}
