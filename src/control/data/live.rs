//! The control thread once the workers serve: what it waits for, and what it does about it, until the drain is over.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::FLUSH_TIMEOUT;
use super::names::{Fresh, Resolving, first_answers};
use super::reload::{self, Asked, Prepared, Reloader};
use super::sampling::Sampling;
use super::share;
use super::tls::LiveTls;
use crate::control::Outcome;
use crate::control::access_log::AccessLog;
use crate::control::admin::{Admin, Phase, State};
use crate::control::handover::Facts;
use crate::control::health::Health;
use crate::metrics::shard::forget_unused;
use crate::proxy::context::Next;
use crate::proxy::snapshot::Snapshot;
use crate::proxy::snapshot::change::{Change, Was};
use crate::steal::SAMPLE_INTERVAL;
use crate::sys::{clock, process};
use crate::worker::view::Question;
use crate::worker::{Handle, Message, Queues, Reload};

/// How often workers are looked at: seldom while they serve, often while their end is awaited.
const LOOK_SERVING: Duration = Duration::from_secs(1);
const LOOK_DRAINING: Duration = Duration::from_millis(5);
/// What a worker may take beyond the drain deadline.
const DRAIN_SLACK: Duration = Duration::from_secs(1);
/// How long whoever asked for a reload waits for workers that are busy; they come to it all the same.
const SWAP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the control thread keeps an eye on.
pub(super) struct Live {
    pub handles: Vec<Handle>,
    /// In use.
    pub snapshot: Arc<Snapshot>,
    pub names: Resolving,
    pub health: Health,
    pub access_log: AccessLog,
    pub tls: LiveTls,
    pub sampling: Sampling,
    pub reloader: Arc<Reloader>,
    pub asked: UnboundedReceiver<Asked>,
    pub admin: Option<Admin>,
}

/// A reload or an upgrade under way: what it has come to.
enum Step {
    Prepared(Result<Box<Prepared>, Vec<String>>),
    /// Its names are looked up, and the supervisor was asked.
    Committed(Box<Prepared>, Fresh, Result<(), Vec<String>>),
    /// Workers serve it, with what is to be told of it.
    Swapped(String),
    /// Another binary was to take over.
    Upgraded(reload::Outcome),
}

/// Why a data process stops serving.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Leave {
    /// The gateway ends.
    Stop,
    /// Another data process serves.
    Succeeded,
}

/// What is waited for next, and who waits for the end of it.
#[derive(Default)]
struct UnderWay {
    step: Option<Pin<Box<dyn Future<Output = Step>>>>,
    waiting: Vec<oneshot::Sender<reload::Outcome>>,
}

impl UnderWay {
    async fn next(&mut self) -> Step {
        match &mut self.step {
            Some(step) => {
                let done = step.await;
                self.step = None;
                done
            }
            None => std::future::pending().await,
        }
    }

    fn end(&mut self, outcome: &reload::Outcome) {
        for waiting in self.waiting.drain(..) {
            // Whoever has gone does not want to know.
            let _ = waiting.send(outcome.clone());
        }
    }
}

impl Live {
    /// Serves until every worker has ended.
    pub(super) async fn serve(mut self, facts: &Facts, state: &State, mut signals: Signals) -> Outcome {
        let mut questions = state.take_questions();
        self.reloader.supervisor.ready();
        self.tls.tell_ticket_keys();
        let mut look = tokio::time::interval(LOOK_SERVING);
        let mut sample = tokio::time::interval(SAMPLE_INTERVAL);
        // A sample that is late is one sample: it speaks for the time since the last.
        sample.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut under_way = UnderWay::default();
        let leave = loop {
            tokio::select! {
                () = Signals::stop(&mut signals.terminate, &mut signals.interrupt) => break Leave::Stop,
                () = state.asked_to_drain() => {
                    // The supervisor must close its copies of the listeners, or connections would queue up in vain.
                    if let Err(error) = process::send_signal(facts.supervisor, process::Signal::Terminate) {
                        tracing::warn!(%error, "the supervisor cannot be told of the drain");
                    }
                    break Leave::Stop;
                }
                (cluster, addresses) = self.names.changed() => {
                    self.tell_endpoints_of(&cluster, &addresses, state);
                }
                Some(told) = self.health.changed() => self.health.take(told, state, &self.handles),
                _ = signals.user_1.recv() => self.access_log.reopen(),
                Some(question) = questions.recv() => self.ask(&question),
                _ = signals.hang_up.recv() => drop(state.ask(Asked::Reload)),
                _ = signals.user_2.recv() => drop(state.ask(Asked::Upgrade)),
                Some(asked) = self.asked.recv(), if under_way.step.is_none() => self.begin(asked, &mut under_way),
                step = under_way.next() => match self.advance(step, &mut under_way, state) {
                    None => {}
                    Some(leave) => break leave,
                },
                _ = sample.tick(), if self.sampling.is_on() => self.sampling.sample(state, &self.handles),
                _ = look.tick() => {
                    if !self.sampling.postpones() {
                        self.tls.look(state, &self.handles, &mut self.health, false);
                    }
                    self.sampling.look();
                    forget_unused(state.shards());
                    if let Some(index) = self.handles.iter().position(Handle::finished) {
                        tracing::error!(worker = index, "a worker ended without being told to");
                        return Outcome::Problems;
                    }
                }
            }
        };
        drop(under_way);
        if leave == Leave::Succeeded {
            self.pass_on_reload(facts, &mut signals.hang_up).await;
            // Whoever asks from now on is to reach the one that serves.
            self.admin.take().into_iter().for_each(Admin::stop);
        }
        self.drain(state, signals.user_1).await
    }

    /// A signal that came during the upgrade asked for a file that the new process may have read before it was changed. Whoever
    /// waits for an answer is told that there is none.
    async fn pass_on_reload(&mut self, facts: &Facts, hang_up: &mut Signal) {
        let asked = std::iter::from_fn(|| self.asked.try_recv().ok());
        let by_signal = |asked: &Asked| matches!(asked, Asked::Reload(waiting) if waiting.is_closed());
        let asked = asked.filter(by_signal).count() > 0;
        let signalled = poll_fn(|cx| Poll::Ready(hang_up.poll_recv(cx).is_ready())).await;
        if (asked || signalled)
            && let Err(error) = process::send_signal(facts.supervisor, process::Signal::HangUp)
        {
            tracing::warn!(%error, "the reload that was asked for during the upgrade is to be asked for again");
        }
    }

    /// Each worker answers by itself.
    fn ask(&self, question: &Question) {
        for handle in &self.handles {
            handle.send(Message::Question(question.clone()));
        }
    }

    /// Begins what was asked for.
    fn begin(&mut self, asked: Asked, under_way: &mut UnderWay) {
        let reloader = self.reloader.clone();
        let (step, waiting): (Pin<Box<dyn Future<Output = Step>>>, _) = match asked {
            Asked::Reload(waiting) => {
                let prepare = reloader.prepare(self.snapshot.clone(), self.tls.ticket_keys().clone());
                (Box::pin(async { Step::Prepared(prepare.await) }), waiting)
            }
            Asked::Upgrade(waiting) => {
                (Box::pin(async { Step::Upgraded(reloader.upgrade().await) }), waiting)
            }
        };
        under_way.step = Some(step);
        under_way.waiting.push(waiting);
    }

    async fn drain(self, state: &State, mut reopen: Signal) -> Outcome {
        // Kept: who asks is answered to the end.
        let Self { handles, sampling, health, mut access_log, snapshot, admin: _admin, .. } = self;
        let drain_deadline = snapshot.drain.deadline;
        // With it go copies of listeners, which would keep them open.
        drop((sampling, health));
        state.set_phase(Phase::Draining);
        tracing::info!(deadline_ms = drain_deadline.as_millis() as u64, "draining");
        let deadline = clock::now() + drain_deadline;
        for handle in &handles {
            handle.send(Message::Drain { deadline });
        }
        loop {
            // At least once: whoever asked for this is to get the answer.
            tokio::select! {
                () = tokio::time::sleep(LOOK_DRAINING) => {}
                _ = reopen.recv() => {
                    access_log.reopen();
                    continue;
                }
            }
            if handles.iter().all(Handle::finished) {
                break;
            }
            if clock::now() > deadline + DRAIN_SLACK {
                tracing::error!("workers did not end by the drain deadline");
                return Outcome::Problems;
            }
        }
        for handle in handles {
            handle.join();
        }
        access_log.finish(FLUSH_TIMEOUT);
        tracing::info!("drained");
        Outcome::Good
    }

    fn tell_endpoints_of(&mut self, cluster: &str, addresses: &[SocketAddr], state: &State) {
        let at = self.snapshot.clusters.iter().position(|at| *at.name == *cluster);
        if let Some(at) = at.and_then(|at| u16::try_from(at).ok()) {
            tell_endpoints(&self.handles, at, addresses);
            self.health.set_endpoints(at, addresses, state, &self.handles);
        }
    }

    fn advance(&mut self, step: Step, under_way: &mut UnderWay, state: &State) -> Option<Leave> {
        match step {
            Step::Prepared(Ok(prepared)) => {
                let (fresh, first) = self.names.begin(&prepared.snapshot);
                let reloader = self.reloader.clone();
                under_way.step = Some(Box::pin(async move {
                    first_answers(first).await;
                    Step::Committed(prepared, fresh, reloader.commit().await)
                }));
            }
            Step::Committed(prepared, fresh, Ok(())) => {
                let (told, swapped) = self.swap(*prepared, fresh, state);
                under_way.step = Some(Box::pin(swapped_by_all(swapped, self.handles.len(), told)));
            }
            Step::Prepared(Err(problems)) | Step::Committed(_, _, Err(problems)) => {
                for problem in &problems {
                    tracing::error!(problem, "the configuration was not reloaded; the one in use stays");
                }
                // Files of certificates that changed come into use all the same, where they can be.
                self.tls.look(state, &self.handles, &mut self.health, true);
                state.note_reload(Err(problems.clone()));
                self.reloader.supervisor.ready();
                under_way.end(&Err(problems));
            }
            Step::Swapped(told) => {
                state.note_reload(Ok(()));
                self.reloader.supervisor.ready();
                under_way.end(&Ok(told));
            }
            Step::Upgraded(outcome) => {
                let succeeded = outcome.is_ok();
                for problem in outcome.as_ref().err().into_iter().flatten() {
                    tracing::error!(problem, "the upgrade did not come about; the present version goes on");
                }
                state.note_upgrade(outcome.as_ref().map(drop).map_err(Clone::clone));
                under_way.end(&outcome);
                return succeeded.then_some(Leave::Succeeded);
            }
        }
        None
    }

    /// Sends every worker its part. With a line on what has changed, and where workers tell that they serve it.
    fn swap(&mut self, prepared: Prepared, fresh: Fresh, state: &State) -> (String, UnboundedReceiver<()>) {
        let Prepared { steal, effective, snapshot, compiled, change, certificates, sockets } = prepared;
        let tls = Arc::new(self.tls.succeed(certificates, &snapshot, state));
        let addresses = Arc::new(self.names.go_on(fresh, &snapshot));
        let copied = sockets.iter().map(|opened| opened.as_ref()?.first()?.try_clone().ok()).collect();
        self.sampling.change(steal, &change, copied, &snapshot, state);
        // Tried before; where it was taken away since, the last one is still written.
        if let Err(problem) = self.access_log.follow(snapshot.access_log.as_ref().map(|spec| &spec.target)) {
            tracing::error!(problem, "the access log stays where it was");
        }
        let (done, swapped) = mpsc::unbounded_channel();
        let mut by_worker = by_worker(sockets, self.handles.len()).into_iter();
        let rings = self.access_log.rings(snapshot.access_log.as_deref(), self.handles.len());
        for ((handle, shard), access_log) in self.handles.iter().zip(state.shards()).zip(rings) {
            let next = Next {
                compiled: compiled.clone(),
                change: change.clone(),
                tls: tls.clone(),
                addresses: addresses.clone(),
                share: share(shard, &snapshot),
            };
            let sockets = by_worker.next().unwrap_or_default();
            let done = done.clone();
            handle.send(Message::Reload(Box::new(Reload { next, sockets, steal, access_log, done })));
        }
        self.health.change(&snapshot, &change, &tls, &addresses, state, &self.handles);
        let told = told(&change, &self.snapshot);
        tracing::info!(change = told, "configuration reloaded");
        state.set_config(effective);
        self.snapshot = snapshot;
        (told, swapped)
    }
}

fn tell_endpoints(handles: &[Handle], cluster: u16, addresses: &[SocketAddr]) {
    for handle in handles {
        handle.send(Message::Endpoints { cluster, addresses: addresses.to_vec() });
    }
}

async fn swapped_by_all(mut swapped: UnboundedReceiver<()>, workers: usize, told: String) -> Step {
    let all = async {
        for _ in 0..workers {
            if swapped.recv().await.is_none() {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(SWAP_TIMEOUT, all).await;
    Step::Swapped(told)
}

/// By worker, then by listener.
pub(super) fn by_worker(sockets: Vec<Option<Vec<TcpListener>>>, workers: usize) -> Vec<Vec<Option<Queues>>> {
    let mut by_worker: Vec<Vec<Option<Queues>>> = (0..workers).map(|_| Vec::new()).collect();
    for opened in sockets {
        let mut queues = opened.map(|opened| Queues::spread(opened, workers)).into_iter().flatten();
        by_worker.iter_mut().for_each(|of_one| of_one.push(queues.next()));
    }
    by_worker
}

fn told(change: &Change, old: &Snapshot) -> String {
    let kept = change.listeners.iter().flatten().count();
    let same = change.clusters.iter().filter(|was| matches!(was, Was::Same(_))).count();
    let count = |all: usize, kept: usize, old: usize, what: &str| {
        format!("{what}: {kept} as before, {} new or changed, {} gone or replaced", all - kept, old - kept)
    };
    let listeners = count(change.listeners.len(), kept, old.listeners.len(), "listeners");
    let clusters = count(change.clusters.len(), same, old.clusters.len(), "clusters");
    format!("{listeners}; {clusters}")
}

/// The signals a data process takes. A terminal sends some to both processes at once.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_2: signal(SignalKind::user_defined2())?,
            user_1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn stop(terminate: &mut Signal, interrupt: &mut Signal) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}
