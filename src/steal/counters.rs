//! Texts of the kernel to numbers: `/proc/stat`, `schedstat` of a thread, `cpu.stat` of a control group, lists of CPUs.
//! Takes whatever a kernel, a container or a broken file may hold; what cannot be read is absent, never zero.

/// Columns of a CPU's line that are kept: user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)).
pub const COLUMNS: usize = 8;
/// Position of steal among them.
pub const STEAL: usize = 7;
/// Nanoseconds of one tick of `/proc/stat`. `USER_HZ` is 100 on every architecture that Linux runs servers on.
pub const TICK_NS: u64 = 10_000_000;

/// One CPU's line of `/proc/stat`, in ticks since boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuTicks {
    pub cpu: u16,
    /// Columns that the kernel does not have are 0.
    pub ticks: [u64; COLUMNS],
    /// Whether there is a column of steal (since Linux 2.6.11; some containers show fewer).
    pub has_steal: bool,
}

/// The CPUs of `/proc/stat`, in its order. True when the text went beyond them: there is nothing more to read.
/// A line that cannot be read is left out, as that of a CPU which was unplugged.
pub fn cpus(text: &[u8], into: &mut Vec<CpuTicks>) -> bool {
    into.clear();
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    for line in lines.by_ref() {
        let Some(rest) = line.strip_prefix(b"cpu") else { return true };
        // A line without its end may have lost digits.
        let Some(rest) = rest.strip_suffix(b"\n") else { return false };
        // The first line has no number: it is the sum.
        if rest.first().is_some_and(u8::is_ascii_digit) {
            into.extend(cpu_line(rest));
        }
    }
    false
}

fn cpu_line(rest: &[u8]) -> Option<CpuTicks> {
    let mut words = words(rest);
    let cpu = u16::try_from(number(words.next()?)?).ok()?;
    let mut ticks = [0; COLUMNS];
    let mut columns = 0;
    for (tick, word) in ticks.iter_mut().zip(&mut words) {
        *tick = number(word)?;
        columns += 1;
    }
    // Fewer than user, nice, system and idle is no line of this file.
    (columns >= 4).then_some(CpuTicks { cpu, ticks, has_steal: columns > STEAL })
}

/// Nanoseconds that a thread was ready and did not run: the second field of its `schedstat`.
pub fn run_wait_ns(text: &[u8]) -> Option<u64> {
    let mut words = words(text);
    number(words.next()?)?;
    let wait = number(words.next()?)?;
    number(words.next()?)?;
    Some(wait)
}

/// Nanoseconds for which a quota held the CPUs of a control group: `throttled_usec` (version 2) or `throttled_time`
/// (version 1) of its `cpu.stat`. Absent where the group has no quota.
pub fn throttled_ns(text: &[u8]) -> Option<u64> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let mut words = words(line);
        match words.next()? {
            b"throttled_usec" => number(words.next()?)?.checked_mul(1_000),
            b"throttled_time" => number(words.next()?),
            _ => None,
        }
    })
}

/// Numbers and ranges, ascending, as in `/sys/devices/system/cpu/online`. `None` for anything else.
pub fn cpu_list(text: &[u8]) -> Option<Vec<u16>> {
    let mut list = Vec::new();
    let text = text.trim_ascii();
    for part in text.split(|byte| *byte == b',').filter(|_| !text.is_empty()) {
        let mut ends =
            part.splitn(2, |byte| *byte == b'-').map(|end| number(end).and_then(|n| u16::try_from(n).ok()));
        let first = ends.next()??;
        let last = ends.next().map_or(Some(first), |last| last)?;
        // Ascending, as the kernel writes them: a list is never longer than there are numbers.
        if list.last().is_some_and(|before| *before >= first) {
            return None;
        }
        list.extend(first..=last);
    }
    Some(list)
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Vec<CpuTicks>, bool) {
        let mut list = Vec::new();
        let beyond = cpus(text.as_bytes(), &mut list);
        (list, beyond)
    }

    #[test]
    fn each_cpu_has_its_line_and_the_sum_is_none_of_them() {
        let (list, beyond) = read(
            "cpu  3 0 3 3 3 0 3 7 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu12 11 12 13 14 15 16 17 18 0 0\nintr 5 0 0\nctxt 4\n",
        );
        let first = CpuTicks { cpu: 0, ticks: [1, 2, 3, 4, 5, 6, 7, 8], has_steal: true };
        let second = CpuTicks { cpu: 12, ticks: [11, 12, 13, 14, 15, 16, 17, 18], has_steal: true };
        assert_eq!((list, beyond), (vec![first, second], true));
    }

    #[test]
    fn a_kernel_without_a_column_of_steal_is_told_from_one_without_steal() {
        let (list, _) = read("cpu0 1 2 3 4 5 6 7\ncpu1 1 2 3 4\n");
        assert_eq!(list.iter().map(|cpu| cpu.has_steal).collect::<Vec<_>>(), [false, false]);
        assert_eq!(list[1].ticks, [1, 2, 3, 4, 0, 0, 0, 0]);
        assert!(read("cpu0 1 2 3 4 5 6 7 0\n").0[0].has_steal);
    }

    #[test]
    fn lines_that_cannot_be_read_are_left_out() {
        for line in [
            "cpu0",
            "cpu0 1 2 3",
            "cpu0 1 2 x 4 5",
            "cpu0 -1 2 3 4",
            "cpux 1 2 3 4",
            "cpu0 99999999999999999999 2 3 4",
            "cpu70000 1 2 3 4",
        ] {
            let (list, _) = read(&format!("{line}\ncpu7 1 2 3 4 5 6 7 8\n"));
            assert_eq!(list.iter().map(|cpu| cpu.cpu).collect::<Vec<_>>(), [7], "{line}");
        }
    }

    #[test]
    fn a_text_cut_off_in_a_line_asks_for_more() {
        assert_eq!(read("cpu  1 2 3 4\ncpu0 1 2 3 4 5 6 7 8\ncpu1 1 2 3 4 5 6 7 1").0.len(), 1);
        assert!(!read("cpu  1 2 3 4\ncpu0 1 2 3 4 5 6 7 8\n").1);
        assert!(read("cpu  1 2 3 4\ncpu0 1 2 3 4 5 6 7 8\nin").1);
        assert_eq!(read(""), (Vec::new(), false));
    }

    #[test]
    fn wait_is_the_second_field_of_three() {
        assert_eq!(run_wait_ns(b"84175 17031 2\n"), Some(17_031));
        // All zeros where the kernel does not count (SCHED_INFO off).
        assert_eq!(run_wait_ns(b"0 0 0\n"), Some(0));
        for broken in ["", "1", "1 2", "a b c", "1 18446744073709551616 3"] {
            assert_eq!(run_wait_ns(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn both_versions_of_control_groups_tell_how_long_they_were_held() {
        let second = b"usage_usec 5\nnr_periods 71\nnr_throttled 65\nthrottled_usec 205000\n";
        let first = b"nr_periods 71\nnr_throttled 65\nthrottled_time 205000000\n";
        assert_eq!(throttled_ns(second), Some(205_000_000));
        assert_eq!(throttled_ns(first), Some(205_000_000));
        assert_eq!(throttled_ns(b"usage_usec 5\nuser_usec 2\n"), None, "the root group has no quota");
        assert_eq!(throttled_ns(b"throttled_usec 18446744073709551615\n"), None);
    }

    #[test]
    fn lists_of_cpus_are_numbers_and_ranges() {
        assert_eq!(cpu_list(b"0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpu_list(b"\n"), Some(vec![]));
        for broken in ["x", "1-", "-1", "1,,2", "70000", "1-2-3", "2,1", "0-3,3", "1,1"] {
            assert_eq!(cpu_list(broken.as_bytes()), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let prefixed = [b"cpu0 ", &text[..]].concat();
            for text in [&text, &prefixed] {
                cpus(text, &mut Vec::new());
                run_wait_ns(text);
                throttled_ns(text);
                cpu_list(text);
            }
        }
    }
}
