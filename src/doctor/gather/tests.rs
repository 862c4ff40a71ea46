//! Golden trees of a kernel's files: a good one, a bad one, garbage, and none.

use super::*;
use crate::config::parse as parse_config;
use crate::doctor::finding::{Finding, Status};
use crate::doctor::judge;
use crate::steal::source::Source;
use proptest::prelude::*;

/// The embedded default on another machine.
fn config(root: &Path) -> Config {
    let mut config = crate::config::embedded_default();
    let [procfs, sysfs, cgroupfs] = ["proc", "sys", "cgroup"].map(|folder| root.join(folder));
    config.host = HostSpec { procfs, sysfs, cgroupfs };
    config
}

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn look(name: &str) -> Facts {
    facts(&config(&tree(name)), 0)
}

fn not_ok(facts: &Facts) -> Vec<(&'static str, Status)> {
    let good = |finding: &Finding| {
        // These look at the machine that runs the test, whatever the tree.
        finding.status == Status::Ok || ["io_uring", "hypervisor", "dedicated", "aes"].contains(&finding.id)
    };
    let findings = judge::findings(facts);
    findings.iter().filter(|finding| !good(finding)).map(|finding| (finding.id, finding.status)).collect()
}

#[test]
fn a_good_machine_is_read_whole() {
    let facts = look("doctor/good");
    assert_eq!(not_ok(&facts), []);
    assert_eq!(facts.steal.source, Source::Procfs);
    assert_eq!((facts.steal.boot.len(), facts.steal.boot[0].seconds), (2, 80));
    assert_eq!(facts.pressure_minute, Some(0.015));
    assert_eq!((&facts.cpus.online, &facts.cpus.allowed), (&Some(vec![0, 1]), &vec![0, 1]));
    assert_eq!(facts.nics.len(), 1, "loopback is no card");
    let nic = &facts.nics[0];
    assert_eq!((&*nic.name, nic.queues, &nic.interrupts[..]), ("eth0", 2, &[(25, 0), (27, 1)][..]));
    assert_eq!((facts.limits.nofile, facts.limits.memlock), (Some(1 << 20), Some(8 << 20)));
    assert_eq!((facts.limits.memory_bytes, facts.limits.memory_group_bytes), (Some(8 << 30), None));
    assert_eq!(facts.clock.current.as_deref(), Some("kvm-clock"));
    assert_eq!(facts.net.port_range, Some((32_768, 60_999)));
}

#[test]
fn a_bad_machine_has_each_of_its_faults_named() {
    let facts = look("doctor/bad");
    let ids = not_ok(&facts);
    let warned = [
        "kernel",
        "steal",
        "wait",
        "cpus",
        "cgroup_quota",
        "numa",
        "nic_queues",
        "memory",
        "clocksource",
        "congestion_control",
        "accept_queue",
        "ports",
    ];
    for id in warned {
        assert!(ids.contains(&(id, Status::Warn)), "{id}: {ids:?}");
    }
    for id in ["nofile", "conntrack"] {
        assert!(ids.contains(&(id, Status::Fail)), "{id}: {ids:?}");
    }
    assert_eq!(
        facts.nics[0].interrupts,
        [(30, 0), (32, 0), (33, 0), (34, 0)],
        "by name, where most of them came"
    );
    assert_eq!((facts.quota.cpus, facts.quota.periods), (Some(1.5), Some((1_000, 250))));
    assert_eq!(facts.limits.memory_group_bytes, Some(1 << 29));
    assert_eq!((facts.ring.disabled, facts.ring.is_filtered), (Some(2), true));
    assert_eq!(facts.net.reserved_ports, [9_000, 9_001]);
    let io_uring = judge::findings(&facts).remove(0);
    assert_eq!((io_uring.id, io_uring.status, &io_uring.value), ("io_uring", Status::Warn, &"epoll".into()));
}

#[test]
fn garbage_and_nothing_at_all_are_unknown_never_good_or_bad() {
    for name in ["doctor/garbage", "doctor/nothing_at_all"] {
        let facts = look(name);
        let mut ids = not_ok(&facts);
        // A tree without limits has those of this process.
        ids.retain(|(id, _)| *id != "nofile");
        assert!(ids.iter().all(|(_, status)| *status == Status::Unknown), "{name}: {ids:?}");
        for id in
            ["kernel", "steal", "wait", "cpus", "numa", "nic_queues", "clocksource", "congestion_control"]
        {
            assert!(ids.contains(&(id, Status::Unknown)), "{name}: {id}: {ids:?}");
        }
        assert!(!facts.cpus.allowed.is_empty(), "this machine is asked where the tree says nothing");
    }
}

#[test]
fn oddities_of_the_counters_are_no_theft() {
    for (name, source) in [
        ("steal/kvm", Source::Procfs),
        ("steal/unplugged", Source::Procfs),
        ("steal/without_steal", Source::Gap),
        ("steal/first_cgroups", Source::Gap),
    ] {
        assert_eq!(look(name).steal.source, source, "{name}");
    }
    assert!(look("steal/first_cgroups").steal.is_accounting_off);
}

#[test]
fn this_machine_is_read_with_a_sample() {
    let facts = facts(&crate::config::embedded_default(), 1);
    let sample = facts.steal.sample.expect("a sample");
    assert!(sample.seconds >= 1.0 && !sample.cpus.is_empty());
    assert!(facts.clock.read_ns > 0 && facts.limits.nofile.is_some() && facts.release.is_some());
}

#[test]
fn a_file_that_only_names_the_machine_is_enough_to_look() {
    let folder = std::env::temp_dir().join(format!("ringfort-look-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("host.toml");
    fs::write(&file, "[host]\nprocfs = \"/elsewhere\"\n").unwrap();
    let config = crate::config::load_to_look(&file).unwrap();
    assert_eq!((config.host.procfs.as_path(), config.snapshot.listeners.len()), (Path::new("/elsewhere"), 1));
    fs::write(&file, "[host]\nprocf = \"/elsewhere\"\n").unwrap();
    let error = crate::config::load_to_look(&file).unwrap_err().to_string();
    assert!(error.contains("procf") && !error.contains("no listener"), "{error}");
    assert!(parse_config("a.toml", "").is_err(), "nobody else serves nothing");
    fs::remove_dir_all(folder).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn no_tree_panics(text in "[ -~\n]{0,80}", number in any::<u64>()) {
        let root = std::env::temp_dir().join(format!("ringfort-tree-{}", std::process::id()));
        for file in ["stat", "interrupts", "meminfo", "pressure/cpu", "self/status", "self/limits", "net/netstat"] {
            let path = root.join("proc").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = format!("cpu0 {number} {number} {number} {number} {number} {number} {number} {number}\n{text}\nsome avg60=1 total={number}\n");
            fs::write(path, text).unwrap();
        }
        for file in ["kernel/io_uring_disabled", "net/core/somaxconn", "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"] {
            let path = root.join("proc/sys").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, number.to_string()).unwrap();
        }
        let findings = judge::findings(&facts(&config(&root), 0));
        fs::remove_dir_all(root).unwrap();
        prop_assert!(findings.iter().all(|finding| !finding.why.is_empty()));
    }
}
