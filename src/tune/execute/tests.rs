//! Applying and taking back over a file system in memory that refuses, changes values behind our back, or dies between any two calls.

use std::collections::BTreeMap;

use super::*;
use crate::tune::plan::SYSCTL_FILE;
use crate::tune::root::Memory;
use crate::tune::state::FILE;
use crate::tune::value::Format;

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

fn machine() -> Memory {
    let mut root = Memory::default();
    root.put(RANGE, "32768\t60999\n");
    root.put(RESERVED, "\n");
    root.put(THP, "[always] madvise never\n");
    root
}

fn value(path: &str, format: Format, before: &str, after: &str) -> ValueChange {
    let key = path.trim_start_matches("/proc/sys/").replace('/', ".");
    ValueChange { key, path: path.into(), format, before: before.into(), after: after.into() }
}

fn layer(confirm_by_ms: Option<u64>) -> Layer {
    Layer {
        id: "1".into(),
        tool: "0".into(),
        boot_id: "b".into(),
        phase: Phase::Applying,
        confirm_by_ms,
        modules: Vec::new(),
        values: vec![
            value(RESERVED, Format::Ports, "", "8080,9901"),
            value(RANGE, Format::Numbers, "32768 60999", "16384 65535"),
            value(THP, Format::Choice, "always", "madvise"),
        ],
        files: vec![FileChange {
            path: SYSCTL_FILE.into(),
            before: None,
            after: "net.ipv4.ip_local_port_range = 16384 65535\n".into(),
        }],
    }
}

/// What a reader of the machine understands, without our own records.
fn meaning(root: &Memory) -> BTreeMap<String, String> {
    let said = |(path, text): (&String, &String)| {
        let format = match &**path {
            THP => Format::Choice,
            RESERVED => Format::Ports,
            RANGE => Format::Numbers,
            _ => return (path.clone(), text.clone()),
        };
        (path.clone(), Value::parse(format, text).map_or_else(|| text.clone(), |value| value.to_string()))
    };
    root.files.iter().filter(|(path, _)| *path != FILE).map(said).collect()
}

fn never_armed() -> Result<(), String> {
    panic!("only what waits for a confirmation is armed")
}

#[test]
fn applying_records_first_and_ports_are_reserved_before_the_range_grows() {
    let mut root = machine();
    let mut state = State::default();
    apply(&mut root, &mut state, layer(None), &mut never_armed).unwrap();
    assert_eq!(
        root.log,
        [
            format!("replace {FILE}"),
            format!("set {RESERVED}"),
            format!("set {RANGE}"),
            format!("set {THP}"),
            format!("replace {SYSCTL_FILE}"),
            format!("replace {FILE}"),
        ]
    );
    assert_eq!(State::load(&root).unwrap().layers[0].phase, Phase::Applied);
}

#[test]
fn killed_at_any_step_of_applying_the_machine_is_as_before_or_can_be_made_so() {
    for confirm_by_ms in [None, Some(1)] {
        let before = meaning(&machine());
        for steps in 0.. {
            let mut root = Memory { left: Some(steps), ..machine() };
            let done = apply(&mut root, &mut State::default(), layer(confirm_by_ms), &mut || Ok(())).is_ok();
            root.left = None;
            let mut state = State::load(&root).unwrap();
            if state.layers.is_empty() {
                assert_eq!(meaning(&root), before, "killed after {steps} changes: changed and not recorded");
            }
            let undone = revert_last(&mut root, &mut state).unwrap();
            assert!(undone.iter().all(|undone| undone.outcome != Outcome::Drifted), "{undone:?}");
            assert_eq!(meaning(&root), before, "killed after {steps} changes");
            assert!(State::load(&root).unwrap().layers.is_empty());
            if done {
                assert!(steps >= 5, "{steps}");
                break;
            }
        }
    }
}

#[test]
fn killed_at_any_step_of_reverting_it_can_be_done_again() {
    let mut applied = machine();
    apply(&mut applied, &mut State::default(), layer(None), &mut never_armed).unwrap();
    for steps in 0.. {
        let mut root = Memory { left: Some(steps), ..applied.clone() };
        let mut state = State::load(&root).unwrap();
        let done = revert_last(&mut root, &mut state).is_ok();
        root.left = None;
        let mut state = State::load(&root).unwrap();
        assert_eq!(state.layers.is_empty(), done, "killed after {steps} changes");
        revert_last(&mut root, &mut state).unwrap();
        assert_eq!(meaning(&root), meaning(&machine()), "killed after {steps} changes");
        if done {
            break;
        }
    }
}

#[test]
fn killed_at_any_step_of_confirming_it_waits_on_or_is_confirmed() {
    let mut unconfirmed = machine();
    apply(&mut unconfirmed, &mut State::default(), layer(Some(1)), &mut || Ok(())).unwrap();
    assert!(!unconfirmed.files.contains_key(SYSCTL_FILE), "a reboot has to undo it");
    for steps in 0.. {
        let mut root = Memory { left: Some(steps), ..unconfirmed.clone() };
        let done = confirm(&mut root, &mut State::load(&unconfirmed).unwrap()).is_ok();
        root.left = None;
        let mut state = State::load(&root).unwrap();
        assert_eq!(state.open_layer().is_none(), done, "killed after {steps} changes");
        assert!(!done || root.files.contains_key(SYSCTL_FILE));
        revert_last(&mut root, &mut state).unwrap();
        assert_eq!(meaning(&root), meaning(&machine()), "killed after {steps} changes");
        if done {
            break;
        }
    }
}

#[test]
fn a_value_that_is_refused_takes_everything_back() {
    let mut root = Memory { refuses: vec![THP.into()], ..machine() };
    let mut state = State::default();
    let failure = apply(&mut root, &mut state, layer(None), &mut never_armed).unwrap_err();
    assert!(
        matches!(&failure, Failure::Restored(text) if text.contains("transparent_hugepage")),
        "{failure:?}"
    );
    assert_eq!(meaning(&root), meaning(&machine()));
    assert!(state.layers.is_empty() && State::load(&root).unwrap().layers.is_empty());
}

#[test]
fn nothing_is_changed_where_nobody_would_take_it_back() {
    let mut root = machine();
    let failure = apply(&mut root, &mut State::default(), layer(Some(1)), &mut || Err("no guard".into()));
    assert!(matches!(failure, Err(Failure::Restored(text)) if text.contains("no guard")));
    assert!(root.log.iter().all(|change| change.contains(FILE)), "{:?}", root.log);
}

#[test]
fn nothing_is_changed_where_nothing_can_be_recorded() {
    let mut root = Memory { left: Some(0), ..machine() };
    let mut state = State::default();
    let failure = apply(&mut root, &mut state, layer(None), &mut never_armed).unwrap_err();
    assert!(matches!(failure, Failure::Untouched(_)), "{failure:?}");
    assert!(state.layers.is_empty());
    assert_eq!(meaning(&root), meaning(&machine()));
}

/// A kernel that takes less than it is asked for.
struct Clamping(Memory);

impl Root for Clamping {
    fn read(&self, path: &str) -> io::Result<String> {
        self.0.read(path)
    }
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.0.list(folder)
    }
    fn set(&mut self, path: &str, value: &str) -> io::Result<()> {
        self.0.set(path, if value == "16384 65535" { "16384 60999" } else { value })
    }
    fn replace(&mut self, path: &str, text: &str) -> io::Result<()> {
        self.0.replace(path, text)
    }
    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }
    fn load_module(&mut self, name: &str) -> io::Result<()> {
        self.0.load_module(name)
    }
}

#[test]
fn a_value_that_reads_back_otherwise_takes_everything_back() {
    let mut root = Clamping(machine());
    let failure = apply(&mut root, &mut State::default(), layer(None), &mut never_armed).unwrap_err();
    assert!(matches!(&failure, Failure::Restored(text) if text.contains("60999")), "{failure:?}");
    assert_eq!(meaning(&root.0), meaning(&machine()));
}

#[test]
fn what_somebody_changed_since_is_left_alone() {
    let mut root = machine();
    let mut state = State::default();
    apply(&mut root, &mut state, layer(None), &mut never_armed).unwrap();
    root.put(RANGE, "20000\t65535\n");
    root.put(SYSCTL_FILE, "# mine now\n");
    root.files.remove(THP);
    let undone = revert_last(&mut root, &mut state).unwrap();
    let outcome = |what: &str| &undone.iter().find(|undone| undone.what.ends_with(what)).unwrap().outcome;
    assert_eq!(*outcome("port_range"), Outcome::Drifted);
    assert_eq!(*outcome("ringfort.conf"), Outcome::Drifted);
    assert_eq!(*outcome("reserved_ports"), Outcome::Restored);
    assert_eq!(*outcome("enabled"), Outcome::Gone);
    assert_eq!(root.files[RANGE], "20000\t65535\n");
    assert_eq!(root.files[SYSCTL_FILE], "# mine now\n");
    assert!(revert_last(&mut root, &mut state).unwrap().is_empty(), "and a second time there is nothing");
}

#[test]
fn layers_are_taken_off_from_the_last_one() {
    let mut root = machine();
    let mut state = State::default();
    apply(&mut root, &mut state, layer(None), &mut never_armed).unwrap();
    let first = root.files[SYSCTL_FILE].clone();
    let second = Layer {
        id: "2".into(),
        values: vec![value(RANGE, Format::Numbers, "16384 65535", "10240 65535")],
        files: vec![FileChange {
            path: SYSCTL_FILE.into(),
            before: Some(first.clone()),
            after: "two\n".into(),
        }],
        ..layer(None)
    };
    apply(&mut root, &mut state, second, &mut never_armed).unwrap();
    revert_last(&mut root, &mut state).unwrap();
    assert_eq!(root.files[SYSCTL_FILE], first);
    assert_eq!(root.files[RANGE], "16384\t65535\n");
    revert_last(&mut root, &mut state).unwrap();
    assert_eq!(meaning(&root), meaning(&machine()));
}

#[test]
fn a_state_that_is_not_ours_is_refused_with_a_cure() {
    let mut root = machine();
    root.put(FILE, "{");
    assert!(State::load(&root).unwrap_err().contains("move it away"));
    let mut state = State::default();
    let mut elsewhere = layer(None);
    elsewhere.files[0].path = "/etc/passwd".into();
    state.layers.push(elsewhere);
    state.save(&mut root).unwrap();
    assert!(State::load(&root).unwrap_err().contains("move it away"), "it may name our files only");
    let mut upwards = State::default();
    let mut above = layer(None);
    above.values[0].path = "/proc/sys/../../etc/passwd".into();
    upwards.layers.push(above);
    upwards.save(&mut root).unwrap();
    assert!(State::load(&root).is_err());
}

#[test]
fn a_layer_is_stale_after_its_time_or_a_reboot() {
    let unconfirmed = Layer { phase: Phase::Unconfirmed, ..layer(Some(1_000)) };
    assert!(!unconfirmed.is_stale("b", 999));
    assert!(unconfirmed.is_stale("b", 1_000) && unconfirmed.is_stale("c", 0));
    assert!(layer(None).is_stale("b", 0), "it was interrupted");
    assert!(!Layer { phase: Phase::Applied, ..layer(None) }.is_stale("c", 0));
}
