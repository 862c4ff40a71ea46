//! Reads `src/` and holds what the architecture promises by absence: where `unsafe` may stand, what the pure layers
//! never touch, who imports whom, how long files and functions get. A finding reads
//! `path:line: what is wrong, use … instead`. Each rule is a function of a file's path and text, and has a test that
//! shows it failing.

use std::fs;
use std::path::Path;

/// Top-level modules by layer, as in `src/lib.rs`. A module uses its own layer and those before it.
const LAYERS: [(u8, Side, &[&str]); 8] = [
    (0, Side::Any, &["base", "limits", "metrics"]),
    (1, Side::Protocol, &["detect", "h1", "hbone", "http", "proxy_protocol", "tls"]),
    (1, Side::Policy, &["authz", "balance", "health", "limit", "route", "steal"]),
    (2, Side::Any, &["runtime", "sys"]),
    (3, Side::Any, &["proxy"]),
    (4, Side::Any, &["worker"]),
    (5, Side::Any, &["config", "control", "doctor", "tune"]),
    (6, Side::Any, &["cli", "lib", "main"]),
];

/// Protocols and policies share a layer and never import each other: they meet in `proxy`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Any,
    Policy,
    Protocol,
}

/// What a pure module may name all the same, by module and word (`src/ARCHITECTURE.md` says why).
const IMPURE_BY_NAME: [(&str, &str); 1] = [("tls", "rand")];

/// What layers 0 and 1 never name, and what they use instead.
const IMPURE: [(&str, &str); 20] = [
    ("std::time::Instant", "crate::base::time::Instant, passed in as `now`"),
    ("std::time::SystemTime", "seconds passed in as an argument"),
    ("std::time::UNIX_EPOCH", "seconds passed in as an argument"),
    ("std::fs", "bytes passed in as an argument"),
    ("std::env", "a value passed in as an argument"),
    ("std::process", "a returned error"),
    ("std::thread", "a returned value"),
    ("std::os", "an index or an address passed in"),
    ("std::io::stdin", "bytes passed in as an argument"),
    ("std::io::stdout", "a returned value"),
    ("std::io::stderr", "a returned error"),
    ("std::net::TcpListener", "std::net::SocketAddr"),
    ("std::net::TcpStream", "std::net::SocketAddr"),
    ("std::net::UdpSocket", "std::net::SocketAddr"),
    ("std::net::ToSocketAddrs", "std::net::SocketAddr"),
    ("tokio", "a function of its arguments"),
    ("libc", "a wrapper in sys/, called by an outer layer"),
    ("socket2", "std::net::SocketAddr"),
    ("io_uring", "a function of its arguments"),
    ("tracing", "a returned event or error, which worker/ logs"),
];
/// The same for macros and crates that are matched as words.
const IMPURE_WORDS: [(&str, &str); 6] = [
    ("rand", "crate::base::random with a seed passed in"),
    ("getrandom", "crate::base::random with a seed passed in"),
    ("println!", "a returned value"),
    ("eprintln!", "a returned error"),
    ("print!", "a returned value"),
    ("eprint!", "a returned error"),
];

/// Words that mark raw descriptors.
const RAW: [&str; 8] = [
    "RawFd",
    "AsRawFd",
    "FromRawFd",
    "IntoRawFd",
    "as_raw_fd",
    "from_raw_fd",
    "into_raw_fd",
    "BorrowedFd::borrow_raw",
];

/// Left-over work and left-over tools.
const LEFT_OVER: [(&str, &str); 5] = [
    ("todo!", "finished code"),
    ("unimplemented!", "finished code"),
    ("dbg!", "a test"),
    ("#[ignore", "a test that runs"),
    ("#[allow(dead_code", "no code"),
];

const FILE_LINES_MAX: usize = 800;
/// Files past the bound: each is one table or one state machine, and says so.
const LONG_FILES: [(&str, &str); 0] = [];

const FUNCTION_LINES_MAX: usize = 100;
/// A function fits a screen.
const FUNCTION_LINES_WANTED: usize = 70;
/// Those between the two bounds, with the reason. A row whose function became short has to go: the list only shrinks.
const LONG_FUNCTIONS: [(&str, &str, &str); 0] = [];

/// One finding: line (from 1), what is wrong, what to use instead.
type Finding = (usize, String, String);
type Rule = fn(path: &str, text: &str) -> Vec<Finding>;

const RULES: [Rule; 9] = [
    unsafe_stands_in_runtime_and_sys,
    raw_descriptors_stand_in_runtime_and_sys,
    pure_layers_touch_nothing_outside,
    imports_follow_the_layers,
    files_open_with_their_purpose,
    files_have_one_subject,
    functions_are_bounded,
    nothing_is_left_over,
    modules_are_named_after_their_file,
];

#[test]
fn the_source_is_tidy() {
    let mut findings = Vec::new();
    for (path, text) in sources() {
        for rule in RULES {
            for (line, what, instead) in rule(&path, &text) {
                findings.push(format!("{path}:{line}: {what}, use {instead} instead"));
            }
        }
    }
    assert!(findings.is_empty(), "{} findings\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn the_list_of_long_functions_holds_only_long_ones() {
    let sources = sources();
    for (path, name, _) in LONG_FUNCTIONS {
        let text = sources.iter().find(|(listed, _)| listed == path).map_or("", |(_, text)| text);
        let long = functions(text).into_iter().any(|(_, f, len)| f == name && len > FUNCTION_LINES_WANTED);
        assert!(long, "{path}:1: `{name}` is not long any more, use a shorter LONG_FUNCTIONS instead");
    }
}

#[test]
fn every_module_has_its_place_among_the_layers() {
    for (path, _) in sources() {
        assert!(place(&path).is_some(), "{path}:1: no layer for this module, use a row in LAYERS instead");
    }
}

/// Every Rust file under `src/`, as (path from the root, text).
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut dirs) = (Vec::new(), vec![root.join("src")]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

// The rules.

fn unsafe_stands_in_runtime_and_sys(path: &str, text: &str) -> Vec<Finding> {
    if matches!(top_module(path), "runtime" | "sys") {
        return Vec::new();
    }
    let found =
        |line| (line, "`unsafe` stands outside runtime/ and sys/".into(), "a safe wrapper made there".into());
    words(&code(text), "unsafe").into_iter().map(found).collect()
}

fn raw_descriptors_stand_in_runtime_and_sys(path: &str, text: &str) -> Vec<Finding> {
    if matches!(top_module(path), "runtime" | "sys") {
        return Vec::new();
    }
    let code = code(text);
    let found =
        |word: &str, line| (line, format!("`{word}` stands outside runtime/ and sys/"), "OwnedFd".into());
    RAW.iter().flat_map(|word| words(&code, word).into_iter().map(|line| found(word, line))).collect()
}

fn pure_layers_touch_nothing_outside(path: &str, text: &str) -> Vec<Finding> {
    if place(path).is_none_or(|(layer, _)| layer > 1) || is_test_file(path) {
        return Vec::new();
    }
    let module = top_module(path);
    let code = without_tests(&code(text));
    let mut found = Vec::new();
    for (line, name) in paths(path, &code) {
        for (impure, instead) in IMPURE {
            if name == impure || name.starts_with(&format!("{impure}::")) {
                found.push((line, format!("`{name}` in a pure layer"), instead.into()));
            }
        }
    }
    for (word, instead) in IMPURE_WORDS {
        if IMPURE_BY_NAME.contains(&(module, word)) {
            continue;
        }
        for line in words(&code, word) {
            found.push((line, format!("`{word}` in a pure layer"), instead.into()));
        }
    }
    found
}

fn imports_follow_the_layers(path: &str, text: &str) -> Vec<Finding> {
    let Some((layer, side)) = place(path) else { return Vec::new() };
    let mut found = Vec::new();
    for (line, name) in paths(path, &without_tests(&code(text))) {
        let Some(module) = name.strip_prefix("crate::").and_then(|rest| rest.split("::").next()) else {
            continue;
        };
        let Some((used_layer, used_side)) = place_of_module(module) else { continue };
        if used_layer > layer {
            let what = format!("layer {layer} names `{module}` of layer {used_layer}");
            found.push((line, what, "a value that the outer layer passes in".into()));
        }
        if (side, used_side) == (Side::Policy, Side::Protocol)
            || (side, used_side) == (Side::Protocol, Side::Policy)
        {
            let what = format!("protocols and policies never name each other: `{module}`");
            found.push((line, what, "plain values, and let them meet in proxy/".into()));
        }
    }
    found
}

fn files_open_with_their_purpose(_path: &str, text: &str) -> Vec<Finding> {
    if text.starts_with("//! ") {
        return Vec::new();
    }
    vec![(1, "the file does not say what it is for".into(), "a first line of `//!`".into())]
}

fn files_have_one_subject(path: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().count();
    if lines <= FILE_LINES_MAX || LONG_FILES.iter().any(|(listed, _)| *listed == path) {
        return Vec::new();
    }
    let what = format!("{lines} lines, more than {FILE_LINES_MAX}");
    vec![(lines, what, "two files, or a row in LONG_FILES with the reason".into())]
}

fn functions_are_bounded(path: &str, text: &str) -> Vec<Finding> {
    functions_within(&LONG_FUNCTIONS, path, text)
}

fn functions_within(long: &[(&str, &str, &str)], path: &str, text: &str) -> Vec<Finding> {
    let listed = |name: &str| long.iter().any(|(listed, f, _)| (*listed, *f) == (path, name));
    let bound = |name: &str| if listed(name) { FUNCTION_LINES_MAX } else { FUNCTION_LINES_WANTED };
    let beyond = functions(text).into_iter().filter(|(_, name, len)| *len > bound(name));
    beyond
        .map(|(line, name, len)| {
            let what = format!("`{name}` has {len} lines, more than {}", bound(&name));
            (line, what, "several functions of one purpose each".into())
        })
        .collect()
}

fn nothing_is_left_over(_path: &str, text: &str) -> Vec<Finding> {
    let code = code(text);
    let mut found = Vec::new();
    for (word, instead) in LEFT_OVER {
        found.extend(
            words(&code, word)
                .into_iter()
                .map(|line| (line, format!("`{word}` is left over"), instead.into())),
        );
    }
    for (n, line) in text.lines().enumerate() {
        // Spelled apart, so that this file does not report itself.
        if [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")]
            .iter()
            .any(|mark| line.contains(mark))
        {
            found.push((n + 1, "a note of unfinished work".into(), "an issue".into()));
        }
    }
    found
}

fn modules_are_named_after_their_file(path: &str, _text: &str) -> Vec<Finding> {
    if !path.ends_with("/mod.rs") {
        return Vec::new();
    }
    vec![(1, "a file called mod.rs".into(), "foo.rs beside foo/".into())]
}

// Reading Rust, as far as the rules need it.

/// The module directly under `src/` that a file belongs to: `src/route/table.rs` belongs to `route`.
fn top_module(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let first = inside.split('/').next().unwrap_or(inside);
    first.strip_suffix(".rs").unwrap_or(first)
}

fn place(path: &str) -> Option<(u8, Side)> {
    place_of_module(top_module(path))
}

fn place_of_module(module: &str) -> Option<(u8, Side)> {
    LAYERS.iter().find(|(_, _, modules)| modules.contains(&module)).map(|(layer, side, _)| (*layer, *side))
}

/// Whether the whole file is compiled for tests only, by its name.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The text with comments and the contents of literals replaced by spaces; lines stay where they are.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let len = if rest.starts_with(b"//") {
            rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            find(rest, b"*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = raw_string_len(rest, at.checked_sub(1).map(|before| bytes[before])) {
            len
        } else if rest[0] == b'"' {
            quoted_len(rest, b'"')
        } else if rest[0] == b'\'' {
            char_len(rest)
        } else {
            at += 1;
            continue;
        };
        out[at..at + len].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at += len;
    }
    String::from_utf8(out).expect("only whole characters were replaced")
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of a character literal; 1 where the quote begins a lifetime.
fn char_len(rest: &[u8]) -> usize {
    let escaped = rest.get(1) == Some(&b'\\');
    let width = if escaped { 0 } else { std::str::from_utf8(&rest[1..]).map_or(1, first_char_len) };
    if escaped {
        quoted_len(rest, b'\'')
    } else if rest.get(1 + width) == Some(&b'\'') {
        width + 2
    } else {
        1
    }
}

fn first_char_len(text: &str) -> usize {
    text.chars().next().map_or(1, char::len_utf8)
}

fn raw_string_len(rest: &[u8], before: Option<u8>) -> Option<usize> {
    if before.is_some_and(is_word) && before != Some(b'b') {
        return None;
    }
    let hashes = rest.strip_prefix(b"r")?.iter().take_while(|&&b| b == b'#').count();
    (rest.get(1 + hashes) == Some(&b'"')).then_some(())?;
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let start = 2 + hashes;
    Some(find(&rest[start..], &end).map_or(rest.len(), |at| start + at + end.len()))
}

/// The code with every item under `#[cfg(test)]` replaced by spaces.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(at) = code[from..].find(MARK).map(|at| from + at) {
        let end = item_end(code, at + MARK.len());
        out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        from = end;
    }
    String::from_utf8(out).expect("only whole characters were replaced")
}

/// Where the item that begins at `from` ends: behind its closing brace, or behind its semicolon.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The lines on which a word stands by itself.
fn words(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    let whole = |at: usize| {
        let before = at.checked_sub(1).is_none_or(|before| !is_word(bytes[before]));
        let after = bytes.get(at + word.len()).is_none_or(|&after| !is_word(after));
        before && after
    };
    code.match_indices(word).filter(|(at, _)| whole(*at)).map(|(at, _)| line_of(code, at)).collect()
}

/// Every qualified path with its line: `use` trees are taken apart, `super` and `self` are resolved to `crate`.
fn paths(file: &str, code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut plain = code.as_bytes().to_vec();
    for (at, _) in code.match_indices("use ") {
        let starts = at == 0 || !is_word(code.as_bytes()[at - 1]);
        let Some(end) = code[at..].find(';').filter(|_| starts) else { continue };
        let line = line_of(code, at);
        let tree: String = code[at + 4..at + end].split_whitespace().collect::<Vec<_>>().join(" ");
        expand(&tree, "", &mut |path| found.push((line, path)));
        plain[at..at + end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    let plain = String::from_utf8(plain).expect("only whole characters were replaced");
    for (n, line) in plain.lines().enumerate() {
        let mut runs = line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        runs.by_ref().filter(|run| run.contains("::")).for_each(|run| found.push((n + 1, run.to_string())));
    }
    found.into_iter().map(|(line, path)| (line, resolve(file, &path))).collect()
}

/// `a::{b, c::{d}}` becomes `a::b` and `a::c::d`.
fn expand(tree: &str, prefix: &str, found: &mut dyn FnMut(String)) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let name = tree.split(" as ").next().unwrap_or(tree).trim();
        if !name.is_empty() {
            found(format!("{prefix}{name}"));
        }
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inside = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&inside[start..at], &prefix, found);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(&inside[start..], &prefix, found);
}

/// `super::x` in `src/a/b.rs` is `crate::a::x`.
fn resolve(file: &str, path: &str) -> String {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    let mut module: Vec<&str> = inside.strip_suffix(".rs").unwrap_or(inside).split('/').collect();
    if module == ["lib"] || module == ["main"] {
        module.clear();
    }
    let mut rest = path;
    let mut relative = false;
    while let Some(after) = rest.strip_prefix("super::") {
        module.pop();
        (rest, relative) = (after, true);
    }
    if let Some(after) = rest.strip_prefix("self::") {
        (rest, relative) = (after, true);
    }
    if relative {
        let mut whole = vec!["crate"];
        whole.extend(module);
        whole.push(rest);
        return whole.join("::");
    }
    path.to_string()
}

/// Every function with a body: line, name, number of lines.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let code = code(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if at > 0 && is_word(code.as_bytes()[at - 1]) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let end = item_end(&code, at);
        if name.is_empty() || !code[..end].ends_with('}') {
            continue;
        }
        let (first, last) = (line_of(&code, at), line_of(&code, end - 1));
        found.push((first, name, last - first + 1));
    }
    found
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

// Each rule, failing.

#[track_caller]
fn lines(rule: Rule, path: &str, text: &str) -> Vec<usize> {
    rule(path, text).into_iter().map(|(line, ..)| line).collect()
}

#[test]
fn unsafe_outside_its_place_is_found() {
    let text = "//! x\n// unsafe in a comment\nlet s = \"unsafe\";\nunsafe { f() }\nlet is_unsafe = 1;\n";
    assert_eq!(lines(unsafe_stands_in_runtime_and_sys, "src/proxy/http1.rs", text), [4]);
    assert_eq!(lines(unsafe_stands_in_runtime_and_sys, "src/runtime.rs", text), [0; 0]);
    assert_eq!(lines(unsafe_stands_in_runtime_and_sys, "src/sys/sockets.rs", text), [0; 0]);
    let in_tests = "//! x\n#[cfg(test)]\nmod tests {\n    fn f() { unsafe { g() } }\n}\n";
    assert_eq!(lines(unsafe_stands_in_runtime_and_sys, "src/base.rs", in_tests), [4], "also in tests");
}

#[test]
fn raw_descriptors_outside_their_place_are_found() {
    let text = "//! x\nuse std::os::fd::{AsRawFd, OwnedFd};\nfn f(x: OwnedFd) { x.as_raw_fd(); }\n";
    assert_eq!(lines(raw_descriptors_stand_in_runtime_and_sys, "src/worker/accept.rs", text), [2, 3]);
    assert_eq!(lines(raw_descriptors_stand_in_runtime_and_sys, "src/sys/fd.rs", text), [0; 0]);
}

#[test]
fn a_clock_in_a_pure_layer_is_found_however_it_is_imported() {
    for text in [
        "use std::time::Instant;",
        "use std::time::{Duration, Instant};",
        "use std::{fmt, time::{Duration, Instant}};",
        "use std::time::Instant as Clock;",
        "fn f() -> std::time::Instant { g() }",
    ] {
        assert_eq!(lines(pure_layers_touch_nothing_outside, "src/h1/request.rs", text), [1], "{text}");
        assert_eq!(lines(pure_layers_touch_nothing_outside, "src/runtime/timer.rs", text), [0; 0], "{text}");
    }
    let ours =
        "use crate::base::time::Instant;\nuse std::time::Duration;\nuse std::net::{IpAddr, SocketAddr};\n";
    assert_eq!(lines(pure_layers_touch_nothing_outside, "src/health.rs", ours), [0; 0]);
}

#[test]
fn files_sockets_environment_and_output_in_a_pure_layer_are_found() {
    let text = "use std::fs;\nuse std::net::{IpAddr, TcpStream};\nlet x = std::env::var(\"x\");\nprintln!(\"x\");\n\
                use rand::Rng;\ntokio::spawn(x);\ntracing::info!(\"x\");\n";
    let mut found = lines(pure_layers_touch_nothing_outside, "src/route/table.rs", text);
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3, 4, 5, 6, 7]);
    let mut found = lines(pure_layers_touch_nothing_outside, "src/tls/server.rs", text);
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3, 4, 6, 7], "randomness is exempt by name");
    let test = format!("#[cfg(test)]\nmod tests {{\n{text}}}\n");
    assert_eq!(lines(pure_layers_touch_nothing_outside, "src/route/table.rs", &test), [0; 0]);
}

#[test]
fn an_import_against_the_layers_is_found() {
    let rule = imports_follow_the_layers;
    assert_eq!(lines(rule, "src/http.rs", "use crate::worker::Mailbox;"), [1]);
    assert_eq!(lines(rule, "src/worker/accept.rs", "use crate::{base::units, config::Config};"), [1]);
    assert_eq!(lines(rule, "src/proxy/tcp.rs", "fn f(x: &crate::control::admin::State) {}"), [1]);
    assert_eq!(lines(rule, "src/base/time.rs", "use super::super::runtime::net;"), [1]);
    assert_eq!(lines(rule, "src/limits.rs", "use super::sys;"), [1]);
    assert_eq!(
        lines(
            rule,
            "src/worker.rs",
            "use crate::proxy::http1;\nuse crate::base::time;\nuse self::mailbox::M;"
        ),
        [0; 0]
    );
    assert_eq!(lines(rule, "src/config/schema.rs", "use crate::route::Spec;"), [0; 0]);
}

#[test]
fn a_protocol_that_names_a_policy_is_found_and_the_other_way_round() {
    assert_eq!(lines(imports_follow_the_layers, "src/h1/write.rs", "use crate::route::Table;"), [1]);
    assert_eq!(lines(imports_follow_the_layers, "src/route/table.rs", "use crate::http::Method;"), [1]);
    assert_eq!(lines(imports_follow_the_layers, "src/h1/write.rs", "use crate::http::framing;"), [0; 0]);
    assert_eq!(lines(imports_follow_the_layers, "src/balance.rs", "use crate::health::State;"), [0; 0]);
    assert_eq!(lines(imports_follow_the_layers, "src/proxy/http1.rs", "use crate::{http, route};"), [0; 0]);
}

#[test]
fn a_file_without_purpose_is_found() {
    assert_eq!(lines(files_open_with_their_purpose, "src/x.rs", "use std::fmt;\n"), [1]);
    assert_eq!(lines(files_open_with_their_purpose, "src/x.rs", "//! What it is for.\n"), [0; 0]);
}

#[test]
fn a_long_file_is_found() {
    assert_eq!(lines(files_have_one_subject, "src/x.rs", &"x\n".repeat(801)), [801]);
    assert_eq!(lines(files_have_one_subject, "src/x.rs", &"x\n".repeat(800)), [0; 0]);
}

#[test]
fn a_long_function_is_found() {
    let long = |name: &str, lines: usize| {
        format!("pub async fn {name}(a: u8) -> u8 {{\n{}}}\n", "    x();\n".repeat(lines - 2))
    };
    let text = format!("//! x\nfn short() {{}}\n{}{}", long("fits", 70), long("long", 71));
    assert_eq!(lines(functions_are_bounded, "src/x.rs", &text), [73]);
    let lens: Vec<_> = functions(&text).into_iter().map(|(_, name, len)| (name, len)).collect();
    assert_eq!(lens, [("short".to_string(), 1), ("fits".to_string(), 70), ("long".to_string(), 71)]);
    let listed = [("src/x.rs", "long", "a reason")];
    assert!(functions_within(&listed, "src/x.rs", &long("long", 100)).is_empty(), "listed");
    assert_eq!(functions_within(&listed, "src/x.rs", &long("long", 101)).len(), 1, "beyond every bound");
    let braces = "fn f<'a>(c: char) -> &'a str {\n    if c == '{' || c == '\\'' { \"}}\" } else { r#\"}\"}\"# }\n}\nfn g() {}\n";
    assert_eq!(functions(braces).iter().map(|f| f.2).collect::<Vec<_>>(), [3, 1]);
    assert!(functions("trait T {\n    fn f(&self);\n    fn g();\n}\n").is_empty(), "no body");
}

#[test]
fn left_over_work_is_found() {
    let note = concat!("// TO", "DO later\n");
    let text = format!("//! x\nfn f() {{ todo!() }}\n{note}#[ignore]\nlet x = dbg!(y);\n");
    let mut found = lines(nothing_is_left_over, "src/x.rs", &text);
    found.sort_unstable();
    assert_eq!(found, [2, 3, 4, 5]);
}

#[test]
fn a_mod_rs_is_found() {
    assert_eq!(lines(modules_are_named_after_their_file, "src/proxy/mod.rs", ""), [1]);
    assert_eq!(lines(modules_are_named_after_their_file, "src/proxy.rs", ""), [0; 0]);
}
