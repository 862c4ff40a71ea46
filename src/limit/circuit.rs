//! How much may be under way at once, over all workers. Workers hold parts of the whole on lease: a worker writes what others
//! read only when its part runs out or is too large. Never more than the limit is in use; what others hold and do not use
//! may refuse a little early: a sixteenth of the limit at most, and nothing where the limit is small. Pure.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The whole, shared by all workers.
#[derive(Debug)]
pub struct Pool {
    limit: u32,
    leased: AtomicU32,
    holders: AtomicU32,
}

/// Two are the same if they promise the same; what is in use is no part of a configuration.
impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        self.limit == other.limit
    }
}

impl Eq for Pool {}

impl Pool {
    pub const fn new(limit: u32) -> Self {
        Self { limit, leased: AtomicU32::new(0), holders: AtomicU32::new(0) }
    }

    /// Leases up to `wanted`; what is left where there is less.
    fn lease(&self, wanted: u32) -> u32 {
        let mut granted = 0;
        let grant = |leased: u32| {
            granted = wanted.min(self.limit.saturating_sub(leased));
            (granted > 0).then_some(leased + granted)
        };
        match self.leased.fetch_update(Relaxed, Relaxed, grant) {
            Ok(_) => granted,
            Err(_) => 0,
        }
    }

    fn give_back(&self, count: u32) {
        self.leased.fetch_sub(count, Relaxed);
    }

    /// What one worker may hold beside what it uses; twice as much before it gives some back.
    fn spare(&self) -> u32 {
        const PARTS: u32 = 32;
        self.limit / self.holders.load(Relaxed).max(1).saturating_mul(PARTS)
    }
}

/// The part of one worker.
#[derive(Debug)]
pub struct Share {
    pool: Arc<Pool>,
    leased: Cell<u32>,
    used: Cell<u32>,
}

impl Share {
    pub fn new(pool: &Arc<Pool>) -> Self {
        pool.holders.fetch_add(1, Relaxed);
        Self { pool: pool.clone(), leased: Cell::new(0), used: Cell::new(0) }
    }

    /// Takes one; `false` where the limit is reached. Each that is taken is to be released.
    #[must_use]
    pub fn take(&self) -> bool {
        if self.used.get() >= self.leased.get() {
            let granted = self.pool.lease(1 + self.pool.spare());
            if granted == 0 {
                return false;
            }
            self.leased.set(self.leased.get() + granted);
        }
        self.used.set(self.used.get() + 1);
        true
    }

    /// Releases one that was taken.
    pub fn release(&self) {
        debug_assert!(self.used.get() > 0, "released what nobody took");
        self.used.set(self.used.get().saturating_sub(1));
        let idle = self.leased.get() - self.used.get();
        let spare = self.pool.spare();
        if idle > 2 * spare {
            self.pool.give_back(idle - spare);
            self.leased.set(self.used.get() + spare);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pool.give_back(self.leased.get());
        self.pool.holders.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_limit_is_exact_whoever_takes() {
        let pool = Arc::new(Pool::new(3));
        let (one, other) = (Share::new(&pool), Share::new(&pool));
        assert!(one.take() && other.take() && one.take());
        assert!(!one.take() && !other.take());
        one.release();
        assert!(other.take() && !one.take());
    }

    #[test]
    fn a_worker_that_leaves_gives_everything_back() {
        let pool = Arc::new(Pool::new(1_000));
        let (one, other) = (Share::new(&pool), Share::new(&pool));
        (0..500).for_each(|_| assert!(one.take()));
        (0..500).for_each(|_| one.release());
        drop(one);
        (0..1_000).for_each(|_| assert!(other.take()));
        assert!(!other.take());
    }

    #[test]
    fn threads_never_have_more_than_the_limit_together() {
        const LIMIT: u32 = 100;
        let pool = Arc::new(Pool::new(LIMIT));
        let in_use = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (pool, in_use) = (pool.clone(), in_use.clone());
                std::thread::spawn(move || {
                    let share = Share::new(&pool);
                    let mut taken = 0;
                    for round in 0..20_000_u32 {
                        if round % 97 < 60 {
                            if share.take() {
                                taken += 1;
                                assert!(in_use.fetch_add(1, Relaxed) < LIMIT);
                            }
                        } else if taken > 0 {
                            taken -= 1;
                            in_use.fetch_sub(1, Relaxed);
                            share.release();
                        }
                    }
                    in_use.fetch_sub(taken, Relaxed);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(pool.leased.load(Relaxed), 0);
    }

    proptest! {
        #[test]
        fn nothing_beyond_the_limit_and_little_refused_below_it(
            limit in 1u32..5_000,
            workers in 1usize..6,
            steps in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 1u32..400), 1..60),
        ) {
            let pool = Arc::new(Pool::new(limit));
            let shares: Vec<Share> = (0..workers).map(|_| Share::new(&pool)).collect();
            for (which, takes, times) in steps {
                let share = which.get(&shares);
                for _ in 0..times {
                    let used: u32 = shares.iter().map(|share| share.used.get()).sum();
                    if takes {
                        let taken = share.take();
                        prop_assert!(!taken || used < limit);
                        prop_assert!(taken || used >= limit - limit / 16);
                    } else if share.used.get() > 0 {
                        share.release();
                    }
                }
            }
        }
    }
}
