//! Threads that go before all ordinary ones, and what a thread has used. By chrt(1), so that no unsafe code is needed.

use std::process::{Command, Stdio};
use std::{fs, io};

/// Above the antagonist: the load must go on while it takes a CPU, as clients do when a hypervisor takes one.
pub const LOAD_PRIORITY: u8 = 60;
pub const ANTAGONIST_PRIORITY: u8 = 50;

/// Puts the calling thread under SCHED_FIFO. Needs root or CAP_SYS_NICE, and chrt(1) of util-linux.
pub fn current_thread_to(priority: u8) -> io::Result<()> {
    let thread = fs::read_link("/proc/thread-self")?;
    let id = thread.file_name().map(|id| id.to_string_lossy().into_owned()).unwrap_or_default();
    let output = Command::new("chrt")
        .args(["--fifo", "--pid", &priority.to_string(), &id])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("chrt: {error}; install util-linux")))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!(
        "no SCHED_FIFO (it takes root or CAP_SYS_NICE; --quota does without): {why}"
    )))
}

/// Nanoseconds that the calling thread has spent on a CPU.
pub fn used_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0)
}
