//! Byte units.

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;
