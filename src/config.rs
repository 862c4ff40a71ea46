//! The configuration file: TOML text in, what the process runs on out, with every problem of the file told at once.
//! Never opens a socket, never starts anything. Nothing below this layer knows its types: policies own their specs.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::proxy::snapshot::Snapshot;

/// A configuration without errors.
#[derive(Debug)]
pub struct Config {
    pub workers: WorkersSpec,
    pub admin: AdminSpec,
    pub host: HostSpec,
    /// What workers serve from.
    pub snapshot: Snapshot,
    /// Every key with its value, defaults filled in, as JSON.
    pub effective: serde_json::Value,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkersSpec {
    pub cpus: Cpus,
    pub engine: Engine,
    pub ring: RingSpec,
}

/// CPUs that get a worker. Not yet intersected with what affinity and cgroup allow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cpus {
    All,
    /// Ascending, each once, at least one.
    List(Vec<u16>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    Auto,
    IoUring,
    Epoll,
}

/// Sizes of one worker's ring; tests make them tiny.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingSpec {
    /// Submission entries.
    pub entries: u32,
    /// Receive buffers provided to the kernel. A power of two.
    pub recv_buffers: u16,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminSpec {
    /// A loopback address.
    pub listen: SocketAddr,
    /// `None`: `/run/ringfort/admin.sock` where that folder can be written, else under `$XDG_RUNTIME_DIR`.
    pub socket: Option<PathBuf>,
}

/// Roots of the kernel's file systems.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostSpec {
    pub procfs: PathBuf,
    pub sysfs: PathBuf,
    pub cgroupfs: PathBuf,
}
