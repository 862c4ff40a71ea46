//! Has new connections go to workers by their shares, on every listener. Keeps one socket of each listener's group.

use std::net::TcpListener;

use crate::steal::controller::Weights;
use crate::steal::steering::{Instruction, program};
use crate::sys::reuseport;

/// Dropped when the gateway drains: its sockets would keep the listeners open. Connections go evenly again then.
pub struct Steering {
    listeners: Vec<TcpListener>,
    /// Told once: without it, everything else still works.
    has_failed: bool,
    /// In force; empty where connections go evenly.
    program: Vec<Instruction>,
}

impl Steering {
    /// `listeners`: one socket of each listener. A program that a data process before this one left is taken off.
    pub fn new(listeners: &[TcpListener]) -> Self {
        let copies = listeners.iter().filter_map(|listener| listener.try_clone().ok()).collect();
        let steering = Self { listeners: copies, has_failed: false, program: Vec::new() };
        steering.even();
        steering
    }

    /// Goes on with other listeners. `keeps`: under the program in force.
    pub(super) fn change(&mut self, listeners: &[TcpListener], keeps: bool) {
        self.listeners = listeners.iter().filter_map(|listener| listener.try_clone().ok()).collect();
        if !keeps {
            self.program.clear();
        }
        if self.program.is_empty() { self.even() } else { self.steer() }
    }

    pub(super) fn set(&mut self, weights: &Weights) {
        match weights {
            Weights::Unchanged => {}
            Weights::Even => {
                self.program.clear();
                self.even();
            }
            Weights::Shares(shares) => {
                let Some(program) = program(shares) else { return };
                self.program = program;
                self.steer();
            }
        }
    }

    fn steer(&mut self) {
        let results = self.listeners.iter().map(|listener| reuseport::steer(listener, &self.program));
        if let Some(error) = results.filter_map(Result::err).next()
            && !std::mem::replace(&mut self.has_failed, true)
        {
            tracing::warn!(%error, "new connections cannot be led away from a stolen CPU: they go evenly");
        }
    }

    fn even(&self) {
        for listener in &self.listeners {
            // Before Linux 5.3 there is no such order, and nothing was ever attached.
            let _ = reuseport::unsteer(listener);
        }
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        self.even();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::listeners;
    use crate::sys::reuseport::tests::spread;

    #[test]
    fn without_steering_nobody_is_preferred_any_more() {
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 2, 1_024).unwrap();
        let mut steering = Steering::new(&sockets[..1]);
        steering.set(&Weights::Shares(vec![0.0, 1.0]));
        assert_eq!(spread(&sockets, 40), [0, 40]);
        steering.set(&Weights::Unchanged);
        assert_eq!(spread(&sockets, 40), [0, 40]);
        steering.set(&Weights::Even);
        assert!(spread(&sockets, 100).iter().all(|count| *count > 20));
        steering.set(&Weights::Shares(vec![0.0, 1.0]));
        // As at the begin of a drain.
        drop(steering);
        assert!(spread(&sockets, 100).iter().all(|count| *count > 20), "I10");
    }
}
