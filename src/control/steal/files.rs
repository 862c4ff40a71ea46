//! The files that tell of lost time, read again for every sample. What cannot be read is absent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::config::HostSpec;
use crate::steal::counters::{self, CpuTicks};
use crate::steal::source::{Hypervisor, Machine};
use crate::sys::{affinity, hypervisor};

/// What is read of one file at most: the lines of 8,000 CPUs.
const BYTES_MAX: usize = 2 << 20;
/// What the kernel gives in one piece.
const SHORT_BYTES: usize = 1_024;

/// The files of one tree.
pub struct Files {
    stat: Watched,
    tasks: PathBuf,
    /// `schedstat` of the workers' threads, by number.
    threads: Vec<(u32, Watched)>,
    /// `cpu.stat` of the control groups that count how long a quota held them.
    groups: Vec<Watched>,
    preferred: Watched,
    is_other_root: bool,
    is_accounting_off: bool,
    /// CPUs that the kernel's steal governor prefers, where there is one.
    preferred_cpus: Option<BTreeSet<usize>>,
    buffer: Vec<u8>,
}

impl Files {
    /// Opens nothing yet but the control groups, of which those that count are kept.
    pub fn new(host: &HostSpec) -> Self {
        let procfs = &host.procfs;
        let is_other_root = procfs != Path::new("/proc");
        let mut buffer = vec![0; 8_192];
        let groups = affinity::cpu_groups(procfs, &host.cgroupfs).into_iter();
        let groups = groups.map(|folder| Watched::new(folder.join("cpu.stat"), !is_other_root));
        let groups = groups
            .filter_map(|mut group| counters::throttled_ns(group.read(&mut buffer)?).map(|_| group))
            .collect();
        let command_line = fs::read_to_string(procfs.join("cmdline")).unwrap_or_default();
        Self {
            stat: Watched::new(procfs.join("stat"), !is_other_root),
            tasks: procfs.join("self/task"),
            threads: Vec::new(),
            groups,
            // Comes and goes with the governor.
            preferred: Watched::new(host.sysfs.join("devices/system/cpu/preferred"), false),
            is_other_root,
            is_accounting_off: command_line.split_ascii_whitespace().any(|word| word == "no-steal-acc"),
            preferred_cpus: None,
            buffer,
        }
    }

    /// Whether procfs is not where this machine has its own.
    pub const fn is_other_root(&self) -> bool {
        self.is_other_root
    }

    /// Whether the kernel was told not to account for steal.
    pub const fn is_accounting_off(&self) -> bool {
        self.is_accounting_off
    }

    /// The CPUs' lines; none where they cannot be read.
    pub fn cpus(&mut self, into: &mut Vec<CpuTicks>) {
        into.clear();
        if let Some(text) = self.stat.read(&mut self.buffer) {
            counters::cpus(text, into);
        }
    }

    /// How long the thread waited for its CPU so far.
    pub fn run_wait_ns(&mut self, thread: u32) -> Option<u64> {
        let known = self.threads.iter().position(|(number, _)| *number == thread);
        let at = known.unwrap_or_else(|| {
            let path = self.tasks.join(thread.to_string()).join("schedstat");
            self.threads.push((thread, Watched::new(path, !self.is_other_root)));
            self.threads.len() - 1
        });
        self.threads[at].1.read(&mut self.buffer).and_then(counters::run_wait_ns)
    }

    /// How long quotas held this process so far, all control groups on the way up together.
    pub fn throttled_ns(&mut self) -> Option<u64> {
        let mut sum: Option<u64> = None;
        for group in &mut self.groups {
            if let Some(ns) = group.read(&mut self.buffer).and_then(counters::throttled_ns) {
                sum = Some(sum.unwrap_or(0).saturating_add(ns));
            }
        }
        sum
    }

    /// Looks which CPUs the kernel prefers (Linux 7.4 on); elsewhere there is no such file.
    pub fn look_at_preferred(&mut self) {
        let list = self.preferred.read(&mut self.buffer).and_then(counters::cpu_list);
        self.preferred_cpus = list.map(|list| list.into_iter().map(usize::from).collect());
    }

    /// Whether the kernel would rather not use the CPU.
    pub fn is_avoided(&self, cpu: usize) -> bool {
        self.preferred_cpus
            .as_ref()
            .is_some_and(|preferred| !preferred.is_empty() && !preferred.contains(&cpu))
    }
}

/// A file that is read again and again.
struct Watched {
    path: PathBuf,
    /// Kept open on a procfs of the kernel's, where opening costs more than reading. Another tree is a person's, who may
    /// replace the file.
    keeps_open: bool,
    file: Option<File>,
}

impl Watched {
    const fn new(path: PathBuf, keeps_open: bool) -> Self {
        Self { path, keeps_open, file: None }
    }

    /// The text as it is now; of `/proc/stat` at least the lines of the CPUs.
    fn read<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Option<&'b [u8]> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::open(&self.path).ok()?,
        };
        let mut held = 0;
        loop {
            if held == buffer.len() {
                if held >= BYTES_MAX {
                    break;
                }
                buffer.resize(held * 2, 0);
            }
            match file.read_at(&mut buffer[held..], held as u64).ok()? {
                0 => break,
                bytes => held += bytes,
            }
            // Behind the CPUs stand numbers of interrupts, many and of no use here. A short text came whole.
            if memchr::memmem::find(&buffer[..held], b"\nintr ").is_some() || held < SHORT_BYTES {
                break;
            }
        }
        if self.keeps_open {
            self.file = Some(file);
        }
        Some(&buffer[..held])
    }
}

/// What this machine says of itself.
pub fn machine() -> Machine {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &str) -> Files {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/steal").join(name);
        let [procfs, sysfs, cgroupfs] = ["proc", "sys", "cgroup"].map(|folder| root.join(folder));
        Files::new(&HostSpec { procfs, sysfs, cgroupfs })
    }

    /// CPU, ticks of steal, whether there is the column.
    fn cpus(files: &mut Files) -> Vec<(u16, u64, bool)> {
        let mut cpus = Vec::new();
        files.cpus(&mut cpus);
        cpus.iter().map(|cpu| (cpu.cpu, cpu.ticks[counters::STEAL], cpu.has_steal)).collect()
    }

    #[test]
    fn a_guest_with_a_quota_tells_all() {
        let mut files = tree("kvm");
        for _ in 0..2 {
            assert_eq!(cpus(&mut files), [(0, 40, true), (1, 44, true)]);
            assert_eq!((files.run_wait_ns(7), files.run_wait_ns(8)), (Some(17_031), None));
            assert_eq!(files.throttled_ns(), Some(205_000_000));
        }
        assert!(!files.is_accounting_off() && files.is_other_root());
        files.look_at_preferred();
        assert!(!files.is_avoided(0), "no governor, no preference");
    }

    #[test]
    fn the_first_version_of_control_groups_counts_in_nanoseconds() {
        let mut files = tree("first_cgroups");
        assert_eq!(files.throttled_ns(), Some(70_000_000));
        assert_eq!(files.run_wait_ns(7), Some(0));
        assert!(files.is_accounting_off());
    }

    #[test]
    fn an_unplugged_cpu_is_absent_and_one_that_the_governor_leaves_is_avoided() {
        let mut files = tree("unplugged");
        assert_eq!(cpus(&mut files), [(0, 40, true), (2, 44, true)]);
        assert_eq!(files.throttled_ns(), None);
        files.look_at_preferred();
        assert!(!files.is_avoided(0) && files.is_avoided(2));
    }

    #[test]
    fn what_is_not_there_is_absent_and_not_zero() {
        let mut files = tree("without_steal");
        assert_eq!(cpus(&mut files), [(0, 0, false)]);
        let mut files = tree("nothing_at_all");
        assert_eq!((cpus(&mut files), files.run_wait_ns(7), files.throttled_ns()), (vec![], None, None));
    }

    #[test]
    fn a_text_longer_than_the_buffer_is_read_whole() {
        let folder = std::env::temp_dir().join(format!("ringfort-stat-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let line = |cpu: u16| format!("cpu{cpu} 1 2 3 4 5 6 7 {cpu} 0 0\n");
        let text: String = (0..2_000).map(line).collect();
        fs::write(folder.join("stat"), text + "intr 1\n").unwrap();
        let host = HostSpec { procfs: folder.clone(), sysfs: folder.clone(), cgroupfs: folder.clone() };
        let cpus = cpus(&mut Files::new(&host));
        assert_eq!((cpus.len(), cpus[1_999]), (2_000, (1_999, 1_999, true)));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn this_machine_is_read_through_files_that_stay_open() {
        let [procfs, sysfs, cgroupfs] = ["/proc", "/sys", "/sys/fs/cgroup"].map(PathBuf::from);
        let mut files = Files::new(&HostSpec { procfs, sysfs, cgroupfs });
        let first = cpus(&mut files);
        assert!(!first.is_empty() && cpus(&mut files).len() == first.len());
        let thread = crate::sys::process::thread_id();
        let before = files.run_wait_ns(thread).expect("a thread that lives");
        assert!(files.run_wait_ns(thread).expect("as before") >= before);
    }
}
