//! `ringfort tune` on false roots: what it finds, what it changes, and that all of it can be taken back. No test touches
//! a setting of this machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::gateway::{TempDir, ringfort};
use crate::harness::{eventually, process};

/// A machine made of files: a RHEL-like kernel with io_uring forbidden.
struct Machine(TempDir);

const SETTINGS: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "5.14.0-570.el9.x86_64"),
    ("proc/sys/kernel/random/boot_id", "first-boot"),
    ("proc/sys/kernel/io_uring_disabled", "2"),
    ("proc/sys/kernel/io_uring_group", "-1"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
    ("proc/sys/net/ipv4/ip_local_reserved_ports", ""),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456"),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2"),
    ("proc/sys/net/core/somaxconn", "4096"),
    ("proc/sys/vm/swappiness", "60"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never"),
    ("proc/meminfo", "MemTotal:        8000000 kB"),
    ("etc/group", "root:x:0:\nringfort:x:990:"),
];
const RANGE: &str = "proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "proc/sys/net/ipv4/ip_local_reserved_ports";
const SWAPPINESS: &str = "proc/sys/vm/swappiness";
const IO_URING: &str = "proc/sys/kernel/io_uring_disabled";
const CONF: &str = "etc/sysctl.d/60-ringfort.conf";
const STATE: &str = "var/lib/ringfort/tune/state.json";

impl Machine {
    fn new() -> Self {
        let machine = Self(TempDir::new());
        for (path, text) in SETTINGS {
            machine.put(path, &format!("{text}\n"));
        }
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What a file holds, in one line; empty where it is not there.
    fn get(&self, path: &str) -> String {
        let text = fs::read_to_string(self.path(path)).unwrap_or_default();
        text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn tune(&self, args: &[&str]) -> (Option<i32>, String) {
        let output: Output =
            ringfort().arg("tune").args(args).arg("--root").arg(self.0.path()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let (_, text) = self.tune(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        let (code, text) = self.tune(args);
        assert_eq!(code, Some(0), "{args:?}: {text}");
        text
    }

    /// Every file but the lock, with what it means; brackets of a choice set aside.
    fn everything(&self) -> Vec<(PathBuf, String)> {
        let (mut found, mut folders) = (Vec::new(), vec![self.0.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("lock") {
                    let text = fs::read_to_string(&path).unwrap();
                    let words: Vec<&str> = text.split_ascii_whitespace().collect();
                    let chosen = words.iter().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
                    found.push((path, chosen.map_or_else(|| words.join(" "), str::to_owned)));
                }
            }
        }
        found.sort();
        found
    }
}

/// Processes that wait to take something back on that machine.
fn guards(machine: &Path) -> Vec<u32> {
    let machine = machine.canonicalize().unwrap().to_string_lossy().into_owned();
    let ids = fs::read_dir("/proc").unwrap().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_guard = |id: &u32| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains("tune guard") && line.contains(&machine)
    };
    ids.filter(is_guard).collect()
}

#[test]
fn what_is_written_can_be_read_by_all_and_changed_by_nobody_else_whatever_the_umask() {
    for umask in ["077", "000"] {
        let machine = Machine::new();
        let script = format!("umask {umask}; exec \"$0\" tune apply --yes --only swappiness --root \"$1\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(ringfort().get_program()).arg(machine.0.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mode = |path: &str| fs::metadata(machine.path(path)).unwrap().mode() & 0o777;
        assert_eq!((mode(CONF), mode(STATE), mode("var/lib/ringfort/tune")), (0o644, 0o644, 0o755));
    }
}

#[test]
fn check_tells_what_differs_and_changes_nothing() {
    let machine = Machine::new();
    let before = machine.everything();
    let (code, text) = machine.tune(&["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("differs") && text.contains("kernel.io_uring_disabled"), "{text}");
    let report = machine.json(&["check"]);
    let of = |id: &str| {
        let settings = report["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["id"] == id).unwrap_or_else(|| panic!("no {id}")).clone()
    };
    let io_uring = of("io_uring");
    assert_eq!(
        (&io_uring["status"], &io_uring["now"], &io_uring["want"]),
        (&"differs".into(), &"2".into(), &"1".into())
    );
    assert_eq!(of("io_uring_group")["want"], "990");
    assert_eq!(of("tcp_rmem")["want"], "4096 131072 16777216");
    assert_eq!(of("somaxconn")["status"], "ok");
    assert_eq!(of("tcp_syncookies")["status"], "missing");
    assert_eq!(of("nf_conntrack_max")["status"], "not_applicable");
    assert_eq!(report["applied"], "nothing");
    assert_eq!(machine.everything(), before);
}

#[test]
fn check_is_satisfied_by_what_apply_leaves() {
    let machine = Machine::new();
    machine.good(&["apply", "--yes"]);
    let (code, text) = machine.tune(&["check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(machine.good(&["apply", "--yes"]).contains("Nothing to change"));
}

#[test]
fn check_tells_which_file_sets_what_and_who_overrides_whom() {
    let machine = Machine::new();
    machine.put("usr/lib/sysctl.d/50-vendor.conf", "vm.swappiness = 30\n");
    machine.put("etc/sysctl.d/99-local.conf", "# guide\nvm.swappiness = 60\n");
    machine.put("etc/sysctl.d/50-hidden.conf", "vm.swappiness = 1\n");
    machine.put("run/sysctl.d/50-hidden.conf", "net.core.somaxconn = 1\n");
    let (_, text) = machine.tune(&["check"]);
    assert!(text.contains("set by /etc/sysctl.d/99-local.conf:2 (60)"), "{text}");
    let order = "/etc/sysctl.d/50-hidden.conf:1 (1), /usr/lib/sysctl.d/50-vendor.conf:1 (30), /etc/sysctl.d/99-local.conf:2 (60)";
    assert!(text.contains(order), "{text}");
    let applied = machine.good(&["apply", "--yes", "--only", "vm.swappiness"]);
    assert!(
        applied.contains("/etc/sysctl.d/99-local.conf:2") && applied.contains("remove that line"),
        "{applied}"
    );
    let (code, text) = machine.tune(&["check"]);
    assert!(code == Some(1) && text.contains("overridden"), "it is lost at the next boot: {text}");
}

#[test]
fn check_needs_no_privilege_and_changes_do() {
    let machine = Machine::new();
    machine.good(&["apply", "--yes"]);
    if fs::metadata(machine.0.path()).unwrap().uid() != 0 {
        eprintln!("not run: only root can become somebody else");
        return;
    }
    fs::set_permissions(machine.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(machine.path("var/lib/ringfort"), fs::Permissions::from_mode(0o700)).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = ringfort();
        command.arg("tune").args(args).arg("--root").arg(machine.0.path()).uid(65_534).gid(65_534);
        let output = command.output().ok()?;
        Some((
            output.status.code(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        ))
    };
    let Some((code, text)) = as_nobody(&["check"]) else {
        eprintln!("not run: the binary is in a folder that others cannot enter");
        return;
    };
    assert!(code == Some(0) && text.contains("run as root to see"), "{text}");
    for args in [&["revert"][..], &["apply", "--yes", "--tier", "aggressive"]] {
        let (code, text) = as_nobody(args).unwrap();
        assert!(code == Some(2) && text.contains("run as root"), "{args:?}: {text}");
    }
}

#[test]
fn apply_without_yes_changes_nothing() {
    let machine = Machine::new();
    let before = machine.everything();
    let plan = machine.good(&["plan"]);
    let dry = machine.good(&["apply"]);
    assert!(dry.starts_with(&plan) && dry.contains("--yes"), "{dry}");
    assert!(plan.contains("vm.swappiness: 60 -> 10") && plan.contains(&format!("/{CONF}")), "{plan}");
    assert_eq!(machine.everything(), before);
}

#[test]
fn apply_and_revert_leave_the_machine_as_it_was() {
    let machine = Machine::new();
    machine.put(CONF, "net.core.somaxconn = 4096\n");
    let before = machine.everything();
    machine.good(&["apply", "--yes", "--tier", "safe"]);
    assert_eq!(machine.get(IO_URING), "1");
    assert_eq!(machine.get(SWAPPINESS), "60", "not of that tier");
    machine.good(&["apply", "--yes", "--tier", "aggressive"]);
    assert_eq!(machine.get(SWAPPINESS), "10");
    let conf = machine.get(CONF);
    assert!(
        [
            "net.core.somaxconn = 4096",
            "kernel.io_uring_disabled = 1",
            "vm.swappiness = 10",
            "net.ipv4.tcp_tw_reuse = 1"
        ]
        .iter()
        .all(|line| conf.contains(line)),
        "{conf}"
    );
    machine.good(&["revert"]);
    assert_eq!(machine.everything(), before);
    assert!(machine.good(&["revert"]).contains("nothing to take back"), "a second time is good too");
}

#[test]
fn io_uring_is_cured_by_the_command_that_start_up_names() {
    let machine = Machine::new();
    let text = machine.good(&["apply", "--only", "io_uring", "--yes"]);
    assert!(text.contains("kernel.io_uring_disabled: 2 -> 1"), "{text}");
    assert_eq!(
        (machine.get("proc/sys/kernel/io_uring_group"), machine.get(IO_URING)),
        ("990".into(), "1".into())
    );
    assert_eq!(machine.get(SWAPPINESS), "60");
}

#[test]
fn listeners_ports_of_the_configuration_are_reserved() {
    let machine = Machine::new();
    let config = machine.0.file(
        "gateway.toml",
        "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:20443\"\n[[listener]]\nname = \"low\"\nlisten = \"127.0.0.1:443\"\n\
         [[route]]\nrespond = {}\n",
    );
    let config = config.to_str().unwrap();
    machine.put(RESERVED, "17000\n");
    machine.good(&["apply", "--yes", "--only", "ip_local_port_range", "--config", config]);
    assert_eq!(machine.get(RESERVED), "17000,20443");
    assert_eq!(machine.get(RANGE), "16384 65535");
    let (code, text) = machine.tune(&["check", "--config", "absent.toml"]);
    assert!(code == Some(2) && text.contains("absent.toml"), "{text}");
}

#[test]
fn revert_survives_a_reboot_and_leaves_alone_what_somebody_changed() {
    let machine = Machine::new();
    machine.good(&["apply", "--yes"]);
    // Booted again: the file set the values once more; then somebody changed one.
    machine.put("proc/sys/kernel/random/boot_id", "second-boot\n");
    machine.put(SWAPPINESS, "1\n");
    let (code, text) = machine.tune(&["revert"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("vm.swappiness: left alone"), "{text}");
    assert_eq!((machine.get(SWAPPINESS), machine.get(RANGE)), ("1".into(), "32768 60999".into()));
    assert!(!machine.path(CONF).exists() && !machine.path(STATE).exists());
    assert_eq!(machine.tune(&["revert", "--quiet"]), (Some(0), String::new()));
}

#[test]
fn unconfirmed_changes_are_taken_back_in_time() {
    let machine = Machine::new();
    let text = machine.good(&["apply", "--yes", "--only", "swappiness", "--confirm-within", "1"]);
    assert!(text.contains("ringfort tune confirm"), "{text}");
    eventually("the value is taken back", || machine.get(SWAPPINESS) == "60");
    eventually("nothing is recorded and nobody waits", || {
        machine.json(&["check"])["applied"] == "nothing" && guards(machine.0.path()).is_empty()
    });
    let (code, text) = machine.tune(&["confirm"]);
    assert!(code == Some(1) && text.contains("nothing waits"), "{text}");
}

#[test]
fn confirmed_changes_stay_and_only_then_are_for_the_next_boot() {
    let machine = Machine::new();
    machine.good(&["apply", "--yes", "--only", "swappiness", "--confirm-within", "600"]);
    assert_eq!(machine.get(SWAPPINESS), "10");
    assert!(!machine.path(CONF).exists(), "a reboot has to undo it");
    let (code, text) = machine.tune(&["apply", "--yes"]);
    assert!(code == Some(2) && text.contains("ringfort tune confirm"), "one at a time: {text}");
    machine.good(&["confirm"]);
    assert!(machine.get(CONF).contains("vm.swappiness = 10"));
    eventually("the guard goes home", || guards(machine.0.path()).is_empty());
    assert_eq!(machine.get(SWAPPINESS), "10");
    machine.good(&["revert"]);
    assert_eq!(machine.get(SWAPPINESS), "60");
}

#[test]
fn a_guard_told_to_end_takes_back_at_once() {
    let machine = Machine::new();
    machine.good(&["apply", "--yes", "--only", "swappiness", "--confirm-within", "600"]);
    let [guard] = guards(machine.0.path())[..] else { panic!("one guard") };
    let stat = fs::read_to_string(format!("/proc/{guard}/stat")).unwrap();
    // pid (comm) state ppid pgrp session
    let session = stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(3).unwrap();
    assert_eq!(session, guard.to_string(), "it would end with the terminal");
    process::signal(guard, libc::SIGTERM);
    eventually("the value is taken back", || machine.get(SWAPPINESS) == "60");
}

#[test]
fn a_killed_guard_is_stood_in_for_by_the_next_command_after_a_reboot() {
    let machine = Machine::new();
    machine.good(&["apply", "--yes", "--only", "swappiness", "--confirm-within", "600"]);
    let [guard] = guards(machine.0.path())[..] else { panic!("one guard") };
    process::signal(guard, libc::SIGKILL);
    eventually("the guard is gone", || guards(machine.0.path()).is_empty());
    assert_eq!(machine.get(SWAPPINESS), "10");
    machine.put("proc/sys/kernel/random/boot_id", "second-boot\n");
    assert_eq!(machine.json(&["check"])["applied"], "interrupted");
    let (code, text) = machine.tune(&["confirm"]);
    assert!(code == Some(1) && text.contains("taken back"), "{text}");
    assert_eq!(machine.get(SWAPPINESS), "60");
}

#[test]
fn a_state_that_is_damaged_stops_everything_that_would_change_something() {
    let machine = Machine::new();
    machine.put(STATE, "{\"schema\":");
    for args in [&["apply", "--yes"][..], &["confirm"], &["revert"], &["check"]] {
        let (code, text) = machine.tune(args);
        assert!(code == Some(2) && text.contains("move it away"), "{args:?}: {text}");
    }
    assert_eq!(machine.get(SWAPPINESS), "60");
}

#[test]
fn what_is_never_written_or_not_known_is_refused() {
    let machine = Machine::new();
    let (code, text) = machine.tune(&["plan", "--only", "nf_conntrack_max"]);
    assert!(code == Some(2) && text.contains("never written") && text.contains("notrack"), "{text}");
    let (code, text) = machine.tune(&["apply", "--yes", "--only", "nothing_like_it"]);
    assert!(code == Some(2) && text.contains("known:"), "{text}");
}

#[test]
fn what_cannot_be_finished_is_taken_back() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path(CONF)).unwrap();
    let before = machine.everything();
    let (code, text) = machine.tune(&["apply", "--yes"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(CONF) && text.contains("everything is as before"), "{text}");
    fs::remove_file(machine.path(STATE)).unwrap();
    for draft in ["etc/sysctl.d/.60-ringfort.conf.tmp", "etc/tmpfiles.d"] {
        let _ = fs::remove_file(machine.path(draft));
    }
    assert_eq!(machine.everything(), before);
}

/// A kill can hit anywhere; here it hits about when the state, a value or a file has just been written.
#[test]
fn killed_while_applying_it_can_be_taken_back() {
    for about_when in [STATE, RANGE, SWAPPINESS, CONF] {
        let machine = Machine::new();
        let before = machine.everything();
        let now = machine.get(about_when);
        let mut apply = ringfort()
            .args(["tune", "apply", "--yes", "--root"])
            .arg(machine.0.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        eventually("it gets that far", || machine.get(about_when) != now);
        let _ = apply.kill();
        apply.wait().unwrap();
        machine.good(&["revert"]);
        let after = machine.everything();
        let drafts = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tmp");
        assert_eq!(
            after.into_iter().filter(|(path, _)| !drafts(path)).collect::<Vec<_>>(),
            before,
            "{about_when}"
        );
    }
}

#[test]
fn the_page_about_the_settings_can_be_printed() {
    let page = include_str!("../../tuning/README.md");
    let output = ringfort().args(["tune", "explain"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), page);
}
