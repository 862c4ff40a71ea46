//! For tests: faults put between the ring and the kernel, and what only a test may submit.

use super::*;

/// What becomes of one entry into the kernel.
#[derive(Clone, Copy, Debug)]
pub(in crate::runtime) enum Fault {
    None,
    /// The call fails at once and does nothing.
    Errno(i32),
    /// The kernel takes one operation only, whatever the number offered.
    SubmitOne,
}

/// A plan of faults, used round and round.
#[derive(Default)]
pub(super) struct Faults {
    plan: Vec<Fault>,
    step: usize,
    injected: u64,
}

impl Faults {
    /// How many operations the next call may offer, or how it fails.
    pub(super) fn next(&mut self, to_submit: u32) -> io::Result<u32> {
        if self.plan.is_empty() {
            return Ok(to_submit);
        }
        let fault = self.plan[self.step % self.plan.len()];
        self.step += 1;
        self.injected += u64::from(!matches!(fault, Fault::None));
        match fault {
            Fault::None => Ok(to_submit),
            Fault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            Fault::SubmitOne => Ok(to_submit.min(1)),
        }
    }
}

impl Uring {
    pub(in crate::runtime) fn inject(&mut self, plan: &[Fault]) {
        self.faults = Faults { plan: plan.to_vec(), ..Faults::default() };
    }

    pub(in crate::runtime) fn injected(&self) -> u64 {
        self.faults.injected
    }

    /// Receives as on kernels whose multishot receive is unfair.
    pub(in crate::runtime) fn receive_single_shot(&mut self) {
        self.multishot_receive = false;
    }

    /// Completions that the queue holds.
    pub(in crate::runtime) fn capacity(&mut self) -> u32 {
        self.ring.completion().capacity() as u32
    }

    pub(in crate::runtime) fn raw_fd(&self) -> i32 {
        self.ring.as_raw_fd()
    }

    /// Submits one operation that the reactor itself never would, and returns its result. The entry must not
    /// name memory.
    pub(in crate::runtime) fn result_of(&mut self, entry: squeue::Entry) -> io::Result<i32> {
        const WORD: u64 = u64::MAX;
        self.push(entry.user_data(WORD));
        for _ in 0..100 {
            self.enter(Duration::from_millis(10))?;
            self.reap();
            if let Some(at) = self.reaped.iter().position(|completion| completion.word == WORD) {
                let completion = self.reaped.remove(at).expect("the position just found");
                return Ok(completion.result);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}
