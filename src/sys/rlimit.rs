//! Resource limits of this process. Raises what it may, reports the rest, never refuses to start for it.

use std::io;
use std::mem::MaybeUninit;

/// A soft limit and the hard limit above it. `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// File descriptors (`RLIMIT_NOFILE`), after the soft limit was raised to the hard one.
pub fn raise_nofile() -> io::Result<Limit> {
    let limit = get(libc::RLIMIT_NOFILE)?;
    if limit.soft == limit.hard {
        return Ok(limit);
    }
    let raised = libc::rlimit { rlim_cur: limit.hard, rlim_max: limit.hard };
    // SAFETY: the pointer is to a local that outlives the call; the kernel only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } != 0 {
        return Ok(limit);
    }
    Ok(Limit { soft: limit.hard, ..limit })
}

/// Bytes of memory this process may lock (`RLIMIT_MEMLOCK`), which registered ring buffers count against.
/// A process with CAP_IPC_LOCK is not held to it.
pub fn memlock() -> io::Result<Limit> {
    get(libc::RLIMIT_MEMLOCK)
}

fn get(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the pointer is to a local of the type that getrlimit fills.
    if unsafe { libc::getrlimit(resource, limit.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: getrlimit returned 0, so it filled the whole struct.
    let limit = unsafe { limit.assume_init() };
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_raised_to_the_hard_limit() {
        let limit = raise_nofile().unwrap();
        assert_eq!(limit.soft, limit.hard);
        assert!(memlock().unwrap().soft > 0);
    }
}
