//! The per-core runtime: one thread, one executor, one reactor, one set of buffers and timers. Nothing in it is
//! shared with another thread except the eventfd of its mailbox.
//!
//! A turn: run the tasks that are ready, fire timers, enter the kernel once (submit and wait), reap what it
//! reports, wake the tasks concerned.

mod buffers;
mod executor;
mod gaps;
mod net;
mod reactor;
mod recycle;
mod syscalls;
mod timer;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::base::time::Instant;
use crate::base::timer_wheel::TimerWheel;
use crate::sys::clock;

pub use buffers::{BufMaker, BufferStats, RecvBuf};
use executor::Executor;
use gaps::Gaps;
pub use net::{Incoming, Listener, Mailbox, MailboxWaker, Socket};
use reactor::Reactor;
pub use reactor::{Engine, EngineChoice, EngineReport, ReactorStats, RingSizes};
pub use reactor::{Refusal, Release, multishot_receive_is_fair, parse_release, probe};
pub use recycle::Recycler;
pub use timer::{Deadline, TimedOut};

/// Longest wait of a reactor with no timer set. Only a bound: every event interrupts it.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Handle to the runtime of this thread. Cheap to clone, never leaves its thread.
#[derive(Clone)]
pub struct Runtime(Rc<Inner>);

struct Inner {
    executor: Executor,
    reactor: RefCell<Reactor>,
    timers: RefCell<TimerWheel<Option<std::task::Waker>>>,
    now: Cell<Instant>,
    turns: Cell<u64>,
    /// Longest time between two entries into the kernel since it was last asked for.
    gap_max: Cell<Duration>,
    gaps: Gaps,
    /// When the oldest work of this turn may have come.
    oldest: Cell<Instant>,
    /// When all that was ready was last seen.
    looked: Cell<Instant>,
    /// When nothing waited to be done, the last time.
    emptied: Cell<Instant>,
    /// Tasks that run when no other is ready.
    at_leisure: RefCell<Vec<std::task::Waker>>,
    /// Looks that found nothing to do.
    leisures: Cell<u64>,
    /// Bytes that sessions hold beside receive buffers.
    charged: Cell<usize>,
}

impl Runtime {
    /// Sets up the reactor on the calling thread, which from then on is the only one that may use it.
    ///
    /// # Errors
    /// Where the engine asked for cannot be had; `EngineChoice::Auto` falls back to epoll instead.
    pub fn new(choice: EngineChoice, sizes: RingSizes) -> io::Result<(Self, EngineReport)> {
        let (reactor, report) = Reactor::new(choice, sizes)?;
        Ok((Self::over(reactor), report))
    }

    fn over(reactor: Reactor) -> Self {
        let now = clock::now();
        let inner = Inner {
            executor: Executor::default(),
            reactor: RefCell::new(reactor),
            timers: RefCell::new(TimerWheel::new(now)),
            now: Cell::new(now),
            turns: Cell::new(0),
            gap_max: Cell::new(Duration::ZERO),
            gaps: Gaps::default(),
            oldest: Cell::new(now),
            looked: Cell::new(now),
            emptied: Cell::new(now),
            at_leisure: RefCell::default(),
            leisures: Cell::new(0),
            charged: Cell::new(0),
        };
        Self(Rc::new(inner))
    }

    /// The time at the start of this turn.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// Starts a task. It runs when this one waits.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    /// As `spawn`, for tasks that come and go with requests: each is given the memory of one of its type that ended.
    #[inline(always)]
    pub fn spawn_often<F: Future<Output = ()> + 'static>(&self, make: impl FnOnce() -> F) {
        self.0.executor.spawn_often(make);
    }

    /// Has every task polled once more, to look at what changed for all of them.
    pub fn wake_tasks(&self) {
        self.0.executor.wake_all();
    }

    /// Has every socket that is dropped from now on end with RST: what was cut off must not look whole.
    pub fn cut_off(&self) {
        self.0.reactor.borrow().reset_all_on_close();
    }

    /// Tasks alive, not counting the one that `block_on` runs.
    pub fn tasks(&self) -> usize {
        self.0.executor.len()
    }

    /// Runs `main`, and with it every spawned task, until `main` ends. Tasks still alive then are dropped.
    pub fn block_on<T>(&self, main: impl Future<Output = T>) -> io::Result<T> {
        let mut main = pin!(main);
        let waker = executor::main_waker();
        executor::wake_main();
        self.0.now.set(clock::now());
        let output = loop {
            if executor::take_main()
                && let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker))
            {
                break Ok(output);
            }
            let polls = self.0.executor.run_ready();
            if let Err(error) = self.turn(polls + 1) {
                break Err(error);
            }
        };
        // Also after an error: tasks own the runtime that owns them.
        self.0.executor.clear();
        self.0.reactor.borrow_mut().close_waiting();
        output
    }

    /// Lets every other ready task and the reactor have a turn.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Lets everybody else have turns until a look at the kernel finds nothing to do.
    pub async fn leisure(&self) {
        let mut since = None;
        std::future::poll_fn(|cx| {
            let leisures = self.0.leisures.get();
            if *since.get_or_insert(leisures) != leisures {
                return Poll::Ready(());
            }
            let mut waiting = self.0.at_leisure.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn turn(&self, polls: usize) -> io::Result<()> {
        let inner = &*self.0;
        let before = clock::now();
        let gap = before.since(inner.now.get());
        if gap > inner.gap_max.get() {
            inner.gap_max.set(gap);
        }
        let wait = if executor::anything_ready()
            || !inner.at_leisure.borrow().is_empty()
            || inner.reactor.borrow().is_closing()
        {
            Duration::ZERO
        } else {
            let deadline = inner.timers.borrow().next_deadline();
            deadline.map_or(WAIT_MAX, |deadline| deadline.since(before).min(WAIT_MAX))
        };
        let saw_all = inner.reactor.borrow_mut().turn(wait)?;
        let now = clock::now();
        let late = if wait.is_zero() { Duration::ZERO } else { now.since(before + wait) };
        inner.gaps.note(now, gap, polls, late);
        self.note_queue(before, now, !wait.is_zero(), saw_all);
        inner.now.set(now);
        inner.turns.set(inner.turns.get() + 1);
        inner.timers.borrow_mut().advance(now, |waker| {
            if let Some(waker) = waker {
                waker.wake_by_ref();
            }
        });
        if !executor::anything_ready() {
            inner.leisures.set(inner.leisures.get() + 1);
            inner.at_leisure.borrow_mut().drain(..).for_each(std::task::Waker::wake);
        }
        Ok(())
    }

    /// Finds how long what is ready now may have waited. The kernel was entered at `before`.
    fn note_queue(&self, before: Instant, now: Instant, could_wait: bool, saw_all: bool) {
        /// Waiting, or sending and receiving for so many tasks? No task's share of an entry takes so long.
        const ENTRY_OF_A_TASK: Duration = Duration::from_micros(200);
        /// What came within so short a turn did not wait worth mentioning.
        const SHORT: Duration = Duration::from_millis(2);
        let inner = &*self.0;
        // What came while the last turn's tasks ran, or while the thread stood still, came after the last whole look.
        let looked = inner.looked.get();
        inner.oldest.set(looked);
        if !saw_all {
            return;
        }
        inner.looked.set(now);
        let tasks = u32::try_from(executor::ready()).unwrap_or(u32::MAX);
        if could_wait && now.since(before) > ENTRY_OF_A_TASK.saturating_mul(tasks.saturating_add(1)) {
            inner.oldest.set(now);
            inner.emptied.set(now);
        } else if now.since(looked) < SHORT {
            inner.emptied.set(now);
        }
    }

    /// When the oldest work that is ready now may have come, and when the thread last had none to do.
    pub fn queue_facts(&self) -> (Instant, Instant) {
        (self.0.oldest.get(), self.0.emptied.get())
    }

    pub fn engine(&self) -> Engine {
        self.0.reactor.borrow().engine()
    }

    /// Turns of the loop since the start.
    pub fn turns(&self) -> u64 {
        self.0.turns.get()
    }

    /// Turns since the start, and the longest time spent in one (tasks, not waiting) since this was last called.
    pub fn take_loop_facts(&self) -> (u64, Duration) {
        (self.0.turns.get(), self.0.gap_max.replace(Duration::ZERO))
    }

    /// Calls `take` with each gap since the last call: time in which the loop stood still without a reason of its own.
    /// All of them since the start, together.
    pub fn take_gaps(&self, take: impl FnMut(Duration)) -> Duration {
        self.0.gaps.take(take)
    }

    /// Whether a deadline that is seen to have passed in this turn, after `waited`, says more of this thread, which stood
    /// still, than of whom it was set for.
    pub fn excuses(&self, waited: Duration) -> bool {
        self.0.gaps.excuse(self.now(), waited)
    }

    pub fn reactor_stats(&self) -> ReactorStats {
        self.0.reactor.borrow().stats()
    }

    pub fn buffer_stats(&self) -> BufferStats {
        self.0.reactor.borrow().buffer_stats()
    }

    /// Counts memory that a session grew by, beside receive buffers, against the worker's budget.
    pub fn charge(&self, bytes: usize) {
        self.0.charged.set(self.0.charged.get() + bytes);
    }

    /// Takes back what was charged.
    pub fn discharge(&self, bytes: usize) {
        self.0.charged.set(self.0.charged.get() - bytes);
    }

    pub fn charged(&self) -> usize {
        self.0.charged.get()
    }

    /// A receive buffer with nothing in it.
    pub fn empty_buffer(&self) -> RecvBuf {
        self.0.reactor.borrow().empty_buffer()
    }

    /// An empty buffer to write into, recycled; give it back with `put_block`.
    pub fn take_block(&self) -> Vec<u8> {
        self.0.reactor.borrow_mut().take_block()
    }

    pub fn put_block(&self, block: Vec<u8>) {
        self.0.reactor.borrow_mut().put_block(block);
    }
}

#[cfg(test)]
mod tests;
