//! Lets a few begin in a turn of the worker's loop, and the rest in order in the turns that follow: what is costly must
//! not keep those waiting who are served already. Never refuses anybody.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::runtime::Runtime;

#[derive(Clone)]
pub struct Turnstile(Rc<Inner>);

struct Inner {
    runtime: Runtime,
    per_turn_max: Cell<u32>,
    /// The turn in which `passed` have passed.
    turn: Cell<u64>,
    passed: Cell<u32>,
    /// Those that wait, by number.
    queue: RefCell<VecDeque<(u64, Waker)>>,
    next_number: Cell<u64>,
    /// Somebody lets those through that wait.
    is_attended: Cell<bool>,
}

impl Turnstile {
    /// `per_turn_max`: at least 1.
    pub fn new(runtime: &Runtime, per_turn_max: u32) -> Self {
        Self(Rc::new(Inner {
            runtime: runtime.clone(),
            per_turn_max: Cell::new(per_turn_max.max(1)),
            turn: Cell::new(0),
            passed: Cell::new(0),
            queue: RefCell::default(),
            next_number: Cell::new(0),
            is_attended: Cell::new(false),
        }))
    }

    /// Changes the bound from the next turn on; at least 1.
    pub fn set_per_turn_max(&self, per_turn_max: u32) {
        self.0.per_turn_max.set(per_turn_max.max(1));
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.queue.borrow().len()
    }

    /// Waits for its turn.
    pub async fn pass(&self) {
        if self.0.pass_now() {
            return;
        }
        let mut place = Place { inner: &self.0, number: None };
        std::future::poll_fn(|cx| match place.number {
            Some(number) if place.inner.is_waiting(number) => Poll::Pending,
            Some(_) => Poll::Ready(()),
            None => {
                place.number = Some(self.enqueue(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }

    fn enqueue(&self, waker: Waker) -> u64 {
        let inner = &self.0;
        let number = inner.next_number.replace(inner.next_number.get() + 1);
        inner.queue.borrow_mut().push_back((number, waker));
        if !inner.is_attended.replace(true) {
            let this = self.clone();
            inner.runtime.spawn(async move { this.attend().await });
        }
        number
    }

    /// Lets as many pass in every turn as may, until nobody waits.
    async fn attend(&self) {
        let inner = &self.0;
        while self.waiting() > 0 {
            inner.runtime.yield_now().await;
            inner.new_turn();
            while inner.passed.get() < inner.per_turn_max.get() {
                let Some((_, waker)) = inner.queue.borrow_mut().pop_front() else { break };
                inner.passed.set(inner.passed.get() + 1);
                waker.wake();
            }
        }
        inner.is_attended.set(false);
    }
}

impl Inner {
    fn new_turn(&self) {
        let turn = self.runtime.turns();
        if self.turn.replace(turn) != turn {
            self.passed.set(0);
        }
    }

    /// Takes one of this turn's, unless others wait for them.
    fn pass_now(&self) -> bool {
        self.new_turn();
        let free = self.passed.get() < self.per_turn_max.get() && self.queue.borrow().is_empty();
        if free {
            self.passed.set(self.passed.get() + 1);
        }
        free
    }

    fn is_waiting(&self, number: u64) -> bool {
        self.queue.borrow().front().is_some_and(|(first, _)| *first <= number)
    }
}

/// A place in the queue. One that gives up leaves it.
struct Place<'a> {
    inner: &'a Inner,
    number: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut queue = self.inner.queue.borrow_mut();
            if let Ok(at) = queue.binary_search_by_key(&number, |(number, _)| *number) {
                queue.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{EngineChoice, RingSizes};

    fn turnstile(per_turn_max: u32) -> (Runtime, Turnstile) {
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, RingSizes::default()).expect("epoll");
        let turnstile = Turnstile::new(&runtime, per_turn_max);
        (runtime, turnstile)
    }

    #[test]
    fn no_more_pass_in_a_turn_than_may_and_the_rest_follow_in_order() {
        let (runtime, turnstile) = turnstile(2);
        let passed = Rc::new(RefCell::new(Vec::new()));
        runtime
            .block_on(async {
                for index in 0..7 {
                    let (turnstile, passed, runtime) = (turnstile.clone(), passed.clone(), runtime.clone());
                    let of = runtime.clone();
                    runtime.spawn(async move {
                        turnstile.pass().await;
                        passed.borrow_mut().push((index, of.turns()));
                    });
                }
                while passed.borrow().len() < 7 {
                    runtime.yield_now().await;
                }
            })
            .expect("a reactor");
        let passed = passed.borrow();
        let order: Vec<i32> = passed.iter().map(|(index, _)| *index).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6]);
        let in_turn = |turn| passed.iter().filter(|(_, at)| *at == turn).count();
        assert!(passed.iter().all(|(_, turn)| in_turn(*turn) <= 2), "{passed:?}");
    }

    #[test]
    fn one_that_gives_up_leaves_the_queue() {
        let (runtime, turnstile) = turnstile(1);
        runtime
            .block_on(async {
                turnstile.pass().await;
                let mut gives_up = Box::pin(turnstile.pass());
                let mut waits = Box::pin(turnstile.pass());
                std::future::poll_fn(|cx| {
                    assert!(gives_up.as_mut().poll(cx).is_pending());
                    assert!(waits.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                assert_eq!(turnstile.waiting(), 2);
                drop(gives_up);
                assert_eq!(turnstile.waiting(), 1);
                waits.await;
                turnstile.pass().await;
                assert_eq!(turnstile.waiting(), 0);
            })
            .expect("a reactor");
    }
}
