//! Times in which the loop stood still without a reason of its own: the thread was ready and did not run. On a machine
//! whose hypervisor does not report steal, nothing else shows it. Sees only what happens while there is work or a timer
//! is due; an idle CPU loses nothing.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::base::time::Instant;
use crate::steal::stall::Stalls;

/// A turn may take so long, and so much more for each task that was polled in it.
const TURN_BUDGET: Duration = Duration::from_millis(1);
const POLL_BUDGET: Duration = Duration::from_micros(500);
/// A wait may end so late: epoll waits in whole milliseconds, and the kernel adds its timer slack.
const WAIT_SLACK: Duration = Duration::from_millis(2);
/// Gaps kept until they are taken; of more, only the sum is known.
const KEPT_MAX: usize = 256;

#[derive(Default)]
pub(super) struct Gaps {
    total: Cell<Duration>,
    kept: RefCell<Vec<Duration>>,
    stalls: RefCell<Stalls>,
}

impl Gaps {
    /// Takes how long the tasks of a turn that ended at `now` took, how many were polled, and how much later than asked its
    /// wait ended.
    pub(super) fn note(&self, now: Instant, busy: Duration, polls: usize, late: Duration) {
        let budget = TURN_BUDGET + POLL_BUDGET * u32::try_from(polls).unwrap_or(u32::MAX);
        let stood = busy.saturating_sub(budget);
        let overslept = if late > WAIT_SLACK { late } else { Duration::ZERO };
        for gap in [stood, overslept].into_iter().filter(|gap| !gap.is_zero()) {
            self.total.set(self.total.get() + gap);
            self.stalls.borrow_mut().note(now, gap);
            let mut kept = self.kept.borrow_mut();
            if kept.len() < KEPT_MAX {
                kept.push(gap);
            }
        }
    }

    /// Whether a deadline that passed at `now`, after `waited`, says more of this thread than of an endpoint.
    pub(super) fn excuse(&self, now: Instant, waited: Duration) -> bool {
        self.stalls.borrow().excuses(now, waited)
    }

    /// Calls `take` with each gap since the last call; all gaps since the start, together.
    pub(super) fn take(&self, take: impl FnMut(Duration)) -> Duration {
        self.kept.borrow_mut().drain(..).for_each(take);
        self.total.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NOW: Instant = Instant::from_millis(1_000);

    #[test]
    fn what_work_and_timers_explain_is_no_gap() {
        let gaps = Gaps::default();
        gaps.note(NOW, MS, 0, Duration::ZERO);
        gaps.note(NOW, 9 * MS, 16, 2 * MS);
        assert_eq!(gaps.take(|gap| panic!("{gap:?}")), Duration::ZERO);
    }

    #[test]
    fn the_rest_is_one_and_is_told_once() {
        let gaps = Gaps::default();
        gaps.note(NOW, 5 * MS, 2, 3 * MS);
        let mut seen = Vec::new();
        assert_eq!(gaps.take(|gap| seen.push(gap)), 6 * MS);
        assert_eq!(seen, [3 * MS, 3 * MS]);
        assert_eq!(gaps.take(|gap| panic!("{gap:?}")), 6 * MS);
        for _ in 0..1_000 {
            gaps.note(NOW, 5 * MS, 2, Duration::ZERO);
        }
        assert_eq!(gaps.take(drop), 3_006 * MS);
        assert!(gaps.excuse(NOW, 50 * MS) && !gaps.excuse(NOW + 20 * MS, 30 * MS));
    }
}
