//! The supervisor process: opens every socket, starts the data process, passes signals on, and starts it again after
//! a crash while the sockets, and with them the accept queues, stay open. Parses nothing from the network.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::Instant;

use super::handover::Facts;
use super::log::Log;
use super::requests::{self, Content, Question, Said};
use super::source::Source;
use super::{Outcome, log};
use crate::sys::child::Child;
use crate::sys::fd_passing::Channel;
use crate::sys::notify::Notify;
use crate::sys::process::Signal;
use crate::sys::{rlimit, succession};

mod held;
pub mod open;
pub mod restart;
mod signals;
mod succeed;
pub mod upgrade;

use held::{Attended, DRAINING, Held};
use open::Inherited;
use restart::{Backoff, Exit, Next, Stop, after_exit};
use signals::{Ask, Signals};
use upgrade::{Candidate, Stage, Step, Upgrade, command};

/// The hidden subcommand that runs the data process.
pub const DATA_COMMAND: &str = "__data";
/// What the data process may take beyond the drain deadline before it is killed.
const DRAIN_SLACK: Duration = Duration::from_secs(2);
/// What a process may take to end that was started for an upgrade, and has accepted nothing.
const END_TIMEOUT: Duration = Duration::from_secs(2);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// `ringfort run`: returns when the gateway has ended. Without a path the embedded default is served.
pub fn run(config: Option<&Path>) -> Outcome {
    let (supervisor, started) = match Supervisor::start(config) {
        Ok(started) => started,
        Err(text) => {
            eprintln!("ringfort: {}", text.trim_end());
            return Outcome::CouldNotRun;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(supervisor.supervise(started))) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("ringfort: the supervisor cannot run: {error}");
            Outcome::CouldNotRun
        }
    }
}

struct Supervisor {
    held: Held,
    notify: Notify,
    log: Log,
    /// Where this binary was found, and another one is looked for.
    program: PathBuf,
    leaving: Vec<Leaving>,
    /// Signals that came while there was nobody to pass them on to, each once.
    waiting: Vec<Signal>,
}

/// A process that ends on its own, or is killed.
struct Leaving {
    child: Child,
    kill_at: Instant,
}

/// A data process that was started.
struct Started {
    child: Child,
    attended: Arc<Attended>,
    heard: UnboundedReceiver<Said>,
    serves: bool,
}

/// The data process that serves, and what is to become of it.
struct Watched {
    child: Child,
    attended: Arc<Attended>,
    /// It has said so: from then on it takes signals, which would end it before.
    serves: bool,
    stop: Option<Stop>,
    interrupted: bool,
    kill_at: Instant,
    upgrade: Option<Upgrade>,
}

impl Supervisor {
    /// With the data process that serves already, where this program has come in place of another.
    fn start(config: Option<&Path>) -> Result<(Self, Option<Started>), String> {
        let log = succession::without_signals(log::init);
        let log = log.map_err(|error| format!("cannot start the log: {error}"))?;
        let note = succession::note().map_err(|error| error.to_string())?;
        let started = match note {
            Some(note) => Self::succeed(&note, log.clone()),
            None => Self::open(config, log.clone()).map(|supervisor| (supervisor, None)),
        };
        // Warnings that were logged come before the error that ends the process.
        started.inspect_err(|_| log.flush(FLUSH_TIMEOUT))
    }

    fn open(config: Option<&Path>, log: Log) -> Result<Self, String> {
        let notify = notify()?;
        let program = program()?;
        let path = config;
        let (source, config) = Source::read(path)?;
        // Before anything is opened: many workers with many listeners may need more than the soft limit.
        rlimit::raise_nofile().map_err(|error| format!("cannot read the limit of open files: {error}"))?;
        let cpus = open::cpus(&config)?;
        let (sockets, admin_socket) = open::sockets(&config, cpus.len(), Inherited::default())?;
        let facts = Facts {
            source,
            cpus,
            admin_socket,
            restarts: 0,
            upgrades: 0,
            succeeds: false,
            supervisor: std::process::id(),
            alive_every: notify.watchdog().map(|interval| interval / 2),
            ticket_keys: None,
        };
        let held = Held::new(path, config, facts, sockets);
        Ok(Self { held, notify, log, program, leaving: Vec::new(), waiting: Vec::new() })
    }

    async fn supervise(mut self, started: Option<Started>) -> io::Result<Outcome> {
        let mut signals = Signals::new()?;
        succession::take_signals();
        let outcome = self.restart_until_done(started, &mut signals).await;
        self.see_off(&mut signals).await;
        if let Some(path) = self.held.admin_socket() {
            let _ = std::fs::remove_file(path);
        }
        self.log.flush(FLUSH_TIMEOUT);
        outcome
    }

    async fn restart_until_done(
        &mut self,
        mut started: Option<Started>,
        signals: &mut Signals,
    ) -> io::Result<Outcome> {
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            let (exit, stop) = match started.take().map_or_else(|| self.spawn(), Ok) {
                Ok(started) => self.watch(started, signals).await?,
                Err(error) if self.held.starts() == 0 => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "the data process cannot be started");
                    (Exit::NotStarted, None)
                }
            };
            let ran = since.elapsed();
            match after_exit(exit, stop, self.held.starts()) {
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
                        restarts = self.held.restarts() + 1,
                        "the data process died; it is started again while connections wait in the accept queues"
                    );
                    // The supervisor does its work: that no data process gives a sign of life is known.
                    self.notify.alive();
                    self.notify.status(&format!("The data process died ({exit}) and is started again"));
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        // Nothing is being served: there is nothing to drain.
                        () = signals.stop(&mut self.waiting) => return Ok(Outcome::Good),
                    }
                    self.notify.alive();
                    self.held.count_restart();
                }
            }
        }
    }

    /// Starts a data process. A thread sends its sockets, as it may take them slowly, and hears what it says.
    fn spawn(&self) -> io::Result<Started> {
        let (ours, theirs) = Channel::pair()?;
        // /proc/self/exe is this very binary, even if another one was installed over it meanwhile.
        let child =
            Child::spawn_unprivileged(&mut command(Path::new("/proc/self/exe"), DATA_COMMAND, theirs))?;
        let held = self.held.clone();
        attend(child, ours, move |attended, hear| held.attend(attended, hear))
    }

    /// Waits for the child's end, while passing on what signals ask for, and to the service manager what it says.
    async fn watch(&mut self, started: Started, signals: &mut Signals) -> io::Result<(Exit, Option<Stop>)> {
        let Started { child, attended, mut heard, serves } = started;
        let (stop, interrupted, kill_at) = (None, false, Instant::now());
        let mut watched = Watched { child, attended, serves, stop, interrupted, kill_at, upgrade: None };
        loop {
            self.reap();
            if let Some(status) = watched.child.try_wait()? {
                self.refuse(&mut watched, vec!["the data process died meanwhile; try again".to_owned()]);
                return Ok((exit_of(status), watched.stop));
            }
            let next_kill = self.next_kill();
            let Watched { stop, kill_at, upgrade, .. } = &mut watched;
            tokio::select! {
                Some(said) = heard.recv() => self.hear(said, &mut watched),
                ask = signals.next() => match ask {
                    // Seen above.
                    Ask::Child => {}
                    Ask::HangUp => {
                        self.notify.reloading();
                        tracing::info!("SIGHUP: the configuration and its certificates are read anew");
                        self.pass_on(Signal::HangUp, &watched);
                    }
                    Ask::User1 => self.reopen_logs(&mut watched),
                    Ask::User2 => {
                        tracing::info!(program = %self.program.display(), "SIGUSR2: the binary that is there is to take over");
                        self.pass_on(Signal::User2, &watched);
                    }
                    Ask::Interrupt | Ask::Terminate => self.stop(ask, &mut watched),
                },
                step = next_step(upgrade) => self.advance(step, &mut watched),
                () = tokio::time::sleep_until(*kill_at), if *stop == Some(Stop::Draining) => {
                    tracing::error!("the data process is past the drain deadline: killing it");
                    signal(&watched.child, Signal::Kill);
                    watched.stop = Some(Stop::Killed);
                }
                () = tokio::time::sleep_until(next_kill), if !self.leaving.is_empty() => self.kill_late(),
            }
        }
    }

    /// What the data process says.
    fn hear(&mut self, said: Said, watched: &mut Watched) {
        if matches!(said, Said::Ready) {
            watched.serves = true;
            for waited in std::mem::take(&mut self.waiting) {
                signal(&watched.child, waited);
            }
        }
        match said {
            Said::Alive => self.notify.alive(),
            Said::Ready if watched.stop.is_none() => self.notify.ready(),
            Said::Ready => {}
            Said::TicketKeys(keys) => self.held.keep_ticket_keys(keys),
            Said::Asked(Question { number, ask: requests::Ask::Upgrade }) => self.begin(number, watched),
            Said::Asked(question) => {
                let (held, attended) = (self.held.clone(), watched.attended.clone());
                let answer = move || held.answer(&attended, question);
                let started = succession::without_signals(|| {
                    std::thread::Builder::new().name("answer".into()).spawn(answer)
                });
                if let Err(error) = started {
                    let problem = format!("cannot start a thread: {error}; try again");
                    watched.attended.tell(question.number, Content::Refused(vec![problem]));
                }
            }
        }
    }

    /// Passes a signal on to the data process, to one that starts when it serves.
    fn pass_on(&mut self, asked: Signal, watched: &Watched) {
        if watched.serves {
            signal(&watched.child, asked);
        } else {
            signals::keep(&mut self.waiting, asked);
        }
    }

    /// Has whoever writes an access log open its file anew: also those that leave, whose last lines are to come.
    fn reopen_logs(&mut self, watched: &mut Watched) {
        self.pass_on(Signal::User1, watched);
        self.leaving.iter().for_each(|leaving| signal(&leaving.child, Signal::User1));
        if let Some(Upgrade { stage: Stage::Starting(candidate), .. }) = &mut watched.upgrade {
            candidate.reopens_log = true;
        }
    }

    fn stop(&mut self, ask: Ask, watched: &mut Watched) {
        let again = ask == Ask::Interrupt && watched.interrupted;
        watched.interrupted |= ask == Ask::Interrupt;
        if watched.stop.is_none() {
            tracing::info!("told to stop: draining");
            self.refuse(watched, vec![DRAINING.to_owned()]);
            self.held.close();
            signal(&watched.child, Signal::Terminate);
            let within = self.held.drain_deadline() + DRAIN_SLACK;
            self.notify.stopping(within + FLUSH_TIMEOUT);
            watched.kill_at = Instant::now() + within;
            watched.stop = Some(Stop::Draining);
        } else if again {
            tracing::warn!("interrupted again: ending without waiting");
            for child in self.leaving.iter().map(|leaving| &leaving.child).chain([&watched.child]) {
                signal(child, Signal::Kill);
            }
            watched.stop = Some(Stop::Killed);
        }
    }

    /// Begins an upgrade, as the data process asks for.
    fn begin(&mut self, question: u64, watched: &mut Watched) {
        let begun = match self.held.estate() {
            _ if watched.upgrade.is_some() => Err("an upgrade is under way already; wait for it".to_owned()),
            Some((estate, sockets)) if watched.stop.is_none() => {
                Upgrade::begin(question, &self.program, estate, sockets).map_err(|error| {
                    format!("{}: cannot be run: {error}; install it anew", self.program.display())
                })
            }
            _ => Err(DRAINING.to_owned()),
        };
        match begun {
            Ok(upgrade) => watched.upgrade = Some(upgrade),
            Err(problem) => watched.attended.tell(question, Content::Refused(vec![problem])),
        }
    }

    fn advance(&mut self, step: Step, watched: &mut Watched) {
        let problems = match step {
            Step::Planned(Ok(plan)) => {
                let version = plan.version.clone();
                match Candidate::start(&self.program, DATA_COMMAND, plan) {
                    Ok(candidate) => {
                        tracing::info!(version, "upgrade: the data process of the new binary is started");
                        let question = watched.upgrade.as_ref().map_or(0, |upgrade| upgrade.question);
                        let started = Upgrade { question, stage: Stage::Starting(candidate) };
                        if let Some(planned) = watched.upgrade.replace(started) {
                            self.leave(planned.into_child(), END_TIMEOUT);
                        }
                        return;
                    }
                    Err(error) => vec![format!("{}: cannot be run: {error}", self.program.display())],
                }
            }
            Step::Planned(Err(problems)) => problems,
            Step::Failed(problem) => vec![problem],
            Step::Ready => {
                if let Some(Upgrade { stage: Stage::Starting(candidate), .. }) = &watched.upgrade
                    && candidate.reopens_log
                {
                    signal(&candidate.child, Signal::User1);
                }
                let error = self.hand_over(watched);
                vec![format!("{}: cannot take this one's place: {error}", self.program.display())]
            }
        };
        self.refuse(watched, problems);
    }

    /// Ends an upgrade, if there is one: nothing of it stays.
    fn refuse(&mut self, watched: &mut Watched, problems: Vec<String>) {
        let Some(upgrade) = watched.upgrade.take() else { return };
        watched.attended.tell(upgrade.question, Content::Refused(problems));
        let within = match upgrade.stage {
            Stage::Planning { .. } => END_TIMEOUT,
            // It may serve already, and drains then.
            Stage::Starting(_) => self.held.drain_deadline() + DRAIN_SLACK,
        };
        let child = upgrade.into_child();
        signal(&child, Signal::Terminate);
        self.leave(child, within);
    }

    fn leave(&mut self, child: Child, within: Duration) {
        self.leaving.push(Leaving { child, kill_at: Instant::now() + within });
    }

    /// Forgets those that have ended.
    fn reap(&mut self) {
        self.leaving.retain_mut(|Leaving { child, .. }| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                tracing::info!(process = child.id(), ended = %exit_of(status), "a process has left");
                false
            }
            Err(_) => false,
        });
    }

    fn next_kill(&self) -> Instant {
        self.leaving.iter().map(|leaving| leaving.kill_at).min().unwrap_or_else(Instant::now)
    }

    fn kill_late(&mut self) {
        let now = Instant::now();
        for leaving in self.leaving.iter_mut().filter(|leaving| leaving.kill_at <= now) {
            tracing::warn!(process = leaving.child.id(), "a process did not end in time: killing it");
            signal(&leaving.child, Signal::Kill);
            leaving.kill_at = now + END_TIMEOUT;
        }
    }

    /// Waits for those that leave.
    async fn see_off(&mut self, signals: &mut Signals) {
        let mut interrupted = false;
        loop {
            self.reap();
            if self.leaving.is_empty() {
                return;
            }
            tokio::select! {
                ask = signals.next() => {
                    let passed_on = match ask {
                        Ask::User1 => Signal::User1,
                        Ask::Interrupt if std::mem::replace(&mut interrupted, true) => Signal::Kill,
                        _ => continue,
                    };
                    self.leaving.iter().for_each(|leaving| signal(&leaving.child, passed_on));
                }
                () = tokio::time::sleep_until(self.next_kill()) => self.kill_late(),
            }
        }
    }
}

/// Starts the thread that hears what a data process says.
fn attend(
    child: Child,
    channel: Channel,
    listen: impl FnOnce(&Attended, &mpsc::UnboundedSender<Said>) + Send + 'static,
) -> io::Result<Started> {
    let attended = Arc::new(Attended::new(channel));
    let (hear, heard) = mpsc::unbounded_channel();
    let attending = attended.clone();
    let run = move || listen(&attending, &hear);
    succession::without_signals(|| std::thread::Builder::new().name("attendant".into()).spawn(run))?;
    Ok(Started { child, attended, heard, serves: false })
}

async fn next_step(upgrade: &mut Option<Upgrade>) -> Step {
    match upgrade {
        Some(upgrade) => upgrade.next().await,
        None => std::future::pending().await,
    }
}

fn notify() -> Result<Notify, String> {
    Notify::from_env().map_err(|error| format!("the service manager cannot be told: {error}"))
}

fn program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("cannot tell where this binary is: {error}; mount /proc"))
}

fn signal(child: &Child, signal: Signal) {
    if let Err(error) = child.signal(signal) {
        tracing::warn!(%error, ?signal, process = child.id(), "a process cannot be signalled");
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    status.signal().map_or_else(|| Exit::Code(status.code().unwrap_or(-1)), Exit::Signal)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
