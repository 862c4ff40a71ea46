//! The configuration file: TOML text in, what the process runs on out, with every problem of the file told at once.
//! Never opens a socket, never starts anything. Nothing below this layer knows its types: policies own their specs.

use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::proxy::snapshot::Snapshot;
use crate::runtime::EngineChoice;
use crate::steal;

mod build;
mod check;
mod effective;
mod keys;
mod live;
mod manual;
mod nearest;
mod node;
mod problem;
mod reference;
mod schema;
mod values;

pub use check::{Asking, check};
pub use live::{at_listener, unchangeable};
pub use manual::manual;
pub use problem::{Problem, Severity};
pub use reference::reference;

/// Largest file read, in bytes.
const FILE_BYTES_MAX: usize = 8 << 20;

/// What `embedded_default` parses: the reference file, which is also what the packages install.
const EMBEDDED: &str = include_str!("../packaging/ringfort.toml");

/// A configuration without errors.
#[derive(Debug)]
pub struct Config {
    pub workers: WorkersSpec,
    pub admin: AdminSpec,
    pub host: HostSpec,
    pub steal: steal::Spec,
    /// What workers serve from.
    pub snapshot: Snapshot,
    /// Files of certificates and keys that it names, in no order; one may be there several times.
    pub files: Vec<NamedFile>,
    /// Every key with its value, defaults filled in, as JSON.
    pub effective: serde_json::Value,
}

/// A file, and where the configuration names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedFile {
    /// From the configuration's folder where it is relative.
    pub path: PathBuf,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkersSpec {
    pub cpus: Cpus,
    pub engine: EngineChoice,
    pub ring: RingSpec,
}

/// CPUs that get a worker. Not yet intersected with what affinity and cgroup allow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cpus {
    All,
    /// Ascending, each once, at least one.
    List(Vec<u16>),
}

/// Sizes of one worker's ring; tests make them tiny.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingSpec {
    /// Submission entries.
    pub entries: u32,
    /// Receive buffers provided to the kernel. A power of two.
    pub recv_buffers: u16,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminSpec {
    /// A loopback address.
    pub listen: SocketAddr,
    /// `None`: `/run/ringfort/admin.sock` where that folder can be written, else under `$XDG_RUNTIME_DIR`.
    pub socket: Option<PathBuf>,
}

/// Roots of the kernel's file systems.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostSpec {
    pub procfs: PathBuf,
    pub sysfs: PathBuf,
    pub cgroupfs: PathBuf,
}

/// The text that a configuration was made from, and what it is called.
#[derive(Clone, Copy, Debug)]
pub struct Source<'t> {
    pub name: &'t str,
    pub text: &'t str,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum LoadError {
    /// The file cannot be read. Says why and what to do.
    Unreadable(String),
    /// At least one error, and the warnings beside it, in the order of the text.
    Problems(Vec<Problem>),
}

impl fmt::Display for LoadError {
    /// A line each, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(text) => f.write_str(text),
            Self::Problems(problems) => {
                for (index, problem) in problems.iter().enumerate() {
                    let newline = if index == 0 { "" } else { "\n" };
                    write!(f, "{newline}{problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for LoadError {}

/// A configuration without errors, the text it was made from, and its warnings.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub text: String,
    pub warnings: Vec<Problem>,
}

/// Reads a file, once, as it may be a pipe, and parses it.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let (name, text) = read(path)?;
    match parse_in(&name, folder(path), &text) {
        Ok((config, warnings)) => Ok(Loaded { config, text, warnings }),
        Err(problems) => Err(LoadError::Problems(problems)),
    }
}

/// As [`load`] for whoever looks at a machine and serves nothing: a file that names no listener, and may say no more
/// than where the kernel's file systems are, is taken with one on 127.0.0.1:8080.
pub fn load_to_look(path: &Path) -> Result<Config, LoadError> {
    const LISTENER: &str =
        "\n[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:8080\"\n[[route]]\nrespond = {}\n";
    let (name, text) = read(path)?;
    let is_without = |problem: &Problem| problem.what == build::NO_LISTENER;
    let parsed = match parse_in(&name, folder(path), &text) {
        Err(problems) if problems.iter().any(is_without) => parse_in(&name, folder(path), &(text + LISTENER)),
        parsed => parsed,
    };
    parsed.map(|(config, _)| config).map_err(LoadError::Problems)
}

/// The file's name for problems, and its text.
fn read(path: &Path) -> Result<(String, String), LoadError> {
    let name = path.display().to_string();
    let unreadable = |error: std::io::Error| {
        let cure = match error.kind() {
            std::io::ErrorKind::NotFound => "name an existing file with --config",
            std::io::ErrorKind::PermissionDenied => "make it readable for this user",
            _ => "name a readable file with --config",
        };
        LoadError::Unreadable(format!("{name}: {error}; {cure}"))
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        let text = format!("{name}: longer than {FILE_BYTES_MAX} bytes; name a configuration with --config");
        return Err(LoadError::Unreadable(text));
    }
    String::from_utf8(bytes).map(|text| (name.clone(), text)).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..at];
        let mut findings = problem::Findings::default();
        let finding = problem::Finding::error(&(at..at), "the file is not text in UTF-8 from here on");
        findings.push(finding.cure("save it as UTF-8"));
        LoadError::Problems(findings.into_problems(&name, &String::from_utf8_lossy(before)))
    })
}

/// Parses a text; `name` stands in the problems, and relative paths are taken from its folder. With the warnings, or
/// with errors and warnings.
pub fn parse(name: &str, text: &str) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    parse_in(name, folder(Path::new(name)), text)
}

fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or_else(|| Path::new(""))
}

fn parse_in(name: &str, base: &Path, text: &str) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    let mut findings = problem::Findings::default();
    let (values, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        let cure = match &*what {
            "duplicate key" => "keep one; a list of tables has double brackets, [[…]]",
            _ => "mend the TOML here",
        };
        findings.push_syntax(problem::Finding::error(&span, what).cure(cure));
    }
    let root = node::Node::root(values.get_ref(), &keys::ROOT);
    root.check("the file", &mut findings);
    let parts = build::build(&root, base, &mut findings);
    let problems = findings.into_problems(name, text);
    match parts {
        Some(build::Parts { workers, admin, host, steal, snapshot, files })
            if problems.iter().all(|problem| problem.severity == Severity::Warning) =>
        {
            let effective = effective::effective(values.get_ref(), &keys::ROOT);
            let offsets: Vec<usize> = files.iter().map(|(_, offset)| *offset).collect();
            let places = problem::places(text, &offsets).into_iter();
            let files = files.into_iter().zip(places);
            let files = files.map(|((path, _), (line, column))| NamedFile { path, line, column }).collect();
            Ok((Config { workers, admin, host, steal, snapshot, files, effective }, problems))
        }
        _ => Err(problems),
    }
}

/// What runs without a file: HTTP on 127.0.0.1:8080 answered from here, admin on 127.0.0.1:9901.
pub fn embedded_default() -> Config {
    match parse("embedded default", EMBEDDED) {
        Ok((config, _)) => config,
        Err(problems) => unreachable!("a test holds the embedded default free of errors: {problems:?}"),
    }
}

/// For the fuzzer: any text is parsed or refused, and a refusal says why.
pub fn fuzz_parse(text: &str) {
    if let Err(problems) = parse("fuzz.toml", text) {
        assert!(
            problems.iter().any(|problem| problem.severity == Severity::Error),
            "refused without a reason"
        );
    }
}

#[cfg(test)]
mod tests;
