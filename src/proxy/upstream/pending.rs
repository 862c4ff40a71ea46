//! Requests that wait for a connection of their cluster, all of which are in use. First come, first served: who comes later
//! waits behind those who wait. Who is called looks at once, and has left by the time it waits for anything else, such as a
//! connect: nobody waits behind that. Never counts connections: it is told when one may be free.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Those who wait, of one cluster.
#[derive(Default)]
pub(super) struct Pending {
    line: RefCell<VecDeque<Rc<Waiter>>>,
    /// A call came while everybody in line had been called.
    missed: Cell<bool>,
}

#[derive(Default)]
struct Waiter {
    state: Cell<State>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum State {
    #[default]
    Waiting,
    Called,
    /// It was called and tries; where it fails it waits again, at its place.
    Trying,
}

/// A place in the line, until it is dropped.
pub(super) struct Place<'a> {
    pending: &'a Pending,
    waiter: Rc<Waiter>,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.line.borrow().len()
    }

    /// The last place.
    pub(super) fn join(&self) -> Place<'_> {
        let waiter = Rc::<Waiter>::default();
        self.line.borrow_mut().push_back(waiter.clone());
        Place { pending: self, waiter }
    }

    /// A connection may be free, or may be made: calls the first that was not called yet.
    pub(super) fn call_one(&self) {
        let line = self.line.borrow();
        match line.iter().find(|waiter| waiter.state.get() == State::Waiting) {
            Some(waiter) => {
                waiter.state.set(State::Called);
                waiter.waker.take().into_iter().for_each(Waker::wake);
            }
            None => self.missed.set(!line.is_empty()),
        }
    }
}

impl Place<'_> {
    /// Waits to be called; once for each call.
    pub(super) async fn called(&self) {
        let state = &self.waiter.state;
        if state.get() == State::Trying && !self.pending.missed.take() {
            state.set(State::Waiting);
        }
        poll_fn(|cx| {
            if state.get() == State::Waiting {
                self.waiter.waker.replace(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            state.set(State::Trying);
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pending.line.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        // There may be room for more than one, or a call came for who does not need it any more: the next is to look.
        self.pending.call_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    fn is_called(place: &Place<'_>) -> bool {
        pin!(place.called()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_came_first_is_called_first() {
        let pending = Pending::default();
        let (first, second, third) = (pending.join(), pending.join(), pending.join());
        pending.call_one();
        pending.call_one();
        assert!(!is_called(&third) && is_called(&second) && is_called(&first));
        assert!(!is_called(&first), "a call counts once");
        pending.call_one();
        assert!(is_called(&first), "who stays in line keeps its place");
        drop((first, second));
        assert!(is_called(&third), "who leaves calls the next");
        drop(third);
        pending.call_one();
        assert_eq!((pending.len(), pending.missed.get()), (0, false));
    }

    #[test]
    fn a_call_to_one_who_leaves_goes_to_the_next() {
        let pending = Pending::default();
        let (first, second) = (pending.join(), pending.join());
        pending.call_one();
        drop(first);
        assert!(is_called(&second));
    }

    #[test]
    fn a_call_that_comes_while_all_try_is_not_lost() {
        let pending = Pending::default();
        let first = pending.join();
        pending.call_one();
        assert!(is_called(&first));
        pending.call_one();
        assert!(is_called(&first), "it came while it tried");
        assert!(!is_called(&first));
    }
}
