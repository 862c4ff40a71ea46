//! Deadlines, the time that tasks see, and the mailbox.

use super::streams::first;
use super::*;

#[test]
fn u1_a_deadline_fires_though_no_completion_ever_comes() {
    on_engines(|runtime| {
        let (accepting, _) = listener();
        runtime.play(async {
            let (silent, _peer) = pair(runtime);
            let (stalled, _never_reads) = pair(runtime);
            stalled.send(&pattern(1, 8_000_000), false);
            let listener = Listener::new(runtime, accepting);
            let limited = async |milliseconds| {
                let deadline = runtime.deadline();
                deadline.set(runtime.now() + Duration::from_millis(milliseconds));
                deadline
            };
            assert!(limited(3).await.within(silent.recv()).await.is_err());
            assert!(limited(3).await.within(stalled.sent(0)).await.is_err());
            assert!(limited(3).await.within(listener.accept()).await.is_err());
            let hung_up = std::future::poll_fn(|cx| silent.poll_hung_up(cx));
            assert!(limited(3).await.within(hung_up).await.is_err());
            // The wait lasted as long as it should: no less, and not for ever.
            let before = clock::now();
            assert!(limited(20).await.within(silent.recv()).await.is_err());
            assert!(clock::now().since(before) >= Duration::from_millis(19));
        });
    });
}

#[test]
fn a_deadline_moved_while_its_task_waits_fires_at_the_new_time() {
    on_engines(|runtime| {
        runtime.play(async {
            let deadline = RefCell::new(runtime.deadline());
            deadline.borrow_mut().set(runtime.now() + Duration::from_secs(3_600));
            runtime.sleep_until(runtime.now() + Duration::from_millis(2)).await;
            let waiting = std::future::poll_fn(|cx| deadline.borrow().poll_past(cx));
            let moving = async {
                runtime.yield_now().await;
                deadline.borrow_mut().set(runtime.now() + Duration::from_millis(2));
            };
            first(waiting, moving).await;
            assert!(deadline.borrow().is_past());
        });
    });
}

#[test]
fn the_first_task_sees_the_time_at_which_it_starts() {
    on_engines(|runtime| {
        let before = clock::now();
        let seen = runtime.play(async { runtime.now() });
        assert!(seen >= before, "the time of the set-up is {:?} old", before.since(seen));
    });
}

#[test]
fn a_mailbox_wakes_its_worker_from_another_thread_each_time() {
    on_engines(|runtime| {
        let (mailbox, waker) = Mailbox::new(runtime).expect("mailbox");
        let (letters, inbox) = std::sync::mpsc::channel();
        let writing = std::thread::spawn(move || {
            for letter in 0..200u32 {
                letters.send(letter).expect("send");
                waker.wake();
            }
        });
        let read = runtime.play(async {
            let mut read = Vec::new();
            while read.len() < 200 {
                mailbox.notified().await;
                read.extend(inbox.try_iter());
            }
            read
        });
        writing.join().expect("writer");
        assert_eq!(read, (0..200).collect::<Vec<u32>>());
    });
}

#[test]
fn a_task_that_ends_the_runtime_may_leave_others_and_what_they_spawn_behind() {
    struct SpawnsWhenDropped(Runtime);
    impl Drop for SpawnsWhenDropped {
        fn drop(&mut self) {
            self.0.spawn(std::future::pending());
        }
    }
    on_engines(|runtime| {
        runtime.play(async {
            let held = SpawnsWhenDropped(runtime.clone());
            runtime.spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
            runtime.yield_now().await;
        });
        assert_eq!(runtime.tasks(), 0, "a task that owns its runtime keeps it for ever");
    });
}

#[test]
fn a_task_begins_in_the_turn_it_was_spawned_in_and_what_it_spawns_in_the_next() {
    on_engines(|runtime| {
        runtime.play(async {
            let turns = Rc::new(RefCell::new(Vec::new()));
            let note = || {
                let (runtime, turns) = (runtime.clone(), turns.clone());
                move || turns.borrow_mut().push(runtime.turns())
            };
            let (parent, child, grandchild) = (note(), note(), note());
            let (of_parent, of_child) = (runtime.clone(), runtime.clone());
            runtime.spawn(async move {
                of_parent.yield_now().await;
                parent();
                of_parent.spawn(async move {
                    child();
                    of_child.spawn(async move { grandchild() });
                });
            });
            runtime.until(|| turns.borrow().len() == 3).await;
            let first = turns.borrow()[0];
            assert_eq!(*turns.borrow(), [first, first, first + 1]);
        });
    });
}

#[test]
fn leisure_is_when_no_other_task_is_ready() {
    on_engines(|runtime| {
        runtime.play(async {
            let busy = Rc::new(Cell::new(100));
            let works = busy.clone();
            let worker = runtime.clone();
            runtime.spawn(async move {
                while works.get() > 0 {
                    works.set(works.get() - 1);
                    worker.yield_now().await;
                }
            });
            runtime.leisure().await;
            assert_eq!(busy.get(), 0);
            // Nobody waits for long where there is nothing to do.
            let before = runtime.turns();
            runtime.leisure().await;
            assert!(runtime.turns() - before <= 3, "{} turns", runtime.turns() - before);
            // One that is given up leaves nothing behind that would keep the thread awake.
            let soon = runtime.deadline();
            soon.set(runtime.now() + Duration::from_millis(2));
            first(runtime.leisure(), soon.within(std::future::pending::<()>())).await;
            // Nor does it come because something else woke the task.
            let (works, worker) = (Rc::new(Cell::new(true)), runtime.clone());
            let stops = works.clone();
            runtime.spawn(async move {
                while works.get() {
                    worker.yield_now().await;
                }
            });
            soon.set(runtime.now() + Duration::from_millis(2));
            assert!(soon.within(runtime.leisure()).await.is_err());
            stops.set(false);
            let before = runtime.turns();
            runtime.sleep_until(runtime.now() + Duration::from_millis(20)).await;
            assert!(runtime.turns() - before <= 30, "{} turns", runtime.turns() - before);
        });
    });
}
