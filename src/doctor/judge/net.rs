//! The network: where packets arrive, and what the kernel would refuse.

use serde_json::json;

use super::{grouped, percent, plural};
use crate::control::cpus::ranges;
use crate::doctor::facts::{Facts, Net, Nic};
use crate::doctor::finding::{Finding, Status};

/// Share of the table of tracked connections from which it is nearly full, and full for all that matters.
const CONNTRACK_WARN_RATIO: f64 = 0.8;
const CONNTRACK_FAIL_RATIO: f64 = 0.95;

/// Queues of the network cards, and the CPUs that their interrupts go to, against the CPUs of the workers.
pub(super) fn nic_queues(facts: &Facts) -> Finding {
    const WANT: &str = "a receive queue for each worker, each on a CPU of its own";
    if facts.nics.is_empty() {
        let why = "no network card with a device behind it is up here: a container sees only its own pair";
        return Finding::unknown("nic_queues", WANT, why, "run the doctor on the host");
    }
    let workers = facts.cpus.workers.clone().unwrap_or_default();
    let shown: Vec<String> = facts.nics.iter().map(shown).collect();
    let value = facts.nics.iter().map(|nic| {
        let interrupts = nic.interrupts.iter().map(|(number, cpu)| json!({ "irq": number, "cpu": cpu }));
        json!({ "nic": nic.name, "rx_queues": nic.queues, "rps_cpus": nic.rps, "interrupts": interrupts.collect::<Vec<_>>() })
    });
    let why = "the CPU that a packet's interrupt goes to does the kernel's half of the work for it";
    let finding = Finding::ok("nic_queues", shown.join("; "), WANT, why).value(value.collect::<Vec<_>>());
    let problems: Vec<(String, String)> =
        facts.nics.iter().filter_map(|nic| problem(facts, nic, &workers)).collect();
    if problems.is_empty() {
        return finding;
    }
    let (whys, cures): (Vec<String>, Vec<String>) = problems.into_iter().unzip();
    finding.judged(Status::Warn, whys.join(". "), cures.join(". "))
}

fn shown(nic: &Nic) -> String {
    let mut text = format!("{}: {}", nic.name, plural(nic.queues, "queue"));
    let cpus = cpus(nic);
    if !cpus.is_empty() {
        text += &format!(", {} to CPU {}", plural(nic.interrupts.len(), "interrupt"), ranges(&cpus));
    }
    if !nic.rps.is_empty() {
        let rps: Vec<usize> = nic.rps.iter().map(|cpu| usize::from(*cpu)).collect();
        text += &format!(", RPS to CPU {}", ranges(&rps));
    }
    text
}

/// CPUs of the interrupts, ascending, each once.
fn cpus(nic: &Nic) -> Vec<usize> {
    let mut cpus: Vec<usize> = nic.interrupts.iter().map(|(_, cpu)| usize::from(*cpu)).collect();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

/// Why, and what helps.
fn problem(facts: &Facts, nic: &Nic, workers: &[usize]) -> Option<(String, String)> {
    let Nic { name, queues, rps, interrupts } = nic;
    // RPS spreads the work whatever the queues are.
    if workers.len() < 2 || rps.len() > 1 {
        return None;
    }
    let cpus = cpus(nic);
    if *queues == 1 {
        let at = cpus.first().map_or_else(|| "one CPU".to_owned(), |cpu| format!("CPU {cpu}"));
        let load = cpus.first().and_then(|cpu| softirq(facts, *cpu));
        let load =
            load.map_or_else(String::new, |share| format!(" ({} of its time in the sample)", percent(share)));
        let why =
            format!("{name} has one queue: {at} receives every packet{load}, and its worker serves less");
        let mask = mask(workers);
        let cure = format!(
            "ethtool -l {name} tells whether it has more (ethtool -L {name} combined {}), else ask the provider for \
             multiqueue; above 60 % of that CPU also RPS: echo {mask} > /sys/class/net/{name}/queues/rx-0/rps_cpus",
            workers.len()
        );
        return Some((why, cure));
    }
    let could = interrupts.len().min(workers.len());
    if could < 2 || cpus.len() * 2 > could {
        return None;
    }
    let why = format!(
        "{} of {name} go to CPU {} alone: the workers there serve less",
        plural(interrupts.len(), "receive interrupt"),
        ranges(&cpus)
    );
    let moves = interrupts.iter().zip(workers.iter().cycle()).take(workers.len());
    let moves: Vec<String> = moves
        .map(|((number, _), cpu)| format!("echo {cpu} > /proc/irq/{number}/smp_affinity_list"))
        .collect();
    Some((why, format!("start irqbalance, or spread them by hand: {}", moves.join("; "))))
}

fn softirq(facts: &Facts, cpu: usize) -> Option<f64> {
    let sample = facts.steal.sample.as_ref()?;
    sample.cpus.iter().find(|sample| usize::from(sample.cpu) == cpu).map(|sample| sample.softirq)
}

/// As `rps_cpus` takes it: words of 32 bits, the highest first.
fn mask(cpus: &[usize]) -> String {
    let words = cpus.iter().max().map_or(1, |last| last / 32 + 1);
    let word = |word: usize| {
        let bits = cpus.iter().filter(|cpu| *cpu / 32 == word).fold(0u32, |bits, cpu| bits | 1 << (cpu % 32));
        if word + 1 == words { format!("{bits:x}") } else { format!("{bits:08x}") }
    };
    (0..words).rev().map(word).collect::<Vec<_>>().join(",")
}

pub(super) fn congestion_control(net: &Net) -> Finding {
    const WANT: &str = "cubic or bbr";
    let Some(current) = &net.congestion else {
        let why = "net.ipv4.tcp_congestion_control cannot be read";
        return Finding::unknown(
            "congestion_control",
            WANT,
            why,
            "name the machine's procfs in [host] procfs",
        );
    };
    let others: Vec<&str> =
        net.congestion_available.iter().map(String::as_str).filter(|name| name != current).collect();
    let others =
        if others.is_empty() { String::new() } else { format!(" (also loaded: {})", others.join(", ")) };
    let why = "how fast TCP sends to clients; bbr does better over lossy links, and takes more than its share from others";
    let finding = Finding::ok("congestion_control", format!("{current}{others}"), WANT, why);
    let finding = finding.value(current.as_str());
    if current != "reno" {
        return finding;
    }
    let why = "reno fills long, fast paths slowly: every kernel of today defaults to cubic";
    let cure = "modprobe tcp_cubic && sysctl -w net.ipv4.tcp_congestion_control=cubic, and the line in /etc/sysctl.d/";
    finding.judged(Status::Warn, why, cure)
}

/// `listener.backlog` against `net.core.somaxconn`, and what overflowed.
pub(super) fn accept_queue(facts: &Facts) -> Finding {
    let want = facts.wanted.backlog_max;
    let Some(most) = facts.net.somaxconn else {
        let why = "net.core.somaxconn cannot be read";
        return Finding::unknown("accept_queue", want, why, "name the machine's procfs in [host] procfs");
    };
    let overflows = facts.net.listen_overflows.filter(|overflows| *overflows > 0);
    let overflows = overflows.map_or_else(String::new, |count| {
        format!("; {} connections of this machine found a full queue since boot", grouped(count))
    });
    let why =
        "connections that wait for their worker; the kernel cuts listener.backlog to net.core.somaxconn";
    let finding =
        Finding::ok("accept_queue", format!("up to {}{overflows}", grouped(most.into())), want, why);
    let finding = finding.value(most);
    if most >= want {
        return finding;
    }
    let why = format!(
        "net.core.somaxconn cuts listener.backlog = {want}: a burst beyond it is dropped and comes late"
    );
    finding.judged(
        Status::Warn,
        why,
        format!("sysctl -w net.core.somaxconn={want}, and the line in /etc/sysctl.d/"),
    )
}

/// Whether the addresses of the listeners can be had, and kept over a restart.
pub(super) fn ports(facts: &Facts) -> Finding {
    const WANT: &str = "outside the ports of outgoing connections";
    let net = &facts.net;
    let listeners = facts.wanted.listeners.iter().filter(|(_, address)| address.port() != 0);
    let Some((first, last)) = net.port_range else {
        let why = "net.ipv4.ip_local_port_range cannot be read";
        return Finding::unknown("ports", WANT, why, "name the machine's procfs in [host] procfs");
    };
    let mut list: Vec<u16> = listeners.clone().map(|(_, address)| address.port()).collect();
    list.sort_unstable();
    list.dedup();
    let shown = list.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let why = format!("outgoing connections take {first} to {last} (net.ipv4.ip_local_port_range)");
    let start = net.unprivileged_port_start.unwrap_or(1_024);
    // The doctor may well be asked by another user than the one who serves: no reason to warn.
    let low = list.iter().any(|port| *port < start) && !net.binds_any_port;
    let low = if low { format!("; below {start} needs CAP_NET_BIND_SERVICE") } else { String::new() };
    let finding = Finding::ok("ports", format!("{shown}{low}; outgoing {first} to {last}"), WANT, why);
    let finding = finding.value(list);
    let taken = |port: u16| (first..=last).contains(&port) && !net.reserved_ports.contains(&port);
    let taken: Vec<_> = listeners.filter(|(_, address)| taken(address.port())).collect();
    let Some((name, address)) = taken.first() else { return finding };
    let why = format!(
        "{name} at {address}: an outgoing connection may hold that port when ringfort starts again, and the start fails"
    );
    let mut reserved: Vec<usize> = net.reserved_ports.iter().map(|port| usize::from(*port)).collect();
    reserved.extend(taken.iter().map(|(_, address)| usize::from(address.port())));
    reserved.sort_unstable();
    reserved.dedup();
    let cure = format!(
        "sysctl -w net.ipv4.ip_local_reserved_ports={}, and the line in /etc/sysctl.d/",
        ranges(&reserved)
    );
    finding.judged(Status::Warn, why, cure)
}

/// The firewall's table of connections: when it is full, new ones are dropped without a word.
pub(super) fn conntrack(net: &Net) -> Finding {
    let want = format!("below {}", percent(CONNTRACK_WARN_RATIO));
    let why = "a firewall that tracks connections drops new ones, silently, when its table is full";
    let Some((count, max)) = net.conntrack else {
        return Finding::ok("conntrack", "no table: connections are not tracked", want, why)
            .value(serde_json::Value::Null);
    };
    let share = count as f64 / max.max(1) as f64;
    let shown = format!("{} of {} tracked connections ({})", grouped(count), grouped(max), percent(share));
    let finding = Finding::ok("conntrack", shown, want, why).value(super::rounded(share));
    if share < CONNTRACK_WARN_RATIO {
        return finding;
    }
    let status = if share < CONNTRACK_FAIL_RATIO { Status::Warn } else { Status::Fail };
    let cure = "do not track ringfort's own ports (nft: notrack in prerouting and output), or raise \
                net.netfilter.nf_conntrack_max and nf_conntrack_buckets together";
    finding.judged(status, why, cure)
}
