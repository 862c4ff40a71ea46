//! Takes a CPU in slices: a thread of its own, pinned, above all ordinary threads. Ends by itself, and tells what it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{hint, io, thread};

use serde::Serialize;

use super::realtime;
use super::theft::Theft;
use crate::pin;

/// However long it is asked to run, it ends then.
pub const RUN_MAX: Duration = Duration::from_secs(3_600);

/// What was taken.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Taken {
    /// Share of the time within slices: what ordinary threads of that CPU could not have.
    pub held_ratio: f64,
    /// Share of the time on the CPU. Lower where threads above it ran in its slices.
    pub used_ratio: f64,
    /// The latest beginning of a slice.
    pub late_ms_max: f64,
}

/// A thread that takes; dropped, it ends.
pub struct Antagonist {
    thread: Option<thread::JoinHandle<io::Result<Taken>>>,
    stop: Arc<AtomicBool>,
}

impl Antagonist {
    /// Takes from `cpu` as `theft` has it, from `start` on for at most `span`.
    pub fn start(cpu: usize, theft: Theft, start: Instant, span: Duration) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let until = start + span.min(RUN_MAX);
        let told = stop.clone();
        let thread = thread::Builder::new().name("antagonist".to_owned()).spawn(move || {
            pin::current_thread_to(cpu)?;
            realtime::current_thread_to(realtime::ANTAGONIST_PRIORITY)?;
            Ok(take(&theft, start, until, &told))
        })?;
        Ok(Self { thread: Some(thread), stop })
    }

    /// Ends it, if it has not ended; what it took.
    pub fn finish(self) -> io::Result<Taken> {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits for its end; what it took.
    pub fn wait(mut self) -> io::Result<Taken> {
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(taken)) => taken,
            Some(Err(_)) | None => Err(io::Error::other("the antagonist broke")),
        }
    }
}

impl Drop for Antagonist {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn take(theft: &Theft, start: Instant, until: Instant, stop: &AtomicBool) -> Taken {
    let (mut held, mut late, mut number) = (Duration::ZERO, Duration::ZERO, 0_u32);
    let used = realtime::used_ns();
    let began = Instant::now().max(start);
    loop {
        let due = start + theft.period * number;
        let slice = theft.slice(number as usize);
        number = number.saturating_add(1);
        let now = Instant::now();
        if now >= until || due >= until || stop.load(Ordering::Relaxed) {
            break;
        }
        if now >= due + slice {
            continue;
        }
        thread::sleep(due.saturating_duration_since(now));
        let from = Instant::now();
        late = late.max(from.saturating_duration_since(due));
        let end = (due + slice).min(until);
        while Instant::now() < end {
            hint::spin_loop();
        }
        held += Instant::now().saturating_duration_since(from);
    }
    let all = began.elapsed().as_secs_f64().max(1e-9);
    Taken {
        held_ratio: held.as_secs_f64() / all,
        used_ratio: realtime::used_ns().saturating_sub(used) as f64 / 1e9 / all,
        late_ms_max: late.as_secs_f64() * 1e3,
    }
}
