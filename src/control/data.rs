//! The data process: takes its sockets from the supervisor, starts the workers, then is the control thread: admin,
//! names, signals, drain. Never touches a client's bytes.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::admin::{Admin, Phase, State};
use super::handover::{self, Facts, Sockets};
use super::health::Health;
use super::log::Log;
use super::requests::Supervisor;
use super::{Outcome, banner, log};
use crate::base::byte_ring::Producer;
use crate::config::{Config, WorkersSpec};
use crate::metrics::shard::Share;
use crate::metrics::{Shard, WorkerFacts};
use crate::proxy::context::Compiled;
use crate::proxy::outcome::Termination;
use crate::proxy::snapshot::Snapshot;
use crate::runtime::Runtime;
use crate::sys::fd_passing::Channel;
use crate::sys::{affinity, listeners, process, random, rlimit};
use crate::worker::{self, EngineChoice, EngineReport, Handle, Message, Plan, RingSizes};

mod live;
mod names;
pub mod reload;
mod sampling;
mod tls;

use live::{Live, Signals};
use names::{Resolving, first_answers};
use reload::{Reloader, Requests};
use sampling::Sampling;
use tls::LiveTls;

/// File descriptors kept back for what is neither a connection nor a listener: rings, timers, admin, log, names.
pub const DESCRIPTORS_RESERVED: u64 = 128;
/// A proxied connection has one towards the client and one towards the endpoint.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// Of each worker: one to accept from, and a copy for the others to take from.
const SOCKETS_PER_LISTENER: u64 = 2;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The hidden subcommand of the data process.
pub fn run() -> Outcome {
    process::map_large_memory();
    log::abort_on_panic();
    // They are for the supervisor, which passes them on later; but a terminal that closes, or a service manager that is not told
    // whom to signal, sends them to every process.
    process::ignore_hang_up();
    process::set_thread_name(c"ringfort-data");
    let (facts, sockets, channel) = match take_over() {
        Ok(taken) => taken,
        Err(error) => {
            eprintln!("ringfort: the data process is started by \"ringfort run\" only: {error}");
            return Outcome::CouldNotRun;
        }
    };
    match start(facts, sockets, channel) {
        Ok(outcome) => outcome,
        Err(text) => {
            eprintln!("ringfort: {}", text.trim_end());
            Outcome::CouldNotRun
        }
    }
}

fn take_over() -> io::Result<(Facts, Sockets, Channel)> {
    let channel = Channel::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (facts, sockets) = handover::receive::<Facts>(&channel)?;
    process::die_with_parent(facts.supervisor)?;
    Ok((facts, sockets, channel))
}

fn start(facts: Facts, sockets: Sockets, channel: Channel) -> Result<Outcome, String> {
    let mut config = facts.source.parse()?;
    let log = log::init().map_err(|error| format!("cannot start the log: {error}"))?;
    let nofile =
        rlimit::raise_nofile().map_err(|error| format!("cannot read the limit of open files: {error}"))?;
    let supervisor = Supervisor::new(channel, facts.cpus.len())
        .map_err(|error| format!("cannot speak to the supervisor: {error}"))?;
    let machine = Machine {
        nofile: nofile.soft,
        workers: facts.cpus.len() as u64,
        admin_listeners: 1 + sockets.admin_unix.iter().len() as u64,
    };
    let wanted = config.snapshot.limits.connections_max;
    machine.hold(&mut config);
    let connections_max = config.snapshot.limits.connections_max;
    if wanted > connections_max {
        tracing::info!(
            wanted,
            connections_max,
            nofile = nofile.soft,
            "connections of a worker are held to what open files allow, two for each proxied connection; raise \
             LimitNOFILE= or ulimit -Hn for more"
        );
    }
    let reloader = Arc::new(Reloader { supervisor: Arc::new(supervisor), machine });
    tell_machine(&config, nofile);
    prove_socket_options(&mut config.snapshot);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the control thread: {error}"))?;
    let outcome = runtime.block_on(control(facts, sockets, config, &log, reloader));
    log.flush(FLUSH_TIMEOUT);
    outcome
}

/// Connections of one worker that `nofile` descriptors allow beside `listening` sockets.
pub fn connections_ceiling(nofile: u64, listening: u64, workers: u64) -> u32 {
    let left = nofile.saturating_sub(DESCRIPTORS_RESERVED).saturating_sub(listening);
    u32::try_from((left / (DESCRIPTORS_PER_CONNECTION * workers.max(1))).max(1)).unwrap_or(u32::MAX)
}

/// What of this machine bounds every configuration.
struct Machine {
    /// Soft limit of open files.
    nofile: u64,
    workers: u64,
    admin_listeners: u64,
}

impl Machine {
    /// Lowers the promise of connections, also where it is shown, to what can be kept, and shares out what is allowed to
    /// all workers together. To be called once for a configuration.
    fn hold(&self, config: &mut Config) {
        let workers = u32::try_from(self.workers).unwrap_or(u32::MAX);
        config.snapshot.clusters.iter_mut().for_each(|cluster| cluster.retry.share_out(workers));
        let listening = config.snapshot.listeners.len() as u64 * self.workers * SOCKETS_PER_LISTENER
            + self.admin_listeners;
        let ceiling = connections_ceiling(self.nofile, listening, self.workers);
        if config.snapshot.limits.connections_max > ceiling {
            config.snapshot.limits.connections_max = ceiling;
            config.effective["limits"]["connections_max"] = ceiling.into();
        }
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
    config: Config,
    log: &Log,
    reloader: Arc<Reloader>,
) -> Result<Outcome, String> {
    let signals = Signals::new().map_err(|error| format!("cannot take signals: {error}"))?;
    if let Some(every) = facts.alive_every {
        reloader.supervisor.keep_saying_alive(every);
    }
    let banner = banner::Addresses::of(&config.snapshot, &sockets, facts.admin_socket.as_deref());
    let snapshot = Arc::new(config.snapshot);
    let (steal, host) = (config.steal, config.host);
    let (shards, shares) = shards(&snapshot, facts.cpus.len());
    let (requests, asked) = Requests::new();
    let state = State::new(shards, config.effective, Some(log.clone()), &facts, reloader.machine.nofile);
    let state = Arc::new(state.with_requests(requests));
    let Sockets { listeners, admin_tcp, admin_unix } = sockets;
    let mut unserved = Some((admin_tcp, admin_unix));
    // Who takes over from another one leaves them to it until it serves itself.
    let admin = if facts.succeeds { None } else { serve_admin(&mut unserved, &state)? };

    // Before names are looked up, which may take seconds: what is wrong with a file is told at once.
    let (live_tls, tls) = LiveTls::open(&snapshot, &state, &reloader.supervisor, facts.ticket_keys.as_ref())?;
    let (engine, ring) = engine(&config.workers)?;
    let (access_log, rings) = start_access_log(&snapshot, &facts)?;
    // Connections wait in the accept queues until there are addresses to go to, and workers to take them.
    let (names, known) = look_up(&snapshot).await;
    let health = Health::start(&snapshot, &tls, &known, &state);
    let groups = groups(&listeners, facts.cpus.len())?;
    let (compiled, tls, addresses) = (Compiled::new(snapshot.clone()), Arc::new(tls), Arc::new(known));
    let parts = facts.cpus.iter().zip(shares).zip(rings).enumerate();
    let plans = parts.map(|(index, ((cpu, share), access_log))| Plan {
        index: index as u32,
        cpu: Some(*cpu),
        engine,
        compiled: compiled.clone(),
        tls: tls.clone(),
        addresses: addresses.clone(),
        shard: state.shards()[index].clone(),
        share,
        seed: random::seed(),
        ring,
        steal,
        access_log,
    });
    let (handles, reports) = start_workers(plans)?;
    accept(&handles, listeners, &snapshot)?;
    announce(&facts, &state, &reports, &banner);
    let admin = serve_admin(&mut unserved, &state)?.or(admin);
    give_way(facts.cpus.len());
    let measured = reports.iter().zip(&facts.cpus).zip(state.shards());
    let measured = measured.map(|((report, cpu), shard)| (*cpu, report.thread, shard.clone())).collect();
    let sampling = Sampling::new(host, measured, groups, steal, &snapshot);
    let live = Live {
        handles,
        snapshot,
        names,
        health,
        access_log,
        tls: live_tls,
        sampling,
        reloader,
        asked,
        admin,
    };
    Ok(live.serve(&facts, &state, signals).await)
}

/// The engine that is asked for, and that can be had.
fn engine(workers: &WorkersSpec) -> Result<(EngineChoice, RingSizes), String> {
    let ring = RingSizes::new(workers.ring.entries, workers.ring.recv_buffers);
    probe(workers.engine, ring)?;
    Ok((workers.engine, ring))
}

/// Begins to look names up, and waits a moment for the first answers: by cluster, addresses found for its names.
async fn look_up(snapshot: &Snapshot) -> (Resolving, Vec<Option<Vec<SocketAddr>>>) {
    let mut names = Resolving::new();
    let (fresh, first) = names.begin(snapshot);
    first_answers(first).await;
    let known = names.go_on(fresh, snapshot);
    (names, known)
}

/// Starts the workers, and waits until they can serve.
fn start_workers(plans: impl Iterator<Item = Plan>) -> Result<(Vec<Handle>, Vec<EngineReport>), String> {
    let started: io::Result<Vec<Handle>> = plans.map(worker::spawn).collect();
    let handles = started.map_err(|error| format!("cannot start a worker thread: {error}"))?;
    let reports = ready(&handles)?;
    Ok((handles, reports))
}

/// Has every worker accept from its sockets, which all listen from now on: those of a data process before this one do so
/// already.
fn accept(handles: &[Handle], listeners: Vec<Vec<TcpListener>>, snapshot: &Snapshot) -> Result<(), String> {
    for (listener, sockets) in snapshot.listeners.iter().zip(&listeners) {
        // In the order of the workers, which are counted so where connections are led to them.
        let listen = sockets.iter().try_for_each(|socket| listeners::listen(socket, listener.backlog));
        listen.map_err(|error| format!("listener \"{}\": cannot listen: {error}", listener.name))?;
    }
    let by_worker = live::by_worker(listeners.into_iter().map(Some).collect(), handles.len());
    for (handle, queues) in handles.iter().zip(by_worker) {
        handle.send(Message::Begin(queues.into_iter().map(Option::unwrap_or_default).collect()));
    }
    Ok(())
}

/// Serves the admin endpoints, if they are not served yet.
fn serve_admin(
    unserved: &mut Option<(TcpListener, Option<UnixListener>)>,
    state: &Arc<State>,
) -> Result<Option<Admin>, String> {
    let admin = unserved.take().map(|(tcp, unix)| Admin::serve(tcp, unix, state)).transpose();
    admin.map_err(|error| format!("cannot serve the admin endpoints: {error}"))
}

/// A copy of one socket of each listener, for what is done to its whole group; and whether some group is larger than the
/// number of workers.
fn groups(
    listeners: &[Vec<TcpListener>],
    workers: usize,
) -> Result<(Vec<Option<TcpListener>>, bool), String> {
    let firsts = listeners.iter().map(|sockets| sockets.first());
    let copies: io::Result<Vec<_>> =
        firsts.map(|first| first.map(TcpListener::try_clone).transpose()).collect();
    let copies = copies.map_err(|error| format!("cannot copy the listeners: {error}; raise LimitNOFILE="))?;
    Ok((copies, listeners.iter().any(|sockets| sockets.len() > workers)))
}

/// With a ring for each worker. A log that the operator wants and cannot have is no way to start, nor to take over. After a
/// crash a refusal would serve nobody.
fn start_access_log(
    snapshot: &Snapshot,
    facts: &Facts,
) -> Result<(AccessLog, Vec<Option<Producer>>), String> {
    let mut access_log = AccessLog::default();
    let target = snapshot.access_log.as_ref().map(|spec| &spec.target);
    match access_log.follow(target) {
        Err(problem) if facts.restarts > 0 && !facts.succeeds => {
            tracing::error!("{problem}; then send SIGUSR1: nothing is logged until then");
            access_log.await_target(target);
        }
        followed => followed?,
    }
    let rings = access_log.rings(snapshot.access_log.as_deref(), facts.cpus.len());
    Ok((access_log, rings))
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

/// A shard for each worker, and what it counts of the snapshot in.
fn shards(snapshot: &Snapshot, workers: usize) -> (Vec<Arc<Shard>>, Vec<Share>) {
    let shard = |worker| Arc::new(Shard::new(worker, &[], &[], Termination::WORDS));
    let shards: Vec<Arc<Shard>> = (0..workers as u32).map(shard).collect();
    let shares = shards.iter().map(|shard| share(shard, snapshot)).collect();
    (shards, shares)
}

fn share(shard: &Shard, snapshot: &Snapshot) -> Share {
    let listeners = snapshot.listeners.iter().map(|listener| &*listener.name);
    shard.share(listeners, snapshot.clusters.iter().map(|cluster| &*cluster.name))
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
        tracing::info!(
            engine = report.engine,
            why = report.why,
            cpus,
            restarts = facts.restarts,
            upgrades = facts.upgrades,
            "serving"
        );
        if facts.restarts == 0 && facts.upgrades == 0 {
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
        let held = |nofile| {
            let mut config = config::embedded_default();
            Machine { nofile, workers: 2, admin_listeners: 2 }.hold(&mut config);
            config
        };
        assert_eq!(held(1 << 20).effective["limits"]["connections_max"], 32_768);
        assert_eq!(held(1_024).snapshot.limits.connections_max, 222);
        assert_eq!(held(1_024).effective["limits"]["connections_max"], 222);
    }

    #[test]
    fn retries_that_are_always_allowed_are_those_of_all_workers() {
        let text = "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\n[[route]]\ncluster = \"site\"\n\
            [[cluster]]\nname = \"site\"\nendpoints = [\"192.0.2.1:9\"]\n[cluster.retry]\nbudget_min_per_s = 12\n";
        let (mut config, _) = config::parse("test.toml", text).expect("a configuration");
        Machine { nofile: 1 << 20, workers: 4, admin_listeners: 2 }.hold(&mut config);
        assert_eq!(config.snapshot.clusters[0].retry.budget_min_per_s, 3);
    }
}
