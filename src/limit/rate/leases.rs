//! One worker's share of the budgets, for the keys it has seen lately.

use std::sync::Arc;
use std::time::Duration;

use super::Store;
use crate::base::time::Instant;

/// Keys that a worker keeps tokens of. Another key in the same place sends those of the first back.
const ENTRIES: usize = 1_024;
/// How long a worker that was refused does not ask again: other workers may give tokens back meanwhile.
const REFUSED_FOR: Duration = Duration::from_millis(10);
/// Tokens that were not used by then go back, when somebody looks.
const KEPT_FOR: Duration = Duration::from_millis(100);

/// Whether a request may go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Admitted,
    Refused {
        /// Until a token is there for the key.
        wait: Duration,
        /// The table is full of keys in use, and this one shares a budget.
        shares: bool,
    },
}

/// The leases of one worker under one limit.
#[derive(Debug)]
pub struct Leases {
    store: Arc<Store>,
    entries: Box<[Entry]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: u64,
    left: u32,
    /// Its place in the store is that of all.
    shares: bool,
    taken: Instant,
    refused_until: Instant,
    next_at: Instant,
}

impl Leases {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, entries: vec![Entry::default(); ENTRIES].into() }
    }

    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Takes one token of a key, as [`Store::key`] gives it.
    pub fn admit(&mut self, key: u64, now: Instant) -> Verdict {
        let entry = &mut self.entries[place(key)];
        if entry.key != key {
            entry.give_back(&self.store, now);
            *entry = Entry { key, ..Entry::default() };
        }
        if entry.left > 0 {
            entry.left -= 1;
            return Verdict::Admitted;
        }
        if now < entry.refused_until {
            return Verdict::Refused { wait: entry.next_at.since(now), shares: entry.shares };
        }
        // One alone, unless the key is busy here: most clients send a few requests, and the rest would lie idle.
        let is_busy = entry.taken > Instant::ZERO && now.since(entry.taken) < KEPT_FOR;
        let wanted = if is_busy { self.store.rate().slice() } else { 1 };
        let taken = self.store.take(key, now, wanted);
        entry.shares = taken.shares;
        let Some(left) = taken.granted.checked_sub(1) else {
            (entry.refused_until, entry.next_at) = (now + taken.wait.min(REFUSED_FOR), now + taken.wait);
            return Verdict::Refused { wait: taken.wait, shares: taken.shares };
        };
        (entry.left, entry.taken) = (left, now);
        Verdict::Admitted
    }

    /// Takes back the token that a request was admitted with, as it does not go on.
    pub fn put_back(&mut self, key: u64) {
        let entry = &mut self.entries[place(key)];
        if entry.key == key {
            entry.left += 1;
        }
    }

    /// Gives back all that was not used, for somebody else.
    pub fn give_back(&mut self, now: Instant) {
        self.entries.iter_mut().for_each(|entry| entry.give_back(&self.store, now));
    }

    /// Gives back what was not used in time. To be called a few times a second.
    pub fn expire(&mut self, now: Instant) {
        let overdue = |entry: &&mut Entry| entry.left > 0 && now.since(entry.taken) >= KEPT_FOR;
        self.entries.iter_mut().filter(overdue).for_each(|entry| entry.give_back(&self.store, now));
    }
}

const fn place(key: u64) -> usize {
    (key >> 32) as usize % ENTRIES
}

impl Entry {
    fn give_back(&mut self, store: &Store, now: Instant) {
        let left = std::mem::take(&mut self.left);
        // What was taken from the budget of all stays away from it: the key may have a place of its own by now.
        if left > 0 && !self.shares {
            store.give_back(self.key, now, left);
        }
    }
}
