//! CPU time and memory of a process and all its descendants, from /proc. Never guesses: what cannot be read
//! is an error.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

/// Clock ticks a second in /proc (USER_HZ, fixed by the ABI).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Nanoseconds on a CPU, summed over the threads alive now (schedstat).
    pub running_ns: u64,
    /// The same in ticks of 10 ms, with threads that have ended.
    pub user_ticks: u64,
    pub system_ticks: u64,
}

/// Memory of a process tree, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Sum of each process's highest resident set.
    pub peak_rss: u64,
    /// Anonymous pages now: heap, stacks, private buffers.
    pub anonymous: u64,
}

/// What a CPU, or the machine, did so far, in ticks of 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ticks {
    pub busy: u64,
    pub idle: u64,
    pub steal: u64,
}

/// `root` and all its descendants.
pub fn tree(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while the list is read.
        if let Ok(stat) = stat_fields(pid) {
            parents.push((pid, stat.parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(found)
}

/// CPU time of some processes together.
pub fn usage(pids: &[u32]) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for &pid in pids {
        let stat = stat_fields(pid)?;
        sum.user_ticks += stat.user_ticks;
        sum.system_ticks += stat.system_ticks;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while the list is read; its time stays in the ticks.
            sum.running_ns += running_ns(&task?.path()).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Memory of some processes together.
pub fn memory(pids: &[u32]) -> io::Result<Memory> {
    let mut sum = Memory::default();
    for &pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        sum.peak_rss += kibibytes(&status, "VmHWM:").unwrap_or(0) * 1024;
        // smaps_rollup walks the pages and is exact; status is batched per CPU, but needs no permission.
        let exact = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
        let anonymous = exact.and_then(|text| kibibytes(&text, "Anonymous:"));
        sum.anonymous += anonymous.or_else(|| kibibytes(&status, "RssAnon:")).unwrap_or(0) * 1024;
    }
    Ok(sum)
}

/// Ticks of one CPU, or of the machine.
pub fn ticks(cpu: Option<usize>) -> io::Result<Ticks> {
    let name = cpu.map_or_else(|| "cpu".to_owned(), |cpu| format!("cpu{cpu}"));
    parse_ticks(&fs::read_to_string("/proc/stat")?, &name)
        .ok_or_else(|| io::Error::other(format!("/proc/stat has no line {name}")))
}

impl Usage {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            running_ns: self.running_ns.saturating_sub(earlier.running_ns),
            user_ticks: self.user_ticks.saturating_sub(earlier.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(earlier.system_ticks),
        }
    }

    /// Microseconds from the precise counter.
    pub fn running_us(self) -> f64 {
        self.running_ns as f64 / 1e3
    }

    /// Microseconds from the coarse counters: the cross-check.
    pub fn ticks_us(self) -> f64 {
        (self.user_ticks + self.system_ticks) as f64 * 1e6 / TICKS_PER_SECOND
    }

    /// The part of the time that was spent outside the kernel.
    pub fn user_ratio(self) -> f64 {
        self.user_ticks as f64 / ((self.user_ticks + self.system_ticks) as f64).max(1.0)
    }
}

impl Ticks {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            idle: self.idle.saturating_sub(earlier.idle),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    pub fn busy_us(self) -> f64 {
        self.busy as f64 * 1e6 / TICKS_PER_SECOND
    }

    pub fn steal_ratio(self) -> f64 {
        self.steal as f64 / ((self.busy + self.idle + self.steal) as f64).max(1.0)
    }
}

struct Stat {
    parent: u32,
    user_ticks: u64,
    system_ticks: u64,
}

fn stat_fields(pid: u32) -> io::Result<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: unknown format")))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The command's name may hold blanks and brackets; what follows the last bracket does not.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let user_ticks = fields.nth(9)?.parse().ok()?;
    let system_ticks = fields.next()?.parse().ok()?;
    Some(Stat { parent, user_ticks, system_ticks })
}

fn parse_ticks(text: &str, name: &str) -> Option<Ticks> {
    let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
    let fields: Vec<u64> =
        line.split_ascii_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else { return None };
    Some(Ticks { busy: user + nice + system + irq + softirq, idle: idle + iowait, steal })
}

fn running_ns(task: &Path) -> Option<u64> {
    fs::read_to_string(task.join("schedstat")).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let text = "42 (a ) (b) S 7 42 42 0 -1 4194560 1 2 3 4 500 600 0 0 20 0 1 0 9";
        let stat = parse_stat(text).expect("a stat line");
        assert_eq!((stat.parent, stat.user_ticks, stat.system_ticks), (7, 500, 600));
    }

    #[test]
    fn ticks_of_one_cpu_are_not_those_of_another() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 1 2 3 40 50 6 7 8 0 0\ncpu10 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(parse_ticks(text, "cpu1"), Some(Ticks { busy: 19, idle: 90, steal: 8 }));
        assert_eq!(parse_ticks(text, "cpu2"), None);
    }

    #[test]
    fn this_process_has_a_tree_time_and_memory() {
        let pids = tree(std::process::id()).expect("/proc");
        assert!(pids.contains(&std::process::id()));
        let own = [std::process::id()];
        assert!(usage(&own).expect("/proc").running_ns > 0);
        let memory = memory(&own).expect("/proc");
        assert!(memory.anonymous > 0 && memory.peak_rss >= memory.anonymous);
    }
}
