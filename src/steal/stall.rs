//! Whether a deadline that passed says anything of an endpoint, or only of this worker, whose thread stood still meanwhile.
//! Remembers gaps; blames nobody.

use std::time::Duration;

use crate::base::time::Instant;

/// A gap explains a deadline that was missed when it is at least this part of the wait.
const CONSIDERABLE: u32 = 4;
/// One in which the deadline came, when it is this part: one that was missed by less was about to be missed anyway.
const CONSIDERABLE_AT_THE_END: u32 = 20;
/// Classes of length, each twice the one before, from 1 ms to more than a minute. One gap of each is remembered: the
/// last. Short ones, of which there may be hundreds in a second, do not push a long one out.
const CLASSES: usize = 18;

/// When the thread of a worker stood still.
#[derive(Clone, Debug, Default)]
pub struct Stalls([Option<Gap>; CLASSES]);

#[derive(Clone, Copy, Debug)]
struct Gap {
    end: Instant,
    length: Duration,
}

impl Stalls {
    /// Takes a gap that was noticed at `end`.
    pub fn note(&mut self, end: Instant, length: Duration) {
        let class = (length.as_millis().max(1).ilog2() as usize).min(CLASSES - 1);
        self.0[class] = Some(Gap { end, length });
    }

    /// Whether a deadline that is seen to have passed at `now`, after `waited`, is not to be held against the endpoint.
    ///
    /// Not where the thread stood still for a twentieth of the wait as the deadline came: the answer may stand in the
    /// queues of the same CPU, behind the same stall. Nor where one gap was a quarter of the wait: what took several turns of ours, such as a TLS
    /// handshake, had so much less time. Many short gaps excuse nothing, whatever they add up to: between them the worker
    /// looked, and an answer that is there always wins over a deadline. Else an endpoint that is gone would never be found
    /// out on a machine from which some time is stolen always.
    pub fn excuses(&self, now: Instant, waited: Duration) -> bool {
        self.0.iter().flatten().any(|gap| {
            let (waited, since_end) = (waited.as_nanos(), now.since(gap.end).as_nanos());
            let within = gap.length.as_nanos().min(waited.saturating_sub(since_end));
            let part = if now == gap.end { CONSIDERABLE_AT_THE_END } else { CONSIDERABLE };
            within > 0 && within * u128::from(part) >= waited
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000_000 + ms)
    }

    /// Whether a wait of a second that began at 0 is excused by gaps: when each ended, how long it was.
    fn excused(gaps: &[(u64, u32)]) -> bool {
        let mut stalls = Stalls::default();
        gaps.iter().for_each(|(end, length)| stalls.note(at(*end), *length * MS));
        stalls.excuses(at(1_000), 1_000 * MS)
    }

    #[test]
    fn an_endpoint_is_to_blame_when_the_worker_was_there_to_see_its_answer() {
        assert!(!excused(&[]));
        assert!(!excused(&[(500, 200)]), "four fifths of the time were left");
        let slices: Vec<_> = (1..=99).map(|n| (n * 10, 3)).collect();
        assert!(!excused(&slices), "30 % in short slices");
    }

    #[test]
    fn one_long_gap_or_one_at_the_deadline_excuses_it() {
        assert!(excused(&[(500, 250)]));
        assert!(excused(&[(1_000, 50)]), "the thread stood still as the deadline came");
        assert!(!excused(&[(1_000, 49)]), "so late is late anyway");
        let mut among_short_ones: Vec<_> = (60..=99).map(|n| (n * 10, 3)).collect();
        among_short_ones.insert(0, (500, 300));
        assert!(excused(&among_short_ones));
    }

    #[test]
    fn a_gap_counts_as_far_as_it_is_within_the_wait() {
        assert!(!excused(&[(100, 5_000)]), "a tenth of the wait");
        assert!(excused(&[(300, 5_000)]));
        let mut stalls = Stalls::default();
        stalls.note(at(100), 90_000_000 * MS);
        assert!(!stalls.excuses(at(5_000), 1_000 * MS), "before the wait began");
    }

    proptest! {
        #[test]
        fn without_a_gap_of_a_quarter_only_the_moment_of_the_deadline_excuses(
            gaps in proptest::collection::vec((0u64..999, 0u32..250), 0..50)
        ) {
            prop_assert!(!excused(&gaps));
        }
    }
}
