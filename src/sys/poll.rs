//! Waiting for a descriptor on a thread that may wait. Never on a worker: it waits in its reactor alone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Waits until a write would not block, as it is seen now, or would fail; for at most `timeout`.
///
/// # Errors
/// Of poll(2); interrupted where a signal came.
pub fn is_writable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one entry, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
    if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(ready > 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn a_pipe_can_be_written_until_it_is_full_and_when_its_reader_is_gone() {
        let (reader, mut pipe) = io::pipe().unwrap();
        let wait = Duration::from_millis(1);
        while is_writable(pipe.as_fd(), wait).unwrap() {
            pipe.write_all(&[0; 4_096]).unwrap();
        }
        drop(reader);
        assert!(is_writable(pipe.as_fd(), wait).unwrap());
        assert_eq!(pipe.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
