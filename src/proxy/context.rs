//! What the sessions of one worker share: the configuration they serve from, upstream connections, metrics,
//! recycled memory. Lives on one thread.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::base::random::Random;
use crate::base::time::Instant;
use crate::h1::HeadLimits;
use crate::http::{Prepared, date};
use crate::metrics::{HandshakeFailure, ListenerGauge, Shard};
use crate::route::{Action, Route};
use crate::runtime::{Recycler, Runtime};
use crate::sys::clock;

use super::access::{Access, Line};
use super::connections::{Connected, Connections, Doing};
use super::door::Door;
use super::handshakes::Handshakes;
use super::outcome::Termination;
use super::snapshot::{Listener, Snapshot, Timeouts};
use super::tls::{Tls, TlsMaterials};
use super::upstream::Upstreams;

/// Room for the state of one exchange.
pub const EXCHANGE_BYTES: usize = 2_688;
/// Blocks for exchanges kept while there are none.
const EXCHANGES_KEPT_MAX: usize = 2_048;

/// One configuration as one worker serves it. Kept by every exchange that began under it.
pub struct Serving {
    pub snapshot: Arc<Snapshot>,
    pub head_limits: HeadLimits,
    /// Whether some route lets clients change to another protocol.
    pub changes_protocols: bool,
    /// By route: the answer it always gives.
    prepared: Vec<Option<Prepared>>,
}

impl Serving {
    pub fn new(snapshot: Arc<Snapshot>) -> Rc<Self> {
        let http = &snapshot.http;
        let head_limits = HeadLimits {
            head_bytes_max: http.head_bytes_max,
            target_bytes_max: http.target_bytes_max,
            fields_max: http.fields_max,
        };
        let prepared = snapshot.routes.routes().iter().map(prepare).collect();
        let forwards = |route: &&Route| !matches!(route.action, Action::Respond(_) | Action::Redirect(_));
        let mut forwarding = snapshot.routes.routes().iter().filter(forwards);
        let changes_protocols = forwarding.any(|route| route.tunnels.any_upgrade());
        Rc::new(Self { snapshot, head_limits, changes_protocols, prepared })
    }

    /// A listener of the snapshot that accepted a connection may be gone from a later one.
    pub fn listener(&self, index: u16) -> Option<&Listener> {
        self.snapshot.listeners.get(usize::from(index))
    }

    pub fn prepared(&self, route: u16) -> Option<&Prepared> {
        self.prepared.get(usize::from(route))?.as_ref()
    }
}

fn prepare(route: &Route) -> Option<Prepared> {
    let Action::Respond(respond) = &route.action else { return None };
    let edits = &route.response_edits;
    let kept = respond.fields.iter().filter(|(name, _)| !edits.drops(name.as_bytes()));
    let fields: Vec<(&str, &str)> =
        kept.map(|(name, value)| (&**name, &**value)).chain(edits.appended()).collect();
    Some(Prepared::new(respond.status, &fields, &respond.body))
}

pub struct Context {
    pub runtime: Runtime,
    pub shard: Arc<Shard>,
    pub upstreams: Upstreams,
    pub handshakes: Handshakes,
    pub door: Door,
    pub tls: Tls,
    pub exchanges: Recycler<EXCHANGE_BYTES>,
    pub access: Access,
    pub connections: Connections,
    serving: RefCell<Rc<Serving>>,
    random: RefCell<Random>,
    /// When draining began; sessions take no new work after their present exchange.
    drained_since: Cell<Option<Instant>>,
    sessions: Cell<usize>,
    date: RefCell<(Instant, String)>,
    /// Has a certain request panic, so that tests see what becomes of a worker that does. Not in release builds.
    #[cfg(debug_assertions)]
    pub panics_on_request: bool,
}

impl Context {
    pub fn new(
        runtime: Runtime,
        shard: Arc<Shard>,
        snapshot: Arc<Snapshot>,
        tls: &TlsMaterials,
        seed: u64,
    ) -> Rc<Self> {
        let upstreams = Upstreams::new(&runtime, &shard, &snapshot, seed);
        let handshakes = Handshakes::new(&runtime, &shard, snapshot.limits.handshakes_per_turn_max);
        let door = Door::new(&shard);
        Rc::new(Self {
            tls: Tls::new(tls),
            runtime,
            shard,
            upstreams,
            handshakes,
            door,
            exchanges: Recycler::new(EXCHANGES_KEPT_MAX),
            access: Access::default(),
            connections: Connections::default(),
            serving: RefCell::new(Serving::new(snapshot)),
            random: RefCell::new(Random::new(seed)),
            drained_since: Cell::new(None),
            sessions: Cell::new(0),
            date: RefCell::new((Instant::ZERO, String::new())),
            #[cfg(debug_assertions)]
            panics_on_request: std::env::var_os("RINGFORT_TEST_PANIC").is_some(),
        })
    }

    pub fn serving(&self) -> Rc<Serving> {
        self.serving.borrow().clone()
    }

    pub fn random_u32(&self) -> u32 {
        (self.random_u64() >> 32) as u32
    }

    pub fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    /// Has every session finish what it is at and take no more.
    pub fn drain(&self) {
        if self.drained_since.get().is_none() {
            self.drained_since.set(Some(self.runtime.now()));
            self.runtime.wake_tasks();
        }
    }

    pub fn drained_since(&self) -> Option<Instant> {
        self.drained_since.get()
    }

    pub fn is_draining(&self) -> bool {
        self.drained_since.get().is_some()
    }

    pub fn sessions(&self) -> usize {
        self.sessions.get()
    }

    /// Counts a session of a listener as open until the guard is dropped.
    pub fn enter_session(self: &Rc<Self>, listener: u16, client: Option<IpAddr>) -> SessionGuard {
        self.sessions.set(self.sessions.get() + 1);
        self.shard.listener(usize::from(listener)).gauge_add(ListenerGauge::ConnectionsActive, 1);
        let (since, exchanges, doing) = (self.runtime.now(), 0, Doing::Opening);
        let place = self.connections.enter(Connected { client, since, exchanges, listener, doing });
        SessionGuard { context: self.clone(), place, listener, counted: Cell::new(false) }
    }

    /// Calls `write` with the present `Date` value (RFC 9110 §6.6.1), made at most twice a second.
    pub fn with_date<T>(&self, write: impl FnOnce(&str) -> T) -> T {
        const FRESH: Duration = Duration::from_millis(500);
        let now = self.runtime.now();
        let mut date = self.date.borrow_mut();
        if date.1.is_empty() || now.since(date.0) > FRESH {
            *date = (now, String::from_utf8_lossy(&date::imf_fixdate(clock::unix_seconds())).into_owned());
        }
        write(&date.1)
    }
}

/// One open session, however it ends.
pub struct SessionGuard {
    context: Rc<Context>,
    /// In `Context::connections`.
    place: u32,
    listener: u16,
    counted: Cell<bool>,
}

impl SessionGuard {
    pub const fn context(&self) -> &Rc<Context> {
        &self.context
    }

    /// Position of the listener in the snapshot.
    pub const fn listener(&self) -> u16 {
        self.listener
    }

    /// Deadlines of the listener as it stands now. One that is gone from the snapshot leaves its sessions the
    /// shortest ones: they are to end.
    pub fn timeouts(&self) -> Timeouts {
        self.context.serving().listener(self.listener).map_or(Timeouts::ZERO, |listener| listener.timeouts)
    }

    /// Counts how the session ended. The first cause wins; a session that is dropped without one was cut off at the
    /// end of a drain.
    pub fn ended(&self, termination: Termination) {
        self.ended_with(termination, None);
    }

    /// As `ended`, for a TLS handshake that failed: counts that, too.
    pub fn handshake_failed(&self, failure: HandshakeFailure, termination: Termination) {
        self.context.shard.listener(usize::from(self.listener)).handshake_failed(failure);
        self.ended_with(termination, Some(failure));
    }

    fn ended_with(&self, termination: Termination, failure: Option<HandshakeFailure>) {
        if self.counted.replace(true) {
            return;
        }
        self.context.shard.listener(usize::from(self.listener)).session_ended(termination as usize);
        Line::of_session(self, termination, failure);
    }

    fn connected(&self) -> Option<Connected> {
        self.context.connections.get(self.place)
    }

    /// The client's address, as far as it is known.
    pub fn client(&self) -> Option<IpAddr> {
        self.connected()?.client
    }

    /// When the connection was accepted.
    pub fn since(&self) -> Instant {
        self.connected().map_or(Instant::ZERO, |connected| connected.since)
    }

    /// Requests that it has brought, or 1 where it is relayed.
    pub fn exchanges(&self) -> u32 {
        self.connected().map_or(0, |connected| connected.exchanges)
    }

    pub fn count_exchange(&self) {
        self.context.connections.change(self.place, |connected| {
            connected.exchanges = connected.exchanges.saturating_add(1);
        });
    }

    /// Notes what the connection is at.
    pub fn does(&self, doing: Doing) {
        self.context.connections.change(self.place, |connected| connected.doing = doing);
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.ended(Termination::Drained);
        let context = &self.context;
        context.connections.leave(self.place);
        context.sessions.set(context.sessions.get() - 1);
        context.shard.listener(usize::from(self.listener)).gauge_add(ListenerGauge::ConnectionsActive, -1);
    }
}
