//! How many TLS handshakes one worker begins in a turn of its loop. One costs as much as ten requests: a burst of
//! new clients would keep those who are served already waiting. The rest wait in order; never refuses anybody.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use crate::metrics::shard::ListenerShard;
use crate::metrics::{Gauge, Histogram, Shard};
use crate::runtime::Runtime;

use super::turnstile::Turnstile;

#[derive(Clone)]
pub struct Handshakes(Rc<Inner>);

struct Inner {
    shard: Arc<Shard>,
    runtime: Runtime,
    turnstile: Turnstile,
    active: Cell<u64>,
    /// Clients refused for their certificates and not yet logged: at most `REFUSED_KEPT_MAX`, all are counted.
    refused: RefCell<Vec<Refused>>,
}

/// Refused clients kept for the log between two looks of the worker.
const REFUSED_KEPT_MAX: usize = 8;

/// A client that presented no certificate where it must, or one that is not to be trusted; for the log.
#[derive(Debug)]
pub struct Refused {
    pub listener: Arc<ListenerShard>,
    /// `None` where the client is gone already.
    pub peer: Option<SocketAddr>,
    pub error: rustls::Error,
}

impl Handshakes {
    /// `per_turn_max`: at least 1.
    pub fn new(runtime: &Runtime, shard: &Arc<Shard>, per_turn_max: u32) -> Self {
        Self(Rc::new(Inner {
            shard: shard.clone(),
            runtime: runtime.clone(),
            turnstile: Turnstile::new(runtime, per_turn_max),
            active: Cell::new(0),
            refused: RefCell::default(),
        }))
    }

    /// Changes the bound from the next turn on; at least 1.
    pub fn set_per_turn_max(&self, per_turn_max: u32) {
        self.0.turnstile.set_per_turn_max(per_turn_max);
    }

    /// Counts a handshake as under way until the guard is dropped.
    pub fn enter(&self) -> Active {
        self.0.change_active(1);
        Active(self.clone())
    }

    pub fn note(&self, refused: Refused) {
        let mut notes = self.0.refused.borrow_mut();
        if notes.len() < REFUSED_KEPT_MAX {
            notes.push(refused);
        }
    }

    /// Clients refused since the last call.
    pub fn take_refused(&self) -> Vec<Refused> {
        self.0.refused.take()
    }

    /// Waits for this handshake's turn.
    pub async fn begin(&self) {
        let since = self.0.runtime.now();
        // Dropped after the wait.
        let shown = Waiting(&self.0);
        let mut pass = pin!(self.0.turnstile.pass());
        std::future::poll_fn(|cx| {
            let passed = pass.as_mut().poll(cx);
            shown.show();
            passed
        })
        .await;
        self.0.shard.observe(Histogram::HandshakeWait, self.0.runtime.now().since(since));
    }
}

/// Shows how many wait, also when one gives up.
struct Waiting<'a>(&'a Inner);

impl Waiting<'_> {
    fn show(&self) {
        self.0.shard.set(Gauge::HandshakesWaiting, self.0.turnstile.waiting() as u64);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.show();
    }
}

impl Inner {
    fn change_active(&self, delta: i64) {
        self.active.set(self.active.get().saturating_add_signed(delta));
        self.shard.set(Gauge::HandshakesActive, self.active.get());
    }
}

/// A handshake under way.
pub struct Active(Handshakes);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.change_active(-1);
    }
}
