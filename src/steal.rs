//! CPU time that others took: what the kernel's counters say of it, how much of its time a worker lost, and what is to
//! be done about it. Reads no counter and does nothing itself: texts and times come in, levels and weights go out.
//!
//! *Steal* is what the hypervisor took, *wait* is what other threads of this machine took, *lost* is both.

pub mod controller;
pub mod counters;
pub mod drain;
pub mod meter;
pub mod shed;
pub mod source;
pub mod stall;
pub mod steering;
pub mod trace;

#[cfg(test)]
mod tests;

use std::time::Duration;

/// Time between two samples. The kernel counts steal in ticks of 10 ms: a shorter one would see noise.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// What the product does about lost time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Nothing is measured.
    Off,
    /// Measured and shown.
    Observe,
    /// Measured, shown, and acted upon.
    Act,
}

impl Mode {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Act => "act",
        }
    }
}

/// What the configuration says. `calm_ratio < elevated_ratio < stolen_ratio`, each above 0 and below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    pub mode: Mode,
    /// Share of lost time from which a worker is at level 1.
    pub elevated_ratio: f64,
    /// Share of lost time from which a worker is at level 2.
    pub stolen_ratio: f64,
    /// Share of lost time below which a worker is calm.
    pub calm_ratio: f64,
    /// What users should be answered within.
    pub latency_objective: Duration,
}

impl Default for Spec {
    /// 2 % and 5 % are the thresholds of Linux' steal governor (docs.kernel.org/driver-api/steal-governor.html), 10 % is
    /// what operators call degradation.
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            elevated_ratio: 0.05,
            stolen_ratio: 0.10,
            calm_ratio: 0.02,
            latency_objective: Duration::from_millis(25),
        }
    }
}
