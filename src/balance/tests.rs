//! Choices over many draws.

use proptest::prelude::*;

use super::*;

fn shares(candidates: &[Candidate], draws: u32) -> Vec<u32> {
    let mut random = Random::new(7);
    let mut counts = vec![0; candidates.len()];
    for _ in 0..draws {
        counts
            [even(candidates.len()).pick(&mut random, None, |index| candidates[index]).expect("a choice")] +=
            1;
    }
    counts
}

fn weighing(weights: &[u32]) -> Balancer {
    let members = weights.iter().zip(0..).map(|(weight, identity)| Member { identity, weight: *weight });
    Balancer::new(&members.collect::<Vec<_>>(), false)
}

fn even(count: usize) -> Balancer {
    weighing(&vec![1; count])
}

const IDLE: Candidate = Candidate::Ready { load: 0 };

#[test]
fn ties_are_decided_at_random() {
    for count in [2, 3, 8] {
        let counts = shares(&vec![IDLE; count], 8_000);
        let even = 8_000 / count as u32;
        assert!(counts.iter().all(|share| (even * 4 / 5..even * 6 / 5).contains(share)), "{counts:?}");
    }
}

#[test]
fn the_less_loaded_of_two_wins_and_the_most_loaded_of_all_gets_nothing() {
    assert_eq!(shares(&[Candidate::Ready { load: 5 }, Candidate::Ready { load: 4 }], 1_000), [0, 1_000]);
    let counts = shares(&[Candidate::Ready { load: 9 }, IDLE, Candidate::Ready { load: 1 }], 3_000);
    assert_eq!(counts[0], 0, "{counts:?}");
    assert!(counts[1] > counts[2] && counts[2] > 0, "{counts:?}");
}

#[test]
fn ejected_endpoints_serve_only_where_none_is_ready() {
    let ejected = Candidate::Ejected { load: 0 };
    assert_eq!(shares(&[ejected, Candidate::Ready { load: 99 }, ejected], 500), [0, 500, 0]);
    assert!(shares(&[ejected, ejected], 500).iter().all(|share| *share > 200));
    assert_eq!(shares(&[ejected, Candidate::Excluded], 500), [500, 0]);
}

#[test]
fn nothing_is_chosen_where_all_are_excluded() {
    let mut random = Random::new(1);
    assert_eq!(even(0).pick(&mut random, None, |_| IDLE), None);
    assert_eq!(even(3).pick(&mut random, None, |_| Candidate::Excluded), None);
    assert_eq!(weighing(&[1, 2, 3]).pick(&mut random, None, |_| Candidate::Excluded), None);
}

/// Requests that each take as long as `stay` others that come behind them.
fn shares_by_weight(weights: &[u32], stay: usize) -> Vec<u32> {
    let (mut random, balancer) = (Random::new(11), weighing(weights));
    let (mut counts, mut loads) = (vec![0; weights.len()], vec![0; weights.len()]);
    let mut flying = std::collections::VecDeque::new();
    for _ in 0..30_000 {
        let picked = balancer.pick(&mut random, None, |index| Candidate::Ready { load: loads[index] });
        let picked = picked.expect("a choice");
        counts[picked] += 1;
        loads[picked] += 1;
        flying.push_back(picked);
        if flying.len() > stay {
            loads[flying.pop_front().expect("not empty")] -= 1;
        }
    }
    counts
}

#[test]
fn shares_follow_the_weights_whatever_the_load() {
    for weights in [&[1, 3][..], &[1, 2, 5], &[256, 1, 1, 2], &[10, 10, 20, 40, 1, 3, 2, 14]] {
        for stay in [0, 7, 200] {
            let counts = shares_by_weight(weights, stay);
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let due = f64::from(30_000 * weight) / f64::from(total);
                let off = (f64::from(*count) - due).abs();
                assert!(off <= due * 0.25 + 60.0, "{weights:?}, {stay} under way: {counts:?}");
            }
        }
    }
}

#[test]
fn the_less_loaded_for_its_weight_wins() {
    let loads = [3, 2];
    let pick = |weights: &[u32]| {
        weighing(weights).pick(&mut Random::new(3), None, |index| Candidate::Ready { load: loads[index] })
    };
    assert_eq!(pick(&[1, 1]), Some(1));
    assert_eq!(pick(&[2, 1]), Some(0));
}

#[test]
fn an_ejected_endpoint_leaves_its_share_to_the_others_by_weight() {
    let (mut random, balancer) = (Random::new(5), weighing(&[90, 2, 8]));
    let mut counts = [0; 3];
    for _ in 0..10_000 {
        let candidate = |index| if index == 0 { Candidate::Ejected { load: 0 } } else { IDLE };
        counts[balancer.pick(&mut random, None, candidate).expect("a choice")] += 1;
    }
    assert!(counts[0] == 0 && (1_700..2_300).contains(&counts[1]), "{counts:?}");
}

#[test]
fn a_key_has_its_endpoint_and_without_one_the_load_decides() {
    let members: Vec<Member> = (0..5).map(|identity| Member { identity, weight: 1 }).collect();
    let (mut random, balancer) = (Random::new(5), Balancer::new(&members, true));
    let busy = |index| Candidate::Ready { load: index as u32 * 100 };
    let home = balancer.pick(&mut random, Some(77), busy);
    assert!((0..50).all(|_| balancer.pick(&mut random, Some(77), busy) == home));
    assert!((0..50).all(|_| balancer.pick(&mut random, None, busy) != Some(4)));
    // All are ejected: it is its own again.
    assert_eq!(balancer.pick(&mut random, Some(77), |_| Candidate::Ejected { load: 0 }), home);
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    prop_oneof![
        (0..4u32).prop_map(|load| Candidate::Ready { load }),
        (0..4u32).prop_map(|load| Candidate::Ejected { load }),
        Just(Candidate::Excluded),
    ]
}

proptest! {
    #[test]
    fn a_choice_is_of_the_best_kind_there_is(
        candidates in prop::collection::vec((any_candidate(), 1..9u32), 0..12),
        seed: u64,
        key: Option<u64>,
    ) {
        let weigh = |(identity, (_, weight)): (u64, &(Candidate, u32))| Member { identity, weight: *weight };
        let members: Vec<Member> = (0..).zip(&candidates).map(weigh).collect();
        let candidates: Vec<Candidate> = candidates.into_iter().map(|(candidate, _)| candidate).collect();
        let balancer = Balancer::new(&members, key.is_some());
        let chosen = balancer.pick(&mut Random::new(seed), key, |index| candidates[index]);
        let any_ready = candidates.iter().any(|c| matches!(c, Candidate::Ready { .. }));
        let any_ejected = candidates.iter().any(|c| matches!(c, Candidate::Ejected { .. }));
        match chosen.map(|index| candidates[index]) {
            Some(Candidate::Ready { .. }) => {}
            Some(Candidate::Ejected { .. }) => prop_assert!(!any_ready),
            Some(Candidate::Excluded) => prop_assert!(false),
            None => prop_assert!(!any_ready && !any_ejected),
        }
    }
}
