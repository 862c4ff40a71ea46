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
    /// Bytes of user memory a connection.
    Idle,
}

/// How a proxy handles the bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Http,
    Tcp,
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
};

pub const WORKLOADS: [Workload; 7] = [
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
];

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
            Method::Idle => "B/connection",
            Method::Requests | Method::Scale(_) => "CPU µs/request",
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
    fn growth_has_its_base_among_the_sizes() {
        for workload in WORKLOADS.into_iter().flat_map(|workload| [workload, workload.smoke()]) {
            if let Method::Scale(sizes) = workload.method {
                assert!(sizes.contains(&64) && sizes.is_sorted());
            }
        }
    }
}
