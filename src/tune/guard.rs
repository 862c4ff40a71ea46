//! Takes a layer back that nobody confirmed in time: a process of its own, in a session of its own, so that it outlives
//! the terminal. Told to end before that (a session torn down with all its processes), it takes the layer back at once. A
//! reboot needs no guard: what is not confirmed is in no file yet.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::execute;
use super::root::Host;
use super::state::{Layer, Phase, State};
use crate::sys::process;

/// How often it looks whether the layer was confirmed or taken back meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often it tries to take the layer back where that fails, and the pause between.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// What it says when it is ready.
const ARMED: &str = "armed";

/// What a guard is told.
#[derive(Args, Clone, Debug)]
pub struct Order {
    #[arg(long)]
    layer: String,
    /// Milliseconds of the monotonic clock.
    #[arg(long)]
    confirm_by_ms: u64,
    #[arg(long)]
    root: Option<PathBuf>,
    #[arg(long, default_value = "/proc")]
    procfs: PathBuf,
    #[arg(long, default_value = "/sys")]
    sysfs: PathBuf,
}

impl Order {
    pub(super) fn for_layer(host: &Host, layer: &Layer) -> Self {
        Self {
            layer: layer.id.clone(),
            confirm_by_ms: layer.confirm_by_ms.unwrap_or(0),
            root: host.root().map(Into::into),
            procfs: host.resolve("/proc/"),
            sysfs: host.resolve("/sys/"),
        }
    }

    fn host(&self) -> Host {
        match &self.root {
            Some(root) => Host::under(root),
            None => Host::new(self.procfs.clone(), self.sysfs.clone()),
        }
    }
}

/// Starts a guard, and returns when it is ready.
pub(super) fn start(order: &Order) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot start the process that would take it back: {error}");
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["tune", "guard", "--layer", &order.layer]);
    command.args(["--confirm-by-ms", &order.confirm_by_ms.to_string()]);
    if let Some(root) = &order.root {
        command.arg("--root").arg(root);
    }
    command.arg("--procfs").arg(&order.procfs).arg("--sysfs").arg(&order.sysfs);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
    }
    if line.trim() == ARMED {
        Ok(())
    } else {
        Err("the process that would take it back does not start".into())
    }
}

/// Waits for the end of the time, the confirmation, or a signal.
///
/// # Errors
/// What could not be taken back.
pub(super) fn run(order: &Order) -> Result<(), String> {
    process::new_session().map_err(|error| format!("cannot leave the session: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot wait: {error}"))?;
    runtime.block_on(wait(order)).map_err(|error| format!("cannot wait: {error}"))?;
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        result = take_back(order);
        if result.is_ok() {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    result
}

async fn wait(order: &Order) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    writeln!(std::io::stdout(), "{ARMED}")?;
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    let host = order.host();
    loop {
        let left = order.confirm_by_ms.saturating_sub(super::now_ms());
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(left)) => return Ok(()),
            _ = look.tick() => {
                // What cannot be read is looked at when the time is over.
                if State::load(&host).is_ok_and(|state| !is_open(&state, order)) {
                    return Ok(());
                }
            }
        }
    }
}

fn is_open(state: &State, order: &Order) -> bool {
    state.layers.iter().any(|layer| layer.id == order.layer && layer.phase != Phase::Applied)
}

fn take_back(order: &Order) -> Result<(), String> {
    let mut host = order.host();
    let _lock = super::lock(&host)?;
    let mut state = State::load(&host)?;
    if is_open(&state, order) {
        execute::revert_last(&mut host, &mut state)?;
    }
    Ok(())
}
