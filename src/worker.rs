//! One pinned thread: its sockets, its sessions, its share of everything. Takes new connections as long as its
//! limits allow, hands each to a session, counts how it ended. Shares nothing mutable: orders come by mailbox,
//! counts leave by its metric shard.

mod accept;
mod easing;
mod queues;
mod relief;
pub mod view;

use accept::Ports;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::base::byte_ring::Producer;
use crate::base::time::Instant;
use crate::metrics::shard::Share;
use crate::metrics::{Counter, Gauge, Histogram, Shard};
use crate::proxy::context::{Compiled, Context, Next};
use crate::proxy::handshakes::Refused;
pub use crate::proxy::tls::TlsMaterials;
pub use crate::runtime::{EngineChoice, RingSizes};
use crate::runtime::{Mailbox, MailboxWaker, Runtime};
use crate::steal;
use crate::sys::{affinity, process};
use crate::tls::{ClientMaterial, ServerMaterial, TicketKeys};
pub use easing::Ease;
pub use queues::Queues;

use easing::Easing;

/// How often idle upstream connections are looked over and gauges brought up to date.
const HOUSEKEEPING: Duration = Duration::from_millis(250);
/// The same for idle connections while the worker loses CPU time: they may stay a little longer.
const SWEEP_POSTPONED: Duration = Duration::from_secs(1);
/// What a session is taken to cost beside its buffers: its socket's slot, its task, its timer.
const SESSION_BYTES: usize = 1_024;

/// All that a worker is made from.
pub struct Plan {
    pub index: u32,
    /// The CPU to be pinned to; `None` leaves the thread to the scheduler.
    pub cpu: Option<usize>,
    pub engine: EngineChoice,
    pub compiled: Arc<Compiled>,
    pub tls: Arc<TlsMaterials>,
    /// By cluster: the addresses that names among its endpoints are known to have; `None` where it has no names.
    pub addresses: Arc<Vec<Option<Vec<SocketAddr>>>>,
    pub shard: Arc<Shard>,
    /// The parts of the shard that the snapshot's listeners and clusters count in.
    pub share: Share,
    pub seed: u64,
    pub ring: RingSizes,
    pub steal: steal::Spec,
    /// Where lines of its access log go.
    pub access_log: Option<Producer>,
}

/// Another configuration, as one worker gets it.
pub struct Reload {
    pub next: Next,
    /// By listener: what to accept from, where it does not go on with what the worker has.
    pub sockets: Vec<Option<Queues>>,
    pub steal: steal::Spec,
    /// Where lines go, with the first configuration that has an access log.
    pub access_log: Option<Producer>,
    /// Told when the worker serves it.
    pub done: tokio::sync::mpsc::UnboundedSender<()>,
}

/// What the control thread tells a worker. Listeners and clusters are named by their position in the configuration that
/// was sent last.
pub enum Message {
    /// Accept, from this worker's sockets of each listener. The first of all messages, sent once every worker can serve: where
    /// one cannot, none has taken anything.
    Begin(Vec<Queues>),
    /// Serve another configuration.
    Reload(Box<Reload>),
    /// Stop accepting, finish, end by the deadline.
    Drain { deadline: Instant },
    /// All addresses of one cluster, sorted.
    Endpoints { cluster: u16, addresses: Vec<SocketAddr> },
    /// All endpoints of one cluster that active checks found unhealthy.
    Unhealthy { cluster: u16, addresses: Vec<SocketAddr> },
    /// What a listener's new connections are served with from now on.
    ServerTls { listener: u16, material: Arc<ServerMaterial> },
    /// What a cluster's endpoints are spoken to with from now on.
    ClientTls { cluster: u16, material: Arc<ClientMaterial> },
    /// What to do less of from now on; counts for a second.
    Ease(Ease),
    /// The secrets of the next period.
    TicketKeys(Arc<TicketKeys>),
    /// To be answered at once.
    Question(view::Question),
}

/// The engine a worker ended up with.
#[derive(Clone, Debug)]
pub struct EngineReport {
    pub engine: &'static str,
    pub why: String,
    /// The worker's thread, as procfs names it.
    pub thread: u32,
}

/// A started worker.
pub struct Handle {
    thread: JoinHandle<()>,
    orders: Sender<Message>,
    started: Receiver<Result<(EngineReport, MailboxWaker), String>>,
    waker: OnceLock<MailboxWaker>,
}

/// Starts a worker on a thread of its own, named `worker-N`.
///
/// # Errors
/// When no thread can be made.
pub fn spawn(plan: Plan) -> std::io::Result<Handle> {
    let (orders, inbox) = mpsc::channel();
    let (report, started) = mpsc::channel();
    let name = format!("worker-{}", plan.index);
    let thread = std::thread::Builder::new().name(name).spawn(move || run(plan, inbox, &report))?;
    Ok(Handle { thread, orders, started, waker: OnceLock::new() })
}

impl Handle {
    /// Waits until the worker can serve. To be called once, before `send`.
    ///
    /// # Errors
    /// Why it cannot serve, with the cure.
    pub fn ready(&self) -> Result<EngineReport, String> {
        let started = self.started.recv().unwrap_or_else(|_| Err("the worker ended while it started".into()));
        let (report, waker) = started?;
        let _ = self.waker.set(waker);
        Ok(report)
    }

    pub fn send(&self, message: Message) {
        if self.orders.send(message).is_ok()
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    pub fn finished(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn join(self) {
        let _ = self.thread.join();
    }
}

fn run(plan: Plan, inbox: Receiver<Message>, report: &Sender<Result<(EngineReport, MailboxWaker), String>>) {
    if let Some(cpu) = plan.cpu
        && !affinity::pin(cpu)
    {
        tracing::warn!(
            worker = plan.index,
            cpu,
            "the worker could not be pinned to its CPU; it runs unpinned"
        );
    }
    // In the pinned thread: a ring belongs to the task that made it.
    let set_up = Runtime::new(plan.engine, plan.ring).and_then(|(runtime, engine)| {
        let (mailbox, waker) = Mailbox::new(&runtime)?;
        Ok((runtime, engine, mailbox, waker))
    });
    let (runtime, engine, mailbox, waker) = match set_up {
        Ok(set_up) => set_up,
        Err(error) => {
            let _ = report.send(Err(error.to_string()));
            return;
        }
    };
    let context = Context::new(runtime.clone(), plan.shard, plan.compiled, &plan.share, &plan.tls, plan.seed);
    plan.access_log.into_iter().for_each(|ring| context.access.connect(ring));
    set_objective(&context, plan.steal);
    // Before anything is accepted: requests may wait already.
    for (cluster, addresses) in (0..).zip(&*plan.addresses) {
        addresses.iter().for_each(|known| context.serving().upstreams.set_endpoints(cluster, known));
    }
    // What this configuration counts in and is made of goes when it goes.
    drop((plan.share, plan.tls, plan.addresses));
    let engine = EngineReport { engine: engine.engine.name(), why: engine.why, thread: process::thread_id() };
    let _ = report.send(Ok((engine, waker)));
    if let Err(error) = runtime.block_on(serve(context, mailbox, inbox)) {
        // The reactor itself failed: nothing on this thread can go on. The supervisor starts the process anew.
        panic!("the I/O engine failed: {error}");
    }
}

async fn serve(context: Rc<Context>, mailbox: Mailbox, inbox: Receiver<Message>) {
    let mut easing = Easing::new(context.serving().snapshot.limits.handshakes_per_turn_max);
    let mut ports = Ports::open(&context, Vec::new());
    let deadline = context.runtime.deadline();
    let mut housekeeping = Housekeeping::default();
    let mut drain_deadline = None;
    loop {
        match inbox.try_recv() {
            Ok(message) => {
                if let Message::Drain { deadline } = message {
                    drain_deadline = Some(deadline);
                }
                obey(&context, &mut ports, &mut easing, message);
                continue;
            }
            Err(TryRecvError::Empty) => {}
            // The control thread is gone, and with it the process.
            Err(TryRecvError::Disconnected) => return,
        }
        let now = context.runtime.now();
        easing.look(now, &ports, &context);
        housekeeping.run(&context, easing.postpones());
        if let Some(deadline) = drain_deadline {
            // The accept tasks end once their queues are empty; what is left then are sessions.
            if context.runtime.tasks() == 0 || now >= deadline {
                housekeeping.run(&context, false);
                // What is left now is cut off, and is to look so.
                context.runtime.cut_off();
                return;
            }
        }
        let pause = if drain_deadline.is_some() { Duration::from_millis(5) } else { HOUSEKEEPING };
        deadline.set(now + pause);
        let _ = deadline.within(mailbox.notified()).await;
    }
}

fn obey(context: &Rc<Context>, ports: &mut Ports, easing: &mut Easing, message: Message) {
    match message {
        Message::Begin(listeners) => *ports = Ports::open(context, listeners),
        Message::Reload(reload) => {
            let Reload { next, sockets, steal, access_log, done } = *reload;
            access_log.into_iter().for_each(|ring| context.access.connect(ring));
            context.change(&next);
            ports.change(context, &next.change, sockets);
            easing.change(context.serving().snapshot.limits.handshakes_per_turn_max, ports, context);
            set_objective(context, steal);
            let _ = done.send(());
        }
        Message::Drain { .. } => {
            context.drain();
            // Nothing new comes.
            easing.end(ports, context);
        }
        Message::Endpoints { cluster, addresses } => {
            context.serving().upstreams.set_endpoints(cluster, &addresses);
        }
        Message::Unhealthy { cluster, addresses } => {
            context.serving().upstreams.set_unhealthy(cluster, &addresses);
        }
        Message::ServerTls { listener, material } => context.set_server_tls(listener, &material),
        Message::ClientTls { cluster, material } => context.set_client_tls(cluster, &material),
        Message::Ease(ease) => easing.take(ease, context.runtime.now(), ports, context),
        Message::TicketKeys(keys) => context.set_ticket_keys(keys),
        Message::Question(question) => view::answer(context, question),
    }
}

fn set_objective(context: &Context, steal: steal::Spec) {
    context.door.set_objective(steal.latency_objective, steal.mode == steal::Mode::Act, &context.runtime);
}

/// What a worker does for itself now and then.
#[derive(Default)]
struct Housekeeping {
    swept: Instant,
    turns: u64,
    gaps: Duration,
    starved: u64,
    overflows: u64,
    stale: u64,
}

impl Housekeeping {
    fn run(&mut self, context: &Context, postpones: bool) {
        let now = context.runtime.now();
        let pause = if postpones { SWEEP_POSTPONED } else { HOUSEKEEPING };
        if context.is_draining() || now.since(self.swept) >= pause {
            self.swept = now;
            context.sweep_upstreams();
        }
        let serving = context.serving();
        serving.rate_limits.expire(now);
        for ejected in serving.upstreams.take_ejected() {
            let (cluster, endpoint) = (&*ejected.cluster, ejected.endpoint);
            let ejected_ms = ejected.duration.as_millis() as u64;
            let cause = ejected.cause;
            tracing::warn!(cluster, %endpoint, ejected_ms, cause, "endpoint ejected");
        }
        for Refused { listener, peer, error } in context.handshakes.take_refused() {
            let (listener, peer) = (listener.name(), peer.map(|peer| peer.to_string()));
            tracing::info!(listener, peer, %error, "a client was refused for its certificate");
        }
        for failed in serving.upstreams.take_tls_failed() {
            let (cluster, endpoint, error) = (&*failed.cluster, failed.endpoint, failed.error);
            tracing::warn!(cluster, %endpoint, error, "the TLS handshake with an endpoint failed");
        }
        for (cluster, endpoint) in serving.upstreams.take_floods() {
            tracing::warn!(cluster, %endpoint, "a connection was left: the endpoint flooded it with HTTP/2 frames");
        }
        let shard = &context.shard;
        context.access.count_lost(shard);
        if let Some(lines) = context.access.take_dropped(now) {
            tracing::warn!(
                lines,
                "lines of the access log were dropped: its reader or disk is too slow; sample them (access_log.rules), or raise access_log.buffer_bytes"
            );
        }
        let (turns, gap_max) = context.runtime.take_loop_facts();
        shard.add(Counter::LoopTurns, turns - std::mem::replace(&mut self.turns, turns));
        shard.set_max(Gauge::LoopGapMax, u64::try_from(gap_max.as_nanos()).unwrap_or(u64::MAX));
        let gaps = context.runtime.take_gaps(|gap| shard.observe(Histogram::LoopGap, gap));
        let grown = gaps - std::mem::replace(&mut self.gaps, gaps);
        shard.add(Counter::LoopGaps, u64::try_from(grown.as_nanos()).unwrap_or(u64::MAX));
        let stats = context.runtime.reactor_stats();
        let starved = stats.recv_starved;
        shard.add(Counter::BuffersStarved, starved - std::mem::replace(&mut self.starved, starved));
        let overflows = stats.completion_overflows;
        shard
            .add(Counter::CompletionOverflows, overflows - std::mem::replace(&mut self.overflows, overflows));
        shard.add(Counter::CompletionsStale, stats.stale - std::mem::replace(&mut self.stale, stats.stale));
        let (_, emptied) = context.runtime.queue_facts();
        let standing = now.since(emptied);
        shard.set(Gauge::QueueStanding, u64::try_from(standing.as_nanos()).unwrap_or(u64::MAX));
        shard.set(Gauge::BuffersInUse, context.runtime.buffer_stats().in_use as u64);
        shard.set(Gauge::MemoryBytes, memory_bytes(context) as u64);
    }
}

/// Bytes of the worker's budget in use: what sessions hold. Free buffers, and those lent to the ring, are a fixed
/// cost beside it.
fn memory_bytes(context: &Context) -> usize {
    let buffers = context.runtime.buffer_stats().bytes_in_use + context.runtime.charged();
    context.sessions() * SESSION_BYTES + context.exchanges.bytes_allocated() + buffers
}
