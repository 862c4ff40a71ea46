//! The files that tell of lost time. Opened anew for every sample: a container's tree may be replaced under us, and a
//! thread may be gone. What cannot be read is absent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::HostSpec;
use crate::steal::counters::{self, CpuTicks};
use crate::steal::source::{Hypervisor, Machine};
use crate::sys::{affinity, hypervisor};

/// What is read of one file at most: the lines of 8,000 CPUs.
const BYTES_MAX: usize = 2 << 20;

pub(super) struct Files {
    stat: PathBuf,
    tasks: PathBuf,
    /// `cpu.stat` of the control groups that may have a quota.
    groups: Vec<PathBuf>,
    preferred: PathBuf,
    is_other_root: bool,
    is_accounting_off: bool,
    /// CPUs that the kernel's steal governor prefers, where there is one.
    preferred_cpus: Option<BTreeSet<usize>>,
    buffer: Vec<u8>,
}

impl Files {
    pub(super) fn new(host: &HostSpec) -> Self {
        let procfs = &host.procfs;
        let groups =
            affinity::cpu_groups(procfs, &host.cgroupfs).into_iter().map(|folder| folder.join("cpu.stat"));
        let command_line = fs::read_to_string(procfs.join("cmdline")).unwrap_or_default();
        let mut files = Self {
            stat: procfs.join("stat"),
            tasks: procfs.join("self/task"),
            groups: Vec::new(),
            preferred: host.sysfs.join("devices/system/cpu/preferred"),
            is_other_root: procfs != Path::new("/proc"),
            is_accounting_off: command_line.split_ascii_whitespace().any(|word| word == "no-steal-acc"),
            preferred_cpus: None,
            buffer: vec![0; 4_096],
        };
        let held = |path: &PathBuf| files.read(path).and_then(counters::throttled_ns).is_some();
        let groups: Vec<PathBuf> = groups.filter(held).collect();
        files.groups = groups;
        files
    }

    pub(super) const fn is_other_root(&self) -> bool {
        self.is_other_root
    }

    pub(super) const fn is_accounting_off(&self) -> bool {
        self.is_accounting_off
    }

    /// The CPUs' lines; none where they cannot be read.
    pub(super) fn cpus(&mut self, into: &mut Vec<CpuTicks>) {
        into.clear();
        let path = std::mem::take(&mut self.stat);
        if let Some(text) = self.read(&path) {
            counters::cpus(text, into);
        }
        self.stat = path;
    }

    /// How long the thread waited for its CPU so far.
    pub(super) fn run_wait_ns(&mut self, thread: u32) -> Option<u64> {
        let path = self.tasks.join(thread.to_string()).join("schedstat");
        self.read(&path).and_then(counters::run_wait_ns)
    }

    /// How long quotas held this process so far, all control groups on the way up together.
    pub(super) fn throttled_ns(&mut self) -> Option<u64> {
        let groups = std::mem::take(&mut self.groups);
        let mut sum: Option<u64> = None;
        for path in &groups {
            if let Some(ns) = self.read(path).and_then(counters::throttled_ns) {
                sum = Some(sum.unwrap_or(0).saturating_add(ns));
            }
        }
        self.groups = groups;
        sum
    }

    /// Looks which CPUs the kernel prefers (Linux 7.4 on); elsewhere there is no such file.
    pub(super) fn look_at_preferred(&mut self) {
        let path = std::mem::take(&mut self.preferred);
        let list = self.read(&path).and_then(counters::cpu_list);
        self.preferred_cpus = list.map(|list| list.into_iter().map(usize::from).collect());
        self.preferred = path;
    }

    /// Whether the kernel would rather not use the CPU.
    pub(super) fn is_avoided(&self, cpu: usize) -> bool {
        self.preferred_cpus
            .as_ref()
            .is_some_and(|preferred| !preferred.is_empty() && !preferred.contains(&cpu))
    }

    fn read(&mut self, path: &Path) -> Option<&[u8]> {
        let mut file = File::open(path).ok()?;
        let mut held = 0;
        loop {
            if held == self.buffer.len() {
                if held >= BYTES_MAX {
                    break;
                }
                self.buffer.resize(held * 2, 0);
            }
            match file.read(&mut self.buffer[held..]) {
                Ok(0) => break,
                Ok(bytes) => held += bytes,
                Err(_) => return None,
            }
            // Behind the CPUs stand numbers of interrupts, many and of no use here.
            if memchr::memmem::find(&self.buffer[..held], b"\nintr ").is_some() {
                break;
            }
        }
        Some(&self.buffer[..held])
    }
}

/// What this machine says of itself.
pub(super) fn machine() -> Machine {
    let none = |hypervisor| Machine { hypervisor, kvm_features: 0, kvm_hints: 0 };
    match hypervisor::ask() {
        hypervisor::Answer::BareMetal => none(Hypervisor::None),
        hypervisor::Answer::CannotAsk => none(Hypervisor::Unknown),
        hypervisor::Answer::Hypervisor(leaves) => match &leaves.signature {
            b"KVMKVMKVM\0\0\0" => {
                let (kvm_features, kvm_hints) = (leaves.features, leaves.hints);
                Machine { hypervisor: Hypervisor::Kvm, kvm_features, kvm_hints }
            }
            b"XenVMMXenVMM" => none(Hypervisor::Xen),
            b"VMwareVMware" => none(Hypervisor::VMware),
            b"Microsoft Hv" => none(Hypervisor::HyperV),
            _ => none(Hypervisor::Unknown),
        },
    }
}
