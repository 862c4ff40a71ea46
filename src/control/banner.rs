//! What `ringfort run` prints once it serves: where, how, and what to try next. On standard output, once.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::cpus::ranges;
use super::handover::Sockets;
use crate::proxy::snapshot::{Protocol, Snapshot};
use crate::worker::EngineReport;

/// Where the gateway listens, with the ports that the kernel chose.
pub struct Addresses {
    /// Name, protocol and address of each listener.
    listeners: Vec<(String, &'static str, SocketAddr)>,
    admin_tcp: Option<SocketAddr>,
    admin_unix: Option<PathBuf>,
}

impl Addresses {
    pub fn of(snapshot: &Snapshot, sockets: &Sockets, admin_unix: Option<&Path>) -> Self {
        let listeners = snapshot.listeners.iter().zip(&sockets.listeners).map(|(listener, sockets)| {
            let protocol = match (listener.protocol, listener.tls.is_some()) {
                (Protocol::Http, false) => "http",
                (Protocol::Http, true) => "https",
                (Protocol::Tcp { .. }, false) => "tcp",
                (Protocol::Tcp { .. }, true) => "tls",
                (Protocol::TlsPassthrough, _) => "tls-passthrough",
            };
            let address = sockets.first().and_then(|socket| socket.local_addr().ok());
            (listener.name.to_string(), protocol, address.unwrap_or(listener.address))
        });
        Self {
            listeners: listeners.collect(),
            admin_tcp: sockets.admin_tcp.local_addr().ok(),
            admin_unix: admin_unix.map(Into::into),
        }
    }
}

/// Prints the banner. Nobody may be there to read it: errors are passed over.
pub fn print(addresses: &Addresses, engine: &EngineReport, cpus: &[usize]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text(addresses, engine, cpus).as_bytes());
    let _ = out.flush();
}

fn text(addresses: &Addresses, engine: &EngineReport, cpus: &[usize]) -> String {
    let mut text = format!("Ringfort {} serves\n", env!("CARGO_PKG_VERSION"));
    // Writing to a String cannot fail.
    for (name, protocol, address) in &addresses.listeners {
        let _ = writeln!(text, "  {protocol:<8} {address} (listener \"{name}\")");
    }
    if let Some(address) = addresses.admin_tcp {
        let _ = writeln!(text, "  admin    {address}, read-only");
    }
    if let Some(path) = &addresses.admin_unix {
        let _ = writeln!(text, "  admin    {}", path.display());
    }
    let _ = writeln!(text, "  engine   {}: {}", engine.engine, engine.why);
    let count = cpus.len();
    let (s, each) = if count == 1 { ("", "") } else { ("s", ", one each") };
    let _ = writeln!(text, "  workers  {count}, on CPU{s} {}{each}", ranges(cpus));
    let _ = writeln!(text, "Try");
    let http = addresses.listeners.iter().find(|(_, protocol, _)| *protocol == "http");
    if let Some((_, _, address)) = http {
        let _ = writeln!(text, "  curl http://{}/", reachable(*address));
    }
    if let Some(address) = addresses.admin_tcp {
        let address = reachable(address);
        let _ = writeln!(text, "  curl http://{address}/metrics");
        let _ = writeln!(text, "  a browser on http://{address}/");
    }
    let _ = writeln!(text, "Ctrl-C or SIGTERM drains and ends it.");
    text
}

/// An address to connect to: a wildcard is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_where_how_and_what_next() {
        let addresses = Addresses {
            listeners: vec![
                ("web".into(), "http", "0.0.0.0:8080".parse().unwrap()),
                ("relay".into(), "tcp", "[::1]:8100".parse().unwrap()),
                ("secure".into(), "https", "0.0.0.0:8443".parse().unwrap()),
            ],
            admin_tcp: Some("127.0.0.1:9901".parse().unwrap()),
            admin_unix: Some("/run/ringfort/admin.sock".into()),
        };
        let engine = EngineReport { engine: "epoll", why: "io_uring_setup: EPERM".into(), thread: 1 };
        let text = text(&addresses, &engine, &[0, 1, 3]);
        let expected = [
            "  http     0.0.0.0:8080 (listener \"web\")",
            "  tcp      [::1]:8100 (listener \"relay\")",
            "  https    0.0.0.0:8443 (listener \"secure\")",
            "  admin    127.0.0.1:9901, read-only",
            "  admin    /run/ringfort/admin.sock",
            "  engine   epoll: io_uring_setup: EPERM",
            "  workers  3, on CPUs 0-1,3, one each",
            "  curl http://127.0.0.1:8080/",
            "  curl http://127.0.0.1:9901/metrics",
            "  a browser on http://127.0.0.1:9901/",
        ];
        for line in expected {
            assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
        }
    }
}
