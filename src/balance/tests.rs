//! Choices over many draws.

use proptest::prelude::*;

use super::*;

fn shares(candidates: &[Candidate], draws: u32) -> Vec<u32> {
    let mut random = Random::new(7);
    let mut counts = vec![0; candidates.len()];
    for _ in 0..draws {
        counts[pick(&mut random, candidates.len(), |index| candidates[index]).expect("a choice")] += 1;
    }
    counts
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
    assert_eq!(pick(&mut random, 0, |_| IDLE), None);
    assert_eq!(pick(&mut random, 3, |_| Candidate::Excluded), None);
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
        candidates in prop::collection::vec(any_candidate(), 0..12),
        seed: u64,
    ) {
        let chosen = pick(&mut Random::new(seed), candidates.len(), |index| candidates[index]);
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
