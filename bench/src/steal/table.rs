//! Results of the rig as a table, and its promises held against them. Never measures.

use std::fmt::Write;

use serde::Serialize;

use super::cases::Promises;
use super::variants::Variant;
use super::{Entry, Group, Sample};
use crate::stats::Spread;

/// A run in which others used more of the CPUs than this is disturbed.
const DISTURBED_RATIO: f64 = 0.03;

/// A promise held against a result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub what: String,
    pub measured: f64,
    pub limit: f64,
    /// Whether `limit` is the least that was promised, and not the most.
    pub at_least: bool,
    pub met: bool,
}

/// One run in a line.
pub fn brief(sample: &Sample) -> String {
    let met = &sample.met;
    let mut line = format!(
        "p99 {:>8.1} ms, within {:>6.2} %, refused {:>5.2} %, errors {}; {}",
        met.p99_ms,
        met.within_ratio * 100.0,
        met.refused_ratio * 100.0,
        met.errors + met.unanswered,
        shares(sample)
    );
    if let Some(why) = &met.first_error {
        let _ = write!(line, " ({why})");
    }
    line
}

/// Who used the CPUs.
pub fn shares(sample: &Sample) -> String {
    let mut line = format!(
        "proxy {:.0} % of both CPUs, clients {:.1} %, others {:.1} %",
        sample.proxy_cpu_ratio * 100.0,
        sample.generator_cpu_ratio * 100.0,
        sample.others_cpu_ratio * 100.0
    );
    for taken in &sample.taken {
        let _ = write!(line, ", taken {:.1} %", taken.held_ratio * 100.0);
    }
    let cpus = sample.steal.iter().filter_map(|steal| steal.get("cpus")?.as_array()).flatten();
    for cpu in cpus {
        let value = |key: &str| cpu.get(key).and_then(serde_json::Value::as_f64);
        if let (Some(lost), Some(weight)) = (value("lost_ratio"), value("accept_weight")) {
            let _ = write!(line, "; lost {:.0} % weight {weight:.2}", lost * 100.0);
        }
    }
    line
}

pub fn table(group: &Group) -> String {
    let mut out = format!("\n{}: {}\n", group.case, group.about);
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "  {:<18}{:>9}{:>9}{:>9}{:>20}{:>9}{:>9}{:>20}{:>9}{:>7}{:>10}{:>8}{:>8}{:>8}{:>9}",
        "",
        "asked/s",
        "p50 ms",
        "p99 ms",
        "min..max",
        "p99.9",
        "in time",
        "min..max",
        "refused",
        "errors",
        "goodput/s",
        "CPU µs",
        "taken",
        "p99/off",
        "all p99"
    );
    let off = group.entries.iter().find(|entry| entry.variant == Variant::Off.name());
    for entry in &group.entries {
        let of = |value: &dyn Fn(&Sample) -> f64| {
            Spread::of(&entry.samples.iter().map(value).collect::<Vec<f64>>())
        };
        let Some(p99) = of(&|sample| sample.met.p99_ms) else { continue };
        let Some(within) = of(&|sample| sample.met.within_ratio * 100.0) else { continue };
        let median = |value: &dyn Fn(&Sample) -> f64| of(value).map_or(0.0, |spread| spread.median);
        let errors: u64 = entry.samples.iter().map(|sample| sample.met.errors + sample.met.unanswered).sum();
        let taken = median(&|sample| sample.taken.iter().map(|taken| taken.held_ratio * 100.0).sum());
        let _ = write!(
            out,
            "  {:<18}{:>9.0}{:>9.2}{:>9.1}{:>20}{:>9.1}{:>9.2}{:>20}{:>9.2}{errors:>7}{:>10.0}{:>8.2}{taken:>8.1}",
            entry.variant,
            median(&|sample| sample.rate),
            median(&|sample| sample.met.p50_ms),
            p99.median,
            format!("{:.1}..{:.1}", p99.min, p99.max),
            median(&|sample| sample.met.p999_ms),
            within.median,
            format!("{:.2}..{:.2}", within.min, within.max),
            median(&|sample| sample.met.refused_ratio * 100.0),
            median(&|sample| sample.met.goodput_per_second),
            median(&|sample| sample.cpu_us_per_request),
        );
        let ratio = off.and_then(|off| Spread::of(&paired(entry, off, |sample| sample.met.p99_ms)));
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.3}", ratio.median));
        let _ = writeln!(out, "{ratio:>8}{:>9.1}", entry.whole.p99_ms);
    }
    let samples = group.entries.iter().flat_map(|entry| &entry.samples);
    let disturbed = samples.clone().filter(|sample| sample.others_cpu_ratio > DISTURBED_RATIO).count();
    if disturbed > 0 {
        let _ = writeln!(
            out,
            "  in {disturbed} of {} runs others used more than {:.0} % of the CPUs: repeat on a quiet machine",
            samples.count(),
            DISTURBED_RATIO * 100.0
        );
    }
    out
}

/// What `act` reached of what was promised.
pub fn verdicts(promises: &Promises, group: &Group) -> Vec<Verdict> {
    let entry = |variant: Variant| group.entries.iter().find(|entry| entry.variant == variant.name());
    let (Some(off), Some(act)) = (entry(Variant::Off), entry(Variant::Act)) else { return Vec::new() };
    let all = |value: fn(&Sample) -> f64| act.samples.iter().map(value).collect::<Vec<f64>>();
    let checks = [
        ("p99 against off", promises.p99_ratio_max, paired(act, off, |sample| sample.met.p99_ms), false),
        (
            "p99 of all rounds against off",
            promises.whole_p99_ratio_max,
            vec![act.whole.p99_ms / off.whole.p99_ms],
            false,
        ),
        ("within 25 ms", promises.within_ratio_min, all(|sample| sample.met.within_ratio), true),
        ("refused", promises.refused_ratio_max, all(|sample| sample.met.refused_ratio), false),
        (
            "CPU a request against off",
            promises.cpu_ratio_max,
            paired(act, off, |sample| sample.cpu_us_per_request),
            false,
        ),
    ];
    let held = checks.into_iter().filter_map(|(what, limit, values, at_least)| {
        let (limit, measured) = (limit?, Spread::of(&values)?.median);
        let met = if at_least { measured >= limit } else { measured <= limit };
        Some(Verdict { what: format!("{}: {what}", group.case), measured, limit, at_least, met })
    });
    held.collect()
}

pub fn verdict_line(verdict: &Verdict) -> String {
    let Verdict { what, measured, limit, at_least, met } = verdict;
    let word = if *met { "met   " } else { "missed" };
    let bound = if *at_least { "least" } else { "most" };
    format!("{word} {what}: {measured:.4}, promised {limit} at {bound}")
}

/// `value` of an entry against that of another, within each round.
fn paired(entry: &Entry, base: &Entry, value: fn(&Sample) -> f64) -> Vec<f64> {
    let pairs = entry.samples.iter().filter_map(|sample| {
        let base = base.samples.iter().find(|other| other.round == sample.round)?;
        Some(value(sample) / value(base))
    });
    pairs.filter(|ratio| ratio.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steal::tally::Met;

    fn entry(variant: Variant, p99_ms: &[f64]) -> Entry {
        let sample = |(round, p99_ms): (usize, &f64)| Sample {
            round,
            rate: 0.8,
            met: Met { p99_ms: *p99_ms, within_ratio: 0.995, refused_ratio: 0.02, ..Met::default() },
            taken: Vec::new(),
            cpu_us_per_request: 5.0,
            proxy_cpu_ratio: 0.5,
            generator_cpu_ratio: 0.04,
            others_cpu_ratio: 0.0,
            steal_ratio: 0.0,
            steal: None,
        };
        let samples = p99_ms.iter().enumerate().map(sample).collect();
        Entry { variant: variant.name().to_owned(), samples, whole: Met::default() }
    }

    #[test]
    fn promises_are_held_against_pairs_of_a_round() {
        let entries = vec![entry(Variant::Off, &[100.0, 900.0]), entry(Variant::Act, &[15.0, 90.0])];
        let group = Group { case: "a".into(), about: "a test".into(), entries };
        let promises = Promises {
            p99_ratio_max: Some(0.2),
            within_ratio_min: Some(0.99),
            refused_ratio_max: Some(0.01),
            ..Promises::default()
        };
        let verdicts = verdicts(&promises, &group);
        assert_eq!(verdicts.iter().map(|verdict| verdict.met).collect::<Vec<_>>(), [true, true, false]);
        assert!((verdicts[0].measured - 0.125).abs() < 1e-9);
        assert!(verdict_line(&verdicts[2]).starts_with("missed a: refused"));
        assert!(table(&group).contains("ringfort-act") && table(&group).contains("0.125"));
    }
}
