//! Limits that systemd gives ringfort.service: from the unit file and its drop-ins. Changes nothing.

use std::collections::BTreeMap;

use super::root::Root;

const UNIT: &str = "ringfort.service";
/// From the strongest to the weakest.
const FOLDERS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

pub(super) fn is_installed(root: &dyn Root) -> bool {
    FOLDERS.iter().any(|folder| root.read(&format!("{folder}/{UNIT}")).is_ok())
}

/// The hard limit of the directive, as a number; systemd's own default where nobody sets it.
pub(super) fn limit(root: &dyn Root, directive: &str) -> Option<u64> {
    let mut texts: Vec<String> =
        FOLDERS.iter().find_map(|folder| root.read(&format!("{folder}/{UNIT}")).ok()).into_iter().collect();
    let mut drop_ins: BTreeMap<String, String> = BTreeMap::new();
    for folder in FOLDERS {
        let folder = format!("{folder}/{UNIT}.d");
        for name in root.list(&folder).unwrap_or_default() {
            if name.ends_with(".conf") {
                let path = format!("{folder}/{name}");
                drop_ins.entry(name).or_insert(path);
            }
        }
    }
    texts.extend(drop_ins.values().filter_map(|path| root.read(path).ok()));
    let set = texts.iter().flat_map(|text| assignments(text, directive)).next_back();
    match set {
        Some(value) => hard(value),
        // systemd-system.conf(5): DefaultLimitNOFILE=1024:524288, DefaultLimitMEMLOCK=8M.
        None if directive == "LimitNOFILE" => Some(524_288),
        None => Some(8 << 20),
    }
}

fn assignments<'t>(text: &'t str, directive: &str) -> Vec<&'t str> {
    let mut in_service = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            in_service = line == "[Service]";
        } else if let Some((key, value)) = line.split_once('=')
            && in_service
            && key.trim() == directive
        {
            found.push(value.trim());
        }
    }
    found
}

/// `SOFT:HARD` or one for both; `infinity`; K, M, G and T are powers of 1,024.
fn hard(value: &str) -> Option<u64> {
    let hard = value.rsplit(':').next()?.trim();
    if hard == "infinity" {
        return Some(u64::MAX);
    }
    let (number, shift) = match hard.as_bytes().last()? {
        b'K' => (&hard[..hard.len() - 1], 10),
        b'M' => (&hard[..hard.len() - 1], 20),
        b'G' => (&hard[..hard.len() - 1], 30),
        b'T' => (&hard[..hard.len() - 1], 40),
        _ => (hard, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::root::Memory;

    #[test]
    fn a_drop_in_counts_over_the_unit_and_the_hard_limit_over_the_soft_one() {
        let mut root = Memory::default();
        assert!(!is_installed(&root));
        root.put(
            "/usr/lib/systemd/system/ringfort.service",
            "[Unit]\nLimitNOFILE=1\n[Service]\nLimitNOFILE=1024:4096\n",
        );
        assert!(is_installed(&root));
        assert_eq!(limit(&root, "LimitNOFILE"), Some(4_096));
        assert_eq!(limit(&root, "LimitMEMLOCK"), Some(8 << 20), "systemd's default");
        root.put("/etc/systemd/system/ringfort.service.d/60-tune.conf", "[Service]\nLimitNOFILE = 1M\n");
        assert_eq!(limit(&root, "LimitNOFILE"), Some(1 << 20));
    }

    #[test]
    fn limits_are_read_as_systemd_reads_them() {
        assert_eq!(hard("infinity"), Some(u64::MAX));
        assert_eq!(hard("64K:8M"), Some(8 << 20));
        for wrong in ["", "x", "99999999999999T", "é"] {
            assert_eq!(hard(wrong), None, "{wrong}");
        }
    }
}
