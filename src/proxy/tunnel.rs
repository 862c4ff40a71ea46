//! Tunnels: a connection, or a stream of one, that changes from HTTP to something that is passed on unread (RFC 9110
//! §7.8 and §9.3.6, RFC 8441). What opens one and how it is told across versions of HTTP; then the relay.
//!
//! The neutral form of an opening is that of HTTP/1.1: `Upgrade` with 101, `CONNECT` with 2xx. Until the endpoint has
//! said so, no byte of the client goes up; what it then gets is a connection, or a stream, of its own that carries
//! nothing else ever after.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::base::units::KIB;
use crate::h1::{FieldSlots, HeadLimits, Parsed, ResponseHead, parse_request};
use crate::http::Reject;
use crate::http::websocket::{self, WEBSOCKET};
use crate::metrics::shard::ClusterShard;
use crate::metrics::{ListenerGauge, TunnelProtocol};
use crate::runtime::RecvBuf;

use super::access::Line;
use super::caller::Caller;
use super::connections::Doing;
use super::context::{Context, SessionGuard};
use super::http2::{Receiver, Sender};
use super::outcome::Termination;
use super::relay::{self, Inlet, Meter, Outlet, Way, Ways};
use super::stream::Stream;
use super::upstream::{AcquireError, Acquired, Connection, Exchange, Tried, Upstreams};

/// CONNECT_ERROR and CANCEL (RFC 9113 §7).
const CONNECT_ERROR: u32 = 10;
const CANCEL: u32 = 8;

/// What a tunnel is taken to cost beside receive buffers and windows: its task, and who waits for what in it.
const TUNNEL_BYTES: usize = 4 * KIB;

/// Where the first digit of a status stands in a response head.
const STATUS_AT: usize = "HTTP/1.1 ".len();

/// How a tunnel is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    Connect,
    /// To this protocol.
    Upgrade(Box<str>),
}

impl Kind {
    fn protocol(&self) -> TunnelProtocol {
        match self {
            Self::Connect => TunnelProtocol::Connect,
            Self::Upgrade(protocol) if protocol.eq_ignore_ascii_case(WEBSOCKET) => TunnelProtocol::Websocket,
            Self::Upgrade(_) => TunnelProtocol::Other,
        }
    }
}

/// A tunnel that a client asks for, as its route allows.
pub struct Opening {
    pub kind: Kind,
    pub cluster: u16,
    pub route: u16,
    /// As it goes up in HTTP/1.1.
    pub head: Vec<u8>,
    pub caller: Caller,
    /// The `Sec-WebSocket-Accept` of the 101, where one side of the handshake is ours.
    accept: RefCell<Option<String>>,
    /// Of the request, and of the tunnel that it becomes.
    pub line: Line,
}

impl Opening {
    pub fn new(
        kind: Kind,
        (cluster, route): (u16, u16),
        head: Vec<u8>,
        caller: Caller,
        line: &Line,
    ) -> Rc<Self> {
        let (accept, line) = (RefCell::default(), line.clone());
        Rc::new(Self { kind, cluster, route, head, caller, accept, line })
    }

    pub fn is_connect(&self) -> bool {
        self.kind == Kind::Connect
    }

    pub fn is_websocket(&self) -> bool {
        self.kind.protocol() == TunnelProtocol::Websocket
    }

    /// What the question goes up on.
    ///
    /// # Errors
    /// When no endpoint is left; the last failure.
    pub async fn acquire(&self, upstreams: &Upstreams, tried: &mut Tried) -> Result<Acquired, AcquireError> {
        match self.kind {
            Kind::Connect => upstreams.acquire_any(self.cluster, true, tried).await,
            Kind::Upgrade(_) => upstreams.acquire_to_upgrade(self.cluster, tried).await,
        }
    }

    /// Whether the response that begins with these bytes has no body because it opens the tunnel: a 2xx to CONNECT,
    /// whatever lengths it tells (RFC 9112 §6.3).
    pub fn is_bodyless(&self, response: &[u8]) -> bool {
        self.is_connect() && response.get(STATUS_AT) == Some(&b'2')
    }

    /// Whether a response opens the tunnel.
    ///
    /// # Errors
    /// Where it changes to what nobody asked for, or fails the handshake.
    pub fn is_opened_by(&self, head: &ResponseHead<'_, '_>) -> Result<bool, Reject> {
        let Kind::Upgrade(protocol) = &self.kind else {
            return match head.upgrade {
                true => Err(Reject::BAD_STATUS_LINE.by_upstream()),
                false => Ok(matches!(head.status, 200..=299)),
            };
        };
        if !head.upgrade {
            return Ok(false);
        }
        let told = head.field("upgrade");
        let accept = self.accept.borrow();
        let accepts =
            accept.as_ref().is_none_or(|due| head.field("sec-websocket-accept") == Some(due.as_bytes()));
        match told.is_some_and(|told| told.eq_ignore_ascii_case(protocol.as_bytes())) && accepts {
            true => Ok(true),
            false => Err(Reject::NOT_SWITCHED),
        }
    }

    /// The head for an endpoint in HTTP/1.1 where the client speaks HTTP/2, which has no key.
    pub fn head_with_key(&self, context: &Context) -> Vec<u8> {
        let mut head = context.runtime.take_block();
        head.extend_from_slice(&self.head);
        if self.is_websocket() {
            let word = || u128::from(context.random_u32());
            let key = websocket::key(word() << 96 | word() << 64 | word() << 32 | word());
            self.accept.replace(Some(websocket::accept(key.as_bytes())));
            head.truncate(head.len() - 2);
            head.extend_from_slice(b"Sec-WebSocket-Key: ");
            head.extend_from_slice(key.as_bytes());
            head.extend_from_slice(b"\r\n\r\n");
        }
        head
    }

    /// Reads the key of a client in HTTP/1.1 that is to be answered here, as HTTP/2 has none.
    ///
    /// # Errors
    /// Where the client's side of the handshake is not that of RFC 6455 §4.2.1.
    pub fn take_key(&self) -> Result<(), Handshake> {
        if !self.is_websocket() {
            return Ok(());
        }
        let mut slots = FieldSlots::new();
        let Ok(Parsed::Complete(head)) = parse_request(&self.head, &mut slots, &HeadLimits::OURS) else {
            return Err(Handshake::BadKey);
        };
        if head.field("sec-websocket-version") != Some(websocket::VERSION) {
            return Err(Handshake::OtherVersion);
        }
        let mut keys =
            head.fields().iter().filter(|field| field.name.eq_ignore_ascii_case("sec-websocket-key"));
        match (keys.next(), keys.next()) {
            (Some(key), None) if websocket::is_key(key.value) => {
                self.accept.replace(Some(websocket::accept(key.value)));
                Ok(())
            }
            _ => Err(Handshake::BadKey),
        }
    }

    /// Calls `write` with the names and values that a 101 has and an answer in HTTP/2 has not. `None`: it is not
    /// opened by 101.
    pub fn switching_fields(&self, mut write: impl FnMut(&str, &str)) -> Option<()> {
        let Kind::Upgrade(protocol) = &self.kind else { return None };
        write("connection", "upgrade");
        write("upgrade", protocol);
        if let Some(accept) = &*self.accept.borrow() {
            write("sec-websocket-accept", accept);
        }
        Some(())
    }
}

/// What is wrong with a client's handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handshake {
    BadKey,
    OtherVersion,
}

/// What came behind the head with which an endpoint opened a tunnel.
pub enum Behind {
    Connection(RecvBuf),
    Stream(Receiver),
}

/// The endpoint's side.
pub enum Upward {
    Connection(Connection),
    Stream { exchange: Exchange, receiver: Receiver, sender: Sender },
}

/// A tunnel that the endpoint has opened.
pub struct Tunnel {
    pub opening: Rc<Opening>,
    pub upward: Upward,
    /// Received behind the client's head.
    pub first_up: Option<RecvBuf>,
    /// Received behind the endpoint's.
    pub first_down: Option<RecvBuf>,
}

/// Counts and charges one open tunnel until it is dropped.
struct Open<'a> {
    guard: &'a SessionGuard,
    line: &'a Line,
    bytes: usize,
    /// Why it ended. One that is dropped before was cut off at the end of a drain.
    termination: Cell<Termination>,
}

impl<'a> Open<'a> {
    fn new(guard: &'a SessionGuard, opening: &'a Opening) -> Self {
        opening.line.is_tunnel();
        let shard = guard.counts();
        shard.tunnel_opened(opening.kind.protocol());
        shard.gauge_add(ListenerGauge::TunnelsActive, 1);
        let bytes = TUNNEL_BYTES + opening.head.len();
        guard.context().runtime.charge(bytes);
        Self { guard, line: &opening.line, bytes, termination: Cell::new(Termination::Drained) }
    }

    fn ended(&self, ended: &Result<(), Termination>) {
        self.termination.set(ended.err().unwrap_or(Termination::TunnelClosed));
        self.line.ended(self.termination.get());
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let shard = self.guard.counts();
        shard.gauge_add(ListenerGauge::TunnelsActive, -1);
        shard.tunnel_ended(self.termination.get() as usize);
        self.guard.context().runtime.discharge(self.bytes);
    }
}

/// Relays between a client's connection and the endpoint until both directions have ended.
pub async fn over_connection(guard: SessionGuard, downstream: Stream, mut tunnel: Box<Tunnel>) {
    guard.does(Doing::Tunnel);
    let opening = tunnel.opening.clone();
    let open = Open::new(&guard, &opening);
    let (from, to) = (Inlet::Stream(&downstream), Outlet::Stream(&downstream));
    let ended = join(Meter::new, &guard, &opening.line, from, to, &mut tunnel).await;
    open.ended(&ended);
    guard.ended(ended.err().unwrap_or(Termination::TunnelClosed));
    if ended.is_err() {
        downstream.abort();
        tunnel.upward.abort();
    }
}

/// As `over_connection`, for a stream of a client's connection in HTTP/2.
pub async fn over_stream(
    guard: &SessionGuard,
    mut receiver: Receiver,
    mut sender: Sender,
    mut tunnel: Tunnel,
) {
    let opening = tunnel.opening.clone();
    let open = Open::new(guard, &opening);
    let (from, to) = (Inlet::H2(&mut receiver), Outlet::H2(&mut sender));
    let ended = join(Meter::on_stream, guard, &opening.line, from, to, &mut tunnel).await;
    open.ended(&ended);
    if let Err(termination) = ended {
        // RFC 9113 §8.5 for CONNECT, RFC 8441 §5 for the others.
        let broke = termination == Termination::UpstreamReset && tunnel.opening.is_connect();
        sender.reset(if broke { CONNECT_ERROR } else { CANCEL });
        tunnel.upward.abort();
    }
}

async fn join<'t>(
    meter: fn(&'t SessionGuard, &'t Line, &'t ClusterShard) -> Meter<'t>,
    guard: &'t SessionGuard,
    line: &'t Line,
    from: Inlet<'t>,
    to: Outlet<'t>,
    tunnel: &'t mut Tunnel,
) -> Result<(), Termination> {
    let (first_up, first_down) = (tunnel.first_up.take(), tunnel.first_down.take());
    let (up, down, counts) = match &mut tunnel.upward {
        Upward::Connection(connection) => {
            let stream = &connection.stream;
            (Outlet::Stream(stream), Inlet::Stream(stream), connection.counts())
        }
        Upward::Stream { receiver, sender, exchange } => {
            (Outlet::H2(sender), Inlet::H2(receiver), exchange.counts())
        }
    };
    let ways = Ways { up: Way::new(from, up, first_up), down: Way::new(down, to, first_down) };
    relay::run(&meter(guard, line, counts), ways, guard.timeouts().tunnel_idle).await
}

impl Upward {
    /// Ends it so that the endpoint notices that it is cut off.
    fn abort(self) {
        match self {
            Self::Connection(connection) => connection.abort(),
            Self::Stream { mut sender, .. } => sender.reset(CANCEL),
        }
    }
}
