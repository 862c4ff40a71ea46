//! A child process that cannot outlive its owner: killed with its whole tree on drop, and told to end if this
//! process dies. Never leaves anything running.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{pin, procfs};

/// Octets of a child's log that an error quotes.
const LOG_QUOTE_BYTES: usize = 600;

/// What to start.
pub struct Launch<'a> {
    pub name: &'a str,
    pub program: &'a Path,
    pub arguments: &'a [String],
    pub environment: &'a [(&'static str, PathBuf)],
    /// Takes its output.
    pub log: PathBuf,
}

pub struct Child {
    process: std::process::Child,
    name: String,
    log: PathBuf,
}

impl Child {
    /// Starts a program pinned to `cpu`, as the leader of its own process group.
    ///
    /// The affinity is inherited, so it holds for all that the child starts. The calling thread is back on
    /// `own_cpu` afterwards.
    pub fn spawn(launch: Launch<'_>, cpu: usize, own_cpu: usize) -> io::Result<Self> {
        pin::current_thread_to(cpu)?;
        let started = Self::spawn_unpinned(launch);
        pin::current_thread_to(own_cpu)?;
        started
    }

    /// The same on all CPUs of the calling thread: the program pins its threads itself.
    pub fn spawn_unpinned(launch: Launch<'_>) -> io::Result<Self> {
        let Launch { name, program, arguments, environment, log } = launch;
        let output = File::create(&log)?;
        let started = command(program)
            .args(arguments)
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn();
        let process = started.map_err(|error| {
            io::Error::new(error.kind(), format!("{name}: cannot start {}: {error}", program.display()))
        })?;
        Ok(Self { process, name: name.to_owned(), log })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// An error with the end of its log if the child has ended.
    pub fn alive(&mut self) -> io::Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!(
                "{} ended with {status}; its log: {}",
                self.name,
                self.log_end()
            ))),
        }
    }

    /// What the child has printed, from the end.
    pub fn log_end(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let end = &text[text.len().saturating_sub(LOG_QUOTE_BYTES)..];
        String::from_utf8_lossy(end).trim().to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The tree is read first: a descendant may have left the group.
        let pids = procfs::tree(self.pid()).unwrap_or_default();
        if let Some(group) = pid(self.pid()) {
            // Errors below mean that it has ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
        for descendant in pids.into_iter().filter_map(pid) {
            let _ = kill_process(descendant, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// `program`, asked by the kernel to end when this process dies. Without setpriv(1) (util-linux) it runs
/// without that.
fn command(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "TERM"]).arg(program);
    command
}

fn pid(raw: u32) -> Option<Pid> {
    Pid::from_raw(raw.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_takes_its_descendants_along() {
        let log = std::env::temp_dir().join(format!("ringfort-bench-child-{}", std::process::id()));
        let script = "sleep 60 & setsid sleep 60 & wait".to_owned();
        let launch = Launch {
            name: "sh",
            program: Path::new("/bin/sh"),
            arguments: &["-c".into(), script],
            environment: &[],
            log: log.clone(),
        };
        let mut child = Child::spawn(launch, 0, 0).expect("sh");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut pids = Vec::new();
        while pids.len() < 3 && std::time::Instant::now() < deadline {
            pids = procfs::tree(child.pid()).expect("/proc");
        }
        assert_eq!(pids.len(), 3);
        child.alive().expect("running");
        drop(child);
        let ended = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        while !pids.iter().all(ended) {
            assert!(std::time::Instant::now() < deadline, "still running: {pids:?}");
        }
        std::fs::remove_file(log).expect("a log");
    }
}
