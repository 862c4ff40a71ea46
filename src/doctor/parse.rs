//! Texts of procfs and sysfs that only the doctor reads, to numbers. Takes whatever a kernel, a container or a broken file
//! may hold; what cannot be read is absent, never zero.

/// One numbered line of `/proc/interrupts`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interrupt {
    pub number: u32,
    /// Times that it came, by CPU.
    pub counts: Vec<(u16, u64)>,
    /// What handles it, such as `virtio2-input.0`; the last word of the line.
    pub name: String,
}

/// The numbered lines of `/proc/interrupts`. The first line says which CPUs the columns are: those that are offline
/// have none.
pub fn interrupts(text: &str) -> Vec<Interrupt> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default().split_ascii_whitespace();
    let Some(cpus) = header.map(|word| word.strip_prefix("CPU")?.parse().ok()).collect::<Option<Vec<u16>>>()
    else {
        return Vec::new();
    };
    let line = |line: &str| {
        let (number, rest) = line.trim_start().split_once(':')?;
        let mut words = rest.split_ascii_whitespace();
        let counts: Option<Vec<(u16, u64)>> =
            cpus.iter().map(|cpu| Some((*cpu, words.next()?.parse().ok()?))).collect();
        let (number, counts) = (number.parse().ok()?, counts?);
        Some(Interrupt { number, counts, name: words.last().unwrap_or_default().to_owned() })
    };
    lines.filter_map(line).collect()
}

/// CPUs of a mask in words of 32 bits, the highest first, as in `rps_cpus`.
pub fn cpu_mask(text: &str) -> Option<Vec<u16>> {
    let mut cpus = Vec::new();
    for (index, word) in text.trim().rsplit(',').enumerate() {
        if word.len() > 8 {
            return None;
        }
        let bits = u32::from_str_radix(word, 16).ok()?;
        let first = u16::try_from(index * 32).ok()?;
        cpus.extend((0..32).filter(|bit| bits & (1 << bit) != 0).map(|bit| first.saturating_add(bit)));
    }
    Some(cpus)
}

/// The text behind `key` and a colon, as in `/proc/self/status` and `/proc/meminfo`.
pub fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let value = |line: &'t str| line.strip_prefix(key)?.strip_prefix(':');
    text.lines().find_map(value).map(str::trim)
}

/// Bytes of a field in kB.
pub fn kilobytes(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1_024)
}

/// The soft and the hard limit behind a name in `/proc/self/limits`; `u64::MAX` is no limit.
pub fn limit(text: &str, name: &str) -> Option<(u64, u64)> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = rest.split_ascii_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((words.next()??, words.next()??))
}

/// Microseconds since boot in which some task waited for a CPU, and the share of the last minute, 0 to 1, as
/// `/proc/pressure/cpu` tells them.
pub fn pressure(text: &str) -> Option<(u64, f64)> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let word = |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
    let minute: f64 = word("avg60=")?.parse().ok().filter(|share| (0.0..=100.0).contains(share))?;
    Some((word("total=")?.parse().ok()?, minute / 100.0))
}

/// Periods of a control group's quota so far, and those in which it was held, as `cpu.stat` counts them.
pub fn periods(text: &str) -> Option<(u64, u64)> {
    let word = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line?.strip_prefix(' ')?.trim().parse().ok()
    };
    Some((word("nr_periods")?, word("nr_throttled")?))
}

/// A counter of `/proc/net/netstat`, where a line of names stands above a line of numbers.
pub fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split_ascii_whitespace().position(|word| word == name)?;
    numbers.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// The first and the last port of `ip_local_port_range`.
pub fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_ascii_whitespace().map(|word| word.parse().ok());
    let (first, last) = (words.next()??, words.next()??);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn interrupts_are_counted_by_the_cpus_of_the_header() {
        let text = "           CPU0       CPU2       \n 38:          5      17342 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n\
                    \x20 9:  1 x IO-APIC acpi\n 7:  1\nLOC:    8667815    8476756   Local timer interrupts\nERR:          0\n";
        let list = interrupts(text);
        assert_eq!(list.len(), 1);
        assert_eq!(
            (list[0].number, &list[0].counts[..], &*list[0].name),
            (38, &[(0, 5), (2, 17_342)][..], "virtio2-input.0")
        );
        assert_eq!(interrupts("").len() + interrupts("CPU0 CPUx\n 1: 2 3 a\n").len(), 0);
    }

    #[test]
    fn masks_count_from_the_right() {
        assert_eq!(cpu_mask("3\n"), Some(vec![0, 1]));
        assert_eq!(cpu_mask("00000001,80000000"), Some(vec![31, 32]));
        assert_eq!(cpu_mask("00000000,00000000\n"), Some(vec![]));
        for broken in ["", "x", "1,,1", "100000000"] {
            assert_eq!(cpu_mask(broken), None, "{broken}");
        }
    }

    #[test]
    fn fields_and_limits_are_found_by_their_names() {
        let text = "Name:\tx\nCpus_allowed_list:\t0-3\nMemTotal:       24684096 kB\nMemFree: many kB\n";
        assert_eq!(field(text, "Cpus_allowed_list"), Some("0-3"));
        assert_eq!(field(text, "Cpus"), None);
        assert_eq!(kilobytes(text, "MemTotal"), Some(24_684_096 << 10));
        assert_eq!(kilobytes(text, "MemFree"), None);
        let limits = "Max open files            1024                 524288               files     \n\
                      Max locked memory         unlimited            unlimited            bytes     \n";
        assert_eq!(limit(limits, "Max open files"), Some((1_024, 524_288)));
        assert_eq!(limit(limits, "Max locked memory"), Some((u64::MAX, u64::MAX)));
        assert_eq!(limit("Max open files many few files", "Max open files"), None);
    }

    #[test]
    fn pressure_and_periods_are_read_or_absent() {
        let text = "some avg10=0.00 avg60=2.50 avg300=0.10 total=123456\nfull avg10=0.00 avg60=9.00 avg300=0 total=0\n";
        assert_eq!(pressure(text), Some((123_456, 0.025)));
        assert_eq!(pressure("some avg60=NaN total=1\n"), None);
        assert_eq!(periods("nr_periods 71\nnr_throttled 65\nthrottled_usec 205000\n"), Some((71, 65)));
        assert_eq!(periods("usage_usec 9\n"), None);
    }

    #[test]
    fn counters_stand_below_their_names() {
        let text = "TcpExt: A ListenOverflows B\nTcpExt: 1 22 3\nIpExt: A\nIpExt: 7\n";
        assert_eq!(counter(text, "TcpExt", "ListenOverflows"), Some(22));
        assert_eq!(counter(text, "IpExt", "ListenOverflows"), None);
        assert_eq!(port_range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(port_range("60999 32768"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}", body in "(CPU[0-9]{1,6} ?){0,3}\n([ 0-9:]{0,30}[a-z]?\n){0,4}", key in "[A-Za-z ]{0,5}") {
            for text in [&text, &body, &format!("{key}:{text}"), &format!("{key} {body}"), &format!("some {text}")] {
                interrupts(text);
                cpu_mask(text);
                field(text, &key);
                kilobytes(text, &key);
                limit(text, &key);
                pressure(text);
                periods(text);
                counter(text, &key, &key);
                port_range(text);
            }
        }

        #[test]
        fn every_mask_tells_its_cpus(words in proptest::collection::vec(any::<u32>(), 1..5)) {
            let text = words.iter().rev().map(|word| format!("{word:08x}")).collect::<Vec<_>>().join(",");
            let cpus = cpu_mask(&text).unwrap();
            for (index, word) in words.iter().enumerate() {
                for bit in 0..32 {
                    let cpu = (index * 32 + bit) as u16;
                    prop_assert_eq!(cpus.contains(&cpu), word & (1 << bit) != 0);
                }
            }
        }
    }
}
