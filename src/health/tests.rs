//! The states of an endpoint, step by step.

use super::*;

const SPEC: EjectionSpec = EjectionSpec {
    consecutive_failures: 3,
    base: Duration::from_secs(1),
    max: Duration::from_secs(30),
    max_ejected_percent: 50,
    success_rate: None,
};

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn fail(health: &mut ClusterHealth, endpoint: usize, times: u32, now: Instant) -> Verdict {
    (0..times).map(|_| health.on_failure(endpoint, now)).last().expect("at least one failure")
}

#[test]
fn consecutive_failures_eject_and_a_success_between_starts_over() {
    let mut health = ClusterHealth::new(SPEC, 2);
    assert_eq!(fail(&mut health, 0, 2, at(0)), Verdict::Kept);
    health.on_answer(0, false);
    assert_eq!(fail(&mut health, 0, 2, at(0)), Verdict::Kept);
    assert!(health.is_available(0, at(0)));
    assert_eq!(fail(&mut health, 0, 1, at(0)), Verdict::Ejected { until: at(1_000) });
    assert!(!health.is_available(0, at(999)) && health.is_available(1, at(0)));
    assert_eq!(health.ejected(at(0)), 1);
}

#[test]
fn one_request_at_a_time_tries_an_endpoint_that_comes_back() {
    let mut health = ClusterHealth::new(SPEC, 2);
    fail(&mut health, 0, 3, at(0));
    assert!(health.is_available(0, at(1_000)));
    health.on_request(0, at(1_000));
    assert!(!health.is_available(0, at(1_000)) && !health.is_available(0, at(1_999)));
    assert!(health.is_available(0, at(2_000)), "a trial that never reports does not block for ever");
    health.on_answer(0, false);
    assert!(health.is_available(0, at(1_001)));
}

#[test]
fn a_failed_trial_ejects_at_once_and_for_twice_as_long_up_to_the_maximum() {
    let mut health = ClusterHealth::new(SPEC, 2);
    let Verdict::Ejected { until: mut now } = fail(&mut health, 0, 3, at(0)) else { panic!("not ejected") };
    let mut lengths_s = Vec::new();
    for _ in 0..7 {
        health.on_request(0, now);
        let Verdict::Ejected { until } = health.on_failure(0, now) else { panic!("not ejected") };
        lengths_s.push((until - now).as_secs());
        now = until;
    }
    assert_eq!(lengths_s, [2, 4, 8, 16, 30, 30, 30]);
    health.on_request(0, now);
    health.on_answer(0, false);
    assert_eq!(
        fail(&mut health, 0, 3, now),
        Verdict::Ejected { until: now + SPEC.base },
        "the back-off starts over"
    );
}

#[test]
fn failures_from_before_the_ejection_do_not_prolong_it_nor_does_a_late_success_end_it() {
    let mut health = ClusterHealth::new(SPEC, 2);
    fail(&mut health, 0, 3, at(0));
    assert_eq!(health.on_failure(0, at(500)), Verdict::Kept);
    health.on_answer(0, false);
    assert!(!health.is_available(0, at(999)) && health.is_available(0, at(1_000)));
}

#[test]
fn the_only_endpoint_is_never_ejected() {
    let mut health = ClusterHealth::new(SPEC, 1);
    assert_eq!(fail(&mut health, 0, 100, at(0)), Verdict::Spared);
    assert!(health.is_available(0, at(0)));
}

#[test]
fn no_more_than_the_share_is_ejected_but_one_always_may() {
    let mut health = ClusterHealth::new(SPEC, 5);
    let ejected: Vec<bool> =
        (0..5).map(|index| matches!(fail(&mut health, index, 3, at(0)), Verdict::Ejected { .. })).collect();
    assert_eq!(ejected, [true, true, false, false, false]);
    let mut health = ClusterHealth::new(EjectionSpec { max_ejected_percent: 1, ..SPEC }, 5);
    assert!(matches!(fail(&mut health, 4, 3, at(0)), Verdict::Ejected { .. }));
    let mut health = ClusterHealth::new(EjectionSpec { max_ejected_percent: 0, ..SPEC }, 5);
    assert_eq!(fail(&mut health, 4, 3, at(0)), Verdict::Spared);
}

#[test]
fn a_spared_endpoint_is_ejected_by_its_next_failure_once_there_is_room() {
    let mut health = ClusterHealth::new(SPEC, 2);
    fail(&mut health, 0, 3, at(0));
    assert_eq!(fail(&mut health, 1, 3, at(0)), Verdict::Spared);
    health.on_request(0, at(1_000));
    health.on_answer(0, false);
    assert!(matches!(health.on_failure(1, at(1_000)), Verdict::Ejected { .. }));
}

#[test]
fn zero_consecutive_failures_turns_ejection_off() {
    let mut health = ClusterHealth::new(EjectionSpec { consecutive_failures: 0, ..SPEC }, 3);
    assert_eq!(fail(&mut health, 0, 100, at(0)), Verdict::Kept);
}

#[test]
fn an_index_out_of_range_is_unavailable_and_harmless() {
    let mut health = ClusterHealth::new(SPEC, 2);
    health.on_request(9, at(0));
    health.on_answer(9, false);
    assert_eq!(health.on_failure(9, at(0)), Verdict::Kept);
    assert!(!health.is_available(9, at(0)));
}

#[test]
fn an_endpoint_stays_ejected_when_the_others_change() {
    let spec = EjectionSpec {
        consecutive_failures: 1,
        base: Duration::from_secs(1),
        max: Duration::from_secs(30),
        max_ejected_percent: 50,
        success_rate: None,
    };
    let now = Instant::from_millis(1_000);
    let mut health = ClusterHealth::new(spec, 2);
    assert!(matches!(health.on_failure(1, now), Verdict::Ejected { .. }));
    let health = health.rearranged(&[Some(1), None, Some(0)], now);
    let available = [0, 1, 2].map(|endpoint| health.is_available(endpoint, now));
    assert_eq!(available, [false, true, true]);
}

fn unhealthy(health: &mut ClusterHealth, panic_percent: u8, which: &[usize]) -> Vec<Standing> {
    health.set_unhealthy(panic_percent, at(0), |endpoint| which.contains(&endpoint));
    (0..health.endpoints.len()).map(|endpoint| health.standing(endpoint, at(0))).collect()
}

#[test]
fn what_checks_took_out_gets_nothing_until_too_few_are_left() {
    use Standing::{Ready, Unhealthy};
    let mut health = ClusterHealth::new(SPEC, 4);
    assert_eq!(unhealthy(&mut health, 50, &[1]), [Ready, Unhealthy, Ready, Ready]);
    assert_eq!(unhealthy(&mut health, 50, &[1, 2]), [Ready, Unhealthy, Unhealthy, Ready], "half is enough");
    assert_eq!(unhealthy(&mut health, 50, &[1, 2, 3]), [Ready; 4]);
    assert!(health.is_panicking());
    assert_eq!(unhealthy(&mut health, 1, &[1, 2, 3]), [Ready, Unhealthy, Unhealthy, Unhealthy]);
    assert_eq!(unhealthy(&mut health, 1, &[0, 1, 2, 3]), [Ready; 4], "none is left");
    assert_eq!(unhealthy(&mut health, 0, &[0, 1, 2, 3]), [Unhealthy; 4], "it is never doubted");
    let health = health.rearranged(&[Some(1), None], at(0));
    assert_eq!([0, 1].map(|endpoint| health.standing(endpoint, at(0))), [Unhealthy, Ready]);
}

#[test]
fn what_checks_bring_back_is_not_ejected_any_more_and_answers_do_not_bring_back() {
    let mut health = ClusterHealth::new(SPEC, 2);
    fail(&mut health, 0, 3, at(0));
    unhealthy(&mut health, 0, &[0]);
    health.on_answer(0, false);
    assert_eq!(health.standing(0, at(60_000)), Standing::Unhealthy);
    assert_eq!(unhealthy(&mut health, 0, &[]), [Standing::Ready; 2]);
    fail(&mut health, 0, 3, at(0));
    assert_eq!(
        unhealthy(&mut health, 0, &[]),
        [Standing::Ejected, Standing::Ready],
        "it was not checks that took it out"
    );
}

#[test]
fn the_share_taken_out_counts_what_checks_took_out() {
    let mut health = ClusterHealth::new(SPEC, 4);
    unhealthy(&mut health, 0, &[0]);
    assert!(matches!(fail(&mut health, 1, 3, at(0)), Verdict::Ejected { .. }));
    assert_eq!(fail(&mut health, 2, 3, at(0)), Verdict::Spared);
}

const RATES: EjectionSpec = EjectionSpec {
    consecutive_failures: 0,
    success_rate: Some(SuccessRateSpec {
        interval: Duration::from_secs(10),
        stdev_factor_thousandths: 1_000,
        endpoints_min: 3,
        requests_min: 100,
    }),
    ..SPEC
};

fn answers(health: &mut ClusterHealth, endpoint: usize, errors: u32) {
    (0..100).for_each(|n| health.on_answer(endpoint, n < errors));
}

#[test]
fn the_endpoint_that_succeeds_least_is_ejected_at_the_end_of_an_interval() {
    let mut health = ClusterHealth::new(RATES, 4);
    assert!(health.judge_rates(at(20_000)).is_empty(), "an interval without requests");
    for (endpoint, errors) in [(0, 1), (1, 60), (2, 0), (3, 2)] {
        answers(&mut health, endpoint, errors);
    }
    assert!(health.judge_rates(at(29_999)).is_empty());
    assert_eq!(health.judge_rates(at(30_000)), [(1, Verdict::Ejected { until: at(40_000) })]);
    assert!(!health.is_available(1, at(39_999)) && health.is_available(1, at(40_000)));
    assert!(health.judge_rates(at(40_000)).is_empty(), "each interval counts anew");
}

#[test]
fn each_ejection_for_a_rate_is_longer_until_an_interval_is_good() {
    let spec = EjectionSpec { max: Duration::from_secs(60), ..RATES };
    let mut health = ClusterHealth::new(spec, 4);
    let mut now = at(10_000);
    let mut length_s = |health: &mut ClusterHealth, errors: u32| {
        // It is back, and its first answer is like those before.
        health.on_request(1, now);
        health.on_answer(1, errors > 0);
        (0..4).for_each(|endpoint| answers(health, endpoint, if endpoint == 1 { errors } else { 0 }));
        let until = match health.judge_rates(now)[..] {
            [(1, Verdict::Ejected { until })] => Some(until),
            [] => None,
            ref other => panic!("{other:?}"),
        };
        let length = until.map_or(0, |until| (until - now).as_secs());
        now = until.unwrap_or(now) + Duration::from_secs(10);
        length
    };
    assert_eq!([100; 5].map(|errors| length_s(&mut health, errors)), [10, 20, 40, 60, 60]);
    assert_eq!([100, 0, 100].map(|errors| length_s(&mut health, errors)), [60, 0, 10]);
}

#[test]
fn an_error_is_an_answer_but_keeps_the_back_off() {
    let mut health = ClusterHealth::new(SPEC, 2);
    fail(&mut health, 0, 3, at(0));
    health.on_request(0, at(1_000));
    health.on_answer(0, true);
    assert!(health.is_available(0, at(1_000)));
    assert_eq!(fail(&mut health, 0, 3, at(1_000)), Verdict::Ejected { until: at(3_000) });
}

#[test]
fn rates_eject_no_more_than_the_share() {
    let spec = EjectionSpec { max_ejected_percent: 30, ..RATES };
    let mut health = ClusterHealth::new(spec, 5);
    unhealthy(&mut health, 0, &[4]);
    for (endpoint, errors) in [(0, 0), (1, 80), (2, 0), (3, 0), (4, 0)] {
        answers(&mut health, endpoint, errors);
    }
    assert_eq!(health.judge_rates(at(10_000)), [(1, Verdict::Spared)], "checks took one of five already");
    assert!(health.is_available(1, at(10_000)));
}

#[test]
fn who_comes_or_comes_back_gets_its_share_little_by_little() {
    let slow_start = SlowStart { window: Duration::from_secs(10), floor_percent: 10 };
    let mut health = ClusterHealth::new(SPEC, 2);
    let shares = |health: &ClusterHealth, millis| {
        [0, 1].map(|endpoint| health.share(endpoint, &slow_start, at(millis)))
    };
    assert_eq!(shares(&health, 0), [WHOLE; 2], "all that were there from the beginning");
    unhealthy(&mut health, 0, &[1]);
    unhealthy(&mut health, 0, &[]);
    assert_eq!(shares(&health, 0), [WHOLE, 100]);
    assert_eq!(shares(&health, 5_000), [WHOLE, 550]);
    assert_eq!(shares(&health, 10_000), [WHOLE; 2]);
    health.on_answer(1, false);
    assert_eq!(shares(&health, 5_000), [WHOLE, 550], "answers do not hurry it");
    let health = health.rearranged(&[Some(0), None], at(20_000));
    assert_eq!(shares(&health, 20_000), [WHOLE, 100]);
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Event {
        Fails(usize),
        Answers(usize, bool),
        Requested(usize),
        Checked(Vec<bool>),
        Time(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0usize..8).prop_map(Event::Fails),
            2 => (0usize..8, any::<bool>()).prop_map(|(endpoint, error)| Event::Answers(endpoint, error)),
            1 => (0usize..8).prop_map(Event::Requested),
            1 => proptest::collection::vec(any::<bool>(), 8).prop_map(Event::Checked),
            2 => (0u64..5_000).prop_map(Event::Time),
        ]
    }

    proptest! {
        #[test]
        fn ejections_never_take_more_than_the_share_whatever_happens(
            count in 1usize..8, percent in 0u8..=100, events in proptest::collection::vec(event(), 0..300),
        ) {
            let spec = EjectionSpec { max_ejected_percent: percent, consecutive_failures: 2, ..RATES };
            let mut health = ClusterHealth::new(spec, count);
            let mut now = 0;
            for event in events {
                let before = health.ejected(at(now));
                let mut verdicts = Vec::new();
                match event {
                    Event::Fails(endpoint) => verdicts.push(health.on_failure(endpoint, at(now))),
                    Event::Answers(endpoint, error) => health.on_answer(endpoint, error),
                    Event::Requested(endpoint) => health.on_request(endpoint, at(now)),
                    Event::Checked(sick) => health.set_unhealthy(0, at(now), |at| sick[at]),
                    Event::Time(passed) => {
                        now += passed;
                        verdicts.extend(health.judge_rates(at(now)).into_iter().map(|(_, verdict)| verdict));
                    }
                }
                let ejected = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Ejected { .. }));
                let out = health.ejected(at(now));
                let share = out * 100 <= usize::from(percent) * count;
                prop_assert!(!ejected || share || out <= before.max(1), "{out} of {count} at {percent} %");
                prop_assert!(!ejected || (count > 1 && percent > 0));
            }
        }
    }
}
