//! One configuration as one worker serves it, and its listeners, which outlive it as long as the next one leaves them
//! what they are. An exchange holds the configuration it began with; a session asks for the present one with each.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use crate::base::time::Instant;
use crate::h1::HeadLimits;
use crate::http::Prepared;
use crate::metrics::shard::ListenerShard;
use crate::route::{Action, Route};
use crate::tls::{Server, ServerMaterial};

use super::rate_limits::RateLimits;
use super::snapshot::{Listener, Snapshot, Timeouts};
use super::upstream::Upstreams;

/// A snapshot and what is made of it once for all workers.
pub struct Compiled {
    pub snapshot: Arc<Snapshot>,
    pub head_limits: HeadLimits,
    /// Whether some route lets clients change to another protocol.
    pub changes_protocols: bool,
    /// By route: the answer it always gives.
    prepared: Vec<Option<Prepared>>,
}

impl Compiled {
    pub fn new(snapshot: Arc<Snapshot>) -> Arc<Self> {
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
        Arc::new(Self { snapshot, head_limits, changes_protocols, prepared })
    }

    /// By position.
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

/// One configuration as one worker serves it. Kept by every exchange that began under it.
pub struct Serving {
    compiled: Arc<Compiled>,
    pub upstreams: Upstreams,
    pub rate_limits: RateLimits,
    /// By position in the snapshot.
    listeners: Vec<Rc<Served>>,
}

impl Serving {
    pub(super) fn new(compiled: Arc<Compiled>, upstreams: Upstreams, listeners: Vec<Rc<Served>>) -> Rc<Self> {
        let rate_limits = RateLimits::new(&compiled.snapshot);
        Rc::new(Self { compiled, upstreams, rate_limits, listeners })
    }

    pub fn served(&self) -> &[Rc<Served>] {
        &self.listeners
    }
}

impl Deref for Serving {
    type Target = Compiled;

    fn deref(&self) -> &Compiled {
        &self.compiled
    }
}

/// A listener of one worker, from the configuration that brings it to the one that takes it away or makes it another.
pub struct Served {
    pub counts: Arc<ListenerShard>,
    /// In the present configuration; in the last one that had it, once it was taken away.
    position: Cell<u16>,
    timeouts: Cell<Timeouts>,
    connections_max: Cell<Option<u32>>,
    /// How it serves TLS, and what that was made of.
    tls: RefCell<Option<(Arc<ServerMaterial>, Rc<Server>)>>,
    /// Sessions, and the socket that is accepted from.
    users: Cell<usize>,
    taken_away: Cell<Option<Instant>>,
    /// The last configuration that had it, while it has users.
    last: RefCell<Option<Rc<Serving>>>,
}

impl Served {
    pub(super) fn new(counts: &Arc<ListenerShard>, position: u16, listener: &Listener) -> Rc<Self> {
        Rc::new(Self {
            counts: counts.clone(),
            position: Cell::new(position),
            timeouts: Cell::new(listener.timeouts),
            connections_max: Cell::new(listener.connections_max),
            tls: RefCell::default(),
            users: Cell::new(0),
            taken_away: Cell::new(None),
            last: RefCell::default(),
        })
    }

    /// It goes on in another configuration.
    pub(super) fn moved(&self, position: u16, listener: &Listener) {
        self.position.set(position);
        self.timeouts.set(listener.timeouts);
        self.connections_max.set(listener.connections_max);
    }

    /// Its sessions finish what they are at, on the last configuration that had it, and take no more.
    pub(super) fn take_away(&self, now: Instant, last: &Rc<Serving>) {
        self.taken_away.set(Some(now));
        if self.users.get() > 0 {
            self.last.replace(Some(last.clone()));
        }
    }

    pub(super) fn last(&self) -> Option<Rc<Serving>> {
        self.last.borrow().clone()
    }

    /// In the configuration that its sessions are served from.
    pub const fn position(&self) -> u16 {
        self.position.get()
    }

    pub const fn timeouts(&self) -> Timeouts {
        self.timeouts.get()
    }

    pub const fn connections_max(&self) -> Option<u32> {
        self.connections_max.get()
    }

    /// Since when its sessions are to end.
    pub const fn taken_away(&self) -> Option<Instant> {
        self.taken_away.get()
    }

    /// How it serves TLS; `None` where it does not.
    pub fn server(&self) -> Option<Rc<Server>> {
        self.tls.borrow().as_ref().map(|(_, server)| server.clone())
    }

    /// Whether its TLS is made of this.
    pub fn serves(&self, material: &Arc<ServerMaterial>) -> bool {
        self.tls.borrow().as_ref().is_some_and(|(made_of, _)| Arc::ptr_eq(made_of, material))
    }

    pub fn set_server(&self, material: &Arc<ServerMaterial>, server: Server) {
        self.tls.replace(Some((material.clone(), Rc::new(server))));
    }
}

/// Somebody for whom a listener is kept, with its last configuration once it was taken away.
pub struct User(Rc<Served>);

impl User {
    pub fn new(served: &Rc<Served>) -> Self {
        served.users.set(served.users.get() + 1);
        Self(served.clone())
    }
}

impl Deref for User {
    type Target = Rc<Served>;

    fn deref(&self) -> &Rc<Served> {
        &self.0
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let users = self.0.users.get() - 1;
        self.0.users.set(users);
        if users == 0 {
            // The two would hold each other for ever.
            drop(self.0.last.take());
        }
    }
}
