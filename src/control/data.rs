//! The data process: takes its sockets from the supervisor, starts the workers, then is the control thread: admin,
//! names, signals, drain. Never touches a client's bytes.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::access_log::AccessLog;
use super::admin::{self, Phase, State};
use super::handover::{self, Facts, Sockets};
use super::log::Log;
use super::resolve::{FIRST_LOOKUP_TIMEOUT, Names};
use super::steal::{Sampler, Steering};
use super::words::{self, Mouth, Word};
use super::{Outcome, banner, log};
use crate::config::Config;
use crate::metrics::{Shard, WorkerFacts};
use crate::proxy::outcome::Termination;
use crate::proxy::snapshot::Snapshot;
use crate::runtime::Runtime;
use crate::steal::{Mode, SAMPLE_INTERVAL};
use crate::sys::fd_passing::Channel;
use crate::sys::{affinity, clock, process, random, rlimit};
use crate::worker::view::Question;
use crate::worker::{self, EngineChoice, EngineReport, Handle, Message, Plan, RingSizes};

mod tls;

use tls::LiveTls;

/// File descriptors kept back for what is neither a connection nor a listener: rings, timers, admin, log, names.
pub const DESCRIPTORS_RESERVED: u64 = 128;
/// A proxied connection has one towards the client and one towards the endpoint.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// How often workers are looked at: seldom while they serve, often while their end is awaited.
const LOOK_SERVING: Duration = Duration::from_secs(1);
const LOOK_DRAINING: Duration = Duration::from_millis(5);
/// What a worker may take beyond the drain deadline.
const DRAIN_SLACK: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The hidden subcommand of the data process.
pub fn run() -> Outcome {
    log::abort_on_panic();
    // The supervisor passes it on as soon as there is a process: whose files are read in a moment anyway.
    process::ignore_hang_up();
    process::set_thread_name(c"ringfort-data");
    let (facts, sockets, supervisor) = match take_over() {
        Ok(taken) => taken,
        Err(error) => {
            eprintln!("ringfort: the data process is started by \"ringfort run\" only: {error}");
            return Outcome::CouldNotRun;
        }
    };
    match start(facts, sockets, supervisor) {
        Ok(outcome) => outcome,
        Err(text) => {
            eprintln!("ringfort: {}", text.trim_end());
            Outcome::CouldNotRun
        }
    }
}

/// The supervisor, and how often it wants a sign of life.
type Supervisor = (Mouth, Option<Duration>);

fn take_over() -> io::Result<(Facts, Sockets, Supervisor)> {
    let channel = Channel::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (facts, sockets) = handover::receive(&channel)?;
    let supervisor = words::receive(&channel)?;
    process::die_with_parent(facts.supervisor)?;
    process::forbid_new_privileges()?;
    Ok((facts, sockets, supervisor))
}

fn start(facts: Facts, sockets: Sockets, supervisor: Supervisor) -> Result<Outcome, String> {
    let mut config = facts.source.parse()?;
    let log = log::init().map_err(|error| format!("cannot start the log: {error}"))?;
    let nofile =
        rlimit::raise_nofile().map_err(|error| format!("cannot read the limit of open files: {error}"))?;
    let listening = sockets.workers.iter().map(Vec::len).sum::<usize>() + 1 + sockets.admin_unix.iter().len();
    let ceiling = connections_ceiling(nofile.soft, listening as u64, facts.cpus.len() as u64);
    hold_connections_to(ceiling, &mut config, nofile.soft);
    tell_machine(&config, nofile);
    prove_socket_options(&mut config.snapshot);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(16).build();
    let runtime = runtime.map_err(|error| format!("cannot start the control thread: {error}"))?;
    let outcome = runtime.block_on(control(facts, sockets, supervisor, config, &log, nofile.soft));
    log.flush(FLUSH_TIMEOUT);
    // A look-up of a name may hang for long: it ends with the process.
    runtime.shutdown_background();
    outcome
}

/// Connections of one worker that `nofile` descriptors allow beside `listening` sockets.
pub fn connections_ceiling(nofile: u64, listening: u64, workers: u64) -> u32 {
    let left = nofile.saturating_sub(DESCRIPTORS_RESERVED).saturating_sub(listening);
    u32::try_from((left / (DESCRIPTORS_PER_CONNECTION * workers.max(1))).max(1)).unwrap_or(u32::MAX)
}

/// Lowers the promise of connections, also where it is shown, to what can be kept.
fn hold_connections_to(ceiling: u32, config: &mut Config, nofile: u64) {
    let wanted = config.snapshot.limits.connections_max;
    if wanted > ceiling {
        tracing::info!(
            wanted,
            connections_max = ceiling,
            nofile,
            "connections of a worker are held to what open files allow, two for each proxied connection; raise \
             LimitNOFILE= or ulimit -Hn for more"
        );
        config.snapshot.limits.connections_max = ceiling;
        config.effective["limits"]["connections_max"] = ceiling.into();
    }
}

/// Leaves out what this kernel refuses to sockets, and tells it once.
fn prove_socket_options(snapshot: &mut Snapshot) {
    let listeners = snapshot.listeners.iter_mut().map(|it| ("listener", &it.name, &mut it.socket));
    let clusters = snapshot.clusters.iter_mut().map(|it| ("cluster", &it.name, &mut it.socket));
    for (kind, name, socket) in listeners.chain(clusters) {
        for refusal in socket.prove() {
            tracing::warn!("{kind} \"{name}\": {refusal}; the kernel's own serves until then");
        }
    }
}

fn tell_machine(config: &Config, nofile: rlimit::Limit) {
    let kernel = process::kernel_release(&config.host.procfs).unwrap_or_default();
    let memlock = rlimit::memlock().map_or(0, |limit| limit.soft);
    let quota = affinity::cpu_quota(&config.host.procfs, &config.host.cgroupfs);
    tracing::info!(kernel, nofile = nofile.soft, memlock, cpu_quota = quota, "data process started");
}

/// Everything after the start, on the control thread.
async fn control(
    facts: Facts,
    sockets: Sockets,
    (supervisor, alive_every): Supervisor,
    config: Config,
    log: &Log,
    descriptors_max: u64,
) -> Result<Outcome, String> {
    let mut signals = Signals::new().map_err(|error| format!("cannot take signals: {error}"))?;
    if let Some(every) = alive_every {
        supervisor.keep_saying_alive(every);
    }
    let workers_count = sockets.workers.len();
    let banner = banner::Addresses::of(&config.snapshot, &sockets, facts.admin_socket.as_deref());
    let snapshot = Arc::new(config.snapshot);
    let (steal, host) = (config.steal, config.host);
    let shards = shards(&snapshot, workers_count);
    let state =
        Arc::new(State::new(shards, config.effective, Some(log.clone()), facts.restarts, descriptors_max));
    admin::serve(sockets.admin_tcp, sockets.admin_unix, &state)
        .map_err(|error| format!("cannot serve the admin endpoints: {error}"))?;

    // Before names are looked up, which may take seconds: what is wrong with a file is told at once.
    let (live_tls, tls) = LiveTls::open(&snapshot, &state)?;
    let ring = RingSizes::new(config.workers.ring.entries, config.workers.ring.recv_buffers);
    let engine = config.workers.engine;
    probe(engine, ring)?;
    let access_log = start_access_log(&snapshot, facts.restarts)?;
    // Workers accept as soon as they run: connections wait in the accept queues until there are addresses to go to.
    let mut endpoints = resolve(&snapshot).await;
    let steering = Steering::new(sockets.workers.first().map_or(&[], Vec::as_slice));
    let plans =
        sockets.workers.into_iter().zip(&facts.cpus).enumerate().map(|(index, (listeners, cpu))| Plan {
            index: index as u32,
            cpu: Some(*cpu),
            engine,
            listeners: (0..).zip(listeners).collect(),
            snapshot: snapshot.clone(),
            tls: tls.clone(),
            shard: state.shards()[index].clone(),
            seed: random::seed(),
            ring,
            steal,
            access_log: access_log.announce(),
        });
    let started: io::Result<Vec<Handle>> = plans.map(worker::spawn).collect();
    let handles = started.map_err(|error| format!("cannot start a worker thread: {error}"))?;
    let reports = ready(&handles)?;
    while let Ok((cluster, addresses)) = endpoints.try_recv() {
        tell_endpoints(&handles, cluster, &addresses);
    }
    announce(&facts, &state, &reports, &banner);
    give_way(facts.cpus.len());
    let workers = reports.iter().zip(&facts.cpus).zip(state.shards());
    let workers = workers.map(|((report, cpu), shard)| (*cpu, report.thread, shard.clone())).collect();
    let handshakes_max = snapshot.limits.handshakes_per_turn_max;
    let sampler =
        (steal.mode != Mode::Off).then(|| Sampler::new(steal, &host, workers, steering, handshakes_max));
    let live = Live { handles, endpoints, tls: live_tls, sampler, supervisor, access_log };
    Ok(serve(&facts, &state, live, &mut signals, snapshot.drain.deadline).await)
}

/// A log that the operator wants and cannot have is no way to start. After a crash a refusal would serve nobody.
fn start_access_log(snapshot: &Snapshot, restarts: u32) -> Result<AccessLog, String> {
    let mut access_log = AccessLog::default();
    let target = snapshot.access_log.as_ref().map(|spec| &spec.target);
    match access_log.follow(target) {
        Err(problem) if restarts > 0 => {
            tracing::error!("{problem}; then send SIGUSR1: nothing is logged until then");
            access_log.await_target(target);
        }
        followed => followed?,
    }
    Ok(access_log)
}

/// Tells at once where the engine that the configuration insists on cannot be had: names may take seconds.
fn probe(engine: EngineChoice, ring: RingSizes) -> Result<(), String> {
    if engine == EngineChoice::Auto {
        return Ok(());
    }
    // On a thread of its own, as in a worker.
    let probe = std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || Runtime::new(engine, ring).map(drop).map_err(|error| error.to_string()));
    let probe = probe.map_err(|error| format!("cannot start a thread: {error}"))?;
    probe.join().unwrap_or_else(|_| Err("the engine's probe panicked".into()))
}

fn shards(snapshot: &Snapshot, workers: usize) -> Vec<Arc<Shard>> {
    let listeners: Vec<String> =
        snapshot.listeners.iter().map(|listener| listener.name.to_string()).collect();
    let clusters: Vec<String> = snapshot.clusters.iter().map(|cluster| cluster.name.to_string()).collect();
    let shard = |worker| Arc::new(Shard::new(worker, &listeners, &clusters, Termination::WORDS));
    (0..workers as u32).map(shard).collect()
}

/// Waits for every worker; the first that cannot start ends the process.
fn ready(handles: &[Handle]) -> Result<Vec<EngineReport>, String> {
    let reports = handles.iter().enumerate().map(|(index, handle)| {
        handle.ready().map_err(|cause| format!("worker {index} cannot start: {cause}"))
    });
    reports.collect()
}

fn announce(facts: &Facts, state: &State, reports: &[EngineReport], addresses: &banner::Addresses) {
    let workers = reports.iter().zip(&facts.cpus).enumerate().map(|(index, (report, cpu))| WorkerFacts {
        worker: index as u32,
        cpu: Some(*cpu),
        engine: report.engine,
    });
    state.set_workers(workers.collect());
    state.set_phase(Phase::Serving);
    if let Some(report) = reports.first() {
        let cpus = super::cpus::ranges(&facts.cpus);
        tracing::info!(engine = report.engine, why = report.why, cpus, restarts = facts.restarts, "serving");
        if facts.restarts == 0 {
            banner::print(addresses, report, &facts.cpus);
        }
    }
}

/// Where every CPU has a worker, the control thread shares one and lets the worker go first.
fn give_way(workers: usize) {
    let shares = affinity::allowed_cpus().is_ok_and(|allowed| workers >= allowed.len());
    if shares && let Err(error) = process::lower_priority() {
        tracing::info!(%error, "the control thread keeps its priority");
    }
}

/// Starts looking names up, and waits a moment for the first answers. They and all changes come from the receiver.
async fn resolve(snapshot: &Snapshot) -> UnboundedReceiver<(u16, Vec<std::net::SocketAddr>)> {
    let (changes, endpoints) = mpsc::unbounded_channel();
    let mut first = JoinSet::new();
    for (index, cluster) in (0..).zip(&snapshot.clusters) {
        if let Some(names) = Names::of(index, cluster) {
            let (looked_up, answer) = tokio::sync::oneshot::channel();
            tokio::spawn(keep_resolving(names, changes.clone(), looked_up));
            first.spawn(answer);
        }
    }
    let all = async { while first.join_next().await.is_some() {} };
    if tokio::time::timeout(FIRST_LOOKUP_TIMEOUT, all).await.is_err() {
        tracing::warn!("names of endpoints are slow to resolve: serving starts without them");
    }
    endpoints
}

async fn keep_resolving(
    mut names: Names,
    changes: UnboundedSender<(u16, Vec<std::net::SocketAddr>)>,
    looked_up: tokio::sync::oneshot::Sender<()>,
) {
    let cluster = names.cluster();
    let mut looked_up = Some(looked_up);
    while !changes.is_closed() {
        names.refresh(|addresses| drop(changes.send((cluster, addresses)))).await;
        looked_up.take().map(|looked_up| looked_up.send(()));
        tokio::time::sleep(names.pause()).await;
    }
}

fn tell_endpoints(handles: &[Handle], cluster: u16, addresses: &[std::net::SocketAddr]) {
    for handle in handles {
        handle.send(Message::Endpoints { cluster, addresses: addresses.to_vec() });
    }
}

/// Each worker answers by itself.
fn ask(handles: &[Handle], question: &Question) {
    for handle in handles {
        handle.send(Message::Question(question.clone()));
    }
}

/// What the control thread keeps an eye on.
struct Live {
    handles: Vec<Handle>,
    endpoints: UnboundedReceiver<(u16, Vec<std::net::SocketAddr>)>,
    tls: LiveTls,
    /// `None` where lost CPU time is not measured.
    sampler: Option<Sampler>,
    supervisor: Mouth,
    access_log: AccessLog,
}

/// Serves until every worker has ended.
async fn serve(
    facts: &Facts,
    state: &State,
    live: Live,
    signals: &mut Signals,
    drain_deadline: Duration,
) -> Outcome {
    let Live { handles, mut endpoints, mut tls, mut sampler, supervisor, mut access_log } = live;
    let mut questions = state.take_questions();
    supervisor.say(Word::Ready);
    let mut look = tokio::time::interval(LOOK_SERVING);
    let mut sample = tokio::time::interval(SAMPLE_INTERVAL);
    // A sample that is late is one sample: it speaks for the time since the last.
    sample.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = Signals::stop(&mut signals.terminate, &mut signals.interrupt) => break,
            () = state.asked_to_drain() => {
                // The supervisor must close its copies of the listeners, or connections would queue up in vain.
                if let Err(error) = process::send_signal(facts.supervisor, process::Signal::Terminate) {
                    tracing::warn!(%error, "the supervisor cannot be told of the drain");
                }
                break;
            }
            Some((cluster, addresses)) = endpoints.recv() => tell_endpoints(&handles, cluster, &addresses),
            _ = signals.hang_up.recv() => {
                tls.look(state, &handles, true);
                supervisor.say(Word::Ready);
            }
            _ = signals.user_1.recv() => access_log.reopen(),
            Some(question) = questions.recv() => ask(&handles, &question),
            _ = sample.tick(), if sampler.is_some() => {
                if let Some(sampler) = &mut sampler {
                    sampler.sample(state, &handles);
                }
            }
            _ = look.tick() => {
                if !sampler.as_mut().is_some_and(Sampler::postpones) {
                    tls.look(state, &handles, false);
                }
                if let Some(index) = handles.iter().position(Handle::finished) {
                    tracing::error!(worker = index, "a worker ended without being told to");
                    return Outcome::Problems;
                }
            }
        }
    }
    // With it go copies of listeners, which would keep them open.
    drop(sampler);
    state.set_phase(Phase::Draining);
    tracing::info!(deadline_ms = drain_deadline.as_millis() as u64, "draining");
    let deadline = clock::now() + drain_deadline;
    for handle in &handles {
        handle.send(Message::Drain { deadline });
    }
    while !handles.iter().all(Handle::finished) {
        if clock::now() > deadline + DRAIN_SLACK {
            tracing::error!("workers did not end by the drain deadline");
            return Outcome::Problems;
        }
        tokio::time::sleep(LOOK_DRAINING).await;
    }
    for handle in handles {
        handle.join();
    }
    access_log.finish(FLUSH_TIMEOUT);
    tracing::info!("drained");
    Outcome::Good
}

/// The signals a data process takes. A terminal sends some to both processes at once.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
    /// Held so that it does not end the process; the supervisor answers it.
    _user_2: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            _user_2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn stop(terminate: &mut Signal, interrupt: &mut Signal) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_worker_promises_no_more_connections_than_descriptors_allow() {
        assert_eq!(connections_ceiling(1_024, 4, 2), (1_024 - 128 - 4) / 4);
        assert_eq!(connections_ceiling(100, 4, 2), 1, "never none");
        assert_eq!(connections_ceiling(u64::MAX, 4, 2), u32::MAX);
    }

    #[test]
    fn a_lowered_promise_is_the_one_that_is_shown() {
        let mut config = config::embedded_default();
        hold_connections_to(u32::MAX, &mut config, 0);
        assert_eq!(config.effective["limits"]["connections_max"], 32_768);
        hold_connections_to(223, &mut config, 1_024);
        assert_eq!(config.snapshot.limits.connections_max, 223);
        assert_eq!(config.effective["limits"]["connections_max"], 223);
    }
}
