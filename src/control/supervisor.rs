//! The supervisor process: opens every socket, starts the data process, passes signals on, and starts it again after
//! a crash while the sockets, and with them the accept queues, stay open. Parses nothing from the network.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::handover::{self, Facts, Sockets};
use super::log::Log;
use super::source::Source;
use super::words::{self, Ear, Word};
use super::{Outcome, log};
use crate::sys::fd_passing::Channel;
use crate::sys::notify::{self, Notify};
use crate::sys::{process, rlimit};

pub mod open;
pub mod restart;

use restart::{Backoff, Exit, Next, Stop, after_exit};

/// The hidden subcommand that runs the data process.
pub const DATA_COMMAND: &str = "__data";
/// What the data process may take beyond the drain deadline before it is killed.
const DRAIN_SLACK: Duration = Duration::from_secs(2);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// `ringfort run`: returns when the gateway has ended. Without a path the embedded default is served.
pub fn run(config: Option<&Path>) -> Outcome {
    let supervisor = match Supervisor::start(config) {
        Ok(supervisor) => supervisor,
        Err(text) => {
            eprintln!("ringfort: {}", text.trim_end());
            return Outcome::CouldNotRun;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(supervisor.supervise())) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("ringfort: the supervisor cannot run: {error}");
            Outcome::CouldNotRun
        }
    }
}

struct Supervisor {
    facts: Facts,
    /// `None` once the gateway is told to stop: connections shall be refused from then on.
    sockets: Option<Arc<Sockets>>,
    drain_deadline: Duration,
    notify: Notify,
    log: Log,
}

impl Supervisor {
    fn start(config: Option<&Path>) -> Result<Self, String> {
        let log = log::init().map_err(|error| format!("cannot start the log: {error}"))?;
        // Warnings that were logged come before the error that ends the process.
        Self::open(config, log.clone()).inspect_err(|_| log.flush(FLUSH_TIMEOUT))
    }

    fn open(config: Option<&Path>, log: Log) -> Result<Self, String> {
        let notify =
            Notify::from_env().map_err(|error| format!("the service manager cannot be told: {error}"))?;
        let (source, config) = Source::read(config)?;
        // Before anything is opened: many workers with many listeners may need more than the soft limit.
        rlimit::raise_nofile().map_err(|error| format!("cannot read the limit of open files: {error}"))?;
        let cpus = open::cpus(&config)?;
        let (sockets, admin_socket) = open::sockets(&config, cpus.len())?;
        let facts = Facts { source, cpus, admin_socket, restarts: 0, supervisor: std::process::id() };
        let drain_deadline = config.snapshot.drain.deadline;
        Ok(Self { facts, sockets: Some(Arc::new(sockets)), drain_deadline, notify, log })
    }

    async fn supervise(mut self) -> io::Result<Outcome> {
        let mut signals = Signals::new()?;
        let outcome = self.restart_until_done(&mut signals).await;
        if let Some(path) = &self.facts.admin_socket {
            let _ = std::fs::remove_file(path);
        }
        self.log.flush(FLUSH_TIMEOUT);
        outcome
    }

    async fn restart_until_done(&mut self, signals: &mut Signals) -> io::Result<Outcome> {
        let mut backoff = Backoff::new();
        loop {
            let started = Instant::now();
            let exit = match self.spawn() {
                Ok((child, ear)) => self.watch(child, &ear, signals).await?,
                Err(error) if self.facts.restarts == 0 => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "the data process cannot be started");
                    (Exit::NotStarted, None)
                }
            };
            let ran = started.elapsed();
            let (exit, stop) = exit;
            match after_exit(exit, stop, self.facts.restarts) {
                Next::Finish(outcome) => {
                    if outcome != Outcome::Good {
                        let ran_ms = millis(ran);
                        tracing::error!(died = %exit, ran_ms, "the data process ended; so does the gateway");
                    }
                    return Ok(outcome);
                }
                Next::Restart => {
                    let pause = backoff.after(ran);
                    tracing::error!(
                        died = %exit,
                        ran_ms = millis(ran),
                        restart_in_ms = millis(pause),
                        restarts = self.facts.restarts + 1,
                        "the data process died; it is started again while connections wait in the accept queues"
                    );
                    // The supervisor does its work: that no data process gives a sign of life is known.
                    self.notify.alive();
                    self.notify.status(&format!("The data process died ({exit}) and is started again"));
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        // Nothing is being served: there is nothing to drain.
                        _ = signals.stop() => return Ok(Outcome::Good),
                    }
                    self.notify.alive();
                    self.facts.restarts += 1;
                }
            }
        }
    }

    /// Starts a data process. Its sockets are sent by a thread, as it may take them slowly.
    fn spawn(&self) -> io::Result<(Child, Ear)> {
        let (ours, theirs) = Channel::pair()?;
        let (ear, mouth) = words::pair()?;
        // /proc/self/exe is this very binary, even if another one was installed over it meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("ringfort")
            .arg(DATA_COMMAND)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .kill_on_drop(true);
        // What the network reaches must not speak to the service manager in our name.
        for variable in notify::VARIABLES {
            command.env_remove(variable);
        }
        let child = command.spawn()?;
        if let Some(sockets) = self.sockets.clone() {
            let facts = self.facts.clone();
            let alive_every = self.notify.watchdog().map(|interval| interval / 2);
            tokio::task::spawn_blocking(move || {
                let sent = handover::send(&ours, &facts, &sockets);
                if let Err(error) = sent.and_then(|()| words::send(&ours, &mouth, alive_every)) {
                    tracing::error!(%error, "the data process did not take its sockets");
                }
            });
        }
        Ok((child, ear))
    }

    /// Waits for the child's end, while passing on what signals ask for, and to the service manager what it says.
    async fn watch(
        &mut self,
        mut child: Child,
        ear: &Ear,
        signals: &mut Signals,
    ) -> io::Result<(Exit, Option<Stop>)> {
        let mut stop: Option<Stop> = None;
        let mut interrupted = false;
        let mut kill_at = Instant::now();
        loop {
            tokio::select! {
                status = child.wait() => return Ok((exit_of(status?), stop)),
                word = ear.next() => match word {
                    Word::Alive => self.notify.alive(),
                    Word::Ready if stop.is_none() => self.notify.ready(),
                    Word::Ready => {}
                },
                ask = signals.next() => {
                    if ask == Ask::User1 {
                        signal_child(&child, process::Signal::User1);
                        continue;
                    }
                    if ask == Ask::HangUp {
                        self.notify.reloading();
                        tracing::info!("SIGHUP: certificates are read anew; a changed configuration needs a restart");
                        signal_child(&child, process::Signal::HangUp);
                        continue;
                    }
                    let again = ask == Ask::Interrupt && interrupted;
                    interrupted |= ask == Ask::Interrupt;
                    if stop.is_none() {
                        tracing::info!("told to stop: draining");
                        self.sockets = None;
                        signal_child(&child, process::Signal::Terminate);
                        let within = self.drain_deadline + DRAIN_SLACK;
                        self.notify.stopping(within + FLUSH_TIMEOUT);
                        kill_at = Instant::now() + within;
                        stop = Some(Stop::Draining);
                    } else if again {
                        tracing::warn!("interrupted again: ending without waiting");
                        signal_child(&child, process::Signal::Kill);
                        stop = Some(Stop::Killed);
                    }
                }
                () = tokio::time::sleep_until(kill_at), if stop == Some(Stop::Draining) => {
                    tracing::error!("the data process is past the drain deadline: killing it");
                    signal_child(&child, process::Signal::Kill);
                    stop = Some(Stop::Killed);
                }
            }
        }
    }
}

/// What is asked for. A second Ctrl-C is somebody who will not wait; a second SIGTERM may be a service manager that
/// stops what an operator has told to drain before, and cuts nothing short.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ask {
    Interrupt,
    Terminate,
    /// Not to stop: to read files anew.
    HangUp,
    /// Nor this: to open the access log anew.
    User1,
}

/// The signals a supervisor takes.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for SIGTERM or SIGINT while there is nobody to pass a SIGHUP on to: what starts next reads its files.
    async fn stop(&mut self) -> Ask {
        loop {
            match self.next().await {
                Ask::HangUp | Ask::User1 => {}
                ask => return ask,
            }
        }
    }

    /// SIGUSR2 is answered with a line in the log, and never ends the process.
    async fn next(&mut self) -> Ask {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Ask::Terminate,
                _ = self.interrupt.recv() => return Ask::Interrupt,
                _ = self.hang_up.recv() => return Ask::HangUp,
                _ = self.user_1.recv() => return Ask::User1,
                _ = self.user_2.recv() => tracing::warn!("SIGUSR2: upgrading is not supported yet; restart instead"),
            }
        }
    }
}

fn signal_child(child: &Child, signal: process::Signal) {
    // No id: it has ended already, and the wait returns next.
    if let Some(Err(error)) = child.id().map(|id| process::send_signal(id, signal)) {
        tracing::warn!(%error, ?signal, "the data process cannot be signalled");
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    status.signal().map_or_else(|| Exit::Code(status.code().unwrap_or(-1)), Exit::Signal)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
