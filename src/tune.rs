//! `ringfort tune`: what the kernel's settings are, what they should be, and changing them so that every change can be
//! taken back. The settings are data (`tuning/settings.toml`); planning is pure; effects go through a `Root`. Changes nothing
//! without `--yes`, and never a firewall, a boot loader or a setting of the tier `never`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::config;
use crate::control::Outcome;
use crate::sys::lock::{self, Lock};
use crate::sys::{clock, process, random};

mod execute;
mod facts;
mod guard;
mod judge;
mod plan;
mod readme;
mod report;
mod root;
mod settings;
mod state;
mod sysctl_files;
mod unit;
mod value;

pub use settings::Tier;

use execute::Failure;
use facts::{Asked, Facts};
use judge::Readings;
use plan::{Plan, Selection};
use root::{Host, Root};
use settings::{Setting, Tuning};
use state::{Layer, Phase, State};

/// Where the packages put the configuration.
const INSTALLED: &str = "/etc/ringfort/ringfort.toml";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell how each setting stands and which file sets it; exit 1 where one differs. Changes nothing, needs no privilege.
    Check {
        #[command(flatten)]
        target: Target,
        /// How far to look.
        #[arg(long, value_enum, default_value = "recommended")]
        tier: Tier,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell what "apply" would change. Changes nothing.
    Plan {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        which: Which,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Change settings, for now and for the next boot. Without --yes as "plan".
    Apply {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        which: Which,
        /// Do it.
        #[arg(long)]
        yes: bool,
        /// Take everything back after so many seconds, or at a reboot, unless "ringfort tune confirm" comes first.
        #[arg(long, value_name = "SECONDS", requires = "yes", value_parser = clap::value_parser!(u32).range(1..=86_400))]
        confirm_within: Option<u32>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Keep what "apply --confirm-within" changed.
    Confirm {
        #[command(flatten)]
        target: Target,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take back everything that "apply" changed, and that nobody has changed since.
    Revert {
        #[command(flatten)]
        target: Target,
        /// Say nothing unless something was left alone.
        #[arg(long, conflicts_with = "json")]
        quiet: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print every setting with reason, risk and source, and what the usual guides set, judged: Markdown.
    Explain,
    /// Takes a layer back that is not confirmed in time; "apply --confirm-within" starts it.
    #[command(hide = true)]
    Guard(guard::Order),
}

#[derive(Args, Debug)]
pub struct Target {
    /// The configuration, for [host], the ports of its listeners and the congestion controls it asks for. Without it:
    /// /etc/ringfort/ringfort.toml, else the embedded default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder to take for the root of the file system; [host] does not count then.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Which {
    /// How far to go: each tier holds those before it.
    #[arg(long, value_enum, default_value = "recommended")]
    tier: Tier,
    /// Only this setting, by id or key, whatever its tier, and what it requires. May be repeated.
    #[arg(long, value_name = "KEY")]
    only: Vec<String>,
}

/// Carries the command out: what to print, and the exit code.
///
/// # Errors
/// It could not run: cause and cure.
pub fn run(command: Command) -> Result<(String, u8), String> {
    // Who checks later, without privilege, is to see what was written.
    process::make_files_readable();
    match command {
        Command::Check { target, tier, json } => check(&target, tier, json),
        Command::Plan { target, which, json } => {
            let session = Session::open(&target)?;
            let plan = session.plan(&which.into())?;
            Ok((report::planned(&plan, &session.notes, json, ""), Outcome::Good.exit_code()))
        }
        Command::Apply { target, which, yes, confirm_within, json } => {
            let session = Session::open(&target)?;
            if yes {
                return apply(session, &which.into(), confirm_within, json);
            }
            let plan = session.plan(&which.into())?;
            let dry = if plan.is_empty() { "" } else { "Nothing was changed: --yes does it.\n" };
            Ok((report::planned(&plan, &session.notes, json, dry), Outcome::Good.exit_code()))
        }
        Command::Confirm { target, json } => confirm(Session::open(&target)?, json),
        Command::Revert { target, quiet, json } => revert(Session::open(&target)?, quiet, json),
        Command::Explain => Ok((readme::page(&settings::embedded()), Outcome::Good.exit_code())),
        Command::Guard(order) => {
            guard::run(&order)?;
            Ok((String::new(), Outcome::Good.exit_code()))
        }
    }
}

impl From<Which> for Selection {
    fn from(Which { tier, only }: Which) -> Self {
        Self { tier, only }
    }
}

/// A machine and what is known of it before it is looked at.
struct Session {
    host: Host,
    asked: Asked,
    tuning: Tuning,
    /// What the operator should know first.
    notes: Vec<String>,
}

impl Session {
    fn open(target: &Target) -> Result<Self, String> {
        let mut notes = Vec::new();
        let config = configuration(target, &mut notes)?;
        let host = match &target.root {
            Some(root) => Host::under(&absolute(root)?),
            None => Host::new(config.host.procfs.clone(), config.host.sysfs.clone()),
        };
        Ok(Self { host, asked: asked(&config), tuning: settings::embedded(), notes })
    }

    fn settings(&self) -> &[Setting] {
        &self.tuning.settings
    }

    fn plan(&self, selection: &Selection) -> Result<Plan, String> {
        let facts = Facts::gather(&self.host, &self.asked);
        let readings = Readings::read(&self.host, self.settings());
        let widened = selection.widens(self.settings());
        let findings = judge::judge(self.settings(), &facts, &readings, selection.reach(), widened);
        plan::plan(&findings, selection, &readings, &|path| self.host.read(path).ok())
    }

    /// Alone until the lock is dropped.
    fn lock(&self) -> Result<Lock, String> {
        lock(&self.host)
    }
}

fn lock(host: &Host) -> Result<Lock, String> {
    lock::exclusive(&host.resolve(state::LOCK)).map_err(|error| {
        let cure = if error.kind() == std::io::ErrorKind::PermissionDenied { "; run as root" } else { "" };
        format!("cannot lock {}: {error}{cure}", state::LOCK)
    })
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize().map_err(|error| format!("--root {}: {error}; name a folder", path.display()))
}

fn configuration(target: &Target, notes: &mut Vec<String>) -> Result<config::Config, String> {
    if let Some(path) = &target.config {
        return config::load(path).map(|loaded| loaded.config).map_err(|error| error.to_string());
    }
    let root = target.root.as_deref().unwrap_or_else(|| Path::new("/"));
    let installed = root.join(INSTALLED.trim_start_matches('/'));
    if !installed.exists() {
        return Ok(config::embedded_default());
    }
    Ok(config::load(&installed).map_or_else(
        |error| {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            notes.push(format!(
                "{first}; the embedded default counts instead, so its listeners' ports alone are reserved"
            ));
            config::embedded_default()
        },
        |loaded| loaded.config,
    ))
}

fn asked(config: &config::Config) -> Asked {
    let listeners = config.snapshot.listeners.iter().map(|listener| listener.address.port());
    let ports = listeners.chain([config.admin.listen.port()]).filter(|port| *port != 0);
    let sockets = config.snapshot.listeners.iter().map(|listener| &listener.socket);
    let sockets = sockets.chain(config.snapshot.clusters.iter().map(|cluster| &cluster.socket));
    let names = sockets.filter_map(|socket| socket.congestion_control.as_deref().map(str::to_owned));
    Asked { listen_ports: ports.collect(), congestion_controls: names.collect() }
}

fn now_ms() -> u64 {
    clock::now().millis()
}

fn check(target: &Target, tier: Tier, json: bool) -> Result<(String, u8), String> {
    let mut session = Session::open(target)?;
    let state = match session.host.read(state::FILE) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            session.notes.push(format!("{}: {error}; run as root to see what was applied", state::FILE));
            State::default()
        }
        _ => State::load(&session.host)?,
    };
    let facts = Facts::gather(&session.host, &session.asked);
    let readings = Readings::read(&session.host, session.settings());
    let widened = tier >= Tier::Recommended;
    let findings = judge::judge(session.settings(), &facts, &readings, tier, widened);
    let checked = report::Checked {
        facts: &facts,
        tier,
        findings: &findings,
        conflicts: judge::conflicts(session.settings(), &readings),
        state: &state,
        now_ms: now_ms(),
        notes: &session.notes,
    };
    let problems = findings.iter().any(|finding| finding.status.is_problem()) || checked.is_stale();
    let text = if json { checked.json() } else { checked.table() };
    Ok((text, if problems { Outcome::Problems } else { Outcome::Good }.exit_code()))
}

/// Takes back what nobody will confirm any more; tells of it.
fn recover(session: &mut Session, state: &mut State, boot_id: &str) -> Result<(), String> {
    if let Some(layer) = state.open_layer()
        && layer.is_stale(boot_id, now_ms())
    {
        let why =
            if layer.phase == Phase::Applying { "was interrupted" } else { "was not confirmed in time" };
        execute::revert_last(&mut session.host, state)?;
        session.notes.push(format!("an earlier apply {why}: it was taken back"));
    }
    Ok(())
}

fn apply(
    mut session: Session,
    selection: &Selection,
    confirm_within: Option<u32>,
    json: bool,
) -> Result<(String, u8), String> {
    let _lock = session.lock()?;
    let mut state = State::load(&session.host)?;
    let boot_id = Facts::gather(&session.host, &session.asked).boot_id;
    recover(&mut session, &mut state, &boot_id)?;
    if state.open_layer().is_some() {
        return Err("an earlier apply waits for its confirmation: \"ringfort tune confirm\" or \"ringfort tune revert\" first".into());
    }
    let plan = session.plan(selection)?;
    if plan.is_empty() {
        return Ok((report::planned(&plan, &session.notes, json, ""), Outcome::Good.exit_code()));
    }
    if state.layers.len() >= state::LAYERS_MAX {
        return Err(format!("{} applies are recorded: \"ringfort tune revert\" first", state::LAYERS_MAX));
    }
    let layer = Layer {
        id: format!("{:016x}", random::seed()),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id,
        phase: Phase::Applying,
        confirm_by_ms: confirm_within.map(|seconds| now_ms() + u64::from(seconds) * 1_000),
        modules: plan.modules.clone(),
        values: plan.values.clone(),
        files: plan.files.clone(),
    };
    let order = guard::Order::for_layer(&session.host, &layer);
    let mut arm = || guard::start(&order);
    match execute::apply(&mut session.host, &mut state, layer, &mut arm) {
        Ok(()) => {
            let text = report::applied(&plan, &session.notes, confirm_within, json);
            Ok((text, Outcome::Good.exit_code()))
        }
        Err(Failure::Untouched(cause)) => Err(cause),
        Err(Failure::Restored(cause) | Failure::Recorded(cause)) => {
            Ok((report::message(&cause, &session.notes, "failed", json), Outcome::Problems.exit_code()))
        }
    }
}

fn confirm(mut session: Session, json: bool) -> Result<(String, u8), String> {
    let _lock = session.lock()?;
    let mut state = State::load(&session.host)?;
    let boot_id = Facts::gather(&session.host, &session.asked).boot_id;
    recover(&mut session, &mut state, &boot_id)?;
    if state.open_layer().is_none() {
        let text = report::message("nothing waits for a confirmation", &session.notes, "nothing", json);
        return Ok((text, Outcome::Problems.exit_code()));
    }
    execute::confirm(&mut session.host, &mut state)?;
    let text = report::message("confirmed: it stays, also after a reboot", &session.notes, "confirmed", json);
    Ok((text, Outcome::Good.exit_code()))
}

fn revert(mut session: Session, quiet: bool, json: bool) -> Result<(String, u8), String> {
    let mut undone = Vec::new();
    // Where nothing was ever applied, nothing is made and no privilege needed.
    if !State::load(&session.host)?.layers.is_empty() {
        let _lock = session.lock()?;
        let mut state = State::load(&session.host)?;
        while !state.layers.is_empty() {
            undone.extend(execute::revert_last(&mut session.host, &mut state)?);
        }
        session
            .host
            .remove(state::FILE)
            .map_err(|error| format!("cannot remove {}: {error}", state::FILE))?;
    }
    let left_alone = undone.iter().any(|undone| undone.outcome == execute::Outcome::Drifted);
    let text = report::reverted(&undone, json);
    let outcome = if left_alone { Outcome::Problems } else { Outcome::Good };
    Ok((if quiet && !left_alone { String::new() } else { text }, outcome.exit_code()))
}
