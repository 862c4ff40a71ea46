//! Which connections of a worker that has too many are asked to go elsewhere, at the end of a response. Spends what the
//! control loop allows; never more, never when it has fallen silent. Ends no connection itself.

use std::time::Duration;

use super::controller::STALE_AFTER;
use crate::base::time::Instant;

/// Of so many responses one may be the last of its connection: 5 %. Who is busiest is asked first.
const RESPONSES_EACH: u32 = 20;

/// What one worker may still spend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drain {
    per_s: f64,
    /// When the allowance was last given or spent.
    counted: Instant,
    /// When it ends unless it is given again.
    until: Instant,
    /// Connections that may be asked now, less than two.
    saved: f64,
    /// Responses since the last that was the last of its connection.
    responses: u32,
}

impl Drain {
    /// Connections in a second from now on; 0 ends it.
    pub fn allow(&mut self, now: Instant, per_s: f64) {
        self.save(now);
        // NaN too is nothing.
        if per_s > 0.0 {
            (self.per_s, self.until) = (per_s, now + STALE_AFTER);
        } else {
            *self = Self::default();
        }
    }

    /// Whether anybody may be asked at present.
    pub fn is_on(&self, now: Instant) -> bool {
        self.per_s > 0.0 && now < self.until
    }

    /// Whether this response, or one of these, is to be the last of its connection.
    pub fn takes(&mut self, now: Instant, responses: u32) -> bool {
        if !self.is_on(now) {
            *self = Self::default();
            return false;
        }
        self.save(now);
        self.responses = self.responses.saturating_add(responses);
        if self.responses < RESPONSES_EACH || self.saved < 1.0 {
            return false;
        }
        self.saved -= 1.0;
        self.responses = 0;
        true
    }

    /// Saves up for a second at most, and for one connection in any case: a burst would come back as a burst.
    fn save(&mut self, now: Instant) {
        let passed = now.since(self.counted).min(Duration::from_secs(1));
        self.counted = now;
        self.saved = (self.saved + self.per_s * passed.as_secs_f64()).min(self.per_s.max(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000_000 + ms)
    }

    #[test]
    fn as_many_go_in_a_second_as_may_and_none_once_the_loop_is_silent() {
        let mut drain = Drain::default();
        assert!(!drain.takes(at(0), 1_000));
        let mut taken = Vec::new();
        for ms in 0..10_000 {
            if ms % 100 == 0 && ms < 5_000 {
                drain.allow(at(ms), 3.0);
            }
            if drain.takes(at(ms), 1) {
                taken.push(ms);
            }
        }
        assert!((14..=18).contains(&taken.len()), "{taken:?}");
        assert!(taken.last() < Some(&5_900), "{taken:?}");
        drain.allow(at(20_000), 9.0);
        assert!(drain.is_on(at(20_500)));
        drain.allow(at(20_500), 0.0);
        assert!(!drain.takes(at(20_600), 1_000));
    }

    proptest! {
        #[test]
        fn never_more_than_one_in_twenty_nor_more_than_allowed(
            steps in proptest::collection::vec((0u64..200, 0u32..3), 1..500),
            per_s in 0.01f64..500.0,
        ) {
            let (mut drain, mut ms, mut responses) = (Drain::default(), 0, 0u32);
            let mut taken: Vec<u64> = Vec::new();
            for (pause, finished) in steps {
                ms += pause;
                drain.allow(at(ms), per_s);
                responses += finished;
                if drain.takes(at(ms), finished) {
                    taken.push(ms);
                }
            }
            prop_assert!(taken.len() as u32 * 20 <= responses);
            for first in &taken {
                let in_a_second = taken.iter().filter(|ms| (*first..*first + 1_000).contains(ms)).count() as f64;
                // What was saved up, and what came meanwhile.
                prop_assert!(in_a_second <= per_s.max(1.0) + per_s + 1e-9, "{in_a_second} with {per_s}");
            }
        }
    }
}
