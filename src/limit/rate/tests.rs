//! The limit holds whatever the number of workers and however requests are spread, in simulated time and between threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant::from_millis(3_600_000);

fn rate(requests: u32, burst: u32) -> Rate {
    Rate { requests, period: SECOND, burst }
}

fn store(rate: Rate) -> Arc<Store> {
    Arc::new(Store::new(rate, 1_024, 42))
}

fn workers(store: &Arc<Store>, count: usize) -> Vec<Leases> {
    (0..count).map(|_| Leases::new(store.clone())).collect()
}

fn admits(leases: &mut Leases, key: u64, now: Instant) -> bool {
    leases.admit(key, now) == Verdict::Admitted
}

/// Requests admitted in `time` of those that come to the workers: of each millisecond, so many to each.
fn admitted(workers: &mut [Leases], per_ms: &[f64], time: Duration) -> u32 {
    let (mut due, mut sum) = (vec![0.0; workers.len()], 0);
    for ms in 0..time.as_millis() as u64 {
        let now = START + Duration::from_millis(ms);
        for ((worker, due), rate) in workers.iter_mut().zip(&mut due).zip(per_ms) {
            *due += rate;
            while *due >= 1.0 {
                *due -= 1.0;
                sum += u32::from(admits(worker, 7, now));
            }
            if ms % 250 == 249 {
                worker.expire(now);
            }
        }
    }
    sum
}

#[test]
fn a_burst_then_the_rate_and_how_long_to_wait() {
    let mut worker = Leases::new(store(rate(10, 5)));
    let at = |ms| START + Duration::from_millis(ms);
    assert_eq!((0..9).filter(|_| admits(&mut worker, 7, at(0))).count(), 5);
    let refused = Verdict::Refused { wait: Duration::from_millis(100), shares: false };
    assert_eq!(worker.admit(7, at(0)), refused);
    assert!(matches!(worker.admit(7, at(60)), Verdict::Refused { wait, .. } if wait.as_millis() == 40));
    assert!(admits(&mut worker, 7, at(100)) && !admits(&mut worker, 7, at(101)));
    // Another key has its own.
    assert!(admits(&mut worker, 8, at(101)));
    // Rested, the burst is there again, and no more.
    assert_eq!((0..9).filter(|_| admits(&mut worker, 7, at(60_000))).count(), 5);
}

#[test]
fn the_limit_is_the_limit_for_any_number_of_workers_and_any_spread() {
    const SECONDS: u32 = 20;
    for (requests, burst) in
        [(10, 10), (100, 100), (100, 10), (300, 20), (7, 3), (5_000, 100), (200_000, 4_000)]
    {
        let flood = f64::from(requests) / 1_000.0 * 3.0;
        for spread in [
            &[1.0][..],
            &[0.5, 0.5],
            &[0.99, 0.01],
            &[0.25, 0.25, 0.25, 0.25],
            &[0.85, 0.09, 0.05, 0.01],
            &[0.7, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02, 0.02],
        ] {
            // So many requests are only made of the largest limit where it is cheap.
            let seconds = if requests > 10_000 { 1 } else { SECONDS };
            let mut workers = workers(&store(rate(requests, burst)), spread.len());
            let per_ms: Vec<f64> = spread.iter().map(|share| share * flood).collect();
            let got = admitted(&mut workers, &per_ms, SECOND * seconds);
            let due = burst + requests * seconds;
            let off = (f64::from(got) - f64::from(due)) / f64::from(requests * seconds);
            println!(
                "{requests}/s, burst {burst}, {} workers: {got} of {due} ({:+.2} %)",
                spread.len(),
                off * 100.0
            );
            // What is still leased at the end, and a token that was not asked for in time.
            let missing = f64::from(due - got.min(due));
            assert!(
                got <= due && missing <= 3.0 + f64::from(due) * 0.01,
                "{requests}/s, burst {burst}, {spread:?}: {got} of {due}"
            );
        }
    }
}

#[test]
fn who_stays_below_the_limit_is_never_refused() {
    for spread in [&[95.0][..], &[24.0, 24.0, 24.0, 23.0], &[90.0, 2.0, 2.0, 1.0]] {
        let mut workers = workers(&store(rate(100, 20)), spread.len());
        let per_ms: Vec<f64> = spread.iter().map(|per_s| per_s / 1_000.0).collect();
        let got = admitted(&mut workers, &per_ms, SECOND * 20);
        let sent: f64 = spread.iter().sum::<f64>() * 20.0;
        assert!((f64::from(got) - sent).abs() <= spread.len() as f64 * 2.0, "{spread:?}: {got} of {sent}");
    }
}

#[test]
fn threads_that_ask_at_once_get_the_budget_and_no_more() {
    let store = store(rate(1_000, 100_000));
    let total: u32 = thread::scope(|scope| {
        let ask = |wanted: u32| {
            let store = &store;
            scope.spawn(move || (0..60_000).map(|_| store.take(7, START, wanted).granted).sum::<u32>())
        };
        let threads: Vec<_> = [1, 1, 2, 3].map(ask).into();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(total, 100_000);
}

#[test]
fn threads_that_meet_a_new_key_at_once_count_in_one_place() {
    const THREADS: u32 = 2;
    // One set, whose last place is the oldest: a key placed there and then placed again would count in one before it.
    let sets: Vec<_> = (0..20_000)
        .map(|_| {
            let store = Store::new(rate(1, 3), 7, 42);
            for way in 1..=7 {
                assert_eq!(store.take(way << 44, Instant::from_millis((100 - way) * 10_000), 1).granted, 1);
            }
            (store, AtomicU32::new(0), AtomicU32::new(0))
        })
        .collect();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for (store, there, granted) in &sets {
                    there.fetch_add(1, Ordering::Relaxed);
                    while there.load(Ordering::Relaxed) < THREADS {
                        thread::yield_now();
                    }
                    let taken: u32 = (0..4).map(|_| store.take(99 << 44, START, 1).granted).sum();
                    granted.fetch_add(taken, Ordering::Relaxed);
                }
            });
        }
    });
    let granted = sets.iter().map(|(.., granted)| granted.load(Ordering::Relaxed));
    assert_eq!(granted.filter(|granted| *granted != 3).count(), 0);
}

#[test]
fn a_flood_of_keys_frees_no_client() {
    let store = store(rate(1, 5));
    let mut worker = Leases::new(store.clone());
    let key = store.key(1, b"198.51.100.7");
    assert_eq!((0..9).filter(|_| admits(&mut worker, key, START)).count(), 5);
    let flood = |n: u32| store.key(1, &n.to_be_bytes());
    let admitted = (0..200_000).filter(|n| admits(&mut worker, flood(*n), START)).count();
    assert!(!admits(&mut worker, key, START + Duration::from_millis(500)));
    // A first request each for the 1,029 that have a place; then five for each set of those that have none.
    assert!((1_000..=1_029 + 147 * 5).contains(&admitted), "{admitted}");
    let shared =
        (0..200_000).any(|n| matches!(worker.admit(flood(n), START), Verdict::Refused { shares: true, .. }));
    assert!(shared);
    // Those that rest make room.
    let later = START + Duration::from_secs(60);
    assert_eq!((0..9).filter(|_| admits(&mut worker, flood(999_999), later)).count(), 5);
}

#[test]
fn what_is_not_used_comes_back() {
    let store = store(rate(1_000, 1_000));
    let mut workers = workers(&store, 2);
    let at = |ms| START + Duration::from_millis(ms);
    // One alone at first, then twenty at once: each of the two has some left.
    assert_eq!((0..900).filter(|_| admits(&mut workers[0], 7, at(0))).count(), 900);
    assert_eq!((0..2).filter(|_| admits(&mut workers[1], 7, at(0))).count(), 2);
    let free = store.take(7, at(0), 2_000).granted;
    assert_eq!(free, 1_000 - 901 - 21);
    store.give_back(7, at(0), free);
    workers.iter_mut().for_each(|worker| worker.expire(at(150)));
    assert_eq!(store.take(7, at(150), 2_000).granted, 1_000 - 902 + 150);
}

#[test]
fn what_a_request_that_does_not_go_on_took_is_there_for_the_next() {
    let store = store(rate(10, 5));
    let mut workers = workers(&store, 2);
    for _ in 0..100 {
        assert!(admits(&mut workers[0], 7, START));
        workers[0].put_back(7);
    }
    assert_eq!((0..9).filter(|_| admits(&mut workers[0], 7, START)).count(), 5);
    // The other worker gets it, too, once it was not used.
    workers[0].put_back(7);
    assert!(!admits(&mut workers[1], 7, START));
    let later = START + Duration::from_millis(101);
    workers[0].expire(later);
    assert_eq!((0..9).filter(|_| admits(&mut workers[1], 7, later)).count(), 2, "that, and one that came");
}

proptest! {
    /// However takes and returns follow one another, what is out is at most the burst and what came since.
    #[test]
    fn never_more_than_the_limit(
        (requests, burst) in (1..5_000u32, 1..500u32),
        steps in prop::collection::vec((0..4usize, 0..30u64, any::<bool>()), 1..400),
    ) {
        let mut workers = workers(&store(rate(requests, burst)), 4);
        let (mut now, mut sum) = (START, 0u64);
        for (worker, pause_ms, expires) in steps {
            now = now + Duration::from_millis(pause_ms);
            if expires {
                workers[worker].expire(now);
            }
            sum += u64::from(admits(&mut workers[worker], 7, now));
            let came = now.since(START).as_millis() as u64 * u64::from(requests) / 1_000;
            prop_assert!(sum <= u64::from(burst) + came + 1, "{} of {} and {}", sum, burst, came);
        }
    }
}
