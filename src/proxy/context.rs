//! What the sessions of one worker share: the configuration they serve from, upstream connections, metrics,
//! recycled memory. Lives on one thread.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::base::random::Random;
use crate::base::time::Instant;
use crate::http::date;
use crate::metrics::shard::{ListenerShard, Share};
use crate::metrics::{HandshakeFailure, ListenerGauge, Shard};
use crate::runtime::{Recycler, Runtime};
use crate::sys::clock;
use crate::tls::{ClientMaterial, Server, ServerMaterial, TicketKeys};

use super::access::{Access, Line};
use super::connections::{Connected, Connections, Doing};
use super::door::Door;
use super::handshakes::Handshakes;
use super::http2::UsualFields;
use super::outcome::Termination;
use super::serving::User;
pub use super::serving::{Compiled, Served, Serving};
use super::snapshot::Timeouts;
use super::snapshot::change::Change;
use super::tls::{Tls, TlsMaterials};
use super::upstream::{Left, Upstreams};

/// Room for the state of one exchange.
pub const EXCHANGE_BYTES: usize = 2_880;
/// Blocks for exchanges kept while there are none.
const EXCHANGES_KEPT_MAX: usize = 2_048;

/// What a worker is told to serve from now on.
pub struct Next {
    pub compiled: Arc<Compiled>,
    pub change: Arc<Change>,
    pub tls: Arc<TlsMaterials>,
    /// By cluster: the addresses that names among its endpoints are known to have; `None` where it has no names.
    pub addresses: Arc<Vec<Option<Vec<SocketAddr>>>>,
    /// Where this worker counts.
    pub share: Share,
}

pub struct Context {
    pub runtime: Runtime,
    pub shard: Arc<Shard>,
    pub handshakes: Handshakes,
    pub door: Door,
    pub tls: Tls,
    pub exchanges: Recycler<EXCHANGE_BYTES>,
    pub access: Access,
    pub connections: Connections,
    pub usual_fields: UsualFields,
    serving: RefCell<Rc<Serving>>,
    /// Clusters that are not of the present configuration, while somebody uses them.
    left: RefCell<Left>,
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
        compiled: Arc<Compiled>,
        share: &Share,
        tls: &TlsMaterials,
        seed: u64,
    ) -> Rc<Self> {
        let snapshot = compiled.snapshot.clone();
        let upstreams = Upstreams::new(&runtime, &share.clusters, &snapshot, seed);
        let handshakes = Handshakes::new(&runtime, &shard, snapshot.limits.handshakes_per_turn_max);
        let door = Door::new(&shard);
        let listeners = (0..).zip(&snapshot.listeners).zip(&share.listeners);
        let listeners = listeners.map(|((at, listener), counts)| Served::new(counts, at, listener)).collect();
        let context = Rc::new(Self {
            tls: Tls::new(tls),
            runtime,
            shard,
            handshakes,
            door,
            exchanges: Recycler::new(EXCHANGES_KEPT_MAX),
            access: Access::default(),
            connections: Connections::default(),
            usual_fields: UsualFields::default(),
            serving: RefCell::new(Serving::new(compiled, upstreams, listeners)),
            left: RefCell::default(),
            random: RefCell::new(Random::new(seed)),
            drained_since: Cell::new(None),
            sessions: Cell::new(0),
            date: RefCell::new((Instant::ZERO, String::new())),
            #[cfg(debug_assertions)]
            panics_on_request: std::env::var_os("RINGFORT_TEST_PANIC").is_some(),
        });
        context.set_tls(tls);
        context
    }

    /// Serves another configuration from now on. Requests on their way end under the one they began with.
    pub fn change(&self, next: &Next) {
        let (old, now) = (self.serving(), self.runtime.now());
        let Next { compiled, change, share, .. } = next;
        let snapshot = &compiled.snapshot;
        let (upstreams, left) =
            old.upstreams.succeeded_by(snapshot, change, &share.clusters, &next.addresses);
        let listeners = (0..).zip(&snapshot.listeners).zip(share.listeners.iter().zip(&change.listeners));
        let served = listeners.map(|((at, listener), (counts, was))| {
            let before = was.and_then(|was| old.served().get(usize::from(was)));
            match before {
                Some(served) => {
                    served.moved(at, listener);
                    served.clone()
                }
                None => Served::new(counts, at, listener),
            }
        });
        let serving = Serving::new(compiled.clone(), upstreams, served.collect());
        self.left.borrow_mut().add(left);
        for served in old.served() {
            if !serving.served().iter().any(|kept| Rc::ptr_eq(kept, served)) {
                served.take_away(now, &old);
            }
        }
        old.rate_limits.give_back(now);
        self.serving.replace(serving);
        self.set_tls(&next.tls);
        self.handshakes.set_per_turn_max(snapshot.limits.handshakes_per_turn_max);
        // Idle sessions of listeners that are gone are to leave.
        self.runtime.wake_tasks();
    }

    /// Brings TLS of listeners and clusters to these materials, where they are others than before.
    fn set_tls(&self, tls: &TlsMaterials) {
        for (listener, material) in (0..).zip(&tls.listeners) {
            material.iter().for_each(|material| self.set_server_tls(listener, material));
        }
        for (cluster, material) in (0..).zip(&tls.clusters) {
            material.iter().for_each(|material| self.set_client_tls(cluster, material));
        }
    }

    /// Has new connections to the listener served with `material`.
    pub fn set_server_tls(&self, listener: u16, material: &Arc<ServerMaterial>) {
        let serving = self.serving();
        let at = usize::from(listener);
        let (Some(served), Some(spec)) = (serving.served().get(at), serving.listener(listener)) else {
            return;
        };
        if served.serves(material) {
            return;
        }
        match self.tls.server(&spec.name, spec.protocol, material) {
            Ok(server) => served.set_server(material, server),
            Err(error) => {
                tracing::error!(listener = &*spec.name, %error, "the listener's certificates cannot be served; it goes on as before");
            }
        }
    }

    /// Has endpoints of the cluster spoken to with `material`.
    pub fn set_client_tls(&self, cluster: u16, material: &Arc<ClientMaterial>) {
        let serving = self.serving();
        let Some(spec) = serving.upstreams.spec(cluster) else { return };
        if serving.upstreams.speaks_with(cluster, material) {
            return;
        }
        match self.tls.client(material, spec.protocol) {
            Ok(client) => serving.upstreams.set_tls(cluster, material, client),
            Err(error) => {
                tracing::error!(cluster = &*spec.name, %error, "the cluster's certificates cannot be used; it goes on as before");
            }
        }
    }

    /// The secrets of the next period.
    pub fn set_ticket_keys(&self, keys: Arc<TicketKeys>) {
        for server in self.serving().served().iter().filter_map(|served| served.server()) {
            server.set_ticket_keys(&keys);
        }
        self.tls.set_ticket_keys(keys);
    }

    /// Closes idle connections to endpoints that are of no use any more; all of them while the worker drains.
    pub fn sweep_upstreams(&self) {
        let serving = self.serving();
        if self.is_draining() {
            serving.upstreams.close_idle()
        } else {
            serving.upstreams.sweep()
        }
        self.left.borrow_mut().sweep(&serving.upstreams);
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
    pub fn enter_session(self: &Rc<Self>, served: &Rc<Served>, client: Option<IpAddr>) -> SessionGuard {
        self.sessions.set(self.sessions.get() + 1);
        served.counts.gauge_add(ListenerGauge::ConnectionsActive, 1);
        let (since, listener) = (self.runtime.now(), served.clone());
        let place = self.connections.enter(Connected {
            client,
            since,
            exchanges: 0,
            listener,
            doing: Doing::Opening,
        });
        SessionGuard { context: self.clone(), place, user: User::new(served), counted: Cell::new(false) }
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
    user: User,
    counted: Cell<bool>,
}

impl SessionGuard {
    pub const fn context(&self) -> &Rc<Context> {
        &self.context
    }

    /// What the next exchange of the session is served from: the present configuration, or the last one that had its
    /// listener. To be asked together with `listener`: both may change with any wait.
    pub fn serving(&self) -> Rc<Serving> {
        self.user.last().unwrap_or_else(|| self.context.serving())
    }

    /// Position of the listener in the configuration of `serving`.
    pub fn listener(&self) -> u16 {
        self.user.position()
    }

    /// How the listener serves TLS.
    pub fn server(&self) -> Option<Rc<Server>> {
        self.user.server()
    }

    /// Where the listener counts.
    pub fn counts(&self) -> &Arc<ListenerShard> {
        &self.user.counts
    }

    /// Deadlines of the listener as it stands now.
    pub fn timeouts(&self) -> Timeouts {
        self.user.timeouts()
    }

    /// Since when the session is to end: its worker drains, or its listener was taken away.
    pub fn drained_since(&self) -> Option<Instant> {
        self.context.drained_since().or_else(|| self.user.taken_away())
    }

    pub fn is_draining(&self) -> bool {
        self.drained_since().is_some()
    }

    /// When the session is to be closed if it is idle: after the grace, each at a moment of its own, so that not all
    /// clients come back at once. `since`: when the drain began; `own`: a moment that is the session's own.
    pub fn leaves_at(&self, since: Instant, own: Instant) -> Instant {
        let drain = self.context.serving().snapshot.drain;
        let window = drain.idle_grace.min(drain.deadline.saturating_sub(drain.idle_grace) / 2);
        let share = Random::new(own.nanos()).next_u64() >> 32;
        since + drain.idle_grace + window.mul_f64(share as f64 / f64::from(u32::MAX))
    }

    /// Counts how the session ended. The first cause wins; a session that is dropped without one was cut off at the
    /// end of a drain.
    pub fn ended(&self, termination: Termination) {
        self.ended_with(termination, None);
    }

    /// As `ended`, for a TLS handshake that failed: counts that, too.
    pub fn handshake_failed(&self, failure: HandshakeFailure, termination: Termination) {
        self.user.counts.handshake_failed(failure);
        self.ended_with(termination, Some(failure));
    }

    fn ended_with(&self, termination: Termination, failure: Option<HandshakeFailure>) {
        if self.counted.replace(true) {
            return;
        }
        self.user.counts.session_ended(termination as usize);
        Line::of_session(self, termination, failure);
    }

    /// The client's address, as far as it is known.
    pub fn client(&self) -> Option<IpAddr> {
        self.context.connections.with(self.place, |connected| connected.client)?
    }

    /// A trusted proxy in front has named the client.
    pub fn is_of(&self, client: IpAddr) {
        self.context.connections.change(self.place, |connected| connected.client = Some(client));
    }

    /// When the connection was accepted.
    pub fn since(&self) -> Instant {
        self.context.connections.with(self.place, |connected| connected.since).unwrap_or(Instant::ZERO)
    }

    /// Requests that it has brought, or 1 where it is relayed.
    pub fn exchanges(&self) -> u32 {
        self.context.connections.with(self.place, |connected| connected.exchanges).unwrap_or(0)
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
        self.context.connections.leave(self.place);
        self.context.sessions.set(self.context.sessions.get() - 1);
        self.user.counts.gauge_add(ListenerGauge::ConnectionsActive, -1);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config;
    use crate::runtime::{EngineChoice, RingSizes};

    /// Of the built-in configuration, whose listener is "web", on epoll.
    pub(crate) fn embedded() -> Rc<Context> {
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, RingSizes::default()).expect("epoll");
        let snapshot = Arc::new(config::embedded_default().snapshot);
        let shard = Arc::new(Shard::new(0, &["web".into()], &[], Termination::WORDS));
        let tls = TlsMaterials::plaintext(&snapshot).expect("randomness");
        let share = shard.share(["web"].into_iter(), [].into_iter());
        Context::new(runtime, shard, Compiled::new(snapshot), &share, &tls, 1)
    }
}
