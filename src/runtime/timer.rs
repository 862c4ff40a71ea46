//! Deadlines of a task, on the worker's wheel. One `Deadline` serves a session for its whole life: moving it
//! later costs one store.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

use crate::base::slab::Key;
use crate::base::time::Instant;

use super::Runtime;

/// The deadline came before the result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TimedOut;

/// A timer of one task. Off until `set`.
pub struct Deadline {
    runtime: Runtime,
    /// On the wheel, once somebody waited.
    key: Cell<Key>,
    due: Cell<Instant>,
}

impl Runtime {
    pub fn deadline(&self) -> Deadline {
        Deadline { runtime: self.clone(), key: Cell::new(Key::NONE), due: Cell::new(Instant::FAR) }
    }

    /// Waits until `due`.
    pub async fn sleep_until(&self, due: Instant) {
        let deadline = self.deadline();
        deadline.set(due);
        let _: Result<(), TimedOut> = deadline.within(std::future::pending()).await;
    }
}

impl Deadline {
    pub fn set(&self, due: Instant) {
        if self.due.replace(due) != due && self.key.get() != Key::NONE {
            self.runtime.0.timers.borrow_mut().set(self.key.get(), due);
        }
    }

    pub fn off(&self) {
        self.set(Instant::FAR);
    }

    pub const fn due(&self) -> Instant {
        self.due.get()
    }

    pub fn is_past(&self) -> bool {
        self.runtime.now() >= self.due.get()
    }

    /// `Ready` once the deadline has passed; else has the task woken when it does.
    pub fn poll_past(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_past() {
            return Poll::Ready(());
        }
        let mut timers = self.runtime.0.timers.borrow_mut();
        if self.key.get() == Key::NONE {
            self.key.set(timers.add(None));
        }
        let key = self.key.get();
        // Another wait on this timer may have fired and turned the wheel's entry off before it was due again.
        if timers.due(key) != self.due.get() {
            timers.set(key, self.due.get());
        }
        if let Some(waker) = timers.value_mut(key) {
            match waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }

    /// Runs `future` until the deadline. A result that is there wins over a deadline that has passed.
    pub async fn within<T>(&self, future: impl Future<Output = T>) -> Result<T, TimedOut> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_past(cx).map(|()| Err(TimedOut)),
        })
        .await
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if self.key.get() != Key::NONE {
            self.runtime.0.timers.borrow_mut().remove(self.key.get());
        }
    }
}
