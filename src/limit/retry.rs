//! Which failures a request is tried again after, and how many retries are allowed beside the requests of the last seconds: a
//! cluster that fails altogether is not asked several times as much. Pure: time comes in.

use std::time::Duration;

use crate::base::time::Instant;

/// How requests of a cluster are tried again. Part of a cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RetrySpec {
    pub on: RetryOn,
    /// Whether requests that are not idempotent are sent again where an endpoint may have begun them.
    pub non_idempotent: bool,
    /// From the request sent to the response's head, of one try; `None`: the deadline of the whole alone.
    pub per_try_timeout: Option<Duration>,
    /// Retries for a hundred requests of the last ten seconds.
    pub budget_percent: u32,
    /// Retries in a second that are always allowed; of one worker once it is shared out.
    pub budget_min_per_s: u32,
}

impl RetrySpec {
    /// Makes the part of one worker of what is allowed to the whole cluster, so that a machine with many CPUs does not ask one
    /// that is down twice as much. Rounded up: one failure now and then is tried again wherever it is seen.
    pub fn share_out(&mut self, workers: u32) {
        self.budget_min_per_s = self.budget_min_per_s.div_ceil(workers.max(1));
    }
}

/// Failures that are tried again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RetryOn {
    /// The endpoint could not be connected to: it has nothing of the request.
    pub connect_failure: bool,
    /// The endpoint said that it has not begun (REFUSED_STREAM, GOAWAY).
    pub refused_stream: bool,
    /// A connection that had carried requests before ended without an answer.
    pub reset_before_request: bool,
    /// Any connection or stream ended without an answer.
    pub reset: bool,
    /// The deadline of one try passed.
    pub timeout: bool,
    /// Ranges of statuses, both ends included.
    pub statuses: Vec<(u16, u16)>,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failed {
    /// As the fields of [`RetryOn`].
    Connect,
    Refused,
    ResetBeforeRequest,
    Reset,
    Timeout,
    Status(u16),
}

impl RetryOn {
    pub fn includes(&self, failed: Failed) -> bool {
        match failed {
            Failed::Connect => self.connect_failure,
            Failed::Refused => self.refused_stream,
            Failed::ResetBeforeRequest => self.reset_before_request || self.reset,
            Failed::Reset => self.reset,
            Failed::Timeout => self.timeout,
            Failed::Status(status) => {
                self.statuses.iter().any(|&(first, last)| (first..=last).contains(&status))
            }
        }
    }
}

/// Seconds that count.
const WINDOW_S: usize = 10;

/// Requests and retries of the last seconds, of one cluster in one worker.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// By second, in turn.
    slots: [Slot; WINDOW_S],
    sum: Slot,
    second: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u64,
    retries: u64,
}

impl Budget {
    /// Counts a request when it is first sent.
    pub fn on_request(&mut self, now: Instant) {
        self.advance(now);
        self.slots[self.second as usize % WINDOW_S].requests += 1;
        self.sum.requests += 1;
    }

    /// Takes a retry; `false` where there have been too many.
    #[must_use]
    pub fn take(&mut self, spec: &RetrySpec, now: Instant) -> bool {
        self.advance(now);
        let always = u64::from(spec.budget_min_per_s) * WINDOW_S as u64;
        let allowed = always + self.sum.requests * u64::from(spec.budget_percent) / 100;
        if self.sum.retries >= allowed {
            return false;
        }
        self.slots[self.second as usize % WINDOW_S].retries += 1;
        self.sum.retries += 1;
        true
    }

    /// Forgets what is too old.
    fn advance(&mut self, now: Instant) {
        let second = now.millis() / 1_000;
        let passed = second.saturating_sub(self.second);
        if passed == 0 {
            return;
        }
        for past in 1..=passed.min(WINDOW_S as u64) {
            let old = std::mem::take(&mut self.slots[(self.second + past) as usize % WINDOW_S]);
            self.sum.requests -= old.requests;
            self.sum.retries -= old.retries;
        }
        self.second = second;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(budget_percent: u32, budget_min_per_s: u32) -> RetrySpec {
        let (on, non_idempotent, per_try_timeout) = (RetryOn::default(), false, None);
        RetrySpec { on, non_idempotent, per_try_timeout, budget_percent, budget_min_per_s }
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(1_000_000 + millis)
    }

    fn retries(budget: &mut Budget, spec: &RetrySpec, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.take(spec, now)).count()
    }

    #[test]
    fn retries_are_a_share_of_the_requests_and_a_few_beside() {
        let mut budget = Budget::default();
        assert_eq!(retries(&mut budget, &spec(20, 3), at(0)), 30);
        (0..1_000).for_each(|_| budget.on_request(at(500)));
        assert_eq!(retries(&mut budget, &spec(20, 3), at(500)), 200);
        assert_eq!(retries(&mut Budget::default(), &spec(100, 0), at(0)), 0);
    }

    #[test]
    fn retries_that_are_always_allowed_are_shared_out_among_workers() {
        for (workers, allowed) in [(0, 100), (1, 100), (4, 4 * 30), (64, 64 * 10)] {
            let mut spec = spec(20, 10);
            spec.share_out(workers);
            let all: usize = (0..workers.max(1)).map(|_| retries(&mut Budget::default(), &spec, at(0))).sum();
            assert_eq!(all, allowed, "{workers} workers, in ten seconds");
        }
    }

    #[test]
    fn what_is_ten_seconds_old_is_forgotten() {
        let mut budget = Budget::default();
        (0..100).for_each(|_| budget.on_request(at(0)));
        assert_eq!(retries(&mut budget, &spec(10, 0), at(9_900)), 10);
        assert_eq!(retries(&mut budget, &spec(10, 0), at(10_000)), 0, "the requests are");
        (0..100).for_each(|_| budget.on_request(at(10_000)));
        assert_eq!(retries(&mut budget, &spec(10, 0), at(10_000)), 0, "the retries are not yet");
        assert_eq!(retries(&mut budget, &spec(10, 0), at(19_900)), 10);
        assert_eq!(retries(&mut budget, &spec(10, 0), at(99_900)), 0);
    }

    #[test]
    fn statuses_are_ranges() {
        let on = RetryOn { statuses: vec![(502, 504), (429, 429)], ..RetryOn::default() };
        assert_eq!(
            [429, 430, 500, 502, 504, 505].map(|status| on.includes(Failed::Status(status))),
            [true, false, false, true, true, false]
        );
    }

    proptest! {
        #[test]
        fn never_more_than_the_share_within_any_window(
            percent in 0u32..100, least in 0u32..5,
            steps in proptest::collection::vec((0u64..3_000, 0u32..40, 0u32..40), 1..60),
        ) {
            let spec = spec(percent, least);
            let mut budget = Budget::default();
            let (mut now, mut seen) = (0, Vec::new());
            for (pause, requests, tries) in steps {
                now += pause;
                (0..requests).for_each(|_| budget.on_request(at(now)));
                let retries = (0..tries).filter(|_| budget.take(&spec, at(now))).count() as u32;
                seen.push((now / 1_000, requests, retries));
                let window = || seen.iter().filter(|(second, ..)| second + 10 > now / 1_000);
                let asked: u32 = window().map(|(_, requests, _)| requests).sum();
                let again: u32 = window().map(|(_, _, retries)| retries).sum();
                prop_assert!(retries == 0 || again <= 10 * least + asked * percent / 100);
            }
        }
    }
}
