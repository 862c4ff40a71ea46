//! The CPUs: how many, whose, in which nodes, what they are good at, and what their clock costs.

use serde_json::json;

use super::{percent, plural};
use crate::control::cpus::ranges;
use crate::doctor::facts::{Clock, Cpus, Facts};
use crate::doctor::finding::{Finding, Status};

/// Share of held periods from which a quota is felt.
const THROTTLED_RATIO: f64 = 0.01;
/// A clock that is read without entering the kernel costs a fifth of it.
const CLOCK_READ_NS_MAX: u64 = 250;

fn list(cpus: &[u16]) -> String {
    ranges(&cpus.iter().map(|cpu| usize::from(*cpu)).collect::<Vec<_>>())
}

pub(super) fn cpus(cpus: &Cpus) -> Finding {
    const WANT: &str = "all online, a worker on each";
    let workers = match &cpus.workers {
        Ok(workers) => workers,
        Err(text) => {
            let (why, cure) = text.split_once(": ").unwrap_or((text, "change workers.cpus"));
            let finding =
                Finding::ok("cpus", "workers.cpus cannot be had: ringfort will not start", WANT, "");
            return finding.judged(Status::Fail, why, cure);
        }
    };
    let Some(online) = &cpus.online else {
        let why = "sysfs does not tell which CPUs are online";
        return Finding::unknown("cpus", WANT, why, "name the machine's sysfs in [host] sysfs");
    };
    let shown = format!(
        "{} online ({}), {} on CPU {}",
        plural(online.len(), "CPU"),
        list(online),
        plural(workers.len(), "worker"),
        ranges(workers)
    );
    let value = json!({
        "online": online, "present": cpus.present, "allowed": cpus.allowed, "workers": workers,
    });
    let finding = Finding::ok("cpus", shown, WANT, "each worker is pinned to a CPU of its own").value(value);
    let offline: Vec<u16> =
        cpus.present.iter().flatten().filter(|cpu| !online.contains(cpu)).copied().collect();
    if !offline.is_empty() {
        let cure = format!(
            "echo 1 > /sys/devices/system/cpu/cpu{}/online for each, or ask the provider",
            offline[0]
        );
        return finding.judged(
            Status::Warn,
            format!("CPU {} is there and offline: paid for, unused", list(&offline)),
            cure,
        );
    }
    let withheld: Vec<u16> =
        online.iter().filter(|cpu| !cpus.allowed.contains(&usize::from(**cpu))).copied().collect();
    if !withheld.is_empty() {
        let why =
            format!("affinity or a cpuset keeps this process off CPU {}: no worker there", list(&withheld));
        let cure = "start without taskset, CPUAffinity=, AllowedCPUs= or the container's cpuset, if that is not wanted";
        return finding.judged(Status::Warn, why, cure);
    }
    finding
}

pub(super) fn cgroup_quota(facts: &Facts) -> Finding {
    const WANT: &str = "none, or a CPU for each worker";
    let workers = facts.cpus.workers.as_ref().map_or(0, Vec::len);
    let Some(quota) = facts.quota.cpus else {
        let why = "a quota stops all workers for the rest of a period (100 ms) when it is spent";
        return Finding::ok("cgroup_quota", "none", WANT, why).value(serde_json::Value::Null);
    };
    let (passed, held) = facts.quota.periods.unwrap_or((0, 0));
    let held_ratio = held as f64 / passed.max(1) as f64;
    let shown = format!(
        "{quota:.2} CPUs for {}, held in {} of its periods",
        plural(workers, "worker"),
        percent(held_ratio)
    );
    let why = "this shell's control group; a unit has its own (CPUQuota=)";
    let value = json!({ "cpus": quota, "throttled_ratio": super::rounded(held_ratio) });
    let finding = Finding::ok("cgroup_quota", shown, WANT, why).value(value);
    if quota >= workers as f64 && held_ratio <= THROTTLED_RATIO {
        return finding;
    }
    let why =
        "when the quota is spent every worker stops for the rest of the period: up to 100 ms for all clients";
    let cure =
        "remove CPUQuota= (docker: --cpus) and give whole CPUs instead: AllowedCPUs= (docker: --cpuset-cpus)";
    finding.judged(Status::Warn, why, cure)
}

pub(super) fn numa(cpus: &Cpus) -> Finding {
    const WANT: &str = "1 node, or no automatic balancing";
    let why = "memory of another node is slower; pinned workers allocate on their own";
    let Some(nodes) = &cpus.nodes else {
        return match cpus.online {
            Some(_) => Finding::ok("numa", "1 node", WANT, why).value(1),
            None => {
                let cure = "name the machine's sysfs in [host] sysfs";
                Finding::unknown("numa", WANT, "sysfs cannot be read", cure)
            }
        };
    };
    let shown: Vec<String> =
        nodes.iter().map(|(node, cpus)| format!("node {node}: CPU {}", list(cpus))).collect();
    let shown = if nodes.len() == 1 {
        "1 node".to_owned()
    } else {
        format!("{} nodes ({})", nodes.len(), shown.join("; "))
    };
    let finding = Finding::ok("numa", shown, WANT, why).value(nodes.len());
    if nodes.len() < 2 || cpus.numa_balancing.is_none_or(|balancing| balancing == 0) {
        return finding;
    }
    let why = "kernel.numa_balancing unmaps pages to see who uses them, and pinned workers never move: faults for nothing";
    finding.judged(Status::Warn, why, "ringfort tune apply --yes --only numa_balancing")
}

pub(super) fn clocksource(clock: &Clock) -> Finding {
    const WANT: &str = "read without entering the kernel: tsc, kvm-clock or the like";
    let Some(current) = &clock.current else {
        let cure = "name the machine's sysfs in [host] sysfs";
        return Finding::unknown("clocksource", WANT, "sysfs does not tell the clock source", cure);
    };
    let shown = format!("{current}, {} ns a look", clock.read_ns);
    let finding = Finding::ok(
        "clocksource",
        shown,
        WANT,
        "every worker looks at the clock several times a turn of its loop",
    );
    let finding = finding.value(current.as_str());
    let is_emulated = ["hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies"].contains(&&**current);
    if !is_emulated && clock.read_ns < CLOCK_READ_NS_MAX {
        return finding;
    }
    let why = match clock.read_ns {
        CLOCK_READ_NS_MAX.. => {
            format!("a look at the clock enters the kernel: {} ns instead of some 30", clock.read_ns)
        }
        _ => "a look at an emulated clock enters the hypervisor, which costs microseconds".into(),
    };
    let better = ["tsc", "kvm-clock"]
        .into_iter()
        .find(|name| clock.available.iter().any(|available| available == name) && name != current);
    let cure = match better {
        Some(better) => format!(
            "echo {better} > /sys/devices/system/clocksource/clocksource0/current_clocksource; if it stays steady, \
             clocksource={better} on the kernel's command line"
        ),
        None => "ask the provider for a host with a stable TSC (KVM: invtsc); dmesg | grep -i tsc tells why it was given up".into(),
    };
    finding.judged(Status::Warn, why, cure)
}

pub(super) fn aes(has_aes: bool) -> Finding {
    const WANT: &str = "yes";
    let why = "TLS encrypts with AES in hardware; in software it costs several times as much";
    let finding = Finding::ok("aes", if has_aes { "yes" } else { "no" }, WANT, why).value(has_aes);
    if has_aes {
        return finding;
    }
    let cure = "ask the provider for the host's CPU model (QEMU: -cpu host) in place of a generic one";
    finding.judged(
        Status::Warn,
        "the CPU shows no instructions for AES: ChaCha20 is used, and TLS costs more",
        cure,
    )
}
