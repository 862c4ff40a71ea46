//! What a worker that loses CPU time is spared, as the control thread decides ten times a second. Where that falls silent,
//! the worker goes back to what is usual on its own: nobody would tell it that the theft is over.

use std::rc::Rc;

use crate::base::time::Instant;
use crate::proxy::context::Context;
use crate::steal::controller::STALE_AFTER;

use super::accept::Ports;
use super::relief::Relief;

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
    relief: Option<Relief>,
}

impl Easing {
    pub(super) const fn new(handshakes_per_turn_max: u32) -> Self {
        let usual = Ease::usual(handshakes_per_turn_max);
        Self { usual, now: usual, told: Instant::ZERO, relief: None }
    }

    /// Goes on with another configuration, which nothing is spared under until it is decided anew.
    pub(super) fn change(&mut self, handshakes_per_turn_max: u32, ports: &Ports, context: &Rc<Context>) {
        self.usual = Ease::usual(handshakes_per_turn_max);
        self.end(ports, context);
    }

    /// Takes what is decided at `now`.
    pub(super) fn take(&mut self, ease: Ease, now: Instant, ports: &Ports, context: &Rc<Context>) {
        (self.now, self.told) = (ease, now);
        context.handshakes.set_per_turn_max(ease.handshakes_per_turn_max);
        context.door.allow_drain(ease.drains_per_s, &context.runtime);
        if ease.is_steered != self.relief.is_some() {
            // What one worker takes before he has time for it, none of the others can have.
            ports.set_singly(ease.is_steered);
            self.relief = ease.is_steered.then(|| Relief::begin(context, ports.shared()));
        }
    }

    /// Goes back to what is usual where nobody has decided anything for long.
    pub(super) fn look(&mut self, now: Instant, ports: &Ports, context: &Rc<Context>) {
        if self.now == self.usual || now.since(self.told) <= STALE_AFTER {
            return;
        }
        tracing::warn!("nobody judges lost CPU time any more: new connections go evenly, nothing is spared");
        if self.now.is_steered {
            // Good for the whole group; other workers do the same.
            ports.unsteer();
        }
        self.end(ports, context);
    }

    /// Goes back to what is usual.
    pub(super) fn end(&mut self, ports: &Ports, context: &Rc<Context>) {
        self.take(self.usual, context.runtime.now(), ports, context);
    }

    pub(super) const fn postpones(&self) -> bool {
        self.now.postpones
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proxy::context::tests::embedded;
    use crate::steal::steering::program;
    use crate::sys::reuseport::tests::spread;
    use crate::sys::{listeners, reuseport};
    use crate::worker::Queues;

    #[test]
    fn a_worker_that_hears_nothing_for_a_second_goes_back_to_what_is_usual() {
        let context = embedded();
        let runtime = context.runtime.clone();
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 2, 1_024).unwrap();
        let ports = Ports::open(&context, Queues::spread(vec![sockets[1].try_clone().unwrap()], 1));
        let mut easing = Easing::new(16);
        reuseport::steer(&sockets[0], &program(&[0.0, 1.0]).unwrap()).unwrap();
        let ease = Ease { handshakes_per_turn_max: 2, drains_per_s: 1e9, postpones: true, is_steered: true };
        let start = runtime.now();
        easing.take(ease, start, &ports, &context);
        easing.look(start + Duration::from_secs(1), &ports, &context);
        assert!(easing.postpones());
        assert_eq!(spread(&sockets, 40), [0, 40]);
        easing.look(start + Duration::from_millis(1_001), &ports, &context);
        assert_eq!(easing.now, Ease::usual(16), "I8");
        assert!(!context.door.drains(&runtime, 20));
        assert!(spread(&sockets, 100).iter().all(|count| *count > 20), "I8");
        easing.take(ease, start, &ports, &context);
        easing.change(8, &ports, &context);
        assert_eq!(easing.now, Ease::usual(8), "under another configuration it is decided anew");
    }
}
