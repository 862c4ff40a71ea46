//! How many TLS handshakes one worker begins in a turn of its loop. One costs as much as ten requests: a burst of
//! new clients would keep those who are served already waiting. The rest wait in order; never refuses anybody.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::metrics::shard::ListenerShard;
use crate::metrics::{Gauge, Shard};
use crate::runtime::Runtime;

#[derive(Clone)]
pub struct Handshakes(Rc<Inner>);

struct Inner {
    runtime: Runtime,
    shard: Arc<Shard>,
    per_turn_max: Cell<u32>,
    /// The turn in which `begun` handshakes were begun.
    turn: Cell<u64>,
    begun: Cell<u32>,
    /// Those that wait, by number: as many as there are connections at most. One that gave up stays until its turn
    /// comes.
    queue: RefCell<VecDeque<(u64, Waker)>>,
    next_number: Cell<u64>,
    /// Numbers below it may begin.
    admitted_below: Cell<u64>,
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
            runtime: runtime.clone(),
            shard: shard.clone(),
            per_turn_max: Cell::new(per_turn_max.max(1)),
            turn: Cell::new(0),
            begun: Cell::new(0),
            queue: RefCell::default(),
            next_number: Cell::new(0),
            admitted_below: Cell::new(0),
            active: Cell::new(0),
            refused: RefCell::default(),
        }))
    }

    /// Changes the bound from the next turn on; at least 1.
    pub fn set_per_turn_max(&self, per_turn_max: u32) {
        self.0.per_turn_max.set(per_turn_max.max(1));
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
        if self.0.begin_now() {
            return;
        }
        let mut number = None;
        std::future::poll_fn(|cx| {
            let number = *number.get_or_insert_with(|| self.enqueue(cx.waker().clone()));
            if number < self.0.admitted_below.get() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn enqueue(&self, waker: Waker) -> u64 {
        let inner = &self.0;
        let number = inner.next_number.replace(inner.next_number.get() + 1);
        let mut queue = inner.queue.borrow_mut();
        queue.push_back((number, waker));
        if queue.len() == 1 {
            let this = self.clone();
            inner.runtime.spawn(async move { this.admit().await });
        }
        inner.shard.set(Gauge::HandshakesWaiting, queue.len() as u64);
        number
    }

    /// Lets as many begin in every turn as may, until nobody waits.
    async fn admit(&self) {
        let inner = &self.0;
        loop {
            inner.runtime.yield_now().await;
            inner.new_turn();
            let mut queue = inner.queue.borrow_mut();
            while inner.begun.get() < inner.per_turn_max.get() {
                let Some((number, waker)) = queue.pop_front() else { break };
                inner.begun.set(inner.begun.get() + 1);
                inner.admitted_below.set(number + 1);
                waker.wake();
            }
            inner.shard.set(Gauge::HandshakesWaiting, queue.len() as u64);
            if queue.is_empty() {
                return;
            }
        }
    }
}

impl Inner {
    fn new_turn(&self) {
        let turn = self.runtime.turns();
        if self.turn.replace(turn) != turn {
            self.begun.set(0);
        }
    }

    /// Takes one of this turn's, unless others wait for them.
    fn begin_now(&self) -> bool {
        self.new_turn();
        let free = self.begun.get() < self.per_turn_max.get() && self.queue.borrow().is_empty();
        if free {
            self.begun.set(self.begun.get() + 1);
        }
        free
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{EngineChoice, RingSizes};

    fn handshakes(per_turn_max: u32) -> (Runtime, Handshakes) {
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, RingSizes::default()).expect("epoll");
        let shard = Arc::new(Shard::new(0, &[], &[], &[]));
        let handshakes = Handshakes::new(&runtime, &shard, per_turn_max);
        (runtime, handshakes)
    }

    #[test]
    fn no_more_begin_in_a_turn_than_may_and_the_rest_follow_in_order() {
        let (runtime, handshakes) = handshakes(2);
        let begun = Rc::new(RefCell::new(Vec::new()));
        runtime
            .block_on(async {
                for index in 0..7 {
                    let (handshakes, begun, runtime) = (handshakes.clone(), begun.clone(), runtime.clone());
                    let of = runtime.clone();
                    runtime.spawn(async move {
                        handshakes.begin().await;
                        begun.borrow_mut().push((index, of.turns()));
                    });
                }
                while begun.borrow().len() < 7 {
                    runtime.yield_now().await;
                }
            })
            .expect("a reactor");
        let begun = begun.borrow();
        let order: Vec<i32> = begun.iter().map(|(index, _)| *index).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6]);
        let in_turn = |turn| begun.iter().filter(|(_, at)| *at == turn).count();
        assert!(begun.iter().all(|(_, turn)| in_turn(*turn) <= 2), "{begun:?}");
    }

    #[test]
    fn one_that_gave_up_holds_nobody_up() {
        let (runtime, handshakes) = handshakes(1);
        runtime
            .block_on(async {
                handshakes.begin().await;
                let gives_up = handshakes.begin();
                let mut gives_up = Box::pin(gives_up);
                let polled = std::future::poll_fn(|cx| Poll::Ready(gives_up.as_mut().poll(cx).is_pending()));
                assert!(polled.await);
                drop(gives_up);
                handshakes.begin().await;
            })
            .expect("a reactor");
    }
}
