//! Where threads and their children run. Never decides: the caller names the CPU.

use core_affinity::CoreId;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More descriptors than any workload needs (`scale`: 8,000 connections on each side of a proxy).
const DESCRIPTORS_WANTED: u64 = 65_536;

/// Pins the calling thread, and all that it starts from now on, to `cpu`.
pub fn current_thread_to(cpu: usize) -> io::Result<()> {
    if core_affinity::set_for_current(CoreId { id: cpu }) {
        return Ok(());
    }
    Err(io::Error::other(format!("cannot run on CPU {cpu}: it is offline, or outside this process's cpuset")))
}

/// Raises the soft limit of open descriptors towards the hard one, for this process and its children, and
/// returns it.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS_WANTED, |hard| hard.min(DESCRIPTORS_WANTED));
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => wanted,
        Err(_) => current,
    }
}
