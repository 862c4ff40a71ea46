//! From a machine in memory to the plan: what is chosen, in which order, and what is said.

use super::*;
use crate::tune::facts::{Asked, Facts};
use crate::tune::judge::{conflicts, judge};
use crate::tune::root::{Memory, Root};
use crate::tune::settings::{embedded, sysctl_path};

/// A Red Hat-like machine with everything at its default, the package installed.
fn machine() -> Memory {
    let mut root = Memory::default();
    for (key, value) in [
        ("kernel.osrelease", "6.12.0-55.el10.x86_64"),
        ("kernel.io_uring_disabled", "2"),
        ("kernel.io_uring_group", "-1"),
        ("net.ipv4.ip_local_port_range", "32768\t60999"),
        ("net.ipv4.ip_local_reserved_ports", ""),
        ("net.core.somaxconn", "4096"),
        ("net.ipv4.tcp_syncookies", "1"),
        ("net.ipv4.tcp_rmem", "4096\t131072\t6291456"),
        ("net.ipv4.tcp_tw_reuse", "2"),
        ("net.ipv4.tcp_available_congestion_control", "reno cubic"),
        ("vm.swappiness", "60"),
        ("fs.nr_open", "1048576"),
    ] {
        root.put(&sysctl_path(key), &format!("{value}\n"));
    }
    root.put("/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
    root.put("/proc/meminfo", "MemTotal: 8000000 kB\n");
    root.put("/etc/group", "root:x:0:\nringfort:x:990:\n");
    root.put("/usr/lib/systemd/system/ringfort.service", "[Service]\nLimitNOFILE=524288\n");
    root
}

fn planned(root: &Memory, selection: &Selection) -> Result<Plan, String> {
    let asked = Asked { listen_ports: [443, 20_000].into(), congestion_controls: ["bbr".to_owned()].into() };
    let tuning = embedded();
    let facts = Facts::gather(root, &asked);
    let readings = Readings::read(root, &tuning.settings);
    let widened = selection.widens(&tuning.settings);
    let findings = judge(&tuning.settings, &facts, &readings, selection.reach(), widened);
    plan(&findings, selection, &readings, &|path| root.read(path).ok())
}

fn tier(tier: Tier) -> Selection {
    Selection { tier, only: Vec::new() }
}

fn only(name: &str) -> Selection {
    Selection { tier: Tier::Safe, only: vec![name.to_owned()] }
}

fn changes(plan: &Plan) -> Vec<(&str, &str)> {
    plan.values.iter().map(|value| (&*value.key, &*value.after)).collect()
}

#[test]
fn io_uring_is_allowed_to_the_group_alone_and_the_group_is_set_first() {
    let plan = planned(&machine(), &only("io_uring")).unwrap();
    assert_eq!(changes(&plan), [("kernel.io_uring_group", "990"), ("kernel.io_uring_disabled", "1")]);
    assert_eq!(plan.values[1].before, "2");
    let mut without_group = machine();
    without_group.put("/etc/group", "root:x:0:\n");
    let plan = planned(&without_group, &only("io_uring")).unwrap();
    assert_eq!(changes(&plan), [("kernel.io_uring_disabled", "0")]);
    let mut open = machine();
    open.put(&sysctl_path("kernel.io_uring_disabled"), "0\n");
    assert!(planned(&open, &only("kernel.io_uring_disabled")).unwrap().is_empty(), "never raised");
}

#[test]
fn what_is_not_for_this_machine_is_told_where_it_is_asked_for() {
    let mut old = machine();
    old.files.remove(&sysctl_path("kernel.io_uring_disabled"));
    let plan = planned(&old, &only("io_uring")).unwrap();
    assert!(plan.is_empty() && plan.notes[0].contains("kernel.io_uring_disabled"), "{:?}", plan.notes);
    let mut new = machine();
    new.put("/proc/sys/kernel/osrelease", "6.16.0\n");
    let plan = planned(&new, &only("tcp_rmem")).unwrap();
    assert!(plan.is_empty() && plan.notes[0].contains("kernels before 6.16"), "{:?}", plan.notes);
}

#[test]
fn ports_are_reserved_before_the_range_is_widened() {
    let mut root = machine();
    // 18000 and 40000 in hexadecimal.
    let row = |port: u16| {
        format!(
            "   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1 0\n"
        )
    };
    root.put("/proc/net/tcp", &format!("header\n{}{}", row(18_000), row(40_000)));
    for selection in [only("ip_local_port_range"), tier(Tier::Recommended)] {
        let plan = planned(&root, &selection).unwrap();
        let changes = changes(&plan);
        let at = |key| changes.iter().position(|(changed, _)| *changed == key).unwrap();
        let (reserved, range) = (at("net.ipv4.ip_local_reserved_ports"), at("net.ipv4.ip_local_port_range"));
        assert!(reserved < range, "{changes:?}");
        assert_eq!(changes[reserved].1, "18000,20000");
        assert_eq!(changes[range].1, "16384 65535");
    }
    let safe = planned(&root, &tier(Tier::Safe)).unwrap();
    assert!(
        !changes(&safe).iter().any(|(key, _)| key.contains("port")),
        "nothing is in reach of the old range"
    );
}

#[test]
fn tiers_hold_those_before_them_and_the_last_is_never_written() {
    let keys = |tier_of| {
        let plan = planned(&machine(), &tier(tier_of)).unwrap();
        plan.values.into_iter().map(|value| value.key).collect::<Vec<_>>()
    };
    let (safe, recommended, aggressive) = (keys(Tier::Safe), keys(Tier::Recommended), keys(Tier::Aggressive));
    assert!(safe.contains(&"kernel.io_uring_disabled".to_owned()));
    assert!(!safe.contains(&"vm.swappiness".to_owned()) && recommended.contains(&"vm.swappiness".to_owned()));
    assert!(!recommended.contains(&"net.ipv4.tcp_tw_reuse".to_owned()));
    assert!(aggressive.contains(&"net.ipv4.tcp_tw_reuse".to_owned()));
    assert!(safe.iter().all(|key| recommended.contains(key) && aggressive.contains(key)));
    let refused = planned(&machine(), &only("nf_conntrack_max")).unwrap_err();
    assert!(refused.contains("never written") && refused.contains("notrack"), "{refused}");
    let unknown = planned(&machine(), &only("swapiness")).unwrap_err();
    assert!(unknown.contains("known:") && unknown.contains("swappiness"), "{unknown}");
}

#[test]
fn each_kind_is_kept_in_its_own_file() {
    let plan = planned(&machine(), &tier(Tier::Recommended)).unwrap();
    let text = |path: &str| &*plan.files.iter().find(|file| file.path == path).unwrap().after;
    assert!(text(SYSCTL_FILE).contains("\nvm.swappiness = 10\n"));
    assert!(text(SYSCTL_FILE).contains("\nnet.ipv4.tcp_rmem = 4096 131072 16777216\n"));
    assert!(
        text(TMPFILES_FILE).ends_with("\nw /sys/kernel/mm/transparent_hugepage/enabled - - - - madvise\n")
    );
    assert!(text(MODULES_FILE).ends_with("\ntcp_bbr\n"));
    assert!(text(UNIT_FILE).contains("\n[Service]\nLimitNOFILE=1048576\n"), "{}", text(UNIT_FILE));
    assert_eq!(plan.modules, ["tcp_bbr"]);
    assert!(plan.notes.iter().any(|note| note.contains("daemon-reload")));
}

#[test]
fn lines_of_an_earlier_apply_stay_and_are_replaced_by_key() {
    let before = "# Written\nvm.swappiness = 10\nnet.core.somaxconn = 4096\n";
    let lines = [("net.core.somaxconn".to_owned(), "net.core.somaxconn = 8192".to_owned())];
    let after = merged(SYSCTL_FILE, Some(before), &lines);
    assert_eq!(after, format!("{HEADER}\nvm.swappiness = 10\nnet.core.somaxconn = 8192\n"));
    let unit = merged(
        UNIT_FILE,
        Some("[Service]\nLimitNOFILE=1\n"),
        &[("LimitNOFILE".into(), "LimitNOFILE=2".into())],
    );
    assert_eq!(unit, format!("{HEADER}\n[Service]\nLimitNOFILE=2\n"));
}

#[test]
fn a_file_that_counts_later_is_named() {
    let mut root = machine();
    root.put("/usr/lib/sysctl.d/99-guide.conf", "# x\nvm.swappiness = 100\n");
    let plan = planned(&root, &only("swappiness")).unwrap();
    assert!(plan.notes[0].contains("/usr/lib/sysctl.d/99-guide.conf:2"), "{:?}", plan.notes);
    let mut root = machine();
    root.put("/usr/lib/sysctl.d/10-guide.conf", "vm.swappiness = 100\n");
    assert!(planned(&root, &only("swappiness")).unwrap().notes.is_empty(), "ours counts after it");
}

#[test]
fn what_is_good_now_and_not_after_a_boot_is_kept_for_the_next_one() {
    let mut root = machine();
    root.put(&sysctl_path("vm.swappiness"), "10\n");
    root.put("/etc/sysctl.d/10-guide.conf", "vm.swappiness = 100\n");
    let plan = planned(&root, &only("swappiness")).unwrap();
    assert!(plan.values.is_empty() && plan.files[0].after.contains("vm.swappiness = 10"), "{plan:?}");
}

#[test]
fn overrides_are_told_in_the_order_in_which_they_count() {
    let mut root = machine();
    root.put("/etc/sysctl.d/50-a.conf", "vm.swappiness = 1\n");
    root.put("/usr/lib/sysctl.d/60-b.conf", "vm.swappiness = 2\nfs.nr_open = 5\n");
    root.put("/etc/sysctl.conf", "vm.swappiness=3\n");
    let tuning = embedded();
    let readings = Readings::read(&root, &tuning.settings);
    let found = conflicts(&tuning.settings, &readings);
    assert_eq!(found.len(), 1);
    let paths: Vec<&str> = found[0].1.iter().map(|line| &*line.path).collect();
    assert_eq!(paths, ["/etc/sysctl.d/50-a.conf", "/usr/lib/sysctl.d/60-b.conf", "/etc/sysctl.conf"]);
    assert_eq!(readings.at_boot("vm.swappiness").unwrap().value.as_deref(), Some("3"));
}

#[test]
fn an_applied_plan_leaves_nothing_to_plan() {
    let mut root = machine();
    let plan = planned(&root, &tier(Tier::Recommended)).unwrap();
    for value in &plan.values {
        root.set(&value.path, &value.after).unwrap();
    }
    for file in &plan.files {
        root.put(&file.path, &file.after);
    }
    root.put(&sysctl_path("net.ipv4.tcp_available_congestion_control"), "reno cubic bbr\n");
    assert_eq!(planned(&root, &tier(Tier::Recommended)).unwrap(), Plan::default());
}
