//! The command line: what it says, and the exit codes 0 (good), 1 (problems found), 2 (could not run).

use std::process::Output;

use crate::harness::gateway::{TempDir, ringfort};

fn run(args: &[&str]) -> (Option<i32>, String) {
    let output: Output = ringfort().args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn check(config: &str) -> (Option<i32>, String) {
    let dir = TempDir::new();
    let file = dir.file("gateway.toml", config);
    run(&["check", "--config", file.to_str().unwrap()])
}

/// A configuration with six faults of different kinds, each on a line of its own.
const FAULTY: &str = r#"[workers]
engin = "auto"
cpus = 3

[[listener]]
name = "web"
listen = "127.0.0.1"
protocol = "htpp"

[[route]]
listener = "wbe"
cluster = "sites"

[[cluster]]
name = "site"
endpoints = []
"#;

#[test]
fn every_problem_is_told_at_once_with_its_place_and_cure() {
    let (code, text) = check(FAULTY);
    assert_eq!(code, Some(1), "{text}");
    for (line, words) in [
        (2, vec!["engin", "engine"]),
        (3, vec!["cpus"]),
        (7, vec!["127.0.0.1"]),
        (8, vec!["htpp", "http"]),
        (11, vec!["wbe", "web"]),
        (12, vec!["sites", "site"]),
        (16, vec!["endpoint"]),
    ] {
        let told = text.lines().find(|told| told.contains(&format!("gateway.toml:{line}:")));
        let told = told.unwrap_or_else(|| panic!("nothing about line {line}:\n{text}"));
        assert!(words.iter().all(|word| told.contains(word)), "line {line} wants {words:?}: {told}");
    }
}

#[test]
fn problems_are_told_to_machines_too() {
    let dir = TempDir::new();
    let file = dir.file("gateway.toml", FAULTY);
    let output = ringfort().args(["check", "--json", "--config"]).arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    let text = value.to_string();
    assert!(text.contains("\"line\":2") && text.contains("\"column\":"), "{text}");
}

#[test]
fn a_good_configuration_is_called_good() {
    for file in ["http.toml", "tcp.toml", "steal.toml"] {
        let path = format!("{}/tests/data/contract/{file}", env!("CARGO_MANIFEST_DIR"));
        let (code, text) = run(&["check", "--config", &path]);
        assert_eq!(code, Some(0), "{file}: {text}");
    }
    let (code, text) = run(&["check"]);
    assert_eq!(code, Some(0), "the embedded default: {text}");
}

#[test]
fn text_that_is_no_toml_is_told_with_its_place() {
    let (code, text) = check("[workers\ncpus = \"0\"\n");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("gateway.toml:1:"), "{text}");
}

#[test]
fn listeners_that_would_share_connections_are_told() {
    let listener = |name: &str, at: &str| format!("[[listener]]\nname = \"{name}\"\nlisten = \"{at}\"\n");
    let both = |one, other| listener("one", one) + &listener("other", other) + "[[route]]\nrespond = {}\n";
    let (code, text) = check(&both("127.0.0.1:80", "0.0.0.0:80"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(":6:") && text.contains("listener \"one\""), "{text}");
    let (code, text) = check(&both("[::]:80", "0.0.0.0:80"));
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_missing_file_could_not_be_checked() {
    for command in ["check", "run"] {
        let (code, text) = run(&[command, "--config", "/nonexistent/ringfort.toml"]);
        assert_eq!(code, Some(2), "{command}: {text}");
        assert!(text.contains("/nonexistent/ringfort.toml"), "{text}");
    }
}

#[test]
fn run_refuses_a_faulty_configuration_with_the_same_words() {
    let dir = TempDir::new();
    let file = dir.file("gateway.toml", FAULTY);
    let (code, text) = run(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("gateway.toml:2:") && text.contains("gateway.toml:16:"), "{text}");
}

#[test]
fn an_unknown_command_or_flag_is_told() {
    for args in [&["serve"][..], &["run", "--confg", "x"], &["check", "--explain", "nonsense"]] {
        let (code, text) = run(args);
        assert_eq!(code, Some(2), "{args:?}: {text}");
    }
}

#[test]
fn help_and_version_are_short_and_good() {
    let (code, text) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for command in ["run", "check", "version"] {
        assert!(text.contains(command), "{text}");
    }
    let (code, text) = run(&["version"]);
    assert_eq!(code, Some(0));
    assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
}
