//! Which new work a worker refuses when it cannot keep up: by how long the work has waited, never by how much is stolen.
//! CoDel as Facebook varied it (Maurer, "Fail at Scale", ACM Queue 2015): a queue that was empty a moment ago is only a
//! burst and is served; one that stands is kept short. Holds no work itself.

use std::time::Duration;

use crate::base::time::Instant;

/// A queue that has not been empty for so long stands.
pub const STANDS_AFTER: Duration = Duration::from_millis(100);
/// The time for which a least number is admitted.
const WINDOW: Duration = Duration::from_millis(100);
/// Whatever the age, this share of the usual rate is admitted.
const FLOOR_SHARE: f64 = 0.1;
/// Windows over which the usual rate is averaged: five minutes.
const USUAL_WINDOWS: f64 = 3_000.0;

/// The door of one worker.
#[derive(Clone, Debug)]
pub struct Shedder {
    /// Longest wait while the queue stands, and otherwise.
    age_max_standing: Duration,
    age_max: Duration,
    emptied: Instant,
    window: Instant,
    admitted: u32,
    /// Admitted in a window, on average.
    usual: f64,
}

impl Shedder {
    /// `objective`: what users should be answered within. Work may wait for two fifths of it while the queue stands.
    pub fn new(objective: Duration, now: Instant) -> Self {
        let (age_max_standing, age_max) = bounds(objective);
        Self { age_max_standing, age_max, emptied: now, window: now, admitted: 0, usual: 0.0 }
    }

    /// Goes on under another objective, knowing what it knew.
    pub fn set_objective(&mut self, objective: Duration) {
        (self.age_max_standing, self.age_max) = bounds(objective);
    }

    /// The queue was empty at `now`.
    pub fn emptied(&mut self, now: Instant) {
        self.emptied = self.emptied.max(now);
    }

    /// Whether the queue stands: the worker has had no moment without work for a while.
    pub fn stands(&self, now: Instant) -> bool {
        now.since(self.emptied) >= STANDS_AFTER
    }

    /// Whether to take work that has waited for `age`.
    pub fn admits(&mut self, now: Instant, age: Duration) -> bool {
        self.roll(now);
        let age_max = if self.stands(now) { self.age_max_standing } else { self.age_max };
        let floor = (self.usual * FLOOR_SHARE).max(1.0);
        let admits = age <= age_max || f64::from(self.admitted) < floor;
        self.admitted = self.admitted.saturating_add(u32::from(admits));
        admits
    }

    fn roll(&mut self, now: Instant) {
        let passed = now.since(self.window);
        if passed < WINDOW {
            return;
        }
        let windows = passed.as_secs_f64() / WINDOW.as_secs_f64();
        // All but the first of several windows admitted nothing.
        self.usual += (f64::from(self.admitted) - self.usual) / USUAL_WINDOWS;
        self.usual *= (1.0 - 1.0 / USUAL_WINDOWS).powf(windows - 1.0);
        self.window = now;
        self.admitted = 0;
    }
}

/// Longest wait while the queue stands, and otherwise.
fn bounds(objective: Duration) -> (Duration, Duration) {
    // Work cannot have waited for longer than the queue has stood: such a limit would say nothing.
    (objective * 2 / 5, (objective * 4).max(STANDS_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000_000 + ms)
    }

    fn shedder() -> Shedder {
        Shedder::new(25 * MS, at(0))
    }

    #[test]
    fn a_burst_is_served_and_a_standing_queue_kept_short() {
        let mut shedder = shedder();
        assert!((0..100).all(|ms| shedder.admits(at(ms), 90 * MS)), "empty a moment ago");
        assert!(shedder.stands(at(101)));
        assert!(shedder.admits(at(101), 90 * MS), "one in any case");
        assert!(!shedder.admits(at(102), 11 * MS) && shedder.admits(at(102), 10 * MS));
        shedder.emptied(at(103));
        assert!(shedder.admits(at(150), 99 * MS) && shedder.admits(at(202), 99 * MS));
        assert!(!shedder.admits(at(204), 99 * MS));
    }

    #[test]
    fn another_objective_forgets_neither_the_queue_nor_the_usual() {
        let mut shedder = shedder();
        for ms in 0..100_000 {
            shedder.emptied(at(ms));
            assert!(shedder.admits(at(ms), MS));
        }
        shedder.set_objective(10 * MS);
        assert!(shedder.stands(at(100_100)));
        let admitted = (100_200..100_300).filter(|ms| shedder.admits(at(*ms), 5 * MS)).count();
        assert!((2..=10).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_tenth_of_the_usual_is_admitted_however_late_all_is() {
        let mut shedder = shedder();
        for ms in 0..400_000 {
            shedder.emptied(at(ms));
            shedder.admits(at(ms), Duration::ZERO);
        }
        let late = (400_200..400_300).filter(|ms| shedder.admits(at(*ms), 60_000 * MS)).count();
        assert!((7..=10).contains(&late), "of a hundred in a window: {late}");
    }

    proptest! {
        // I3 and I4.
        #[test]
        fn nothing_is_shed_soon_after_the_queue_was_empty_and_never_all(
            steps in proptest::collection::vec((0u64..40, 0u64..300, proptest::bool::weighted(0.1)), 1..400),
            objective_ms in 1u64..100,
        ) {
            let mut shedder = Shedder::new(Duration::from_millis(objective_ms), at(0));
            let (mut ms, mut emptied, mut admitted) = (0, 0, Vec::new());
            for (pause, age, is_empty) in steps {
                ms += pause;
                if is_empty {
                    shedder.emptied(at(ms));
                    emptied = ms;
                }
                // What waits came after the queue was empty.
                let admits = shedder.admits(at(ms), Duration::from_millis(age.min(ms - emptied)));
                prop_assert!(admits || ms - emptied >= 100, "I3");
                if admits {
                    admitted.push(ms);
                }
                prop_assert!(admitted.last().is_some_and(|last| ms - last < 200), "I4: one in each window that has work");
            }
        }
    }
}
