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
    /// Has them go evenly: empty where the kernel's hash does, as each socket has a worker of its own.
    even: Vec<Instruction>,
}

impl Steering {
    /// `listeners`: one socket of each listener. A program that a data process before this one left is taken off. `spares`:
    /// some have more sockets than the `workers`, who take what waits in those that nobody has of his own: nothing new is to
    /// come there.
    pub fn new(listeners: &[Option<TcpListener>], workers: usize, spares: bool) -> Self {
        let share = 1.0 / workers.max(1) as f64;
        let even = if spares { program(&vec![share; workers]).unwrap_or_default() } else { Vec::new() };
        let mut steering =
            Self { listeners: copies(listeners), has_failed: false, program: Vec::new(), even };
        steering.assert();
        steering
    }

    /// Goes on with other listeners. `keeps`: under the program in force.
    pub(super) fn change(&mut self, listeners: &[Option<TcpListener>], keeps: bool) {
        self.listeners = copies(listeners);
        if !keeps {
            self.program.clear();
        }
        self.assert();
    }

    /// Has the program be in force, also where another data process, that leaves or was given up, put its own in place.
    pub fn assert(&mut self) {
        let program = if self.program.is_empty() { &self.even } else { &self.program };
        let results = self.listeners.iter().map(|listener| match &program[..] {
            // Before Linux 5.3 there is no such order, and nothing was ever attached.
            [] => reuseport::unsteer(listener).or(Ok(())),
            program => reuseport::steer(listener, program),
        });
        if let Some(error) = results.filter_map(Result::err).next()
            && !std::mem::replace(&mut self.has_failed, true)
        {
            tracing::warn!(%error, "new connections cannot be led away from a stolen CPU: they go evenly");
        }
    }

    pub(super) fn set(&mut self, weights: &Weights) {
        match weights {
            Weights::Unchanged => return,
            Weights::Even => self.program.clear(),
            Weights::Shares(shares) => {
                let Some(program) = program(shares) else { return };
                self.program = program;
            }
        }
        self.assert();
    }
}

impl Drop for Steering {
    /// What another data process has put in place stays, where this one leads nobody.
    fn drop(&mut self) {
        if !self.program.is_empty() {
            self.program.clear();
            self.assert();
        }
    }
}

/// A socket that cannot be copied is not steered: the kernel's hash does as well.
fn copies(listeners: &[Option<TcpListener>]) -> Vec<TcpListener> {
    listeners.iter().flatten().filter_map(|listener| listener.try_clone().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::listeners;
    use crate::sys::reuseport::tests::spread;

    fn first_of(sockets: &[TcpListener]) -> [Option<TcpListener>; 1] {
        [sockets[0].try_clone().ok()]
    }

    #[test]
    fn without_steering_nobody_is_preferred_any_more() {
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 2, 1_024).unwrap();
        let mut steering = Steering::new(&first_of(&sockets), 2, false);
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

    #[test]
    fn sockets_that_no_worker_has_of_its_own_get_nothing_new_and_a_lost_program_comes_back() {
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 3, 1_024).unwrap();
        let mut steering = Steering::new(&first_of(&sockets), 2, true);
        let spreads = || {
            let got = spread(&sockets, 100);
            got[0] > 20 && got[1] > 20 && got[2] == 0
        };
        assert!(spreads());
        // As a data process that leaves does.
        reuseport::unsteer(&sockets[2]).unwrap();
        steering.assert();
        assert!(spreads());
        steering.set(&Weights::Shares(vec![0.0, 1.0]));
        assert_eq!(spread(&sockets, 40), [0, 40, 0]);
        drop(steering);
        assert!(spreads());
    }

    #[test]
    fn who_leads_nobody_leaves_what_another_put_in_place() {
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 3, 1_024).unwrap();
        let leaves = Steering::new(&first_of(&sockets), 2, true);
        let _succeeds = Steering::new(&first_of(&sockets), 3, false);
        drop(leaves);
        assert!(
            spread(&sockets, 200).iter().all(|count| *count > 20),
            "three workers, not the two of before"
        );
    }
}
