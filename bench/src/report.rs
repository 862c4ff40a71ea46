//! Results as a table and as data, and the promises held against them. Never measures.

use std::fmt::Write;

use serde::Serialize;

use crate::measure::Sample;
use crate::stats::Spread;
use crate::tls::Negotiated;
use crate::workload::Promise;

/// One workload (or one size of `scale`) and what each entry did under it.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub name: String,
    pub about: String,
    pub unit: &'static str,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub name: String,
    /// Ratios are taken against the best peer of the same round.
    pub peer: bool,
    pub samples: Vec<Sample>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub cost: Spread,
    pub rate_per_second: Spread,
    pub p50_us: Spread,
    pub p99_us: Spread,
    pub p999_us: Spread,
    pub peak_rss_bytes: Spread,
    pub anonymous_bytes: Spread,
    /// Cost against the best peer, paired within each round.
    pub ratio_to_best_peer: Option<Spread>,
}

/// A promise held against a result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub entry: String,
    pub what: String,
    pub measured: f64,
    pub limit: f64,
    pub met: bool,
    /// A tighter limit that is hoped for and not promised.
    pub stretch: Option<f64>,
}

impl Group {
    pub fn rows(&self) -> Vec<Row> {
        self.entries.iter().filter_map(|entry| self.row(entry)).collect()
    }

    fn row(&self, entry: &Entry) -> Option<Row> {
        let spread = |value: &dyn Fn(&Sample) -> f64| {
            Spread::of(&entry.samples.iter().map(value).collect::<Vec<f64>>())
        };
        Some(Row {
            name: entry.name.clone(),
            cost: spread(&|sample| sample.cost)?,
            rate_per_second: spread(&|sample| sample.load.rate_per_second)?,
            p50_us: spread(&|sample| sample.load.latency_us.p50)?,
            p99_us: spread(&|sample| sample.load.latency_us.p99)?,
            p999_us: spread(&|sample| sample.load.latency_us.p999)?,
            peak_rss_bytes: spread(&|sample| sample.memory.peak_rss as f64)?,
            anonymous_bytes: spread(&|sample| sample.memory.anonymous as f64)?,
            ratio_to_best_peer: Spread::of(&self.ratios(entry)),
        })
    }

    /// Cost against the best peer, for each round that has a peer.
    fn ratios(&self, entry: &Entry) -> Vec<f64> {
        let best = |round: usize| {
            let peers = self.entries.iter().filter(|entry| entry.peer).flat_map(|entry| &entry.samples);
            peers.filter(|sample| sample.round == round).map(|sample| sample.cost).min_by(f64::total_cmp)
        };
        let paired = entry.samples.iter().filter_map(|sample| Some(sample.cost / best(sample.round)?));
        paired.collect()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// The table of one group.
pub fn table(group: &Group) -> String {
    let mut out = format!("\n{}: {}\n", group.name, group.about);
    let memory = group.unit.starts_with('B');
    let load_heads =
        if memory { String::new() } else { heads(&["rate/s", "p50 µs", "p99 µs", "p99.9 µs"]) };
    let unit = group.unit;
    // Writing to a String cannot fail.
    let _ = writeln!(out, "  {:<18}{unit:>16}{:>18}{load_heads}{}", "", "min..max", heads(&["peak MiB"]));
    out.truncate(out.trim_end().len());
    let _ = writeln!(out, "   / best peer");
    for row in group.rows() {
        let cost = row.cost;
        let spread = format!("{:.1}..{:.1}", cost.min, cost.max);
        let _ = write!(out, "  {:<18}{:>16.1}{spread:>18}", row.name, cost.median);
        if !memory {
            let latencies = [row.p50_us, row.p99_us, row.p999_us];
            let _ = write!(out, "{:>10.0}", row.rate_per_second.median);
            latencies.iter().for_each(|latency| {
                // h2load tells none.
                let text = if latency.max > 0.0 { format!("{:.0}", latency.median) } else { "-".to_owned() };
                let _ = write!(out, "{text:>10}");
            });
        }
        let _ = write!(out, "{:>10.1}", row.peak_rss_bytes.median / 1048576.0);
        match row.ratio_to_best_peer {
            Some(ratio) => {
                let _ = writeln!(out, "   {:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max);
            }
            None => out.push('\n'),
        }
    }
    group.entries.iter().filter_map(negotiated).for_each(|line| out.push_str(&line));
    out
}

/// What TLS came to on an entry's connections, and who was busy. Handshakes cost the generator about as much
/// as a lean server: with its CPU near 100 % and the proxy's below, the rate is the rig's.
fn negotiated(entry: &Entry) -> Option<String> {
    let Negotiated { suite, group, resumed, handshakes, tickets } =
        entry.samples.last()?.load.tls.as_ref()?;
    let kind = if *resumed { "resumed" } else { "full" };
    let mut line = format!("  {:<18}{suite}, {group}, {kind}", entry.name);
    if *handshakes > 0 {
        let _ = write!(line, ", {:.1} tickets a handshake", *tickets as f64 / *handshakes as f64);
    }
    let of = |ratio: fn(&Sample) -> f64| {
        let percents: Vec<f64> = entry.samples.iter().map(|sample| ratio(sample) * 100.0).collect();
        Spread::of(&percents).map_or(0.0, |spread| spread.median)
    };
    let proxy = of(|sample| sample.proxy_cpu_ratio);
    if proxy > 0.0 {
        let (generator, load) = (of(|sample| sample.generator_cpu_ratio), of(|sample| sample.load_cpu_ratio));
        let _ = write!(
            line,
            "; proxy used {proxy:.0} % of its CPU, generator {generator:.0} % of its, with origin {load:.0} %"
        );
    }
    line.push('\n');
    Some(line)
}

/// What `promise` says about each entry that is not a peer. `last` and `base` are the groups that growth
/// compares.
pub fn verdicts(promise: Promise, stretch: Option<f64>, group: &Group, base: Option<&Group>) -> Vec<Verdict> {
    let own = group.entries.iter().filter(|entry| !entry.peer);
    own.filter_map(|entry| {
        let costs: Vec<f64> = entry.samples.iter().map(|sample| sample.cost).collect();
        let (what, samples, limit) = match promise {
            Promise::None => return None,
            Promise::AgainstPeers(limit) => ("cost against the best peer", group.ratios(entry), limit),
            Promise::Bytes(limit) => ("bytes a connection", costs, limit),
            Promise::Growth(limit) => {
                ("cost against that of 64 connections", growth(entry, base?.entry(&entry.name)?), limit)
            }
        };
        let measured = Spread::of(&samples)?.median;
        let what = format!("{}: {what}", group.name);
        Some(Verdict { entry: entry.name.clone(), what, measured, limit, met: measured <= limit, stretch })
    })
    .collect()
}

pub fn verdict_line(verdict: &Verdict) -> String {
    let Verdict { entry, what, measured, limit, met, stretch } = verdict;
    let word = if *met { "met   " } else { "missed" };
    let hope = match stretch {
        Some(stretch) if measured <= stretch => format!(" (hoped for {stretch:.2}: met too)"),
        Some(stretch) => format!(" (hoped for {stretch:.2})"),
        None => String::new(),
    };
    format!("{word} {entry:<16}{what}: {measured:.2}, promised {limit:.2} at most{hope}")
}

fn growth(entry: &Entry, base: &Entry) -> Vec<f64> {
    let pairs = entry.samples.iter().filter_map(|sample| {
        let base = base.samples.iter().find(|other| other.round == sample.round)?;
        Some(sample.cost / base.cost)
    });
    pairs.collect()
}

fn heads(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:>10}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Measured;
    use crate::procfs::Memory;

    fn entry(name: &str, peer: bool, costs: &[f64]) -> Entry {
        let sample = |(round, cost): (usize, &f64)| Sample {
            round,
            connections: 64,
            cost: *cost,
            cost_by_ticks: *cost,
            user_ratio: 0.1,
            proxy_cpu_ratio: 1.0,
            foreign_cpu_ratio: 0.0,
            generator_cpu_ratio: 0.5,
            load_cpu_ratio: 0.6,
            steal_ratio: 0.0,
            memory: Memory::default(),
            load: Measured::default(),
        };
        Entry { name: name.into(), peer, samples: costs.iter().enumerate().map(sample).collect() }
    }

    fn group(entries: Vec<Entry>) -> Group {
        Group { name: "h1-small".into(), about: "a test".into(), unit: "CPU µs/request", entries }
    }

    #[test]
    fn ratios_pair_within_a_round_and_take_the_better_peer() {
        // The machine slows down threefold in the second round: the ratio stays.
        let group = group(vec![
            entry("nginx", true, &[20.0, 60.0, 30.0]),
            entry("haproxy", true, &[25.0, 75.0, 20.0]),
            entry("ringfort-uring", false, &[16.0, 48.0, 16.0]),
        ]);
        let rows = group.rows();
        assert_eq!(rows[2].ratio_to_best_peer.map(|ratio| (ratio.median, ratio.max)), Some((0.8, 0.8)));
        assert_eq!(rows[0].ratio_to_best_peer.map(|ratio| ratio.max), Some(1.5));
        let verdicts = verdicts(Promise::AgainstPeers(0.85), Some(0.80), &group, None);
        assert_eq!(verdicts.len(), 1);
        assert!(verdicts[0].met);
        assert!(verdict_line(&verdicts[0]).ends_with("(hoped for 0.80: met too)"));
        assert!(table(&group).contains("0.80 (0.80..0.80)"));
    }

    #[test]
    fn growth_compares_sizes_of_one_entry() {
        let base = group(vec![entry("ringfort-epoll", false, &[20.0, 20.0])]);
        let last = group(vec![entry("ringfort-epoll", false, &[26.0, 28.0])]);
        let verdicts = verdicts(Promise::Growth(1.25), None, &last, Some(&base));
        assert!((verdicts[0].measured - 1.35).abs() < 1e-9 && !verdicts[0].met);
        assert!(verdict_line(&verdicts[0]).starts_with("missed"));
    }

    #[test]
    fn a_result_without_peers_has_no_ratio_and_no_verdict_against_them() {
        let alone = group(vec![entry("ringfort-uring", false, &[20.0])]);
        assert!(alone.rows()[0].ratio_to_best_peer.is_none());
        assert!(verdicts(Promise::AgainstPeers(0.85), None, &alone, None).is_empty());
        assert!(!verdicts(Promise::Bytes(600.0), None, &alone, None).is_empty());
    }
}
