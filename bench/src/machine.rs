//! The facts of the machine that a result means nothing without. Never tunes anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// UTC, `YYYY-MM-DD`.
    pub date: String,
    pub unix_time: u64,
    pub host: String,
    pub kernel: String,
    pub cpu_model: String,
    pub cpus: usize,
    pub hypervisor: bool,
    pub memory_bytes: u64,
    /// `None` where the guest has no frequency scaling.
    pub governor: Option<String>,
    pub clocksource: Option<String>,
    pub congestion_control: Option<String>,
    pub load_average: Option<String>,
    /// From /sys/devices/system/cpu/vulnerabilities.
    pub mitigations: BTreeMap<String, String>,
}

impl Machine {
    pub fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            date: date(seconds),
            unix_time: seconds,
            host: line("/proc/sys/kernel/hostname").unwrap_or_default(),
            kernel: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
            cpu_model: value(&cpuinfo, "model name").unwrap_or_default(),
            cpus: cpuinfo.lines().filter(|text| text.starts_with("processor")).count(),
            hypervisor: value(&cpuinfo, "flags").is_some_and(|flags| flags.contains(" hypervisor")),
            memory_bytes: value(&memory, "MemTotal")
                .and_then(|text| text.trim_end_matches(" kB").trim().parse::<u64>().ok())
                .map_or(0, |kibibytes| kibibytes * 1024),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            clocksource: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            load_average: line("/proc/loadavg"),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
        }
    }

    /// What applies, in one line: "not affected" is left out.
    pub fn mitigations_in_brief(&self) -> String {
        let applying = self.mitigations.iter().filter(|(_, text)| *text != "Not affected");
        let brief: Vec<String> = applying.map(|(name, text)| format!("{name}: {text}")).collect();
        if brief.is_empty() { "no known vulnerability".to_owned() } else { brief.join("; ") }
    }
}

fn line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_once(':').map(|(_, value)| value.trim_end().trim_start_matches('\t').trim_start().to_owned())
}

fn mitigations(folder: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().into_string().ok()?, text.trim().to_owned()))
        })
        .collect()
}

/// The civil date of a Unix time, in UTC.
fn date(unix_seconds: u64) -> String {
    // Days since 0000-03-01, in eras of 400 years, so that a leap day ends its year.
    let days = unix_seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(1_795_392_000), "2026-11-23");
        assert_eq!(date(1_798_761_599), "2026-12-31");
    }

    #[test]
    fn this_machine_has_a_kernel_and_a_cpu() {
        let machine = Machine::read();
        assert!(!machine.kernel.is_empty() && machine.cpus > 0 && machine.memory_bytes > 0);
    }
}
