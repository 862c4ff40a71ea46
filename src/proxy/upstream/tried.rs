//! What one request has been through in its search for an endpoint.

use std::net::SocketAddr;

use crate::base::time::Instant;

use super::super::caller::Caller;
use super::super::snapshot;
use super::super::turnstile::Turnstile;
use super::multiplex::Avoided;

/// Endpoints that failed for one request. Owns memory only once one did.
#[derive(Default)]
pub struct Tried {
    pub(super) addresses: Vec<SocketAddr>,
    /// Those with which nothing is wrong.
    pub(super) spared: Vec<(SocketAddr, Spared)>,
    pub(super) avoided: Avoided,
    /// What a new connection waits for.
    pub(super) pace: Option<Turnstile>,
    pub(super) caller: Caller,
    /// How often the request was sent again.
    pub(super) retries: u32,
    /// By when the response's head is there, however often it is tried.
    deadline: Option<Instant>,
}

impl Tried {
    pub fn new(caller: Caller) -> Self {
        Self { caller, ..Self::default() }
    }

    /// Of a request that is one of many that come at once.
    pub fn paced(pace: &Turnstile, caller: Caller) -> Self {
        Self { pace: Some(pace.clone()), ..Self::new(caller) }
    }

    /// Whether the request was sent before: it is not to meet another connection that has died.
    pub const fn is_again(&self) -> bool {
        self.retries > 0
    }

    /// By when a try that is sent at `now` is to be answered, and by when the request is, however often it is tried.
    pub fn deadlines(&mut self, spec: &snapshot::Cluster, now: Instant) -> (Instant, Instant) {
        let whole = *self.deadline.get_or_insert(now + spec.request_timeout);
        (spec.retry.per_try_timeout.map_or(whole, |per_try| whole.min(now + per_try)), whole)
    }

    /// By when the response's head is there, once the request was sent.
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How often the request was sent again.
    pub const fn retries(&self) -> u32 {
        self.retries
    }

    /// The request is sent again.
    pub const fn again(&mut self) {
        self.retries += 1;
    }

    /// Asks this endpoint again only where there is no other.
    pub fn spare(&mut self, endpoint: SocketAddr) {
        self.spared.push((endpoint, Spared::Refused));
    }
}

/// Why an endpoint is not asked now.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Spared {
    /// It did not begin the request: asked again only where there is no other.
    Refused,
    /// It has no room at present.
    Full,
}
