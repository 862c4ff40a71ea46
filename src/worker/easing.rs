//! What a worker that loses CPU time is spared, as the control thread decides ten times a second. Where that falls silent,
//! the worker goes back to what is usual on its own: nobody would tell it that the theft is over.

use std::net::TcpListener;

use crate::base::time::Instant;
use crate::proxy::context::Context;
use crate::steal::controller::STALE_AFTER;
use crate::sys::reuseport;

/// What a worker is to do less of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ease {
    /// TLS handshakes to begin in a turn.
    pub handshakes_per_turn_max: u32,
    /// Connections that may be asked to go elsewhere, in a second.
    pub drains_per_s: f64,
    /// Optional work waits.
    pub postpones: bool,
    /// A program chooses who gets new connections.
    pub is_steered: bool,
}

impl Ease {
    /// Nothing is spared.
    pub const fn usual(handshakes_per_turn_max: u32) -> Self {
        Self { handshakes_per_turn_max, drains_per_s: 0.0, postpones: false, is_steered: false }
    }
}

/// What is in effect.
pub(super) struct Easing {
    usual: Ease,
    now: Ease,
    told: Instant,
    /// A socket of each listener's group; empty where nothing is ever steered.
    listeners: Vec<TcpListener>,
}

impl Easing {
    pub(super) fn new(handshakes_per_turn_max: u32, listeners: Vec<TcpListener>) -> Self {
        let usual = Ease::usual(handshakes_per_turn_max);
        Self { usual, now: usual, told: Instant::ZERO, listeners }
    }

    /// Takes what is decided at `now`.
    pub(super) fn take(&mut self, ease: Ease, now: Instant, context: &Context) {
        (self.now, self.told) = (ease, now);
        context.handshakes.set_per_turn_max(ease.handshakes_per_turn_max);
        context.door.allow_drain(ease.drains_per_s, &context.runtime);
    }

    /// Goes back to what is usual where nobody has decided anything for long.
    pub(super) fn look(&mut self, now: Instant, context: &Context) {
        if self.now == self.usual || now.since(self.told) <= STALE_AFTER {
            return;
        }
        tracing::warn!("nobody judges lost CPU time any more: new connections go evenly, nothing is spared");
        if self.now.is_steered {
            for listener in &self.listeners {
                // Good for the whole group; other workers do the same.
                let _ = reuseport::unsteer(listener);
            }
        }
        self.take(self.usual, now, context);
    }

    pub(super) const fn postpones(&self) -> bool {
        self.now.postpones
    }

    /// Ends it for good: nothing new comes. Lets go of the listeners, which must not stay open.
    pub(super) fn drain(&mut self, context: &Context) {
        self.listeners.clear();
        self.take(self.usual, context.runtime.now(), context);
    }
}
