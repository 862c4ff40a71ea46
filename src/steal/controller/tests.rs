//! The invariants of the control loop over arbitrary samples, and its answers to traces.

use super::*;
use crate::steal::counters::CpuTicks;
use crate::steal::meter::{CpuMeter, Trust};
use crate::steal::trace::parse_row;
use proptest::prelude::*;

fn act() -> Spec {
    Spec { mode: Mode::Act, ..Spec::default() }
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(1_000_000 + ms)
}

/// Levels of workers at each sample, from what each lost.
fn levels(workers: usize, samples: impl IntoIterator<Item = Vec<f64>>) -> Vec<Vec<u8>> {
    let mut controller = Controller::new(act(), workers);
    let step = |(n, lost): (usize, Vec<f64>)| {
        let readings: Vec<_> = lost
            .iter()
            .map(|lost| Reading { lost_ratio: Some(*lost), connections: 10, ..Reading::default() })
            .collect();
        controller.step(at(n as u64 * 100), &readings);
        (0..workers).map(|worker| controller.level(worker).number()).collect()
    };
    samples.into_iter().enumerate().map(step).collect()
}

/// Levels of one worker whose CPU loses `stolen_ms(ms)` in the millisecond `ms`, read in ticks of 10 ms as the kernel
/// shows them.
fn levels_of_ticks(seconds: u64, stolen_ms: impl Fn(u64) -> f64) -> Vec<u8> {
    let (mut controller, mut meter, mut stolen) = (Controller::new(act(), 1), CpuMeter::default(), 0.0);
    let mut levels = Vec::new();
    for ms in 0..=seconds * 1_000 {
        if ms % 100 == 0 {
            let ticks = [0, 0, 0, ms / 10, 0, 0, 0, (stolen / 10.0 + 1e-9) as u64];
            let reading = meter.read(at(ms), Some(&CpuTicks { cpu: 0, ticks, has_steal: true }));
            assert!(!reading.is_suspect);
            controller.step(at(ms), &[Reading { lost_ratio: Some(reading.ratio), ..Reading::default() }]);
            levels.push(controller.level(0).number());
        }
        stolen += stolen_ms(ms);
    }
    levels
}

fn changes(levels: &[u8]) -> usize {
    levels.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[test]
fn a_step_of_30_percent_is_noticed_within_300_ms() {
    // At any moment of the interval between two samples, in slices of 3, 30 and 150 ms.
    for offset in 0..100 {
        let begin = 5_000 + offset;
        for period in [10, 100] {
            let slice = period * 3 / 10;
            let levels =
                levels_of_ticks(8, |ms| if ms >= begin && (ms - begin) % period < slice { 1.0 } else { 0.0 });
            let noticed = levels.iter().position(|level| *level >= 1).expect("noticed") as u64 * 100;
            assert!(noticed >= begin && noticed <= begin + 300, "from {begin} in {period}: {noticed}");
            assert_eq!(levels.last(), Some(&2), "in {period}");
        }
    }
}

#[test]
fn less_than_2_percent_never_raises_a_level() {
    // As a constant trickle, and as all of a second's share at once.
    let trickle = levels_of_ticks(120, |_| 0.0199);
    assert_eq!(trickle.iter().max(), Some(&0));
    for (every, slice) in [(1_000, 19), (500, 9), (250, 4)] {
        let bursts = levels_of_ticks(120, |ms| if ms % every < slice { 1.0 } else { 0.0 });
        assert_eq!(bursts.iter().max(), Some(&0), "{slice} ms in {every}");
    }
}

#[test]
fn a_square_wave_does_not_make_levels_flap() {
    for half_period_ms in [200, 500, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000] {
        let levels = levels_of_ticks(300, |ms| if ms / half_period_ms % 2 == 1 { 0.4 } else { 0.0 });
        assert_eq!(levels.iter().max(), Some(&2), "{half_period_ms}");
        for minute in levels.windows(600) {
            assert!(changes(minute) <= 6, "{half_period_ms}");
        }
    }
}

#[test]
fn a_ramp_goes_through_the_levels_once_each_way() {
    let up_and_down =
        |ms: u64| if ms < 30_000 { ms as f64 / 150_000.0 } else { (60_000 - ms) as f64 / 150_000.0 };
    let levels = levels_of_ticks(60, up_and_down);
    assert_eq!(changes(&levels), 4, "{levels:?}");
    assert_eq!((levels[300], levels[600]), (2, 0));
}

#[test]
fn a_sawtooth_raises_a_level_each_time_at_most() {
    let levels = levels_of_ticks(300, |ms| (ms % 20_000) as f64 / 20_000.0 * 0.3);
    for minute in levels.windows(600) {
        assert!(changes(minute) <= 6);
    }
    assert_eq!(levels.iter().max(), Some(&2));
}

#[test]
fn a_level_is_left_by_one_after_two_calm_seconds() {
    let mut samples = vec![vec![0.3]; 20];
    samples.extend(vec![vec![0.0]; 120]);
    let levels: Vec<u8> = levels(1, samples).into_iter().flatten().collect();
    assert_eq!(levels[19], 2);
    let to_1 = levels.iter().skip(20).position(|level| *level == 1).expect("left 2");
    let to_0 = levels.iter().skip(20).position(|level| *level == 0).expect("left 1");
    assert!((30..50).contains(&to_1), "{to_1}");
    assert!((20..30).contains(&(to_0 - to_1)), "{to_1} {to_0}");
}

#[test]
fn a_worker_that_keeps_losing_a_little_does_not_stay_at_level_2() {
    let mut samples = vec![vec![0.3]; 20];
    samples.extend(vec![vec![0.04]; 200]);
    let levels: Vec<u8> = levels(1, samples).into_iter().flatten().collect();
    assert_eq!(levels.last(), Some(&1));
}

/// A trace as recorded: how often each worker's level changed in its worst minute, and how many samples it spent where.
fn replay(text: &str) -> (usize, [usize; 3]) {
    let (mut controller, mut trust) = (Controller::new(act(), 2), Trust::default());
    let mut meters = [CpuMeter::default(), CpuMeter::default()];
    let (mut all, mut at_level) = ([Vec::new(), Vec::new()], [0; 3]);
    let rows: Vec<_> = text.lines().filter_map(parse_row).collect();
    for pair in rows.chunks_exact(2) {
        let now = at(pair[0].0);
        let read = [0, 1].map(|cpu| meters[cpu].read(now, Some(&pair[cpu].1)));
        assert!(trust.judge(now, read.iter().any(|reading| reading.is_suspect)), "at {} ms", pair[0].0);
        let readings = read.map(|reading| Reading {
            lost_ratio: Some(reading.ratio),
            connections: 100,
            ..Reading::default()
        });
        controller.step(now, &readings);
        for (worker, levels) in all.iter_mut().enumerate() {
            levels.push(controller.level(worker).number());
            at_level[usize::from(controller.level(worker).number())] += 1;
        }
    }
    let worst = |levels: &Vec<u8>| levels.windows(600).map(changes).max().unwrap_or(0);
    (all.iter().map(worst).max().unwrap_or(0), at_level)
}

#[test]
fn a_recorded_trace_is_followed_without_flapping() {
    let text = include_str!("../../../tests/data/steal/trace_kvm_2vcpu_120s.csv");
    let (worst, at_level) = replay(text);
    assert!(worst <= 6, "{worst}");
    assert!(at_level.iter().all(|samples| *samples > 0), "{at_level:?}");
}

/// A longer one, by hand: `RINGFORT_STEAL_TRACE=FILE cargo test --lib a_trace_of_yours -- --nocapture`.
#[test]
fn a_trace_of_yours_is_followed_without_flapping() {
    let Some(path) = std::env::var_os("RINGFORT_STEAL_TRACE") else { return };
    let (worst, at_level) = replay(&std::fs::read_to_string(path).expect("a trace"));
    println!("changes in the worst minute {worst}, samples at each level {at_level:?}");
    assert!(worst <= 6, "{worst}");
}

#[test]
fn a_worker_that_loses_a_third_gets_less_until_it_has_its_share() {
    let mut controller = Controller::new(act(), 2);
    let mut shares = None;
    let mut at_ms = 0;
    let mut run = |controller: &mut Controller, lost: [f64; 2], connections: [u64; 2], steps: u64| {
        let mut moves = 0;
        for _ in 0..steps {
            at_ms += 100;
            let reading = |worker| Reading {
                lost_ratio: Some(lost[worker]),
                connections: connections[worker],
                stands: false,
            };
            match controller.step(at(at_ms), &[reading(0), reading(1)]).weights {
                Weights::Unchanged => {}
                Weights::Even => shares = None,
                Weights::Shares(new) => (shares, moves) = (Some(new), moves + 1),
            }
        }
        (shares.clone(), moves)
    };
    let (first, _) = run(&mut controller, [0.33, 0.0], [500, 500], 20);
    let first = first.expect("steered");
    assert!(first[0] < 0.1, "hardly any, as it has too many: {first:?}");
    assert!((controller.accept_weight(0) - 2.0 * first[0]).abs() < 1e-9);
    assert!((0.65..0.7).contains(&controller.handshake_share(0)) && controller.handshake_share(1) == 1.0);
    let (settled, _) = run(&mut controller, [0.33, 0.0], [400, 600], 20);
    let settled = settled.expect("steered");
    assert!((0.38..0.42).contains(&settled[0]), "{settled:?}");
    let (still, moves) = run(&mut controller, [0.33, 0.0], [400, 600], 50);
    assert_eq!((still, moves), (Some(settled), 0), "no system call without a reason");
    let (after, moves) = run(&mut controller, [0.0, 0.0], [400, 600], 80);
    assert_eq!((after, controller.handshake_share(0)), (None, 1.0));
    assert!(moves >= 5, "it returns step by step: {moves}");
}

#[test]
fn a_worker_that_had_too_many_connections_gets_its_share_at_once() {
    let mut controller = Controller::new(act(), 2);
    let mut weight = |n: u64, connections: [u64; 2]| {
        let readings = [0, 1].map(|worker| Reading {
            lost_ratio: Some([0.33, 0.0][worker]),
            connections: connections[worker],
            stands: false,
        });
        controller.step(at(n * 100), &readings);
        controller.accept_weight(0)
    };
    let held = (0..20).map(|n| weight(n, [500, 500])).last();
    assert!(held < Some(0.1), "{held:?}");
    // Only the share that theft asks for returns slowly; nothing waits for it that chance or slow answers have moved.
    assert!((0.75..0.85).contains(&weight(20, [360, 640])));
    assert!((0.75..0.85).contains(&weight(30, [10, 990])), "not more: others had the time to take them");
}

#[test]
fn where_all_lose_much_the_one_that_loses_least_still_gets_more() {
    // Beside other busy threads of the machine: all are at level 2 by their own loss alone.
    for (most, least) in [(0.45, 0.2), (0.4, 0.06)] {
        let mut controller = Controller::new(act(), 2);
        let reading = |lost: f64| Reading {
            lost_ratio: Some(lost),
            connections: ((1.0 - lost) * 100.0) as u64,
            ..Reading::default()
        };
        for n in 0..60 {
            // A burst that both share comes first, and leaves both at level 2.
            let [first, second] = if n < 10 { [0.3, 0.3] } else { [most, least] };
            controller.step(at(n * 100), &[reading(first), reading(second)]);
        }
        assert_eq!((controller.level(0), controller.level(1)), (Level::Stolen, Level::Elevated));
        let fair = (1.0 - most) / (2.0 - most - least) * 2.0;
        assert!((controller.accept_weight(0) / fair - 1.0).abs() < 0.05, "{}", controller.accept_weight(0));
        for n in 60..120 {
            controller.step(at(n * 100), &[reading(0.3), reading(0.3)]);
        }
        assert_eq!((controller.level(0), controller.level(1)), (Level::Stolen, Level::Stolen));
        assert_eq!(controller.accept_weight(0), 1.0, "all lose alike");
    }
}

#[test]
fn a_worker_with_too_many_connections_lets_some_go_slowly_while_the_other_is_better() {
    let drains = |lost: [f64; 2], connections: [u64; 2]| {
        let mut controller = Controller::new(act(), 2);
        let reading = |worker: usize| Reading {
            lost_ratio: Some(lost[worker]),
            connections: connections[worker],
            ..Reading::default()
        };
        let steps = (0..20).map(|n| controller.step(at(n * 100), &[reading(0), reading(1)]).drains_per_s);
        steps.last().expect("twenty of them")
    };
    assert_eq!(drains([0.33, 0.0], [1_000, 1_000]), [10.0, 0.0], "1 % in a second");
    assert_eq!(drains([0.33, 0.0], [830, 1_170]), [0.0; 0], "within two points of its share");
    assert_eq!(drains([0.33, 0.0], [2, 1]), [0.0; 0], "less than one too many");
    assert_eq!(drains([0.33, 0.33], [2_000, 0]), [0.0; 0], "nowhere better to go");
    assert_eq!(drains([0.03, 0.0], [2_000, 0]), [0.0; 0], "nothing is steered");
}

#[test]
fn a_queue_that_stands_is_level_3_whatever_is_lost_and_left_after_two_seconds() {
    let mut controller = Controller::new(Spec::default(), 1);
    let mut shown = Vec::new();
    for n in 0..60u64 {
        let reading = Reading { lost_ratio: Some(0.0), connections: 10, stands: (10..20).contains(&n) };
        for change in controller.step(at(n * 100), &[reading]).changes {
            shown.push((n, change.from, change.to));
        }
    }
    let (over, normal) = (Level::Overloaded, Level::Normal);
    assert_eq!(shown, [(10, normal, over), (39, over, normal)]);
    assert!(!controller.postpones(0), "observing changes nothing");
    controller.set_mode(Mode::Act);
    controller.step(at(6_000), &[Reading { stands: true, lost_ratio: Some(0.0), connections: 0 }]);
    assert!(controller.postpones(0));
}

#[test]
fn shares_follow_what_is_lost_on_average_however_it_fluctuates() {
    let mut controller = Controller::new(act(), 2);
    let mut weight = 0.0;
    for n in 0..300 {
        // Half of the time, and a tenth in one burst a second: 0.5 and 0.9 are left.
        let lost = [0.5, if n % 10 == 0 { 1.0 } else { 0.0 }];
        let readings = lost.map(|lost| Reading { lost_ratio: Some(lost), ..Reading::default() });
        controller.step(at(n * 100), &readings);
        weight += if n >= 100 { controller.accept_weight(0) / 200.0 } else { 0.0 };
    }
    let wanted = 2.0 * 0.5 / 1.4;
    assert!((weight - wanted).abs() < 0.02, "{weight}, and {wanted} is in proportion");
}

#[test]
fn one_connection_more_or_less_hardly_moves_a_share() {
    let shares = |connections: [u64; 2]| {
        let mut controller = Controller::new(act(), 2);
        let reading = |lost, worker: usize| Reading {
            lost_ratio: Some(lost),
            connections: connections[worker],
            stands: false,
        };
        for n in 0..20 {
            controller.step(at(n * 100), &[reading(0.33, 0), reading(0.0, 1)]);
        }
        controller.accept_weight(0) / 2.0
    };
    assert!((shares([0, 1]) - shares([1, 0])).abs() < 0.1);
    assert!(shares([0, 1_000]) - shares([1_000, 0]) > 0.3);
}

#[test]
fn weights_have_a_least_share_for_any_number_of_workers() {
    for workers in [1, 2, 3, 25, 64, 500] {
        let mut wild = vec![-3.0; workers];
        wild[0] = 7.0;
        let shares = normalized(wild);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let least = shares.iter().copied().fold(1.0, f64::min);
        assert!(least >= SHARE_MIN.min(0.5 / workers as f64) - 1e-12, "{workers}: {least}");
    }
}

/// Pauses in ms, and what each worker lost and had.
type Samples = Vec<(u64, Vec<(Option<f64>, u64)>)>;

/// Samples of `workers` workers.
fn samples(workers: usize) -> impl Strategy<Value = Samples> {
    let lost = prop_oneof![
        4 => (0.0f64..1.0).prop_map(Some),
        3 => Just(Some(0.0)),
        2 => Just(Some(0.35)),
        1 => Just(None),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0)].prop_map(Some),
    ];
    let pause = prop_oneof![8 => Just(100u64), 2 => 0u64..400, 1 => 1_000u64..20_000];
    let reading = (lost, 0u64..10_000);
    // Runs of the same sample: single ones would seldom change a level.
    let run = (pause, proptest::collection::vec(reading, workers), 1usize..30);
    proptest::collection::vec(run, 1..25).prop_map(|runs| {
        runs.into_iter().flat_map(|(pause, readings, times)| vec![(pause, readings); times]).collect()
    })
}

fn as_readings(readings: &[(Option<f64>, u64)]) -> Vec<Reading> {
    let reading = |(lost_ratio, connections): &(Option<f64>, u64)| Reading {
        lost_ratio: *lost_ratio,
        connections: *connections,
        stands: connections.is_multiple_of(7),
    };
    readings.iter().map(reading).collect()
}

proptest! {
    // I2, I7, I8, I10. I1 and I5 hold by what an action can say: it names shares of new connections, nothing else.
    #[test]
    fn weights_and_levels_keep_their_bounds(samples in (1usize..6).prop_flat_map(samples), off_at in 0usize..300) {
        let workers = samples[0].1.len();
        let mut controller = Controller::new(act(), workers);
        let (mut ms, mut installed, mut moved) = (0, None::<Vec<f64>>, Vec::new());
        let mut changed = vec![Vec::new(); workers];
        for (n, (pause, readings)) in samples.iter().enumerate() {
            ms += pause;
            if n == off_at {
                controller.set_mode(Mode::Observe);
            }
            let actions = controller.step(at(ms), &as_readings(readings));
            for (worker, drain) in actions.drains_per_s.iter().enumerate() {
                prop_assert!((0.0..=readings[worker].1 as f64 * 0.01).contains(drain), "{drain} of {readings:?}");
                prop_assert!(*pause <= 1_000 && n < off_at, "I8, I10: {drain}");
            }
            match actions.weights {
                Weights::Unchanged => {}
                Weights::Even => {
                    installed = None;
                    moved.push(ms);
                }
                Weights::Shares(shares) => {
                    prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "I2: {shares:?}");
                    prop_assert!(shares.iter().all(|share| *share >= SHARE_MIN - 1e-9), "I2: {shares:?}");
                    installed = Some(shares);
                    moved.push(ms);
                }
            }
            for Change { worker, from, to } in actions.changes {
                prop_assert!(from != to && controller.level(worker) == to);
                changed[worker].push(ms);
            }
            if installed.is_some() {
                let refuge = controller.workers.iter().any(|worker| worker.level < Level::Stolen);
                prop_assert!(refuge, "I2: all are stolen from, and weights differ");
                prop_assert!(*pause <= 1_000, "I8: weights after a stale sample");
                prop_assert!(n < off_at || *pause == 0, "I10: weights after the mode changed");
            }
        }
        let within = |times: &[u64], window: u64| {
            times.iter().map(|start| times.iter().filter(|time| (*start..start + window).contains(time)).count()).max()
        };
        for times in &changed {
            prop_assert!(within(times, 60_000).unwrap_or(0) <= 6, "I7: {times:?}");
        }
        prop_assert!(within(&moved, 1_000).unwrap_or(0) <= 11, "I7: {moved:?}");
    }

    #[test]
    fn nothing_read_is_nothing_lost(runs in 1usize..100, garbage in prop_oneof![Just(None), Just(Some(f64::NAN)), Just(Some(-5.0))]) {
        let mut controller = Controller::new(act(), 2);
        for n in 0..runs {
            let readings = [Reading { lost_ratio: garbage, connections: 1, stands: false }; 2];
            let actions = controller.step(at(n as u64 * 100), &readings);
            prop_assert_eq!(actions, Actions::default(), "I6");
        }
    }

    #[test]
    fn what_all_lose_alike_steers_nobody(lost in proptest::collection::vec((0.0f64..1.0, 0.0f64..0.07), 1..200)) {
        let mut controller = Controller::new(act(), 2);
        for (n, (lost, noise)) in lost.into_iter().enumerate() {
            let reading = |lost_ratio| Reading { lost_ratio: Some(lost_ratio), connections: 10, ..Reading::default() };
            let actions = controller.step(at(n as u64 * 100), &[reading(lost), reading(lost + noise)]);
            prop_assert_eq!(actions.weights, Weights::Unchanged, "I9");
        }
    }
}

#[test]
fn a_reader_that_died_leaves_nobody_treated_differently() {
    let mut controller = Controller::new(act(), 2);
    let reading = |lost_ratio| Reading { lost_ratio, connections: 10, ..Reading::default() };
    for n in 0..20 {
        controller.step(at(n * 100), &[reading(Some(0.5)), reading(Some(0.0))]);
    }
    assert!(controller.accept_weight(0) < 1.0);
    for n in 20..31 {
        controller.step(at(n * 100), &[reading(None), reading(None)]);
    }
    assert_eq!(controller.accept_weight(0), 1.0, "I8");
}
