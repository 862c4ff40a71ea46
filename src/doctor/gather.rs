//! Looks at the machine and at what the configuration wants of it. Changes nothing, needs no privilege, judges nothing:
//! what cannot be read is absent.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::facts::{Clock, Cpus, Facts, Limits, Net, Quota, Ring, Steal, Wanted};
use super::parse;
use super::sample::{Sample, Sampling, since_boot};
use crate::config::{Config, HostSpec};
use crate::control::cpus;
use crate::control::steal::files::{self, Files};
use crate::runtime::{RingSizes, probe};
use crate::steal::SAMPLE_INTERVAL;
use crate::steal::counters::{CpuTicks, STEAL, cpu_list};
use crate::steal::source::{Seen, source};
use crate::sys::{affinity, clock, cpu, process, rlimit};

mod nics;

/// What is read of one file at most.
const BYTES_MAX: u64 = 4 << 20;
const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
const CAP_IPC_LOCK: u64 = 1 << 14;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Everything; `seconds` of it are spent on a sample of the CPUs, none where it is 0.
pub fn facts(config: &Config, seconds: u32) -> Facts {
    let host = Host(&config.host);
    let status = host.own("self/status");
    let capabilities = parse::field(&status, "CapEff").and_then(|text| u64::from_str_radix(text, 16).ok());
    let may = |capability| capabilities.is_some_and(|all| all & capability != 0);
    let quota = affinity::cpu_quota(&config.host.procfs, &config.host.cgroupfs);
    Facts {
        wanted: wanted(config),
        ring: host.ring(config, &status, may(CAP_SYS_ADMIN)),
        release: process::kernel_release(&config.host.procfs).filter(|release| !release.is_empty()),
        steal: host.steal(seconds),
        pressure_minute: host.pressure().map(|(_, minute)| minute),
        cpus: host.cpus(config, &status, quota),
        quota: Quota { cpus: quota, periods: host.periods() },
        nics: nics::all(&host),
        limits: host.limits(may(CAP_IPC_LOCK)),
        clock: host.clock(),
        has_aes: cpu::has_aes(),
        net: host.net(may(CAP_NET_BIND_SERVICE)),
    }
}

fn wanted(config: &Config) -> Wanted {
    let ring = config.workers.ring;
    let sizes = RingSizes::new(ring.entries, ring.recv_buffers);
    let snapshot = &config.snapshot;
    let listeners = snapshot.listeners.iter().map(|listener| {
        let name = format!("listener \"{}\"", listener.name);
        (name, listener.address)
    });
    Wanted {
        engine: config.workers.engine,
        steal: config.steal,
        connections_max: snapshot.limits.connections_max,
        memory_bytes_max: snapshot.limits.memory_bytes_max as u64,
        ring_bytes: locked_bytes(sizes),
        listeners: listeners.chain([("admin.listen".to_owned(), config.admin.listen)]).collect(),
        backlog_max: snapshot.listeners.iter().map(|listener| listener.backlog).max().unwrap_or(0),
    }
}

/// What one ring takes of RLIMIT_MEMLOCK since Linux 6.14: entries of 64 bytes, completions and buffers of 16, an
/// index of 4 bytes for each entry, in pages.
fn locked_bytes(sizes: RingSizes) -> u64 {
    let pages = |bytes: u64| bytes.div_ceil(4_096) * 4_096;
    let (entries, completions) = (u64::from(sizes.entries), u64::from(sizes.completions));
    let buffers = u64::from(sizes.recv_buffers).next_power_of_two();
    pages(entries * 64) + pages(completions * 16 + entries * 4 + 4_096) + pages(buffers * 16)
}

/// The trees of the kernel, where the configuration says that they are.
struct Host<'a>(&'a HostSpec);

impl Host<'_> {
    fn proc(&self, path: &str) -> Option<String> {
        read(&self.0.procfs.join(path))
    }

    fn sys(&self, path: &str) -> Option<String> {
        read(&self.0.sysfs.join(path))
    }

    /// A value of sysctl.
    fn kernel<N: std::str::FromStr>(&self, path: &str) -> Option<N> {
        self.proc(&format!("sys/{path}"))?.trim().parse().ok()
    }

    /// A file about this process; another tree may have none.
    fn own(&self, path: &str) -> String {
        self.proc(path).or_else(|| read(&Path::new("/proc").join(path))).unwrap_or_default()
    }

    fn ring(&self, config: &Config, status: &str, is_privileged: bool) -> Ring {
        let sizes = config.workers.ring;
        Ring {
            probe: probe(RingSizes::new(sizes.entries, sizes.recv_buffers)),
            disabled: self.kernel("kernel/io_uring_disabled"),
            group: self.kernel("kernel/io_uring_group"),
            is_filtered: parse::field(status, "Seccomp") == Some("2"),
            is_privileged,
        }
    }

    fn steal(&self, seconds: u32) -> Steal {
        let mut files = Files::new(self.0);
        let mut ticks = Vec::new();
        files.cpus(&mut ticks);
        let sample = (seconds > 0 && !ticks.is_empty()).then(|| self.sample(&mut files, seconds, &ticks));
        files.cpus(&mut ticks);
        let machine = files::machine();
        let has_column = ticks.iter().any(|cpu| cpu.has_steal);
        let seen = Seen {
            has_column,
            ever_above_zero: ticks.iter().any(|cpu| cpu.ticks[STEAL] > 0),
            other_root: files.is_other_root(),
            accounting_off: files.is_accounting_off(),
        };
        Steal {
            machine,
            source: source(machine, seen),
            has_column,
            is_accounting_off: seen.accounting_off,
            boot: since_boot(&ticks),
            sample,
        }
    }

    fn sample(&self, files: &mut Files, seconds: u32, ticks: &[CpuTicks]) -> Sample {
        let waited = || self.pressure().map(|(total_us, _)| total_us);
        let before = waited();
        let start = clock::now();
        let mut sampling = Sampling::start(start, ticks);
        let mut ticks = Vec::with_capacity(ticks.len());
        while clock::now().since(start) < Duration::from_secs(seconds.into()) {
            std::thread::sleep(SAMPLE_INTERVAL);
            files.cpus(&mut ticks);
            sampling.take(clock::now(), &ticks);
        }
        let waited = before.zip(waited()).and_then(|(before, after)| after.checked_sub(before));
        sampling.finish(waited.map(Duration::from_micros))
    }

    fn pressure(&self) -> Option<(u64, f64)> {
        parse::pressure(&self.proc("pressure/cpu")?)
    }

    fn cpus(&self, config: &Config, status: &str, quota: Option<f64>) -> Cpus {
        let list = |path: &str| cpu_list(self.sys(&format!("devices/system/{path}"))?.as_bytes());
        // As start-up does on this machine; another tree may tell of another process.
        let told = parse::field(status, "Cpus_allowed_list").and_then(|text| cpu_list(text.as_bytes()));
        let told = told.filter(|list| !list.is_empty());
        let told = told.map(|list| list.into_iter().map(usize::from).collect());
        let allowed = told.unwrap_or_else(|| affinity::allowed_cpus().unwrap_or_default());
        let nodes = list("node/online").map(|nodes| {
            let cpus = |node| (node, list(&format!("node/node{node}/cpulist")).unwrap_or_default());
            nodes.into_iter().map(cpus).collect()
        });
        Cpus {
            present: list("cpu/present"),
            online: list("cpu/online"),
            workers: cpus::choose(&config.workers.cpus, &allowed, quota),
            allowed,
            nodes,
            numa_balancing: self.kernel("kernel/numa_balancing"),
        }
    }

    /// Of the control group that was held most.
    fn periods(&self) -> Option<(u64, u64)> {
        let groups = affinity::cpu_groups(&self.0.procfs, &self.0.cgroupfs).into_iter();
        let periods = groups.filter_map(|folder| parse::periods(&read(&folder.join("cpu.stat"))?));
        periods.max_by_key(|(_, throttled)| *throttled)
    }

    fn limits(&self, locks_freely: bool) -> Limits {
        let text = self.own("self/limits");
        let memory = self.proc("meminfo").unwrap_or_default();
        let groups = affinity::control_groups(&self.0.procfs, &self.0.cgroupfs, "memory").into_iter();
        let limit = |folder: PathBuf| {
            let file = ["memory.max", "memory.limit_in_bytes"].map(|name| read(&folder.join(name)));
            file.into_iter().flatten().next()?.trim().parse::<u64>().ok()
        };
        Limits {
            nofile: parse::limit(&text, "Max open files").map(|(_, hard)| hard),
            memlock: parse::limit(&text, "Max locked memory")
                .map(|(soft, _)| soft)
                .or_else(|| rlimit::memlock().ok().map(|limit| limit.soft)),
            locks_freely,
            memory_bytes: parse::kilobytes(&memory, "MemTotal"),
            memory_group_bytes: groups.filter_map(limit).min(),
        }
    }

    fn clock(&self) -> Clock {
        let file =
            |name: &str| self.sys(&format!("devices/system/clocksource/clocksource0/{name}_clocksource"));
        Clock {
            current: file("current").and_then(|text| name(&text)),
            available: words(&file("available").unwrap_or_default()),
            read_ns: clock_read_ns(),
        }
    }

    fn net(&self, binds_any_port: bool) -> Net {
        let tcp = |name: &str| self.proc(&format!("sys/net/ipv4/{name}"));
        let tracked = || {
            let value = |name| self.kernel(&format!("net/netfilter/nf_conntrack_{name}"));
            Some((value("count")?, value("max")?))
        };
        let netstat = self.proc("net/netstat").unwrap_or_default();
        Net {
            congestion: tcp("tcp_congestion_control").and_then(|text| name(&text)),
            congestion_available: words(&tcp("tcp_available_congestion_control").unwrap_or_default()),
            somaxconn: self.kernel("net/core/somaxconn"),
            listen_overflows: parse::counter(&netstat, "TcpExt", "ListenOverflows"),
            port_range: tcp("ip_local_port_range").and_then(|text| parse::port_range(&text)),
            reserved_ports: tcp("ip_local_reserved_ports")
                .and_then(|text| cpu_list(text.as_bytes()))
                .unwrap_or_default(),
            unprivileged_port_start: self.kernel("net/ipv4/ip_unprivileged_port_start"),
            binds_any_port,
            conntrack: tracked(),
        }
    }
}

/// What one look at the clock costs: the best of several batches, as anything may come between.
fn clock_read_ns() -> u64 {
    const LOOKS: u32 = 500;
    let batch = |_| {
        let start = clock::now();
        (0..LOOKS).for_each(|_| {
            std::hint::black_box(clock::now());
        });
        (clock::now().since(start) / LOOKS).as_nanos() as u64
    };
    (0..5).map(batch).min().unwrap_or(0)
}

/// One word, such as the kernel has for things.
fn name(text: &str) -> Option<String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let text = text.trim();
    (!text.is_empty() && text.bytes().all(is_name)).then(|| text.to_owned())
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// A regular file, as far as it is text; nothing else is opened, so that nothing can be waited for.
fn read(path: &Path) -> Option<String> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
