//! What to think of the facts. Pure: every finding is a function of what was gathered.

use super::facts::Facts;
use super::finding::Finding;

mod cpus;
mod engine;
mod limits;
mod net;
mod steal;

#[cfg(test)]
mod tests;

/// All findings, in the order of a report: what serves, who takes time, CPUs, limits, clock, network.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    vec![
        engine::io_uring(facts),
        engine::kernel(facts),
        steal::hypervisor(&facts.steal),
        steal::dedicated(&facts.steal),
        steal::steal(facts),
        steal::wait(facts),
        cpus::cpus(&facts.cpus),
        cpus::cgroup_quota(facts),
        cpus::numa(&facts.cpus),
        net::nic_queues(facts),
        limits::nofile(facts),
        limits::memlock(facts),
        limits::memory(facts),
        cpus::clocksource(&facts.clock),
        cpus::aes(facts.has_aes),
        net::congestion_control(&facts.net),
        net::accept_queue(facts),
        net::ports(facts),
        net::conntrack(&facts.net),
    ]
}

/// A share as people read it: two digits that count, at least hundredths of a percent.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = match percent {
        _ if percent < 1.0 => 2,
        _ if percent < 10.0 => 1,
        _ => 0,
    };
    let text = format!("{percent:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} %")
}

/// A share for machines.
fn rounded(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun.
fn plural(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count as u64), if count == 1 { "" } else { "s" })
}

/// Bytes as people read them.
fn bytes(bytes: u64) -> String {
    match bytes {
        u64::MAX => "unlimited".to_owned(),
        _ if bytes >= 10 << 30 => format!("{} GiB", bytes >> 30),
        _ if bytes >= 1 << 30 => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        _ if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    }
}

/// Seconds as people read them.
fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
