//! What the supervisor does when a data process has ended: a function of how it ended. Pure.

use std::fmt;
use std::time::Duration;

use crate::control::Outcome;

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A data process that ran this long was healthy: the next pause is the first again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// How a data process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It could not even be started.
    NotStarted,
}

/// What the supervisor had asked for before the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    Draining,
    /// Killed by the supervisor: the drain deadline had passed, or it was interrupted twice.
    Killed,
}

/// What follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    Finish(Outcome),
    Restart,
}

/// Judges an end. `restarts` counts the data processes before this one.
pub fn after_exit(exit: Exit, stop: Option<Stop>, restarts: u32) -> Next {
    const COULD_NOT_RUN: i32 = Outcome::CouldNotRun.exit_code() as i32;
    const SIGINT: i32 = 2;
    const SIGTERM: i32 = 15;
    match (stop, exit) {
        // Without being told: somebody asked it to drain over its admin socket.
        (_, Exit::Code(0)) => Next::Finish(Outcome::Good),
        // It had not come as far as to take signals, so it had not served either.
        // A terminal sends SIGINT to both processes.
        (Some(Stop::Draining), Exit::Signal(SIGINT | SIGTERM)) => Next::Finish(Outcome::Good),
        (Some(_), _) => Next::Finish(Outcome::Problems),
        // It printed why it cannot run, and would do so again.
        (None, Exit::Code(COULD_NOT_RUN)) if restarts == 0 => Next::Finish(Outcome::CouldNotRun),
        (None, _) => Next::Restart,
    }
}

/// Pauses between restarts: 100 ms, doubling to 5 s, from the start again after a healthy run.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    pub const fn new() -> Self {
        Self { next: BACKOFF_FIRST }
    }

    /// The pause after a run of length `ran`.
    pub fn after(&mut self, ran: Duration) -> Duration {
        let pause = if ran >= HEALTHY_AFTER { BACKOFF_FIRST } else { self.next };
        self.next = (pause * 2).min(BACKOFF_MAX);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => match SIGNAL_NAMES.iter().find(|(number, _)| number == signal) {
                Some((number, name)) => write!(f, "signal {number} ({name})"),
                None => write!(f, "signal {signal}"),
            },
            Self::NotStarted => write!(f, "not started"),
        }
    }
}

/// Signals that end processes in practice, by the numbers they have on every architecture of Linux.
const SIGNAL_NAMES: [(i32, &str); 8] = [
    (2, "SIGINT"),
    (4, "SIGILL"),
    (6, "SIGABRT: a panic stands above"),
    (8, "SIGFPE"),
    (9, "SIGKILL: by hand, or out of memory"),
    (11, "SIGSEGV"),
    (15, "SIGTERM"),
    (31, "SIGSYS: a forbidden system call"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_their_bound_and_a_healthy_run_resets_them() {
        let mut backoff = Backoff::new();
        let short = Duration::from_millis(1);
        let pauses: Vec<u128> = (0..8).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(backoff.after(Duration::from_secs(10)).as_millis(), 100);
        assert_eq!(backoff.after(short).as_millis(), 200);
    }

    #[test]
    fn a_crash_is_restarted_unless_the_gateway_was_told_to_stop() {
        for exit in [Exit::Signal(6), Exit::Signal(9), Exit::Code(1), Exit::Code(101), Exit::NotStarted] {
            assert_eq!(after_exit(exit, None, 0), Next::Restart, "{exit}");
            for stop in [Stop::Draining, Stop::Killed] {
                assert_eq!(after_exit(exit, Some(stop), 0), Next::Finish(Outcome::Problems), "{exit}");
            }
        }
    }

    #[test]
    fn a_first_start_that_cannot_run_is_not_tried_again() {
        assert_eq!(after_exit(Exit::Code(2), None, 0), Next::Finish(Outcome::CouldNotRun));
        assert_eq!(after_exit(Exit::Code(2), None, 1), Next::Restart);
    }

    #[test]
    fn a_clean_end_is_good_whoever_asked_for_it() {
        for stop in [None, Some(Stop::Draining)] {
            assert_eq!(after_exit(Exit::Code(0), stop, 3), Next::Finish(Outcome::Good));
        }
        for in_its_first_moments in [Exit::Signal(2), Exit::Signal(15)] {
            let stop = Some(Stop::Draining);
            assert_eq!(after_exit(in_its_first_moments, stop, 0), Next::Finish(Outcome::Good));
            assert_eq!(after_exit(in_its_first_moments, None, 0), Next::Restart);
        }
    }

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(Exit::Code(3).to_string(), "exit code 3");
        assert_eq!(Exit::Signal(11).to_string(), "signal 11 (SIGSEGV)");
        assert_eq!(Exit::Signal(40).to_string(), "signal 40");
    }
}
