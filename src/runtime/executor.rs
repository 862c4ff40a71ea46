//! Single-threaded executor: a slab of tasks and a queue of those to run. Never blocks, never looks at a clock.
//!
//! A waker is the task's key, nothing more: cloning and dropping one is free, and a late one finds no task. The
//! ready queue belongs to the thread; a waker used on another thread marks a task of that thread ready, which is
//! a wasted poll there and nothing worse.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::base::slab::{GENERATION_BITS, Key, Slab};

type Task = Pin<Box<dyn Run>>;

/// Bytes of tasks of one type that wait for the next of them. Those that come in bursts of more allocate.
const RESTING_BYTES_MAX: usize = 8 << 20;

/// A task, in memory that outlives it.
trait Run {
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()>;
    /// Drops the task, and keeps its memory for the next of its type where there is room.
    fn rest(self: Pin<Box<Self>>, resting: &RefCell<Resting>);
}

impl<F: Future<Output = ()> + 'static> Run for Option<F> {
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.as_pin_mut().map_or(Poll::Ready(()), |future| future.poll(context))
    }

    fn rest(mut self: Pin<Box<Self>>, resting: &RefCell<Resting>) {
        // With nothing borrowed: what the task owned may wake or spawn others.
        self.set(None);
        if let Some(memory) = resting
            .borrow_mut()
            .of::<F>()
            .filter(|memory| memory.len() * size_of::<Self>() < RESTING_BYTES_MAX)
        {
            memory.push(self);
        }
    }
}

type Memory<F> = Vec<Pin<Box<Option<F>>>>;

/// Memory of tasks that have ended, by type: only of those that come and go with requests.
#[derive(Default)]
struct Resting(Vec<(TypeId, Box<dyn Any>)>);

impl Resting {
    /// `None` where tasks of this type are allocated each.
    fn of<F: 'static>(&mut self) -> Option<&mut Memory<F>> {
        let (_, memory) = self.0.iter_mut().find(|(id, _)| *id == TypeId::of::<F>())?;
        memory.downcast_mut()
    }
}

/// The waker's data of the task that `block_on` runs.
const MAIN: usize = usize::MAX;

thread_local! {
    static READY: RefCell<Ready> = const { RefCell::new(Ready { queue: VecDeque::new(), fresh: VecDeque::new(), queued: Vec::new() }) };
    static MAIN_READY: Cell<bool> = const { Cell::new(false) };
}

struct Ready {
    queue: VecDeque<Key>,
    /// Tasks that begin with what is there already, such as the sessions of new connections: they go in the turn they were
    /// spawned in.
    fresh: VecDeque<Key>,
    /// By task index: the generation queued plus one, or 0. A task stands in one of the queues once.
    queued: Vec<u32>,
}

impl Ready {
    fn push(&mut self, key: Key) {
        if self.mark(key) {
            self.queue.push_back(key);
        }
    }

    fn push_fresh(&mut self, key: Key) {
        if self.mark(key) {
            self.fresh.push_back(key);
        }
    }

    /// Whether it stood in no queue.
    fn mark(&mut self, key: Key) -> bool {
        let index = key.index as usize;
        if index >= self.queued.len() {
            self.queued.resize(index + 1, 0);
        }
        std::mem::replace(&mut self.queued[index], key.generation + 1) != key.generation + 1
    }

    fn pop(&mut self) -> Option<Key> {
        let key = self.queue.pop_front()?;
        self.queued[key.index as usize] = 0;
        Some(key)
    }

    fn pop_fresh(&mut self) -> Option<Key> {
        let key = self.fresh.pop_front()?;
        self.queued[key.index as usize] = 0;
        Some(key)
    }

    fn len(&self) -> usize {
        self.queue.len() + self.fresh.len()
    }
}

#[derive(Default)]
pub(super) struct Executor {
    /// `None` while the task is being polled.
    tasks: RefCell<Slab<Option<Task>>>,
    resting: RefCell<Resting>,
}

impl Executor {
    pub(super) fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Starts a task, in this turn where it comes from another task.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let key = self.tasks.borrow_mut().insert(Some(Box::pin(Some(task))));
        READY.with_borrow_mut(|ready| ready.push_fresh(key));
    }

    /// Starts one of the tasks that come and go with requests, in the next turn: the memory of one that ended serves another.
    // Inlined, and told how to make the task: so it is made where it will be, and not copied there as a whole.
    #[inline(always)]
    pub(super) fn spawn_often<F: Future<Output = ()> + 'static>(&self, make: impl FnOnce() -> F) {
        let mut memory = self.memory();
        memory.set(Some(make()));
        let key = self.tasks.borrow_mut().insert(Some(memory));
        READY.with_borrow_mut(|ready| ready.push(key));
    }

    /// Memory for a task.
    fn memory<F: 'static>(&self) -> Pin<Box<Option<F>>> {
        let mut resting = self.resting.borrow_mut();
        if let Some(memory) = resting.of::<F>() {
            return memory.pop().unwrap_or_else(|| Box::pin(None));
        }
        resting.0.push((TypeId::of::<F>(), Box::new(Memory::<F>::new())));
        Box::pin(None)
    }

    /// Polls each task that is ready now once, then those that these spawned; how many. What they wake runs in the next call,
    /// so a turn is bounded.
    pub(super) fn run_ready(&self) -> usize {
        let count = READY.with_borrow(|ready| ready.queue.len());
        for _ in 0..count {
            let Some(key) = READY.with_borrow_mut(Ready::pop) else { break };
            self.run(key);
        }
        let fresh = READY.with_borrow(|ready| ready.fresh.len());
        for _ in 0..fresh {
            let Some(key) = READY.with_borrow_mut(Ready::pop_fresh) else { break };
            self.run(key);
        }
        count + fresh
    }

    fn run(&self, key: Key) {
        let Some(mut task) = self.tasks.borrow_mut().get_mut(key).and_then(Option::take) else { return };
        let waker = waker(key);
        let done = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if done {
            self.tasks.borrow_mut().remove(key);
            task.rest(&self.resting);
        } else if let Some(slot) = self.tasks.borrow_mut().get_mut(key) {
            *slot = Some(task);
        }
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
        self.resting.take();
        READY.with_borrow_mut(|ready| {
            ready.queue.clear();
            ready.fresh.clear();
            ready.queued.clear();
        });
    }
}

/// Tasks that are ready, not counting the one that `block_on` runs.
pub(super) fn ready() -> usize {
    READY.with_borrow(Ready::len)
}

pub(super) fn anything_ready() -> bool {
    MAIN_READY.get() || ready() > 0
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

    #[test]
    fn memory_of_a_task_that_ended_serves_the_next_of_its_type() {
        let executor = Executor::default();
        struct Counted(Rc<Cell<u32>>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = Rc::new(Cell::new(0));
        let task = |counted: Counted| async move {
            let _counted = &counted;
        };
        fn resting<F: 'static>(executor: &Executor, _: &impl Fn(Counted) -> F) -> usize {
            executor.resting.borrow_mut().of::<F>().map_or(0, |memory| memory.len())
        }
        for round in 1..=3 {
            executor.spawn_often(|| task(Counted(drops.clone())));
            assert_eq!(resting(&executor, &task), 0);
            executor.run_ready();
            assert_eq!((drops.get(), executor.len(), resting(&executor, &task)), (round, 0, 1));
        }
        executor.clear();
    }

    #[test]
    fn a_task_woken_twice_runs_once_and_a_late_waker_is_harmless() {
        let executor = Executor::default();
        let polls = Rc::new(Cell::new(0));
        let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
        let (polls_in_task, kept_in_task) = (polls.clone(), kept.clone());
        executor.spawn(std::future::poll_fn(move |cx| {
            polls_in_task.set(polls_in_task.get() + 1);
            kept_in_task.replace(Some(cx.waker().clone()));
            if polls_in_task.get() == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        executor.run_ready();
        let waker = kept.take().expect("the waker of the first poll");
        waker.wake_by_ref();
        waker.wake_by_ref();
        executor.run_ready();
        assert_eq!((polls.get(), executor.len()), (2, 0));
        // The slot has a new tenant; the old tenant's waker does not touch it.
        executor.spawn(std::future::pending());
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
        executor.spawn(std::future::poll_fn(move |cx| {
            seen.set(seen.get() + 1);
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        executor.run_ready();
        assert_eq!(polls.get(), 1);
        assert!(anything_ready());
        executor.clear();
    }
}
