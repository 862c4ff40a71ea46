//! One process at a time: flock(2) on a file. The kernel gives it back when the process ends, however it ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Waits for the lock; makes the file and its folder.
///
/// # Errors
/// What making, opening or flock(2) report.
pub fn exclusive(path: &Path) -> io::Result<Lock> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    loop {
        // SAFETY: flock takes integers only; the descriptor is open through the call.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
            return Ok(Lock { _file: file });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_second_holder_waits_for_the_first() {
        let path = std::env::temp_dir().join(format!("ringfort-lock-{}", std::process::id())).join("lock");
        let first = exclusive(&path).unwrap();
        let (taken, was_taken) = mpsc::channel();
        let second = std::thread::spawn({
            let path = path.clone();
            move || {
                let lock = exclusive(&path);
                taken.send(()).unwrap();
                lock.is_ok()
            }
        });
        assert!(was_taken.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
        drop(first);
        assert!(was_taken.recv_timeout(Duration::from_secs(10)).is_ok());
        assert!(second.join().unwrap());
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
