//! Consistent hashing by a table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! §3.4): a key has an endpoint, and nearly all keys keep theirs when another one comes or goes. A ring moves no key that
//! need not move, but its shares are uneven by some 8 % with 160 points for each endpoint (as one over the square root of
//! the points). Here they are even within 0.6 % up to 160 endpoints, and one that goes moves 1 to 2 % of the others' keys
//! (`cargo test --lib maglev -- --nocapture`). An endpoint that is ejected for a while stays in the table: its keys alone
//! go elsewhere, to all the others, and come back.

use super::Member;
use crate::base::hash::mix;

/// Slots of a table: a prime, a hundred times the endpoints of most clusters. It is the same whatever their number, which
/// may change. Beyond some 160 endpoints shares get coarse.
const SLOTS: u32 = 16_381;
/// Slots looked at for an endpoint that may be taken, before all endpoints are.
const PROBES_MAX: u32 = 32;

/// By slot: the position of its endpoint. Empty without endpoints.
#[derive(Clone, Debug)]
pub(super) struct Maglev(Vec<u16>);

impl Maglev {
    /// The table of these endpoints, whatever their order. Takes some `SLOTS` times ten steps.
    pub(super) fn new(members: &[Member]) -> Self {
        const FREE: u16 = u16::MAX;
        let heaviest = members.iter().map(|member| member.weight).max().unwrap_or_default();
        if heaviest == 0 {
            return Self(Vec::new());
        }
        let mut turns: Vec<Turn> =
            (0..).zip(members).map(|(position, member)| Turn::new(position, member)).collect();
        turns.sort_by_key(|turn| turn.identity);
        let mut slots = vec![FREE; SLOTS as usize];
        let mut left = SLOTS;
        loop {
            for turn in &mut turns {
                // The heaviest takes a slot each time, the others as often as their weight is of its.
                turn.credit += turn.weight;
                if turn.credit < heaviest {
                    continue;
                }
                turn.credit -= heaviest;
                let free = std::iter::repeat_with(|| turn.next_slot()).find(|slot| slots[*slot] == FREE);
                let Some(free) = free else { continue };
                slots[free] = turn.position;
                left -= 1;
                if left == 0 {
                    return Self(slots);
                }
            }
        }
    }

    /// The endpoint of a key among those that may be taken: the same one as long as it may be.
    pub(super) fn pick(&self, key: u64, count: usize, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let mut probe = key;
        for _ in 0..PROBES_MAX {
            let slot = (probe % u64::from(SLOTS)) as usize;
            let position = usize::from(*self.0.get(slot)?);
            if position < count && eligible(position) {
                return Some(position);
            }
            probe = mix(probe);
        }
        let start = (key % count.max(1) as u64) as usize;
        (start..count).chain(0..start).find(|position| eligible(*position))
    }
}

/// An endpoint's own order of the slots, and where it is in it.
struct Turn {
    position: u16,
    identity: u64,
    weight: u32,
    credit: u32,
    next: u32,
    skip: u32,
}

impl Turn {
    fn new(position: u16, member: &Member) -> Self {
        let Member { identity, weight } = *member;
        let next = (mix(identity) % u64::from(SLOTS)) as u32;
        // With a prime number of slots each step but 0 comes to all of them.
        let skip = (mix(!identity) % u64::from(SLOTS - 1)) as u32 + 1;
        Self { position, identity, weight, credit: 0, next, skip }
    }

    fn next_slot(&mut self) -> usize {
        let slot = self.next;
        self.next = (self.next + self.skip) % SLOTS;
        slot as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(identities: &[u64]) -> Vec<Member> {
        identities.iter().map(|identity| Member { identity: mix(*identity), weight: 1 }).collect()
    }

    fn shares(maglev: &Maglev, count: usize) -> Vec<u32> {
        let mut shares = vec![0; count];
        maglev.0.iter().for_each(|position| shares[usize::from(*position)] += 1);
        shares
    }

    /// Of the slots that were not the one's that went, how many went with it; in shares of 1.
    fn moved_in_vain(before: &Maglev, after: &Maglev, gone: u16) -> f64 {
        let pairs = before.0.iter().zip(&after.0).filter(|(before, _)| **before != gone);
        let kept = |before: u16| if before > gone { before - 1 } else { before };
        let (mut all, mut moved) = (0, 0);
        for (before, after) in pairs {
            all += 1;
            moved += u32::from(kept(*before) != *after);
        }
        f64::from(moved) / f64::from(all)
    }

    #[test]
    fn shares_are_even_and_follow_the_weights() {
        for count in [1, 2, 3, 10, 50, 160, 1_000] {
            let identities: Vec<u64> = (0..count).collect();
            let shares = shares(&Maglev::new(&members(&identities)), identities.len());
            let even = f64::from(SLOTS) / count as f64;
            let worst = shares.iter().map(|share| f64::from(*share) / even - 1.0).fold(0.0, f64::max);
            println!("{count} endpoints: the busiest has {:.1} % more than its due", worst * 100.0);
            assert!(worst <= 1.0 / even + 0.001, "{count}: {worst}");
        }
        let weighed: Vec<Member> = [1, 2, 5, 0, 256]
            .into_iter()
            .map(|weight| Member { identity: mix(weight.into()), weight })
            .collect();
        let shares = shares(&Maglev::new(&weighed), 5);
        for (share, member) in shares.iter().zip(&weighed) {
            let due = f64::from(SLOTS) * f64::from(member.weight) / 264.0;
            assert!((f64::from(*share) - due).abs() <= 2.0, "{shares:?}");
        }
    }

    #[test]
    fn few_keys_move_when_an_endpoint_goes() {
        for count in [2, 3, 10, 50, 160] {
            let identities: Vec<u64> = (0..count).collect();
            let before = Maglev::new(&members(&identities));
            let moved: Vec<f64> = (0..count.min(20) as u16)
                .map(|gone| {
                    let mut rest = identities.clone();
                    rest.remove(usize::from(gone));
                    moved_in_vain(&before, &Maglev::new(&members(&rest)), gone)
                })
                .collect();
            let (mean, worst) =
                (moved.iter().sum::<f64>() / moved.len() as f64, moved.iter().copied().fold(0.0, f64::max));
            println!(
                "{count} endpoints: one that goes moves {:.1} % of the others' keys, at worst {:.1} %",
                mean * 100.0,
                worst * 100.0
            );
            assert!(worst < 0.12, "{count}: {moved:?}");
        }
    }

    #[test]
    fn without_endpoints_there_is_none() {
        assert_eq!(Maglev::new(&[]).pick(7, 0, |_| true), None);
        assert_eq!(Maglev::new(&members(&[1, 2])).pick(7, 2, |_| false), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_table_does_not_depend_on_the_order_of_endpoints(
            identities in prop::collection::hash_set(any::<u64>(), 1..12),
            turn in any::<usize>(),
        ) {
            let identities: Vec<u64> = identities.into_iter().collect();
            let mut turned = identities.clone();
            turned.rotate_left(turn % identities.len());
            let (one, other) = (Maglev::new(&members(&identities)), Maglev::new(&members(&turned)));
            for slot in 0..SLOTS as usize {
                prop_assert_eq!(identities[usize::from(one.0[slot])], turned[usize::from(other.0[slot])]);
            }
        }

        /// What an ejection may cost: its own keys, which come to all the others, and nothing else.
        #[test]
        fn only_the_keys_of_ejected_endpoints_move(
            count in 2..20usize,
            ejected in prop::collection::hash_set(0..20usize, 0..20),
        ) {
            let identities: Vec<u64> = (0..count as u64).collect();
            let maglev = Maglev::new(&members(&identities));
            let ready = |position: usize| !ejected.contains(&position);
            let left = (0..count).filter(|position| ready(*position)).count();
            let mut taken = vec![0; count];
            for key in (0..2_000).map(mix) {
                let home = maglev.pick(key, count, |_| true).expect("an endpoint");
                let now = maglev.pick(key, count, ready);
                prop_assert_eq!(now.is_some(), left > 0);
                if let Some(now) = now {
                    prop_assert!(ready(now) && (now == home || !ready(home)));
                    taken[now] += 1;
                }
            }
            let even = 2_000 / left.max(1);
            prop_assert!(taken.iter().enumerate().all(|(at, n)| !ready(at) || *n > even / 2), "{:?}", taken);
        }
    }
}
