//! The budgets of all keys, shared by the workers. A fixed table: a flood of keys costs no memory, and makes nobody forget
//! a budget that is in use.

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Rate, TICK_NS, ticks};
use crate::base::time::Instant;

/// Cells of one set: a cache line. The first is shared by the keys that find no other.
const WAYS: usize = 8;
/// Bits of a cell that hold a time; the rest tell keys of one set apart. A key is taken for another one with a chance of 7 in
/// a million where all places are taken, which nobody can help along without the secret.
const TIME_BITS: u32 = 44;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// The budgets of one limit.
#[derive(Debug)]
pub struct Store {
    rate: Rate,
    secret: u64,
    sets: Box<[Set]>,
}

/// Each cell holds a key's tag and, in ticks, when its bucket is full again (the "theoretical arrival time" of the generic
/// cell rate algorithm, ITU-T I.371). One whose time has passed says nothing: its place can be given away, and nobody gets
/// more than if it had been kept.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

/// What came of asking for tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Taken {
    /// How many; 0 where there are none now.
    pub(super) granted: u32,
    /// Until the next one, where there is none.
    pub(super) wait: Duration,
    /// The key has no place of its own, and shares one.
    pub(super) shares: bool,
}

impl Store {
    /// For about `keys_max` keys whose buckets are not full, at 9 bytes each. `secret`: what nobody else knows.
    pub fn new(rate: Rate, keys_max: u32, secret: u64) -> Self {
        let sets = (keys_max as usize).div_ceil(WAYS - 1).max(1);
        Self { rate, secret, sets: (0..sets).map(|_| Set::default()).collect() }
    }

    pub const fn rate(&self) -> &Rate {
        &self.rate
    }

    /// Whether both let the same through, of as many keys.
    pub fn is_like(&self, other: &Self) -> bool {
        self.rate == other.rate && self.sets.len() == other.sets.len()
    }

    /// What a key is known by. Without the secret nobody finds two keys that share a budget.
    /// `kind` keeps apart what has the same bytes.
    pub fn key(&self, kind: u8, bytes: &[u8]) -> u64 {
        // SipHash, whose state the secret goes into first.
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.secret);
        hasher.write_u8(kind);
        hasher.write(bytes);
        hasher.finish()
    }

    /// Takes up to `wanted` tokens of a key.
    pub(super) fn take(&self, key: u64, now: Instant, wanted: u32) -> Taken {
        let (set, now) = (self.set(key), ticks(now));
        loop {
            let (way, cell, shares) = choose(&set.cells(), tag(key), now);
            let tag = if shares { 0 } else { tag(key) };
            // A cell of another key whose time has passed: the bucket is full.
            let full_at = if shares || cell & !TIME_MASK == tag { (cell & TIME_MASK).max(now) } else { now };
            let used = full_at - now;
            let free = self.rate.cost(self.rate.burst).saturating_sub(used);
            let granted = self.rate.tokens(free).min(wanted);
            if granted == 0 {
                let missing = self.rate.cost(1).saturating_sub(free).max(1);
                return Taken { granted, wait: Duration::from_nanos(missing * TICK_NS), shares };
            }
            let next = tag | ((full_at + self.rate.cost(granted)) & TIME_MASK);
            if set.swap(way, cell, next) {
                return Taken { granted, wait: Duration::ZERO, shares };
            }
        }
    }

    /// Gives back tokens that were not used. A bucket that is full meanwhile has no room for them.
    pub(super) fn give_back(&self, key: u64, now: Instant, tokens: u32) {
        let (set, now) = (self.set(key), ticks(now));
        loop {
            let Some((way, cell)) = own(&set.cells(), tag(key)) else { return };
            let full_at = cell & TIME_MASK;
            if full_at <= now {
                return;
            }
            let next = full_at.saturating_sub(self.rate.refund(tokens)).max(now);
            if set.swap(way, cell, tag(key) | next) {
                return;
            }
        }
    }

    fn set(&self, key: u64) -> &Set {
        &self.sets[(key % self.sets.len() as u64) as usize]
    }
}

impl Set {
    /// All of them, each read once.
    fn cells(&self) -> [u64; WAYS] {
        // A cell is whole by itself: no other memory is read because of it.
        self.0.each_ref().map(|cell| cell.load(Ordering::Relaxed))
    }

    fn swap(&self, way: usize, from: u64, to: u64) -> bool {
        self.0[way].compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// The cell of a key and what is in it: its own; else the one that has been full for longest, which it may have; else that
/// of all (`true`). Each cell is read once, so that of two workers that meet a new key at once both choose the same, and the
/// second finds it changed. With another reading in between it could take the first one's for a stranger's, and choose another.
fn choose(cells: &[u64; WAYS], tag: u64, now: u64) -> (usize, u64, bool) {
    if let Some((way, cell)) = own(cells, tag) {
        return (way, cell, false);
    }
    let oldest = (1..).zip(&cells[1..]).min_by_key(|(_, cell)| *cell & TIME_MASK);
    match oldest.filter(|(_, cell)| *cell & TIME_MASK <= now) {
        Some((way, cell)) => (way, *cell, false),
        None => (0, cells[0], true),
    }
}

fn own(cells: &[u64; WAYS], tag: u64) -> Option<(usize, u64)> {
    let cell = (1..).zip(&cells[1..]).find(|(_, cell)| *cell & !TIME_MASK == tag);
    cell.map(|(way, cell)| (way, *cell))
}

/// The upper bits of a key. Never 0, which a cell has that was never used.
fn tag(key: u64) -> u64 {
    (key & !TIME_MASK).max(1 << TIME_BITS)
}
