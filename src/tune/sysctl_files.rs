//! What the files of sysctl.d(5) set at boot: syntax, order, masking, who overrides whom. Pure.

use std::collections::BTreeMap;

/// Folders from the strongest to the weakest: a file hides those of its name in the later ones.
pub(super) const FOLDERS: [&str; 5] =
    ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"];
/// Read last of all where it is read: by procps, and by systemd where a link in `/etc/sysctl.d` leads to it.
pub(super) const LAST: &str = "/etc/sysctl.conf";

/// One assignment, and where it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Line {
    /// With dots; may hold `*` and `?`.
    pub key: String,
    /// `None`: the key is only kept from patterns (`-key`).
    pub value: Option<String>,
    pub path: String,
    /// From 1.
    pub number: usize,
}

/// Reads one file. What is no assignment is passed over, as systemd does.
pub(super) fn parse(path: &str, text: &str) -> Vec<Line> {
    let line = |(index, line): (usize, &str)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return None;
        }
        let (ignoring, rest) = line.strip_prefix('-').map_or((false, line), |rest| (true, rest));
        let (key, value) = match rest.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim().to_owned())),
            None if ignoring => (rest.trim(), None),
            None => return None,
        };
        (!key.is_empty()).then(|| Line { key: dotted(key), value, path: path.to_owned(), number: index + 1 })
    };
    text.lines().enumerate().filter_map(line).collect()
}

/// A key with dots: where the first separator is a slash, slashes and dots change places (`net/ipv4/conf/eth0.1/…`).
fn dotted(key: &str) -> String {
    if key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'/') {
        key.chars()
            .map(|character| match character {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect()
    } else {
        key.to_owned()
    }
}

/// The paths to read, in the order in which they count, of the files that each folder holds.
pub(super) fn in_order(folders: &[(&str, Vec<String>)]) -> Vec<String> {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for (folder, names) in folders {
        for name in names.iter().filter(|name| name.ends_with(".conf")) {
            files.entry(name).or_insert_with(|| format!("{folder}/{name}"));
        }
    }
    files.into_values().collect()
}

/// Every assignment to a key, in order: the last one counts. Patterns do not count beside one that names the key.
pub(super) fn of_key<'l>(lines: &'l [Line], key: &str) -> Vec<&'l Line> {
    let named: Vec<&Line> = lines.iter().filter(|line| line.key == key).collect();
    let found =
        if named.is_empty() { lines.iter().filter(|line| matches(&line.key, key)).collect() } else { named };
    found.into_iter().filter(|line| line.value.is_some()).collect()
}

/// Whether a pattern with `*` and `?`, neither of which crosses a dot, is for the key.
fn matches(pattern: &str, key: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('.'), key.split('.'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if part_matches(pattern.as_bytes(), part.as_bytes()) => {}
            _ => return false,
        }
    }
}

fn part_matches(pattern: &[u8], part: &[u8]) -> bool {
    // Where the last star was, and how much it has taken so far: at most one step back for each byte.
    let (mut at, mut in_part, mut star) = (0, 0, None);
    while in_part < part.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, in_part));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == part[in_part] => (at, in_part) = (at + 1, in_part + 1),
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                (at, in_part) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(text: &str) -> Vec<(String, Option<String>, usize)> {
        parse("f", text).into_iter().map(|line| (line.key, line.value, line.number)).collect()
    }

    #[test]
    fn assignments_are_read_as_the_manual_says() {
        let text = "# a = 1\n; b = 2\n\nvm.swappiness = 10 \n-net.core.x=1\nnet/ipv4/conf/eth0.1/y = 2\n-net.a.b\nnonsense\n = 3\n\
                    net.ipv4.tcp_rmem = 4096\t131072 6291456\n";
        let owned =
            |key: &str, value: Option<&str>, number| (key.to_owned(), value.map(str::to_owned), number);
        assert_eq!(
            keys(text),
            [
                owned("vm.swappiness", Some("10"), 4),
                owned("net.core.x", Some("1"), 5),
                owned("net.ipv4.conf.eth0/1.y", Some("2"), 6),
                owned("net.a.b", None, 7),
                owned("net.ipv4.tcp_rmem", Some("4096\t131072 6291456"), 10),
            ]
        );
    }

    #[test]
    fn files_count_by_name_and_the_stronger_folder_hides_the_same_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let order = in_order(&[
            ("/etc/sysctl.d", names(&["99-local.conf", "50-a.conf", "README"])),
            ("/run/sysctl.d", names(&["60-run.conf"])),
            ("/usr/lib/sysctl.d", names(&["50-a.conf", "10-b.conf"])),
        ]);
        assert_eq!(
            order,
            [
                "/usr/lib/sysctl.d/10-b.conf",
                "/etc/sysctl.d/50-a.conf",
                "/run/sysctl.d/60-run.conf",
                "/etc/sysctl.d/99-local.conf"
            ]
        );
    }

    #[test]
    fn the_last_one_counts_and_a_pattern_only_where_nothing_names_the_key() {
        let lines =
            parse("f", "net.ipv4.tcp_* = 0\nnet.ipv4.tcp_a = 1\nnet.ipv4.tcp_a = 2\n-net.ipv4.tcp_b\n");
        let last = |key| of_key(&lines, key).last().and_then(|line| line.value.as_deref());
        assert_eq!(last("net.ipv4.tcp_a"), Some("2"));
        assert_eq!(last("net.ipv4.tcp_b"), None, "kept from the pattern");
        assert_eq!(last("net.ipv4.tcp_c"), Some("0"));
        assert_eq!(last("net.core.tcp_c"), None);
    }

    #[test]
    fn patterns_stay_within_a_part() {
        for (pattern, key, expected) in [
            ("net.*.x", "net.core.x", true),
            ("net.*.x", "net.a.b.x", false),
            ("net.*", "net.core.x", false),
            ("*.?.x", "net.a.x", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbY", false),
            ("a", "a", true),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[-#;=./*? a-c\n\t]{0,80}") {
            for line in parse("f", &text) {
                prop_assert!(!line.key.is_empty());
                let _ = of_key(std::slice::from_ref(&line), "a.b");
                prop_assert!(line.number <= text.lines().count());
            }
        }

        #[test]
        fn a_written_line_is_read_back(key in "[a-z]{1,5}(\\.[a-z_]{1,8}){1,3}", value in "[0-9]{1,6}( [0-9]{1,6}){0,2}") {
            prop_assert_eq!(keys(&format!("{key} = {value}\n")), vec![(key, Some(value), 1)]);
        }

        #[test]
        fn stars_are_matched_in_time(pattern in "[a*?]{0,30}", part in "a{0,30}") {
            let _ = part_matches(pattern.as_bytes(), part.as_bytes());
        }
    }
}
