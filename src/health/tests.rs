//! The states of an endpoint, step by step.

use super::*;

const SPEC: EjectionSpec = EjectionSpec {
    consecutive_failures: 3,
    base: Duration::from_secs(1),
    max: Duration::from_secs(30),
    max_ejected_percent: 50,
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
    health.on_success(0);
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
    health.on_success(0);
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
    health.on_success(0);
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
    health.on_success(0);
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
    health.on_success(0);
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
    health.on_success(9);
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
    };
    let now = Instant::from_millis(1_000);
    let mut health = ClusterHealth::new(spec, 2);
    assert!(matches!(health.on_failure(1, now), Verdict::Ejected { .. }));
    let health = health.rearranged(&[Some(1), None, Some(0)]);
    let available = [0, 1, 2].map(|endpoint| health.is_available(endpoint, now));
    assert_eq!(available, [false, true, true]);
}

fn unhealthy(health: &mut ClusterHealth, panic_percent: u8, which: &[usize]) -> Vec<Standing> {
    health.set_unhealthy(panic_percent, |endpoint| which.contains(&endpoint));
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
    let health = health.rearranged(&[Some(1), None]);
    assert_eq!([0, 1].map(|endpoint| health.standing(endpoint, at(0))), [Unhealthy, Ready]);
}

#[test]
fn what_checks_bring_back_is_not_ejected_any_more_and_answers_do_not_bring_back() {
    let mut health = ClusterHealth::new(SPEC, 2);
    fail(&mut health, 0, 3, at(0));
    unhealthy(&mut health, 0, &[0]);
    health.on_success(0);
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
