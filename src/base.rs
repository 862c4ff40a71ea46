//! Words every layer may use: time, units, keys, collections. Reads no clock, socket, file or random source.

pub mod byte_ring;
pub mod calendar;
pub mod field_edits;
pub mod hash;
pub mod identity;
pub mod random;
pub mod roff;
pub mod slab;
pub mod time;
pub mod timer_wheel;
pub mod units;
