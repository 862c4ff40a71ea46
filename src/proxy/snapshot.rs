//! The immutable configuration that workers serve from. `config/` builds it; workers share it behind an `Arc` and
//! never change it. Holds values in the units the code uses (durations, counts), never text to be parsed again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::access::spec::AccessLogSpec;
use crate::health::check::CheckSpec;
use crate::health::{EjectionSpec, SlowStart};
pub use crate::http::{ForwardedPolicy, TracePolicy};
use crate::limit::circuit::Pool;
use crate::limit::rate::Store;
use crate::limit::retry::RetrySpec;
use crate::proxy_protocol;
use crate::route;
use crate::sys::socket_options::SocketOptions;
use crate::tls::{ClientSpec, ServerSpec};

pub mod change;
pub mod cidr;

pub use cidr::Cidr;

/// Everything a worker needs to serve. Indices of listeners, routes and clusters fit 16 bits and are those of the
/// vectors here.
#[derive(Debug)]
pub struct Snapshot {
    pub listeners: Vec<Listener>,
    pub routes: route::Table,
    pub clusters: Vec<Cluster>,
    /// Routes name them by position.
    pub rate_limits: Vec<RateLimit>,
    pub http: HttpSpec,
    pub limits: Limits,
    pub drain: DrainSpec,
    /// `None`: nothing is logged of sessions.
    pub access_log: Option<Arc<AccessLogSpec>>,
}

/// One address that is accepted on.
#[derive(Clone, Debug)]
pub struct Listener {
    pub name: Box<str>,
    /// Port 0 lets the kernel choose.
    pub address: SocketAddr,
    pub protocol: Protocol,
    /// Whether and how it speaks TLS. `None`: plaintext.
    pub tls: Option<ServerSpec>,
    /// Accept queue of one worker's socket, in connections. The kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// Open connections of one worker on this listener; `None`: only `Limits::connections_max` counts.
    pub connections_max: Option<u32>,
    /// What an untrusted peer's forwarded fields meet.
    pub forwarded: ForwardedPolicy,
    /// Peers whose forwarded fields are kept and appended to.
    pub trusted_proxies: Vec<Cidr>,
    /// Whether proxies in front name their clients, and which. `None`: nobody does.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What happens to the traces of its requests.
    pub traceparent: TracePolicy,
    pub timeouts: Timeouts,
    /// What its connections get beside the kernel's defaults.
    pub socket: SocketOptions,
}

impl Listener {
    /// The policy for one peer: a trusted proxy's fields are appended to, unless they are off altogether.
    pub fn forwarded_for(&self, peer: IpAddr) -> ForwardedPolicy {
        match self.forwarded {
            ForwardedPolicy::Replace if self.trusted_proxies.iter().any(|cidr| cidr.contains(peer)) => {
                ForwardedPolicy::Append
            }
            policy => policy,
        }
    }
}

/// Who is believed in a PROXY header.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    /// Peers that begin with a header, and must.
    pub trusted: Vec<Cidr>,
    pub untrusted: Untrusted,
}

impl ProxyProtocol {
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|cidr| cidr.contains(peer))
    }
}

/// What happens to a peer that is not trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Untrusted {
    /// Reset: whoever reaches a listener that is for proxies gets past what they are there for.
    Refuse,
    /// A client like any other, whose bytes are its own: a header of it is no header.
    Plain,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Http,
    /// Relayed byte for byte to this cluster.
    Tcp {
        cluster: u16,
    },
    /// Relayed undecrypted to the cluster that a route names for the server name of the ClientHello.
    TlsPassthrough,
}

/// Deadlines towards the downstream side. Every one is finite.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// From the first byte of a request, or from accept for the first one, to the end of its head. A total, not per read.
    pub header: Duration,
    /// A keep-alive connection between requests.
    pub idle: Duration,
    /// Between two reads of a request body.
    pub body_idle: Duration,
    /// Least average rate of a request body, in bytes a second, once it has run for `body_idle`; 0 turns it off.
    pub body_rate_min_bytes_per_s: u64,
    /// No progress while bytes wait to be written to a peer.
    pub write_stall: Duration,
    /// A TCP relay with no byte in either direction.
    pub tcp_idle: Duration,
    /// A tunnel with no byte in either direction.
    pub tunnel_idle: Duration,
    /// From accept to the end of the TLS handshake; on a passthrough listener, to the end of the ClientHello.
    pub handshake: Duration,
}

/// A named set of endpoints and how they are used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cluster {
    pub name: Box<str>,
    /// At least one.
    pub endpoints: Vec<EndpointAddress>,
    /// Addresses that do not weigh 1; at most `balance::WEIGHT_MAX`.
    pub weights: Vec<(SocketAddr, u32)>,
    /// What of a request says which endpoint it belongs to. `None`: the least loaded one is looked for.
    pub hash: Option<HashKey>,
    pub connect_timeout: Duration,
    /// From the end of the request to the end of the response head.
    pub request_timeout: Duration,
    /// A pooled connection with no request.
    pub idle_timeout: Duration,
    /// Pooled connections without a request that one worker keeps for the cluster; 0 turns pooling off.
    pub idle_per_worker_max: u32,
    /// Connections of one worker to the cluster, busy and idle; beyond it requests wait for one.
    pub connections_max: u32,
    /// Requests of one worker that wait for a connection, for `connect_timeout` at most; beyond it the answer is 503.
    pub pending_max: u32,
    /// Requests, relays and tunnels under way to the cluster at once, over all workers; beyond it the answer is 503.
    pub requests: Arc<Pool>,
    /// Further endpoints tried where a retry is safe; 0 turns retries off.
    pub retries_max: u32,
    pub retry: RetrySpec,
    /// How often names among the endpoints are looked up again.
    pub resolve_interval: Duration,
    /// Whether and how endpoints are spoken to in TLS. The handshake counts towards `connect_timeout`.
    pub tls: Option<ClientSpec>,
    pub ejection: EjectionSpec,
    /// How an endpoint that comes back gets its share; `None`: all of it at once.
    pub slow_start: Option<SlowStart>,
    /// How endpoints are probed; `None`: requests alone show how they are.
    pub health_check: Option<CheckSpec>,
    pub protocol: ClusterProtocol,
    /// What connections begin with, to tell endpoints of the client. Only with `ClusterProtocol::Http1`; no connection is
    /// used twice then.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// HTTP/2 connections of one worker to one endpoint; a request for which none has room waits.
    pub http2_connections_max: u32,
    /// Requests on one HTTP/2 connection at once, where the endpoint takes as many.
    pub http2_streams_max: u32,
    /// What connections to its endpoints get beside the kernel's defaults.
    pub socket: SocketOptions,
}

impl Cluster {
    pub fn weight(&self, address: SocketAddr) -> u32 {
        self.weights.iter().find(|(weighed, _)| *weighed == address).map_or(1, |(_, weight)| *weight)
    }

    /// From a request without a body sent to the response's head, where nothing was tried before.
    pub fn try_timeout(&self) -> Duration {
        let per_try = self.retry.per_try_timeout;
        per_try.map_or(self.request_timeout, |per_try| per_try.min(self.request_timeout))
    }
}

/// What a request is hashed by. One without it goes to the least loaded endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HashKey {
    ClientAddress,
    /// Without the query, before a rewrite.
    Path,
    /// The first field of this name.
    Field(Box<str>),
    /// The first cookie of this name.
    Cookie(Box<str>),
}

/// The version of HTTP that endpoints are spoken to in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ClusterProtocol {
    #[default]
    Http1,
    /// In plaintext with prior knowledge, in TLS by ALPN or not at all.
    H2,
    /// What the endpoint chooses by ALPN; HTTP/1.1 in plaintext.
    Auto,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndpointAddress {
    Socket(SocketAddr),
    /// Resolved in the background.
    Name {
        host: Box<str>,
        port: u16,
    },
}

impl EndpointAddress {
    /// Host and port of one that is to be looked up.
    pub fn name(&self) -> Option<(&str, u16)> {
        match self {
            Self::Name { host, port } => Some((host, *port)),
            Self::Socket(_) => None,
        }
    }
}

/// How often clients may ask.
#[derive(Clone, Debug)]
pub struct RateLimit {
    pub name: Box<str>,
    pub by: LimitKey,
    /// IPv6 clients of one network of this length are one client, 32 to 128.
    pub ipv6_prefix_len: u8,
    /// The budgets: the one thing of a snapshot that changes.
    pub store: Arc<Store>,
}

/// Who has a budget of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LimitKey {
    ClientAddress,
    /// By the value of the first field of this name; without it, the client's address.
    Field(Box<str>),
    /// Nobody: all share one.
    Everybody,
}

/// Bounds of HTTP messages and connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HttpSpec {
    /// Request line (or status line) and fields together, in bytes; beyond it 431.
    pub head_bytes_max: usize,
    /// Request target, in bytes; beyond it 414.
    pub target_bytes_max: usize,
    /// Fields of one head; beyond it 431.
    pub fields_max: usize,
    /// The connection is closed with the response to this many requests.
    pub requests_per_connection_max: u32,
    /// Streams of one HTTP/2 connection at once; the next one is refused.
    pub http2_streams_max: u32,
    /// What a client may cost without bringing work, in frames; beyond it its connection is closed.
    pub http2_glitches_max: u32,
}

/// Bounds of one worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Open downstream connections.
    pub connections_max: u32,
    /// Bytes of sessions, buffers and pools.
    pub memory_bytes_max: usize,
    /// TLS handshakes begun in one turn of the worker's loop; the next ones wait in order.
    pub handshakes_per_turn_max: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DrainSpec {
    /// How long an idle connection may still bring a request once draining began.
    pub idle_grace: Duration,
    /// Everything ends by then.
    pub deadline: Duration,
}
