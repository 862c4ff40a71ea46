//! Slots with stable keys. A key carries a generation: one kept past its slot's life finds nothing, instead of
//! the next tenant. Never shrinks.

/// Names one tenancy of one slot.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Key {
    pub index: u32,
    /// Only the low 24 bits count, so a key packs into a completion's `user_data` beside an operation kind.
    pub generation: u32,
}

impl Key {
    /// Names nothing, in any slab.
    pub const NONE: Self = Self { index: NIL, generation: NIL };
}

/// Bits of a generation. It repeats after 16.7 million tenancies of one slot.
pub const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;
const NIL: u32 = u32::MAX;

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    next_free: u32,
    value: Option<T>,
}

#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: NIL, len: 0 }
    }
}

impl<T> Slab<T> {
    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// # Panics
    /// Beyond 2^32 - 1 slots, which no descriptor limit allows.
    pub fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if self.free == NIL {
            let index = u32::try_from(self.slots.len()).expect("a slab of fewer than 2^32 slots");
            self.slots.push(Slot { generation: 0, next_free: NIL, value: Some(value) });
            return Key { index, generation: 0 };
        }
        let index = self.free;
        let slot = &mut self.slots[index as usize];
        self.free = slot.next_free;
        slot.value = Some(value);
        Key { index, generation: slot.generation }
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    /// The value in a slot, whichever tenancy it is: for links inside one structure, which unlinks what it removes.
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.next_free = self.free;
        self.free = key.index;
        self.len -= 1;
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let key = Key { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing_though_its_slot_is_reused() {
        let mut slab = Slab::default();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn generations_wrap_within_their_bits() {
        let mut slab = Slab::default();
        let key = slab.insert(());
        slab.remove(key);
        slab.slots[0].generation = GENERATION_MASK;
        let key = slab.insert(());
        assert_eq!(key.generation, GENERATION_MASK);
        slab.remove(key);
        assert_eq!(slab.insert(()).generation, 0);
    }
}
