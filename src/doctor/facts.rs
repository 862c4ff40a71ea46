//! What the doctor knows of a machine, before anything is judged. Plain values: `gather` fills them, `judge` reads them.

use std::net::SocketAddr;

use super::sample::{Sample, SinceBoot};
use crate::runtime::{EngineChoice, Refusal};
use crate::steal::Spec;
use crate::steal::source::{Machine, Source};

/// Everything that was looked at. `None` is what could not be read.
#[derive(Clone, Debug)]
pub struct Facts {
    pub wanted: Wanted,
    pub ring: Ring,
    /// Such as `6.12.9-amd64`.
    pub release: Option<String>,
    pub steal: Steal,
    /// Share of the last minute in which some task waited for a CPU, 0 to 1.
    pub pressure_minute: Option<f64>,
    pub cpus: Cpus,
    pub quota: Quota,
    pub nics: Vec<Nic>,
    pub limits: Limits,
    pub clock: Clock,
    /// Whether this CPU has instructions for AES.
    pub has_aes: bool,
    pub net: Net,
}

/// What the configuration asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub engine: EngineChoice,
    pub steal: Spec,
    pub connections_max: u32,
    pub memory_bytes_max: u64,
    /// Bytes of one worker's ring that count as locked memory.
    pub ring_bytes: u64,
    /// Names and addresses of what is listened on.
    pub listeners: Vec<(String, SocketAddr)>,
    pub backlog_max: u32,
}

#[derive(Clone, Debug)]
pub struct Ring {
    /// What start-up would get, and how.
    pub probe: Result<String, Refusal>,
    /// `kernel.io_uring_disabled`; absent before Linux 6.6.
    pub disabled: Option<u8>,
    /// `kernel.io_uring_group`; -1 for nobody.
    pub group: Option<i64>,
    /// A seccomp filter holds this process.
    pub is_filtered: bool,
    pub is_privileged: bool,
}

#[derive(Clone, Debug)]
pub struct Steal {
    pub machine: Machine,
    pub source: Source,
    pub has_column: bool,
    pub is_accounting_off: bool,
    /// By CPU.
    pub boot: Vec<SinceBoot>,
    pub sample: Option<Sample>,
}

#[derive(Clone, Debug)]
pub struct Cpus {
    pub present: Option<Vec<u16>>,
    pub online: Option<Vec<u16>>,
    /// What affinity and cpuset leave to this process.
    pub allowed: Vec<usize>,
    /// The CPU of each worker, as start-up would choose them.
    pub workers: Result<Vec<usize>, String>,
    /// Nodes of memory; `None` where the kernel knows of none.
    pub nodes: Option<Vec<(u16, Vec<u16>)>>,
    /// `kernel.numa_balancing`.
    pub numa_balancing: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// CPUs' worth of time.
    pub cpus: Option<f64>,
    /// Periods that passed and those in which it held the group.
    pub periods: Option<(u64, u64)>,
}

/// One network card.
#[derive(Clone, Debug)]
pub struct Nic {
    pub name: String,
    /// Receive queues.
    pub queues: usize,
    /// CPUs to which the kernel passes received packets on (RPS).
    pub rps: Vec<u16>,
    /// CPU of each receive interrupt that could be found, with its number.
    pub interrupts: Vec<(u32, u16)>,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open files, the hard limit: start-up raises the soft one to it.
    pub nofile: Option<u64>,
    /// Bytes, the soft limit.
    pub memlock: Option<u64>,
    /// This process may lock what it wants.
    pub locks_freely: bool,
    pub memory_bytes: Option<u64>,
    /// The tightest limit of the control groups.
    pub memory_group_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Clock {
    pub current: Option<String>,
    pub available: Vec<String>,
    /// What one look at the clock costs this process.
    pub read_ns: u64,
}

#[derive(Clone, Debug)]
pub struct Net {
    pub congestion: Option<String>,
    pub congestion_available: Vec<String>,
    pub somaxconn: Option<u32>,
    /// Connections that found an accept queue full since boot.
    pub listen_overflows: Option<u64>,
    pub port_range: Option<(u16, u16)>,
    pub reserved_ports: Vec<u16>,
    pub unprivileged_port_start: Option<u16>,
    pub binds_any_port: bool,
    /// Connections that the firewall tracks, and how many it can.
    pub conntrack: Option<(u64, u64)>,
}
