//! A child process by its id: it may have been started by the program that this process ran before it executed another.
//! Nothing here waits.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use super::process::{self, Signal};

/// A child that nobody else waits for. Dropping it leaves it alone.
#[derive(Debug)]
pub struct Child {
    id: u32,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts it. By the main thread: the kernel tells a child of its parent's end when the thread ends that started it
    /// (prctl(2), `PR_SET_PDEATHSIG`).
    ///
    /// # Errors
    /// Why it cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(|child| Self::adopted(child.id()))
    }

    /// As `spawn`; it has no privileges, but where this process is root's.
    ///
    /// # Errors
    /// As `spawn`.
    pub fn spawn_unprivileged(command: &mut Command) -> io::Result<Self> {
        // SAFETY: the function makes two system calls and allocates nothing, as is wanted of a child of many threads.
        unsafe { command.pre_exec(process::give_up_privileges) };
        Self::spawn(command)
    }

    /// One that this process started before it executed another program.
    pub const fn adopted(id: u32) -> Self {
        Self { id, ended: None }
    }

    pub const fn id(&self) -> u32 {
        self.id
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// `ECHILD` where it is no child of this process.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            let id = libc::pid_t::try_from(self.id).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut status = 0;
            // SAFETY: `status` outlives the call, which writes an int there.
            let found = unsafe { libc::waitpid(id, &raw mut status, libc::WNOHANG) };
            if found < 0 {
                return Err(io::Error::last_os_error());
            }
            self.ended = (found == id).then(|| ExitStatus::from_raw(status));
        }
        Ok(self.ended)
    }

    /// Nothing happens to one that has been seen to end: its id may be another's.
    ///
    /// # Errors
    /// What kill(2) reports.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.ended.is_some() { Ok(()) } else { process::send_signal(self.id, signal) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn ended(child: &mut Child) -> ExitStatus {
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < give_up);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_end_is_told_again_and_again_and_by_id_as_well() {
        let mut child = Child::spawn(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        for _ in 0..2 {
            assert_eq!(ended(&mut child).code(), Some(7));
        }
        child.signal(Signal::Kill).unwrap();
        let mut adopted = Child::adopted(Child::spawn(Command::new("sleep").arg("60")).unwrap().id());
        assert_eq!(adopted.try_wait().unwrap(), None);
        adopted.signal(Signal::Kill).unwrap();
        assert_eq!(ended(&mut adopted).signal(), Some(9));
        assert!(Child::adopted(std::process::id()).try_wait().is_err(), "none of ours");
    }
}
