//! A machine without fault, and what is said of it once one thing is wrong.

use super::*;
use crate::doctor::facts::{Clock, Cpus, Limits, Net, Nic, Quota, Ring, Steal, Wanted};
use crate::doctor::finding::{Status, verdict};
use crate::doctor::sample::{CpuSample, Sample, SinceBoot};
use crate::runtime::{EngineChoice, Refusal};
use crate::steal::source::{Hypervisor, Machine, Source};

fn good() -> Facts {
    Facts {
        wanted: Wanted {
            engine: EngineChoice::Auto,
            steal: crate::steal::Spec::default(),
            connections_max: 10_000,
            memory_bytes_max: 1 << 29,
            ring_bytes: 94_208,
            listeners: vec![("listener \"web\"".into(), "0.0.0.0:8080".parse().unwrap())],
            backlog_max: 4_096,
        },
        ring: Ring {
            probe: Ok("self-test passed".into()),
            disabled: Some(0),
            group: Some(-1),
            is_filtered: false,
            is_privileged: false,
        },
        release: Some("6.12.9-amd64".into()),
        steal: Steal {
            machine: Machine { hypervisor: Hypervisor::Kvm, kvm_features: 1 << 5, kvm_hints: 0 },
            source: Source::Kvm,
            has_column: true,
            is_accounting_off: false,
            boot: [0.001, 0.002].map(|share| boot(share, 90_000)).to_vec(),
            sample: Some(sample([0.001, 0.002], 0.9)),
        },
        pressure_minute: Some(0.5),
        cpus: Cpus {
            present: Some(vec![0, 1]),
            online: Some(vec![0, 1]),
            allowed: vec![0, 1],
            workers: Ok(vec![0, 1]),
            nodes: Some(vec![(0, vec![0, 1])]),
            numa_balancing: Some(1),
        },
        quota: Quota { cpus: None, periods: None },
        nics: vec![nic(&[0, 1])],
        limits: Limits {
            nofile: Some(1 << 20),
            memlock: Some(8 << 20),
            locks_freely: false,
            memory_bytes: Some(4 << 30),
            memory_group_bytes: Some(u64::MAX >> 1),
        },
        clock: Clock {
            current: Some("tsc".into()),
            available: vec!["tsc".into(), "hpet".into()],
            read_ns: 30,
        },
        has_aes: true,
        net: Net {
            congestion: Some("cubic".into()),
            congestion_available: vec!["reno".into(), "cubic".into()],
            somaxconn: Some(4_096),
            listen_overflows: Some(0),
            port_range: Some((32_768, 60_999)),
            reserved_ports: Vec::new(),
            unprivileged_port_start: Some(1_024),
            binds_any_port: false,
            conntrack: Some((10, 262_144)),
        },
    }
}

/// By CPU; the worst second lost three times as much.
fn sample(steal: [f64; 2], busy: f64) -> Sample {
    let cpus = (0..).zip(steal).map(|(cpu, steal)| CpuSample {
        cpu,
        steal,
        worst: (steal * 3.0).min(1.0),
        busy,
        softirq: 0.25,
    });
    Sample { seconds: 2.0, cpus: cpus.collect(), is_suspect: false, pressure: Some(0.01) }
}

/// Half of the time it had work.
fn boot(steal: f64, seconds: u64) -> SinceBoot {
    SinceBoot { cpu: 0, steal, steal_of_work: steal * 2.0, seconds }
}

/// A queue for each interrupt, which goes to this CPU.
fn nic(cpus: &[u16]) -> Nic {
    let interrupts = (40..).zip(cpus.iter().copied()).collect();
    Nic { name: "eth0".into(), queues: cpus.len(), rps: Vec::new(), interrupts }
}

fn found(id: &str, change: impl FnOnce(&mut Facts)) -> Finding {
    let mut facts = good();
    change(&mut facts);
    findings(&facts).into_iter().find(|finding| finding.id == id).expect(id)
}

/// The status, and what the texts must name.
#[track_caller]
fn expect(finding: &Finding, status: Status, words: &[&str]) {
    assert_eq!(finding.status, status, "{finding:?}");
    let text = format!("{} | {} | {}", finding.shown, finding.why, finding.cure.clone().unwrap_or_default());
    for word in words {
        assert!(text.contains(word), "{word} in: {text}");
    }
}

#[test]
fn a_machine_without_fault_is_ok_and_every_finding_says_why() {
    let list = findings(&good());
    for finding in &list {
        assert_eq!((finding.status, &finding.cure), (Status::Ok, &None), "{finding:?}");
        assert!(!finding.why.is_empty() && !finding.shown.is_empty(), "{finding:?}");
    }
    let ids: Vec<&str> = list.iter().map(|finding| finding.id).collect();
    for id in [
        "io_uring",
        "steal",
        "kernel",
        "cpus",
        "cgroup_quota",
        "nofile",
        "memlock",
        "nic_queues",
        "clocksource",
        "congestion_control",
    ] {
        assert!(ids.contains(&id), "{id}");
    }
    assert_eq!(verdict(&list), Status::Ok);
}

fn refused(facts: &mut Facts, code: i32) {
    facts.ring.probe = Err(Refusal { code: Some(code), text: "it failed; do something".into() });
}

#[test]
fn a_refusal_of_io_uring_names_its_cause_and_its_cure() {
    use libc::{EACCES, EINVAL, EIO, ENOMEM, ENOSYS, EPERM};
    let old = |facts: &mut Facts| (facts.ring.disabled, facts.release) = (None, Some("4.18.0".into()));
    type Change<'c> = &'c dyn Fn(&mut Facts);
    let cases: [(i32, Change<'_>, &[&str]); 10] = [
        (
            EPERM,
            &|facts| facts.ring.disabled = Some(2),
            &["io_uring_disabled is 2", "RHEL", "--only io_uring"],
        ),
        (
            EPERM,
            &|facts| facts.ring.disabled = Some(1),
            &["leaves io_uring to root alone", "--only io_uring_group"],
        ),
        (
            EPERM,
            &|facts| (facts.ring.disabled, facts.ring.group) = (Some(1), Some(988)),
            &["root and group 988", "SupplementaryGroups=988"],
        ),
        (
            EPERM,
            &|facts| facts.ring.is_filtered = true,
            &["EPERM: a seccomp filter", "Docker", "in that filter"],
        ),
        (EACCES, &|_| (), &["EACCES: a security module"]),
        (ENOSYS, &|facts| facts.ring.is_filtered = true, &["ENOSYS: a seccomp filter"]),
        (ENOSYS, &old, &["too old", "upgrade the kernel"]),
        (ENOSYS, &|_| (), &["built without io_uring", "gVisor"]),
        (ENOMEM, &|_| (), &["locked memory", "LimitMEMLOCK"]),
        (EINVAL, &|_| (), &["older than 5.19", "upgrade"]),
    ];
    for (code, change, words) in cases {
        let finding = found("io_uring", |facts| {
            refused(facts, code);
            change(facts);
        });
        expect(&finding, Status::Warn, words);
        expect(&finding, Status::Warn, &["start-up will choose epoll", "workers.engine = \"epoll\""]);
        assert_eq!(finding.value, "epoll");
    }
    expect(&found("io_uring", |facts| refused(facts, EIO)), Status::Warn, &["it failed", "do something"]);
}

#[test]
fn what_a_refusal_means_depends_on_the_engine_that_is_asked_for() {
    let finding = |engine, refuses: bool| {
        found("io_uring", |facts| {
            facts.wanted.engine = engine;
            if refuses {
                refused(facts, libc::EPERM);
            }
        })
    };
    expect(&finding(EngineChoice::IoUring, true), Status::Fail, &["will not start"]);
    expect(&finding(EngineChoice::IoUring, false), Status::Ok, &["start-up will choose it"]);
    expect(&finding(EngineChoice::Epoll, true), Status::Ok, &["not used"]);
    let asked_by_root =
        found("io_uring", |facts| (facts.ring.disabled, facts.ring.is_privileged) = (Some(1), true));
    expect(&asked_by_root, Status::Warn, &["the service is not root"]);
}

#[test]
fn kernels_are_known_by_their_faults() {
    for (release, status, words) in [
        ("6.18.44", Status::Ok, ""),
        ("6.1.0-40-amd64", Status::Ok, "each receive is asked for anew"),
        ("6.1.0-27-amd64", Status::Warn, "1289"),
        ("6.6.10", Status::Warn, "1062"),
        ("6.6.30", Status::Ok, ""),
        ("6.8.0-1010-aws", Status::Warn, "1387"),
        ("5.15.0-91-generic", Status::Warn, "epoll serves"),
        ("6.0.1", Status::Warn, "6.1"),
        ("none", Status::Unknown, "no version"),
    ] {
        expect(&found("kernel", |facts| facts.release = Some(release.into())), status, &[words]);
    }
    expect(&found("kernel", |facts| facts.release = None), Status::Unknown, &["osrelease"]);
    let on_epoll =
        |facts: &mut Facts| (facts.wanted.engine, facts.release) = (EngineChoice::Epoll, Some("4.19".into()));
    expect(&found("kernel", on_epoll), Status::Ok, &[]);
}

#[test]
fn theft_is_judged_by_the_rule_and_the_working_thresholds() {
    for (steal, status, words) in [
        ([0.0, 0.004], Status::Ok, "0.2 % in 2 s"),
        ([0.004, 0.008], Status::Warn, "sold these CPUs twice"),
        ([0.0, 0.03], Status::Warn, "from 2 % on"),
        ([0.06, 0.0], Status::Warn, "from 5 % on"),
        ([0.0, 0.12], Status::Fail, "from 10 % on users notice"),
    ] {
        let finding = found("steal", |facts| facts.steal.sample = Some(sample(steal, 0.9)));
        expect(&finding, status, &[words]);
        assert_eq!(finding.value["steal_ratio"], rounded((steal[0] + steal[1]) / 2.0));
    }
    let finding = found("steal", |facts| facts.steal.sample = Some(sample([0.0, 0.12], 0.9)));
    expect(
        &finding,
        Status::Fail,
        &["CPU 1: 12 %, at worst 36 % of a second", "--seconds 60", "show the provider"],
    );
    let long = found("steal", |facts| {
        facts.steal.sample = Some(Sample { seconds: 60.0, ..sample([0.0, 0.12], 0.9) });
    });
    assert!(!long.cure.unwrap().contains("--seconds"));
}

#[test]
fn what_was_stolen_since_boot_counts_once_it_is_long_enough() {
    let since = |share: f64, seconds| {
        move |facts: &mut Facts| {
            facts.steal.boot = vec![boot(share, seconds)];
        }
    };
    expect(
        &found("steal", since(0.02, 90_000)),
        Status::Warn,
        &["2 % since boot (25 h), 4 % of the time with work"],
    );
    expect(&found("steal", since(0.02, 30)), Status::Ok, &["(30 s)"]);
    let alone = found("steal", |facts| {
        facts.steal.sample = None;
        since(0.15, 30)(facts);
    });
    expect(&alone, Status::Fail, &["15 % since boot"]);
    assert!(alone.value["steal_ratio"].is_null() && alone.value["since_boot_ratio"] == 0.15);
}

#[test]
fn an_idle_machine_is_not_told_that_nothing_would_be_stolen() {
    let finding = found("steal", |facts| facts.steal.sample = Some(sample([0.0, 0.0], 0.02)));
    expect(&finding, Status::Ok, &["CPUs 2 % busy", "repeat under load"]);
}

#[test]
fn a_promise_that_is_broken_is_told() {
    let finding = found("steal", |facts| {
        facts.steal.machine.kvm_hints = 1;
        facts.steal.sample = Some(sample([0.03, 0.03], 0.9));
    });
    expect(&finding, Status::Warn, &["against its own promise"]);
    expect(
        &found("dedicated", |facts| facts.steal.machine.kvm_hints = 1),
        Status::Ok,
        &["promised by the host"],
    );
    expect(
        &found("dedicated", |facts| facts.steal.machine.hypervisor = Hypervisor::Xen),
        Status::Unknown,
        &[],
    );
}

#[test]
fn hidden_steal_is_unknown_and_never_zero() {
    type Change<'c> = &'c dyn Fn(&mut Steal);
    let cases: [(Change<'_>, &str); 6] = [
        (&|steal| steal.machine.kvm_features = 0, "kvm-steal-time"),
        (&|steal| steal.machine.hypervisor = Hypervisor::VMware, "stealclock.enable"),
        (&|steal| steal.machine.hypervisor = Hypervisor::HyperV, "Hyper-V"),
        (&|steal| steal.machine.hypervisor = Hypervisor::Unknown, "not known to report"),
        (&|steal| steal.is_accounting_off = true, "no-steal-acc"),
        (&|steal| steal.has_column = false, "[host] procfs"),
    ];
    for (change, words) in cases {
        let finding = found("steal", |facts| {
            facts.steal.source = Source::Gap;
            facts.steal.sample = Some(sample([0.0, 0.0], 0.9));
            change(&mut facts.steal);
        });
        expect(&finding, Status::Unknown, &[words, "hidden"]);
        assert_eq!(finding.value["reported"], false);
        assert!(finding.value["steal_ratio"].is_null(), "{finding:?}");
        assert!(!finding.shown.starts_with('0'), "{finding:?}");
    }
    let jumps = found("steal", |facts| facts.steal.sample.as_mut().unwrap().is_suspect = true);
    expect(&jumps, Status::Unknown, &["not believed"]);
}

#[test]
fn tasks_that_wait_for_a_cpu_are_told() {
    let pressed =
        |share| move |facts: &mut Facts| facts.steal.sample.as_mut().unwrap().pressure = Some(share);
    expect(&found("wait", pressed(0.05)), Status::Ok, &["5 % of 2 s"]);
    expect(&found("wait", pressed(0.4)), Status::Warn, &["40 % of 2 s", "top"]);
    expect(&found("wait", |facts| facts.steal.sample = None), Status::Warn, &["50 % of the last minute"]);
    let silent = |facts: &mut Facts| (facts.steal.sample, facts.pressure_minute) = (None, None);
    expect(&found("wait", silent), Status::Unknown, &["psi=1"]);
}

#[test]
fn cpus_that_are_off_withheld_or_not_to_be_had_are_named() {
    let finding = |change: &dyn Fn(&mut Cpus)| found("cpus", |facts| change(&mut facts.cpus));
    expect(
        &finding(&|cpus| cpus.present = Some(vec![0, 1, 2, 3])),
        Status::Warn,
        &["CPU 2-3 is there and offline"],
    );
    expect(&finding(&|cpus| cpus.allowed = vec![1]), Status::Warn, &["keeps this process off CPU 0"]);
    let missing = finding(&|cpus| cpus.workers = Err("workers.cpus names CPU 9: change it".into()));
    expect(&missing, Status::Fail, &["names CPU 9", "change it", "will not start"]);
    expect(&finding(&|cpus| cpus.online = None), Status::Unknown, &["[host] sysfs"]);
    let nodes = |balancing| {
        move |facts: &mut Facts| {
            facts.cpus.nodes = Some(vec![(0, vec![0]), (1, vec![1])]);
            facts.cpus.numa_balancing = balancing;
        }
    };
    expect(&found("numa", nodes(Some(1))), Status::Warn, &["2 nodes", "--only numa_balancing"]);
    expect(&found("numa", nodes(Some(0))), Status::Ok, &["node 1: CPU 1"]);
    expect(&found("numa", |facts| facts.cpus.nodes = None), Status::Ok, &["1 node"]);
}

#[test]
fn a_quota_is_felt_when_it_is_short_or_was_spent() {
    let quota = |cpus, periods| move |facts: &mut Facts| facts.quota = Quota { cpus: Some(cpus), periods };
    expect(&found("cgroup_quota", quota(2.0, Some((1_000, 3)))), Status::Ok, &["2.00 CPUs", "0.3 %"]);
    expect(
        &found("cgroup_quota", quota(1.5, None)),
        Status::Warn,
        &["1.50 CPUs for 2 workers", "AllowedCPUs="],
    );
    expect(&found("cgroup_quota", quota(2.0, Some((1_000, 120)))), Status::Warn, &["12 %"]);
}

#[test]
fn queues_and_their_interrupts_are_held_against_the_workers() {
    let finding = |nics: Vec<Nic>| found("nic_queues", |facts| facts.nics = nics);
    expect(
        &finding(vec![nic(&[1])]),
        Status::Warn,
        &["eth0: 1 queue", "CPU 1 receives every packet (25 %", "echo 3 >"],
    );
    expect(&finding(vec![Nic { rps: vec![0, 1], ..nic(&[1]) }]), Status::Ok, &["RPS to CPU 0-1"]);
    expect(
        &finding(vec![nic(&[1, 1])]),
        Status::Warn,
        &["go to CPU 1 alone", "echo 0 > /proc/irq/40/", "echo 1 > /proc/irq/41/"],
    );
    expect(&finding(vec![nic(&[0, 1, 0, 1])]), Status::Ok, &["4 queues"]);
    expect(&finding(vec![Nic { interrupts: Vec::new(), ..nic(&[0, 1]) }]), Status::Ok, &["2 queues"]);
    expect(&finding(Vec::new()), Status::Unknown, &["container"]);
    let alone =
        found("nic_queues", |facts| (facts.nics, facts.cpus.workers) = (vec![nic(&[0])], Ok(vec![0])));
    expect(&alone, Status::Ok, &[]);
}

#[test]
fn limits_are_held_against_what_the_configuration_asks_for() {
    let finding = |id, change: &dyn Fn(&mut Limits)| found(id, |facts| change(&mut facts.limits));
    // 2 workers with 10,000 connections of 2 descriptors, 128 in reserve, 2 listeners and the admin's address.
    let files = finding("nofile", &|limits| limits.nofile = Some(20_000));
    expect(&files, Status::Warn, &["20,000", "LimitNOFILE=40131", "limits.connections_max = 4967"]);
    assert_eq!(files.want, 40_131);
    expect(&finding("nofile", &|limits| limits.nofile = Some(40_131)), Status::Ok, &[]);
    expect(&finding("nofile", &|limits| limits.nofile = Some(1_024)), Status::Fail, &["1,024"]);
    expect(&finding("nofile", &|limits| limits.nofile = Some(u64::MAX)), Status::Ok, &["unlimited"]);
    expect(&finding("nofile", &|limits| limits.nofile = None), Status::Unknown, &[]);

    expect(
        &finding("memlock", &|limits| limits.memlock = Some(65_536)),
        Status::Warn,
        &["64 KiB", "LimitMEMLOCK"],
    );
    let free = |limits: &mut Limits| (limits.memlock, limits.locks_freely) = (Some(65_536), true);
    expect(&finding("memlock", &free), Status::Ok, &["not held to it"]);
    let insisting = found("memlock", |facts| {
        (facts.wanted.engine, facts.limits.memlock) = (EngineChoice::IoUring, Some(0));
    });
    expect(&insisting, Status::Fail, &["ENOMEM"]);

    let small = finding("memory", &|limits| limits.memory_bytes = Some(1 << 30));
    expect(
        &small,
        Status::Warn,
        &["1.0 GiB of this machine", "limits.memory_bytes_max = 268435456 (256 MiB)"],
    );
    let held = finding("memory", &|limits| limits.memory_group_bytes = Some(1 << 29));
    expect(&held, Status::Warn, &["512 MiB of this shell's control group"]);
    expect(&finding("memory", &|limits| limits.memory_bytes = None), Status::Ok, &["control group"]);
}

#[test]
fn a_clock_that_costs_is_told() {
    let clock = |current: &str, read_ns| {
        let current = Some(current.to_owned());
        found("clocksource", |facts| (facts.clock.current, facts.clock.read_ns) = (current, read_ns))
    };
    expect(&clock("hpet", 900), Status::Warn, &["900 ns", "echo tsc >"]);
    expect(&clock("acpi_pm", 40), Status::Warn, &["emulated"]);
    expect(&clock("tsc", 400), Status::Warn, &["400 ns", "stable TSC"]);
    expect(&clock("kvm-clock", 45), Status::Ok, &["kvm-clock, 45 ns"]);
    expect(&found("aes", |facts| facts.has_aes = false), Status::Warn, &["-cpu host"]);
}

#[test]
fn what_the_network_would_refuse_is_told() {
    let finding = |id, change: &dyn Fn(&mut Net)| found(id, |facts| change(&mut facts.net));
    expect(
        &finding("congestion_control", &|net| net.congestion = Some("reno".into())),
        Status::Warn,
        &["cubic"],
    );
    expect(
        &finding("congestion_control", &|net| net.congestion = Some("bbr".into())),
        Status::Ok,
        &["also loaded: reno"],
    );
    expect(&finding("accept_queue", &|net| net.somaxconn = Some(128)), Status::Warn, &["--only somaxconn"]);
    expect(&finding("accept_queue", &|net| net.listen_overflows = Some(5)), Status::Ok, &["5 connections"]);
    let wide = finding("ports", &|net| {
        (net.port_range, net.reserved_ports) = (Some((1_024, 65_535)), vec![9_901, 9_902]);
    });
    expect(&wide, Status::Warn, &["0.0.0.0:8080", "--only ip_local_reserved_ports"]);
    let reserved =
        finding("ports", &|net| (net.port_range, net.reserved_ports) = (Some((1_024, 65_535)), vec![8_080]));
    expect(&reserved, Status::Ok, &["8080"]);
    let low = found("ports", |facts| facts.wanted.listeners[0].1.set_port(443));
    expect(&low, Status::Ok, &["below 1024 needs CAP_NET_BIND_SERVICE"]);
    expect(&finding("conntrack", &|net| net.conntrack = Some((85, 100))), Status::Warn, &["85 %", "notrack"]);
    expect(&finding("conntrack", &|net| net.conntrack = Some((100, 100))), Status::Fail, &["100 of 100"]);
    expect(&finding("conntrack", &|net| net.conntrack = Some((0, 0))), Status::Ok, &[]);
    expect(&finding("conntrack", &|net| net.conntrack = None), Status::Ok, &["not tracked"]);
}

#[test]
fn numbers_are_written_for_people() {
    let shares = [0.0, 0.000_04, 0.0012, 0.005, 0.0204, 0.1, 1.0].map(percent);
    assert_eq!(shares, ["0 %", "0 %", "0.12 %", "0.5 %", "2 %", "10 %", "100 %"]);
    assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!([90, 600, 90_000, 900_000].map(time), ["90 s", "10 min", "25 h", "10 days"]);
    assert_eq!([4_096, 1 << 20, 3 << 29, 64 << 30].map(bytes), ["4 KiB", "1 MiB", "1.5 GiB", "64 GiB"]);
}
