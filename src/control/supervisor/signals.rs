//! The signals that a supervisor takes, as what is asked for. Decides nothing.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::sys::process;

/// What is asked for. A second Ctrl-C is somebody who will not wait; a second SIGTERM may be a service manager that
/// stops what an operator has told to drain before, and cuts nothing short.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ask {
    Interrupt,
    Terminate,
    /// Not to stop: to read files anew.
    HangUp,
    /// Nor this: to have another binary take over.
    User2,
    /// Nor this: to open the access log anew.
    User1,
    /// Nothing: a child may have ended.
    Child,
}

/// The signals a supervisor takes.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
    user_2: Signal,
    child: Signal,
}

/// Adds what is not there yet.
pub(super) fn keep(waiting: &mut Vec<process::Signal>, asked: process::Signal) {
    if !waiting.contains(&asked) {
        waiting.push(asked);
    }
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
            child: signal(SignalKind::child())?,
        })
    }

    /// Waits for SIGTERM or SIGINT while there is nobody to pass the others on to, which are kept.
    pub(super) async fn stop(&mut self, waiting: &mut Vec<process::Signal>) {
        loop {
            match self.next().await {
                Ask::Interrupt | Ask::Terminate => return,
                Ask::HangUp => keep(waiting, process::Signal::HangUp),
                Ask::User1 => keep(waiting, process::Signal::User1),
                Ask::User2 => keep(waiting, process::Signal::User2),
                Ask::Child => {}
            }
        }
    }

    /// None of them ends the process by itself.
    pub(super) async fn next(&mut self) -> Ask {
        tokio::select! {
            _ = self.terminate.recv() => Ask::Terminate,
            _ = self.interrupt.recv() => Ask::Interrupt,
            _ = self.hang_up.recv() => Ask::HangUp,
            _ = self.user_1.recv() => Ask::User1,
            _ = self.user_2.recv() => Ask::User2,
            _ = self.child.recv() => Ask::Child,
        }
    }
}
