//! The workloads by name, with what the project promises for each. Never measures.

use crate::load::{Pace, Reuse};
use crate::wire;

/// What is measured, and the unit that costs are given in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// CPU µs a request.
    Requests,
    /// CPU µs a request at each of these numbers of connections.
    Scale(&'static [usize]),
    /// CPU µs a request, with so many under way on each connection, by h2load.
    Streams(usize),
    /// Bytes of user memory a connection.
    Idle,
}

/// How a proxy handles the bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Http,
    Tcp,
    /// HTTP over TLS.
    Tls(Terms),
    /// HTTP/2 by ALPN over TLS with pinned terms, towards an HTTP/1.1 origin.
    H2,
    /// HTTP/2 in plaintext by prior knowledge, towards an HTTP/1.1 origin.
    H2c,
    /// gRPC: HTTP/2 in plaintext on both sides.
    Grpc,
    /// HTTP/1.1 connections that become WebSockets.
    WebSocket,
}

/// What TLS is to be, on every proxy alike.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Terms {
    /// TLS 1.3, TLS_AES_128_GCM_SHA256, X25519, no tickets: full handshakes that differ in nothing but who
    /// makes them.
    Pinned,
    /// The same with tickets, and each connection resumes from one before it.
    Resumed,
    /// Whatever each proxy chooses from what OpenSSL 3.0 offers, with whatever tickets it sends; full
    /// handshakes.
    Defaults,
}

/// What the issue promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Promise {
    None,
    /// Cost against the better peer of the same round, at most.
    AgainstPeers(f64),
    /// Bytes a connection, at most.
    Bytes(f64),
    /// Cost at the most connections against the cost at 64, at most.
    Growth(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    pub protocol: Protocol,
    pub method: Method,
    pub target: &'static str,
    pub body_bytes: usize,
    pub connections: usize,
    pub reuse: Reuse,
    pub pace: Pace,
    pub promise: Promise,
    /// The same, as we hope for.
    pub stretch: Option<f64>,
    /// Whether it belongs to the smoke run when none is named.
    pub in_smoke: bool,
}

const H1_SMALL: Workload = Workload {
    name: "h1-small",
    about: "HTTP/1.1, 100-byte bodies, 64 keep-alive connections",
    protocol: Protocol::Http,
    method: Method::Requests,
    target: "/small",
    body_bytes: wire::SMALL_BYTES,
    connections: 64,
    reuse: Reuse::KeepAlive,
    pace: Pace::Closed,
    promise: Promise::AgainstPeers(0.85),
    stretch: None,
    in_smoke: true,
};

const TLS_SMALL: Workload = Workload {
    name: "tls-small",
    about: "h1-small over TLS 1.3, TLS_AES_128_GCM_SHA256, 64 keep-alive connections",
    protocol: Protocol::Tls(Terms::Pinned),
    promise: Promise::AgainstPeers(0.75),
    in_smoke: false,
    ..H1_SMALL
};

const TLS_HANDSHAKE: Workload = Workload {
    name: "tls-handshake",
    about: "a full TLS 1.3 handshake and one request a connection, 32 at a time; X25519, P-256, no tickets",
    connections: 32,
    reuse: Reuse::Churn,
    promise: Promise::AgainstPeers(0.55),
    stretch: Some(0.45),
    in_smoke: true,
    ..TLS_SMALL
};

const H2_MUX: Workload = Workload {
    name: "h2-mux",
    about: "HTTP/2 over TLS, 100-byte bodies, 16 connections with 100 streams each",
    protocol: Protocol::H2,
    method: Method::Streams(100),
    connections: 16,
    promise: Promise::AgainstPeers(0.95),
    in_smoke: false,
    ..H1_SMALL
};

/// What the calls of `grpc-unary` name.
pub const GRPC_TARGET: &str = "/echo.Echo/Unary";
/// Octets before each message of gRPC: whether it is compressed, and its length.
pub const GRPC_PREFIX_BYTES: usize = 5;

pub const WORKLOADS: [Workload; 18] = [
    H1_SMALL,
    Workload {
        name: "h1-100k",
        about: "HTTP/1.1, 100-KiB bodies, 16 keep-alive connections",
        target: "/100k",
        body_bytes: wire::LARGE_BYTES,
        connections: 16,
        promise: Promise::AgainstPeers(1.10),
        ..H1_SMALL
    },
    Workload {
        name: "h1-churn",
        about: "HTTP/1.1, 100-byte bodies, a connection a request, 32 at a time",
        connections: 32,
        reuse: Reuse::Churn,
        promise: Promise::AgainstPeers(0.90),
        ..H1_SMALL
    },
    Workload {
        name: "tcp-small",
        about: "the bytes of h1-small through a TCP relay, 64 connections",
        protocol: Protocol::Tcp,
        promise: Promise::AgainstPeers(1.00),
        ..H1_SMALL
    },
    Workload {
        name: "h1-open",
        about: "h1-small in open loop at 8,000 requests/s: latencies at the same load for all",
        pace: Pace::Open(8_000.0),
        promise: Promise::None,
        ..H1_SMALL
    },
    Workload {
        name: "idle",
        about: "user memory of 4,000 connections after one request each",
        method: Method::Idle,
        connections: 4_000,
        promise: Promise::Bytes(600.0),
        ..H1_SMALL
    },
    Workload {
        name: "scale",
        about: "h1-small on 1 to 8,000 connections",
        method: Method::Scale(&[1, 8, 64, 512, 2_000, 4_000, 8_000]),
        promise: Promise::Growth(1.25),
        ..H1_SMALL
    },
    TLS_HANDSHAKE,
    Workload {
        name: "tls-handshake-defaults",
        about: "tls-handshake with each proxy's own suites, groups and tickets; AES-256 is offered first",
        protocol: Protocol::Tls(Terms::Defaults),
        promise: Promise::None,
        stretch: None,
        in_smoke: false,
        ..TLS_HANDSHAKE
    },
    Workload {
        name: "tls-resume",
        about: "tls-handshake with tickets: every connection resumes from one before it",
        protocol: Protocol::Tls(Terms::Resumed),
        promise: Promise::None,
        stretch: None,
        in_smoke: false,
        ..TLS_HANDSHAKE
    },
    TLS_SMALL,
    Workload {
        name: "tls-100k",
        about: "h1-100k over TLS 1.3, TLS_AES_128_GCM_SHA256, 16 keep-alive connections",
        target: "/100k",
        body_bytes: wire::LARGE_BYTES,
        connections: 16,
        promise: Promise::AgainstPeers(1.00),
        ..TLS_SMALL
    },
    Workload {
        name: "tls-idle",
        about: "user memory of 2,000 TLS connections after one request each",
        method: Method::Idle,
        connections: 2_000,
        promise: Promise::Bytes(8.0 * 1024.0),
        stretch: Some(6.0 * 1024.0),
        ..TLS_SMALL
    },
    H2_MUX,
    Workload {
        name: "h2-small",
        about: "HTTP/2 over TLS, 100-byte bodies, 64 connections with one stream each",
        method: Method::Streams(1),
        connections: 64,
        ..H2_MUX
    },
    Workload {
        name: "grpc-unary",
        about: "unary calls with 100-byte messages over HTTP/2 on both sides, 16 connections with 10 streams each",
        protocol: Protocol::Grpc,
        method: Method::Streams(10),
        target: GRPC_TARGET,
        body_bytes: wire::SMALL_BYTES + GRPC_PREFIX_BYTES,
        ..H2_MUX
    },
    Workload {
        name: "ws-echo",
        about: "WebSockets over HTTP/1.1, 100-byte messages and their echoes, 64 connections",
        protocol: Protocol::WebSocket,
        target: "/echo",
        promise: Promise::AgainstPeers(0.95),
        ..H1_SMALL
    },
    Workload {
        name: "h2-idle",
        about: "user memory of 2,000 HTTP/2 connections in plaintext after one request each",
        protocol: Protocol::H2c,
        method: Method::Idle,
        connections: 2_000,
        promise: Promise::None,
        ..H2_MUX
    },
];

impl Protocol {
    /// What TLS is to be, if there is any.
    pub fn terms(self) -> Option<Terms> {
        match self {
            Self::Tls(terms) => Some(terms),
            Self::H2 => Some(Terms::Pinned),
            Self::Http | Self::Tcp | Self::H2c | Self::Grpc | Self::WebSocket => None,
        }
    }

    /// Whether it is HTTP/2 without HTTP/1.1 beside it.
    pub fn needs_prior_knowledge(self) -> bool {
        matches!(self, Self::H2c | Self::Grpc)
    }

    /// In names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Tls(Terms::Pinned) => "tls",
            Self::H2 => "h2",
            Self::H2c => "h2c",
            Self::Grpc => "grpc",
            Self::WebSocket => "websocket",
            Self::Tls(Terms::Resumed) => "tls-resume",
            Self::Tls(Terms::Defaults) => "tls-defaults",
        }
    }
}

impl Workload {
    pub fn named(name: &str) -> Option<Self> {
        WORKLOADS.into_iter().find(|workload| workload.name == name)
    }

    /// The same in little: whether every response is right, not what it costs.
    pub fn smoke(self) -> Self {
        let method = match self.method {
            Method::Scale(_) => Method::Scale(&[1, 64, 512]),
            other => other,
        };
        let pace = match self.pace {
            Pace::Open(_) => Pace::Open(1_000.0),
            Pace::Closed => Pace::Closed,
        };
        Self { method, pace, connections: self.connections.min(400), ..self }
    }

    pub fn unit(&self) -> &'static str {
        match self.method {
            Method::Requests if self.protocol == Protocol::WebSocket => "CPU µs/message",
            Method::Idle => "B/connection",
            Method::Requests if matches!(self.protocol, Protocol::Tls(_)) && self.reuse == Reuse::Churn => {
                "CPU µs/connection"
            }
            Method::Requests | Method::Scale(_) | Method::Streams(_) => "CPU µs/request",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for workload in WORKLOADS {
            assert_eq!(Workload::named(workload.name), Some(workload));
        }
        assert_eq!(Workload::named("h3"), None);
    }

    #[test]
    fn a_smoke_run_without_names_holds_one_workload_over_tls() {
        let smoke = WORKLOADS.into_iter().filter(|workload| workload.in_smoke);
        let tls = smoke.filter(|workload| matches!(workload.protocol, Protocol::Tls(_)));
        assert_eq!(tls.map(|workload| workload.name).collect::<Vec<_>>(), ["tls-handshake"]);
    }

    #[test]
    fn what_we_hope_for_is_more_than_what_we_promise() {
        for workload in WORKLOADS {
            if let Some(stretch) = workload.stretch {
                let (Promise::AgainstPeers(limit) | Promise::Bytes(limit) | Promise::Growth(limit)) =
                    workload.promise
                else {
                    panic!("{}: a hope without a promise", workload.name);
                };
                assert!(stretch < limit, "{}", workload.name);
            }
        }
    }

    #[test]
    fn growth_has_its_base_among_the_sizes() {
        for workload in WORKLOADS.into_iter().flat_map(|workload| [workload, workload.smoke()]) {
            if let Method::Scale(sizes) = workload.method {
                assert!(sizes.contains(&64) && sizes.is_sorted());
            }
        }
    }
}
