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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config;
    use crate::metrics::Shard;
    use crate::proxy::outcome::Termination;
    use crate::proxy::tls::TlsMaterials;
    use crate::runtime::{EngineChoice, RingSizes, Runtime};
    use crate::steal::steering::program;
    use crate::sys::listeners;
    use crate::sys::reuseport::tests::spread;

    #[test]
    fn a_worker_that_hears_nothing_for_a_second_goes_back_to_what_is_usual() {
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, RingSizes::default()).expect("epoll");
        let snapshot = Arc::new(config::embedded_default().snapshot);
        let shard = Arc::new(Shard::new(0, &["web".into()], &[], Termination::WORDS));
        let tls = TlsMaterials::plaintext(&snapshot).expect("randomness");
        let context = Context::new(runtime.clone(), shard, snapshot, &tls, 1);
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 2, 1_024).unwrap();
        let mut easing = Easing::new(16, vec![sockets[1].try_clone().unwrap()]);
        reuseport::steer(&sockets[0], &program(&[0.0, 1.0]).unwrap()).unwrap();
        let ease = Ease { handshakes_per_turn_max: 2, drains_per_s: 1e9, postpones: true, is_steered: true };
        let start = runtime.now();
        easing.take(ease, start, &context);
        easing.look(start + Duration::from_secs(1), &context);
        assert!(easing.postpones());
        assert_eq!(spread(&sockets, 40), [0, 40]);
        easing.look(start + Duration::from_millis(1_001), &context);
        assert_eq!(easing.now, Ease::usual(16), "I8");
        assert!(!context.door.drains(&runtime, 20));
        assert!(spread(&sockets, 100).iter().all(|count| *count > 20), "I8");
        easing.take(ease, start, &context);
        easing.drain(&context);
        assert!(!easing.postpones() && easing.listeners.is_empty());
    }
}
