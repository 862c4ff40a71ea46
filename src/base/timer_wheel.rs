//! Hierarchical timer wheel of millisecond ticks. Setting a timer later is one store: the wheel notices when the
//! old time comes, and files it again. Never reads a clock: `advance` is told the time.
//!
//! Four levels of 64 slots reach 4.6 hours; what lies further is filed in the last slot and looked at again there
//! (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987, scheme 7).

use super::slab::{Key, Slab};
use super::time::Instant;

const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_MASK: u64 = SLOTS as u64 - 1;
const NIL: u32 = u32::MAX;

#[derive(Debug)]
struct Entry<T> {
    /// When it is to fire.
    due: Instant,
    /// The tick under which it is filed: never later than `due`.
    filed: u64,
    next: u32,
    previous: u32,
    /// `level * SLOTS + slot`; `None` while in no slot.
    place: Option<u16>,
    value: T,
}

/// Timers of one worker. `T` is what the owner wants back when one fires.
#[derive(Debug)]
pub struct TimerWheel<T> {
    entries: Slab<Entry<T>>,
    heads: [u32; LEVELS * SLOTS],
    /// One bit a slot, for each level.
    occupied: [u64; LEVELS],
    tick: u64,
}

impl<T> TimerWheel<T> {
    pub fn new(now: Instant) -> Self {
        Self {
            entries: Slab::default(),
            heads: [NIL; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            tick: now.millis(),
        }
    }

    /// Adds a timer that is not set.
    pub fn add(&mut self, value: T) -> Key {
        self.entries.insert(Entry {
            due: Instant::FAR,
            filed: u64::MAX,
            next: NIL,
            previous: NIL,
            place: None,
            value,
        })
    }

    pub fn remove(&mut self, key: Key) {
        if self.entries.get(key).is_some() {
            self.unfile(key.index);
            self.entries.remove(key);
        }
    }

    pub fn value_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// When this timer is due; `Instant::FAR` while it is not set or gone.
    pub fn due(&self, key: Key) -> Instant {
        self.entries.get(key).map_or(Instant::FAR, |entry| entry.due)
    }

    /// Sets or moves a timer; `Instant::FAR` turns it off. It fires up to one tick (1 ms) late, never early.
    pub fn set(&mut self, key: Key, due: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.due = due;
        let tick = due_tick(due);
        // Later than filed: leave it, `advance` files it again when the old tick comes.
        if tick < entry.filed {
            self.unfile(key.index);
            self.file(key.index, tick);
        }
    }

    /// Moves to `now`, handing every timer that is due to `fire`. A fired timer is off until set again.
    pub fn advance(&mut self, now: Instant, mut fire: impl FnMut(&mut T)) {
        let target = now.millis();
        while self.tick < target {
            if self.occupied == [0; LEVELS] {
                self.tick = target;
                return;
            }
            let boundary = (self.tick | SLOT_MASK) + 1;
            let stop = target.min(boundary);
            // Ticks in (tick, stop], taken from the bitmap; the boundary itself belongs to the next rotation.
            let mut at = self.tick + 1;
            while at <= stop && at < boundary {
                let pending = self.occupied[0] & (u64::MAX << (at & SLOT_MASK));
                let Some(found) = lowest_bit(pending) else { break };
                at = (at & !SLOT_MASK) | u64::from(found);
                if at > stop {
                    break;
                }
                self.tick = at;
                self.empty_slot(found as usize, now, &mut fire);
                at += 1;
            }
            self.tick = stop;
            if stop == boundary {
                self.cascade(now, &mut fire);
            }
        }
    }

    /// The earliest moment at which `advance` may have work. Never later than the first timer that is due;
    /// may be earlier.
    pub fn next_deadline(&self) -> Option<Instant> {
        let mut earliest: Option<u64> = None;
        for (level, &occupied) in self.occupied.iter().enumerate() {
            if occupied == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let current = self.tick >> shift;
            // Slots after the current one come in this rotation, the others in the next.
            let ahead = occupied.rotate_right((current & SLOT_MASK) as u32);
            let steps = match lowest_bit(ahead & !1) {
                Some(steps) => u64::from(steps),
                None => SLOTS as u64,
            };
            let tick = (current + steps) << shift;
            earliest = Some(earliest.map_or(tick, |known| known.min(tick)));
        }
        earliest.map(Instant::from_millis)
    }

    fn cascade(&mut self, now: Instant, fire: &mut impl FnMut(&mut T)) {
        for level in 1..LEVELS {
            let slot = ((self.tick >> (SLOT_BITS * level as u32)) & SLOT_MASK) as usize;
            self.empty_slot(level * SLOTS + slot, now, fire);
            if slot != 0 {
                break;
            }
        }
        // What cascaded to the present tick sits in level 0 now.
        self.empty_slot((self.tick & SLOT_MASK) as usize, now, fire);
    }

    /// Takes every entry out of a slot: fires those that are due, files the others again.
    fn empty_slot(&mut self, place: usize, now: Instant, fire: &mut impl FnMut(&mut T)) {
        let mut index = self.heads[place];
        self.heads[place] = NIL;
        self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
        while index != NIL {
            let Some(entry) = self.entries.at_mut(index) else { return };
            let next = entry.next;
            entry.place = None;
            entry.filed = u64::MAX;
            if entry.due == Instant::FAR {
                // Turned off since it was filed.
            } else if due_tick(entry.due) <= self.tick && entry.due <= now {
                entry.due = Instant::FAR;
                fire(&mut entry.value);
            } else {
                let tick = due_tick(entry.due);
                self.file(index, tick);
            }
            index = next;
        }
    }

    fn file(&mut self, index: u32, due_tick: u64) {
        if due_tick == u64::MAX {
            return;
        }
        let tick = due_tick.max(self.tick + 1);
        // The level at which `tick` and the present first differ: its slot is reached exactly once before `tick`.
        let differing = tick ^ self.tick;
        let level = ((63 - differing.leading_zeros()) / SLOT_BITS) as usize;
        let level = level.min(LEVELS - 1);
        let shift = SLOT_BITS * level as u32;
        // Beyond the wheel: the slot just behind the present one of the last level comes round last.
        let slot = ((tick >> shift).min((self.tick >> shift) + SLOT_MASK)) & SLOT_MASK;
        let place = level * SLOTS + slot as usize;
        let head = self.heads[place];
        if let Some(entry) = self.entries.at_mut(index) {
            entry.filed = tick;
            entry.place = Some(place as u16);
            entry.next = head;
            entry.previous = NIL;
        }
        if let Some(old) = self.entries.at_mut(head) {
            old.previous = index;
        }
        self.heads[place] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unfile(&mut self, index: u32) {
        let Some(entry) = self.entries.at_mut(index) else { return };
        let Some(place) = entry.place.take() else { return };
        let (place, next, previous) = (usize::from(place), entry.next, entry.previous);
        entry.filed = u64::MAX;
        if let Some(after) = self.entries.at_mut(next) {
            after.previous = previous;
        }
        if let Some(before) = self.entries.at_mut(previous) {
            before.next = next;
        } else {
            self.heads[place] = next;
            if next == NIL {
                self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
            }
        }
    }
}

/// The first tick at which `due` has passed.
fn due_tick(due: Instant) -> u64 {
    if due == Instant::FAR { u64::MAX } else { due.nanos().div_ceil(1_000_000) }
}

const fn lowest_bit(bits: u64) -> Option<u32> {
    if bits == 0 { None } else { Some(bits.trailing_zeros()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn fired(wheel: &mut TimerWheel<u32>, now: u64) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.advance(at(now), |value| out.push(*value));
        out.sort_unstable();
        out
    }

    #[test]
    fn fires_when_due_and_only_once() {
        let mut wheel = TimerWheel::new(at(1_000));
        let key = wheel.add(7);
        wheel.set(key, at(1_005));
        assert_eq!(fired(&mut wheel, 1_004), [0; 0]);
        assert_eq!(fired(&mut wheel, 1_005), [7]);
        assert_eq!(fired(&mut wheel, 9_000), [0; 0]);
    }

    #[test]
    fn moved_later_or_turned_off_it_does_not_fire_at_the_old_time() {
        let mut wheel = TimerWheel::new(at(0));
        let (late, off) = (wheel.add(1), wheel.add(2));
        wheel.set(late, at(10));
        wheel.set(off, at(10));
        wheel.set(late, at(300));
        wheel.set(off, Instant::FAR);
        assert_eq!(fired(&mut wheel, 299), [0; 0]);
        assert_eq!(fired(&mut wheel, 300), [1]);
    }

    #[test]
    fn a_clock_that_jumps_a_month_fires_everything_once() {
        let mut wheel = TimerWheel::new(at(0));
        for (value, due) in [(1, 63), (2, 64), (3, 4_096), (4, 40_000_000)] {
            let key = wheel.add(value);
            wheel.set(key, at(due));
        }
        assert_eq!(fired(&mut wheel, 30 * 24 * 3_600_000), [1, 2, 3, 4]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, u64),
        Remove(usize),
        Advance(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let delay = prop_oneof![0u64..200, 0u64..10_000, 0u64..40_000_000];
        let step = prop_oneof![
            4 => (0usize..8, delay.clone()).prop_map(|(timer, delay)| Step::Set(timer, delay)),
            1 => (0usize..8).prop_map(Step::Remove),
            4 => delay.prop_map(Step::Advance),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        /// The wheel fires exactly what a plain list of deadlines would, and never promises a later deadline.
        #[test]
        fn agrees_with_a_list_of_deadlines(steps in steps(), start in 0u64..1_000_000) {
            let mut now = start;
            let mut wheel = TimerWheel::new(at(now));
            let mut keys: Vec<Option<Key>> = (0..8).map(|value| Some(wheel.add(value))).collect();
            let mut model = [None::<u64>; 8];
            for step in steps {
                match step {
                    Step::Set(timer, delay) => if let Some(key) = keys[timer] {
                        wheel.set(key, at(now + delay));
                        model[timer] = Some((now + delay).max(now + 1));
                    },
                    Step::Remove(timer) => if let Some(key) = keys[timer].take() {
                        wheel.remove(key);
                        model[timer] = None;
                    },
                    Step::Advance(by) => {
                        now += by;
                        let mut expected: Vec<u32> = Vec::new();
                        for (timer, due) in model.iter_mut().enumerate() {
                            if due.is_some_and(|due| due <= now) {
                                expected.push(timer as u32);
                                *due = None;
                            }
                        }
                        prop_assert_eq!(fired(&mut wheel, now), expected);
                    }
                }
                let first = model.iter().flatten().min();
                if let Some(&first) = first {
                    let promised = wheel.next_deadline().expect("a deadline while a timer is set");
                    prop_assert!(promised <= at(first), "promised {promised:?}, first due {first}");
                    prop_assert!(promised > at(now));
                }
            }
        }
    }
}
