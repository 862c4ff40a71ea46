//! Which CPUs this process may use, and how much of them. Never decides how many workers there are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// CPUs this process may run on, ascending: its affinity mask, which the kernel keeps within its cpuset.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // The kernel refuses a mask shorter than its own (EINVAL): grow until it fits. 1 Mi CPUs is far past any.
    let mut words = 16;
    loop {
        let mut mask = vec![0u64; words];
        // SAFETY: the pointer and the length in bytes are those of `mask`, which outlives the call.
        let filled = unsafe { libc::sched_getaffinity(0, words * 8, mask.as_mut_ptr().cast()) };
        if filled >= 0 {
            return Ok(cpus_of(&mask));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) || words >= 16 * 1024 {
            return Err(error);
        }
        words *= 2;
    }
}

/// Pins the calling thread to `cpu`. False when the kernel refuses, as for a CPU outside the cpuset.
pub fn pin(cpu: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

/// CPUs' worth of time that the control group of this process may use, or `None` without a quota.
/// Both roots are arguments so that another tree can be read; those of the machine are `/proc`, `/sys/fs/cgroup`.
pub fn cpu_quota(procfs: &Path, cgroupfs: &Path) -> Option<f64> {
    let quotas = cpu_groups(procfs, cgroupfs).into_iter().filter_map(|folder| quota_of(&folder));
    quotas.min_by(f64::total_cmp)
}

/// Folders of the control group that governs this process's CPU time and of those above it, as far as they may exist.
/// A parent's quota holds for its children, so the tightest on the way up counts. In a container the path may lie outside
/// what is mounted: such folders do not exist and say nothing.
pub fn cpu_groups(procfs: &Path, cgroupfs: &Path) -> Vec<PathBuf> {
    control_groups(procfs, cgroupfs, "cpu")
}

/// As [`cpu_groups`] for the control group that governs what `wanted` names, such as `memory`.
pub fn control_groups(procfs: &Path, cgroupfs: &Path, wanted: &str) -> Vec<PathBuf> {
    let groups = fs::read_to_string(procfs.join("self/cgroup")).unwrap_or_default();
    let mut folders = Vec::new();
    for line in groups.lines() {
        // hierarchy-ID:controllers:path, see cgroups(7). Version 2 has ID 0 and no controllers.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let root = if controllers.is_empty() {
            cgroupfs.to_path_buf()
        } else if controllers.split(',').any(|controller| controller == wanted) {
            let roots = [controllers, wanted].map(|name| cgroupfs.join(name));
            let Some(root) = roots.into_iter().find(|root| root.is_dir()) else { continue };
            root
        } else {
            continue;
        };
        let mut folder = Some(Path::new(group.trim_start_matches('/')));
        while let Some(inner) = folder {
            folders.push(root.join(inner));
            folder = inner.parent();
        }
    }
    folders
}

fn quota_of(folder: &Path) -> Option<f64> {
    if let Ok(text) = fs::read_to_string(folder.join("cpu.max")) {
        let (quota, period) = text.trim().split_once(' ')?;
        return ratio(quota, period);
    }
    let quota = fs::read_to_string(folder.join("cpu.cfs_quota_us")).ok()?;
    let period = fs::read_to_string(folder.join("cpu.cfs_period_us")).ok()?;
    ratio(quota.trim(), period.trim())
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    // "max" (version 2) and -1 (version 1) mean no quota.
    let quota: u32 = quota.parse().ok()?;
    let period: u32 = period.parse().ok().filter(|period| *period > 0)?;
    Some(f64::from(quota) / f64::from(period))
}

fn cpus_of(mask: &[u64]) -> Vec<usize> {
    let bits = mask.iter().enumerate().flat_map(|(word, bits)| {
        (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word * 64 + bit)
    });
    bits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_cpu_is_allowed_and_a_thread_can_be_pinned_to_it() {
        let cpus = allowed_cpus().unwrap();
        assert!(!cpus.is_empty());
        let (first, pinned) = std::thread::spawn(move || {
            assert!(pin(cpus[0]));
            (cpus[0], allowed_cpus().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(pinned, [first]);
    }

    #[test]
    fn mask_words_become_cpu_numbers() {
        assert_eq!(cpus_of(&[0b1011, 0, 1]), [0, 1, 3, 128]);
    }

    #[test]
    fn the_tightest_quota_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("ringfort-quota-{}", std::process::id()));
        let (procfs, cgroupfs) = (root.join("proc"), root.join("cgroup"));
        fs::create_dir_all(procfs.join("self")).unwrap();
        fs::create_dir_all(cgroupfs.join("a/b")).unwrap();
        fs::write(procfs.join("self/cgroup"), "0::/a/b\n").unwrap();
        assert_eq!(cpu_quota(&procfs, &cgroupfs), None);
        fs::write(cgroupfs.join("a/b/cpu.max"), "max 100000\n").unwrap();
        assert_eq!(cpu_quota(&procfs, &cgroupfs), None);
        fs::write(cgroupfs.join("a/cpu.max"), "150000 100000\n").unwrap();
        assert_eq!(cpu_quota(&procfs, &cgroupfs), Some(1.5));

        fs::create_dir_all(cgroupfs.join("cpu,cpuacct/c")).unwrap();
        fs::write(procfs.join("self/cgroup"), "4:memory:/m\n3:cpu,cpuacct:/c\n").unwrap();
        fs::write(cgroupfs.join("cpu,cpuacct/c/cpu.cfs_quota_us"), "50000\n").unwrap();
        fs::write(cgroupfs.join("cpu,cpuacct/c/cpu.cfs_period_us"), "100000\n").unwrap();
        assert_eq!(cpu_quota(&procfs, &cgroupfs), Some(0.5));
        fs::remove_dir_all(root).unwrap();
    }
}
