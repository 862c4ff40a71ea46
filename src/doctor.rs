//! `ringfort doctor`: what the owner of a machine runs first. Gathers facts, judges them, tells value, want, why and cure.
//! Changes nothing, needs no privilege, and takes what it cannot read for unknown, never for good.

pub mod facts;
pub mod finding;
pub mod gather;
pub mod judge;
pub mod parse;
pub mod render;
pub mod sample;

use std::io::IsTerminal;
use std::path::Path;

use crate::config::{self, Config};
use crate::control::Outcome;
use finding::{Status, verdict};
use render::Heading;

/// What is asked.
pub struct Asking<'a> {
    /// Whose needs the machine is held against. `None` for the embedded default.
    pub path: Option<&'a Path>,
    /// How long the CPUs are watched; 0 for not at all.
    pub seconds: u32,
    pub as_json: bool,
}

/// What to print, with a newline at the end, and the exit code: 0 nothing wrong, 1 something, 2 could not look.
pub fn doctor(asking: &Asking<'_>) -> (String, u8) {
    let config = match config(asking.path) {
        Ok(config) => config,
        Err(text) if asking.as_json => {
            let text = format!("{:#}\n", serde_json::json!({ "error": text }));
            return (text, Outcome::CouldNotRun.exit_code());
        }
        Err(text) => return (format!("{text}\n"), Outcome::CouldNotRun.exit_code()),
    };
    if asking.seconds > 0 && std::io::stderr().is_terminal() {
        eprintln!("watching the CPUs for {} s …", asking.seconds);
    }
    let findings = judge::findings(&gather::facts(&config, asking.seconds));
    let is_good = matches!(verdict(&findings), Status::Ok | Status::Unknown);
    let outcome = if is_good { Outcome::Good } else { Outcome::Problems };
    if asking.as_json {
        return (finding::to_json(&findings), outcome.exit_code());
    }
    let name = asking.path.map_or_else(
        || "the embedded default (name yours with --config)".to_owned(),
        |path| path.display().to_string(),
    );
    let heading = Heading { config: &name, has_colours: has_colours() };
    (render::text(&findings, &heading), outcome.exit_code())
}

fn config(path: Option<&Path>) -> Result<Config, String> {
    let config = match path {
        Some(path) => config::load_to_look(path).map_err(|error| error.to_string())?,
        None => config::embedded_default(),
    };
    let procfs = &config.host.procfs;
    if !procfs.is_dir() {
        return Err(format!(
            "{}: there is no such folder: mount procfs there, or name it in [host] procfs",
            procfs.display()
        ));
    }
    Ok(config)
}

/// On a terminal that knows them, unless nobody wants them (no-color.org).
fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    std::io::stdout().is_terminal() && !unwanted && !is_dumb
}
