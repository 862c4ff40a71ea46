//! Single-threaded executor: a slab of tasks and a queue of those to run. Never blocks, never looks at a clock.
//!
//! A waker is the task's key, nothing more: cloning and dropping one is free, and a late one finds no task. The
//! ready queue belongs to the thread; a waker used on another thread marks a task of that thread ready, which is
//! a wasted poll there and nothing worse.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, RawWaker, RawWakerVTable, Waker};

use crate::base::slab::{GENERATION_BITS, Key, Slab};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The waker's data of the task that `block_on` runs.
const MAIN: usize = usize::MAX;

thread_local! {
    static READY: RefCell<Ready> = const { RefCell::new(Ready { queue: VecDeque::new(), queued: Vec::new() }) };
    static MAIN_READY: Cell<bool> = const { Cell::new(false) };
}

struct Ready {
    queue: VecDeque<Key>,
    /// By task index: the generation queued plus one, or 0. A task stands in the queue once.
    queued: Vec<u32>,
}

impl Ready {
    fn push(&mut self, key: Key) {
        let index = key.index as usize;
        if index >= self.queued.len() {
            self.queued.resize(index + 1, 0);
        }
        if self.queued[index] != key.generation + 1 {
            self.queued[index] = key.generation + 1;
            self.queue.push_back(key);
        }
    }

    fn pop(&mut self) -> Option<Key> {
        let key = self.queue.pop_front()?;
        self.queued[key.index as usize] = 0;
        Some(key)
    }
}

#[derive(Default)]
pub(super) struct Executor {
    /// `None` while the task is being polled.
    tasks: RefCell<Slab<Option<Task>>>,
}

impl Executor {
    pub(super) fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    pub(super) fn spawn(&self, task: Task) {
        let key = self.tasks.borrow_mut().insert(Some(task));
        READY.with_borrow_mut(|ready| ready.push(key));
    }

    /// Polls each task that is ready now once; how many. What they wake runs in the next call, so a turn is bounded.
    pub(super) fn run_ready(&self) -> usize {
        let count = READY.with_borrow(|ready| ready.queue.len());
        for _ in 0..count {
            let Some(key) = READY.with_borrow_mut(Ready::pop) else { break };
            let Some(mut task) = self.tasks.borrow_mut().get_mut(key).and_then(Option::take) else {
                continue;
            };
            let waker = waker(key);
            let done = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            if done {
                self.tasks.borrow_mut().remove(key);
                // Dropped with no borrow held: what the task owned may wake or spawn others.
                drop(task);
            } else if let Some(slot) = self.tasks.borrow_mut().get_mut(key) {
                *slot = Some(task);
            }
        }
        count
    }

    /// Has every task polled.
    pub(super) fn wake_all(&self) {
        let tasks = self.tasks.borrow();
        READY.with_borrow_mut(|ready| tasks.iter().for_each(|(key, _)| ready.push(key)));
    }

    /// Drops every task, and those that their destructors spawn.
    pub(super) fn clear(&self) {
        while self.len() > 0 {
            drop(self.tasks.take());
        }
        READY.with_borrow_mut(|ready| {
            ready.queue.clear();
            ready.queued.clear();
        });
    }
}

/// Tasks that are ready, not counting the one that `block_on` runs.
pub(super) fn ready() -> usize {
    READY.with_borrow(|ready| ready.queue.len())
}

pub(super) fn anything_ready() -> bool {
    MAIN_READY.get() || READY.with_borrow(|ready| !ready.queue.is_empty())
}

pub(super) fn wake_main() {
    MAIN_READY.set(true);
}

pub(super) fn take_main() -> bool {
    MAIN_READY.replace(false)
}

pub(super) fn main_waker() -> Waker {
    // SAFETY: the functions of VTABLE take any data word and dereference nothing, so every word is valid data.
    unsafe { Waker::new(MAIN as *const (), &VTABLE) }
}

fn waker(key: Key) -> Waker {
    let word = key.index as usize | (key.generation as usize) << 32;
    // SAFETY: as in `main_waker`: the vtable treats the word as a number.
    unsafe { Waker::new(word as *const (), &VTABLE) }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, drop_nothing);

const fn clone(word: *const ()) -> RawWaker {
    RawWaker::new(word, &VTABLE)
}

fn wake(word: *const ()) {
    let word = word as usize;
    if word == MAIN {
        MAIN_READY.set(true);
        return;
    }
    let key = Key { index: word as u32, generation: (word >> 32) as u32 };
    // A destructor that runs while the thread ends finds no queue, and nothing that would run from it.
    let _ = READY.try_with(|ready| ready.borrow_mut().push(key));
}

const fn drop_nothing(_: *const ()) {}

const _: () = assert!(size_of::<usize>() == 8, "a waker packs index and generation into one word");
const _: () = assert!(GENERATION_BITS <= 31, "a task's word never equals MAIN");

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::task::Poll;

    #[test]
    fn a_task_woken_twice_runs_once_and_a_late_waker_is_harmless() {
        let executor = Executor::default();
        let polls = Rc::new(Cell::new(0));
        let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
        let (polls_in_task, kept_in_task) = (polls.clone(), kept.clone());
        executor.spawn(Box::pin(std::future::poll_fn(move |cx| {
            polls_in_task.set(polls_in_task.get() + 1);
            kept_in_task.replace(Some(cx.waker().clone()));
            if polls_in_task.get() == 2 { Poll::Ready(()) } else { Poll::Pending }
        })));
        executor.run_ready();
        let waker = kept.take().expect("the waker of the first poll");
        waker.wake_by_ref();
        waker.wake_by_ref();
        executor.run_ready();
        assert_eq!((polls.get(), executor.len()), (2, 0));
        // The slot has a new tenant; the old tenant's waker does not touch it.
        executor.spawn(Box::pin(std::future::pending()));
        executor.run_ready();
        waker.wake();
        executor.run_ready();
        assert_eq!((polls.get(), executor.len()), (2, 1));
        executor.clear();
    }

    #[test]
    fn a_task_that_wakes_itself_leaves_the_turn_bounded() {
        let executor = Executor::default();
        let polls = Rc::new(Cell::new(0));
        let seen = polls.clone();
        executor.spawn(Box::pin(std::future::poll_fn(move |cx| {
            seen.set(seen.get() + 1);
            cx.waker().wake_by_ref();
            Poll::Pending
        })));
        executor.run_ready();
        assert_eq!(polls.get(), 1);
        assert!(anything_ready());
        executor.clear();
    }
}
