//! Rate limits: so many requests in a period for each key, such as a client's address, however many workers there are.
//!
//! ```text
//!   request ─▶ Leases (one worker's) ── has tokens of the key left ──▶ admitted, nothing shared was touched
//!                  └── none left ─▶ Store (all workers') ── grants some ──▶ kept for this and the next requests
//!                                                        └── none free ──▶ refused, and for how long
//! ```
//!
//! The store is the one place where budgets are, so their sum is the limit whatever the number of workers and however
//! requests are spread over them. It is also the one thing that workers share and change: atomics, never a lock, since
//! a worker that loses its CPU while it holds one would stop the others. Under load a worker takes tokens for
//! [`LEASE`] at once, so that it comes there fifty times a second for a key and not for each request.

use std::time::Duration;

use crate::base::time::Instant;

mod leases;
mod store;

pub use leases::{Leases, Verdict};
pub use store::Store;

/// A worker that has used tokens of a key up lately takes as many as the limit lets through in this time.
pub const LEASE: Duration = Duration::from_millis(20);

/// What is let through of one key: a bucket of `burst` tokens that gets `requests` of them in each `period`, evenly.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// 1 to [`REQUESTS_MAX`].
    pub requests: u32,
    /// 1 ms to 1 day.
    pub period: Duration,
    /// 1 to [`REQUESTS_MAX`]; full again within [`REFILL_MAX`].
    pub burst: u32,
}

/// Most requests of a period: with the longest one, products still fit 64 bits.
pub const REQUESTS_MAX: u32 = 10_000_000;
/// Longest time that an empty bucket may take to be full: what is counted in 44 bits.
pub const REFILL_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Time is counted in steps of 10 µs: 44 bits of them are five years of uptime.
const TICK_NS: u64 = 10_000;

fn ticks(now: Instant) -> u64 {
    now.nanos() / TICK_NS
}

impl Rate {
    fn period_ticks(&self) -> u64 {
        u64::try_from(self.period.as_nanos() / u128::from(TICK_NS)).unwrap_or(u64::MAX).max(1)
    }

    /// How long an empty bucket takes to be full.
    pub fn refill(&self) -> Duration {
        Duration::from_nanos(self.cost(self.burst).saturating_mul(TICK_NS))
    }

    /// Ticks in which as many tokens come, rounded up: no number of takes lets more through.
    fn cost(&self, tokens: u32) -> u64 {
        (u64::from(tokens) * self.period_ticks()).div_ceil(u64::from(self.requests.max(1)))
    }

    /// The same, rounded down, for tokens that come back.
    fn refund(&self, tokens: u32) -> u64 {
        u64::from(tokens) * self.period_ticks() / u64::from(self.requests.max(1))
    }

    /// Whole tokens that come in so many ticks.
    fn tokens(&self, ticks: u64) -> u32 {
        let tokens = ticks.saturating_mul(u64::from(self.requests)) / self.period_ticks();
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// Tokens of one lease.
    fn slice(&self) -> u32 {
        let ticks = u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX) / TICK_NS;
        self.tokens(ticks).clamp(1, self.burst.max(1))
    }
}

#[cfg(test)]
mod tests;
