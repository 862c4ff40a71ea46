//! The access log of one worker: one line for each request, tunnel and relay, and for each connection that carried none
//! of them. A line goes into a ring that a thread of the control layer empties; where that has no room it is dropped and
//! counted. Never waits, takes a lock or enters the kernel. Without a log it is one branch for each call.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::base::byte_ring::Producer;
use crate::base::time::Instant;
use crate::metrics::{Counter, LogDrop, Shard};
use crate::sys::clock;

pub mod format;
mod line;
pub mod spec;

pub use line::Line;
use line::Record;
use spec::AccessLogSpec;

/// Records kept for the next exchanges.
const RECORDS_KEPT_MAX: usize = 256;
/// Least time between two warnings.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);
/// How long one comparison of the two clocks serves, in nanoseconds.
const WALL_FRESH_NS: u64 = 100_000_000;

#[derive(Default)]
pub struct Access {
    ring: RefCell<Option<Producer>>,
    free: RefCell<Vec<Rc<Record>>>,
    scratch: RefCell<Vec<u8>>,
    /// A moment on both clocks: of the wall in milliseconds since 1970.
    wall: Cell<Option<(Instant, u64)>>,
    /// Lines that the writer lost and that are counted.
    lost: Cell<u64>,
    /// Lines that found no room and of which nobody was told, and when somebody was.
    full: Cell<u64>,
    told: Cell<Option<Instant>>,
}

impl Access {
    /// Has lines go there. To be called once, before there are any.
    pub fn connect(&self, ring: Producer) {
        self.ring.replace(Some(ring));
    }

    /// Counts what the writer took and could not write.
    pub fn count_lost(&self, shard: &Shard) {
        if let Some(ring) = &*self.ring.borrow() {
            let lost = ring.lost();
            shard.log_dropped(LogDrop::Unwritten, lost - self.lost.replace(lost));
        }
    }

    /// Lines that found no room, where somebody should be told of them.
    pub fn take_dropped(&self, now: Instant) -> Option<u64> {
        let due = self.told.get().is_none_or(|told| now.since(told) >= NOTICE_INTERVAL);
        if !due || self.full.get() == 0 {
            return None;
        }
        self.told.set(Some(now));
        Some(self.full.take())
    }

    fn write(&self, shard: &Shard, spec: &AccessLogSpec, entry: &format::Entry<'_>) {
        let mut line = self.scratch.borrow_mut();
        line.clear();
        format::write_line(&mut line, spec.format, entry);
        if self.ring.borrow().as_ref().is_some_and(|ring| ring.push(&line)) {
            shard.add(Counter::AccessLogLines, 1);
        } else {
            self.full.set(self.full.get() + 1);
            shard.log_dropped(LogDrop::Full, 1);
        }
    }

    /// Milliseconds since 1970 at `at`, which is not later than `now`.
    fn unix_ms(&self, now: Instant, at: Instant) -> u64 {
        let fresh = self.wall.get().filter(|(seen, _)| now.since(*seen).as_nanos() < WALL_FRESH_NS.into());
        let (seen, wall) = fresh.unwrap_or_else(|| {
            let seen = (now, clock::unix_millis());
            self.wall.set(Some(seen));
            seen
        });
        wall + now.since(seen).as_millis() as u64 - (now.since(at).as_millis() as u64).min(wall)
    }
}
