//! The two processes and the control thread: starting, supervising, draining, admin, logs, names. Never touches the
//! bytes of a client; whatever it takes from a worker it reads from the worker's shard.

pub mod access_log;
pub mod admin;
pub mod banner;
pub mod certificates;
pub mod cpus;
pub mod data;
pub mod handover;
pub mod health;
pub mod log;
pub mod requests;
pub mod resolve;
pub mod socket;
pub mod source;
pub mod steal;
pub mod supervisor;

/// How a command ended, for the exit code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    Good,
    /// It ran, and found problems or did not end as asked.
    Problems,
    /// It could not run: configuration, address, engine.
    CouldNotRun,
}

impl Outcome {
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Problems => 1,
            Self::CouldNotRun => 2,
        }
    }
}
