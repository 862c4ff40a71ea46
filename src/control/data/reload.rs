//! A reload up to the moment at which workers are told: read and opened by the supervisor, then parsed, judged and
//! compiled here, on a thread that may wait and that gives way to the workers. Nothing in use is touched; whatever goes
//! wrong leaves the old configuration whole.

use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::tls::{materials, unix_s};
use super::{Machine, prove_socket_options};
use crate::config::Config;
use crate::control::access_log;
use crate::control::certificates::Certificates;
use crate::control::requests::{self, Supervisor};
use crate::control::source::Source;
use crate::proxy::context::Compiled;
use crate::proxy::snapshot::Snapshot;
use crate::proxy::snapshot::change::{Change, keep_budgets};
use crate::proxy::tls::Tls;
use crate::steal;
use crate::sys::process;
use crate::tls::TicketKeys;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a reload or an upgrade came to: a line for the caller, or every problem.
pub type Outcome = Result<String, Vec<String>>;

/// What was asked for from outside and is waited for.
pub enum Asked {
    Reload(oneshot::Sender<Outcome>),
    Upgrade(oneshot::Sender<Outcome>),
}

/// Where it is asked for.
pub struct Requests {
    ask: mpsc::UnboundedSender<Asked>,
}

impl Requests {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Asked>) {
        let (ask, asked) = mpsc::unbounded_channel();
        (Self { ask }, asked)
    }

    /// Asks, and gives where the outcome will come. Closed without one: the gateway ends.
    pub fn ask(&self, what: fn(oneshot::Sender<Outcome>) -> Asked) -> oneshot::Receiver<Outcome> {
        let (tell, outcome) = oneshot::channel();
        let _ = self.ask.send(what(tell));
        outcome
    }
}

/// All that workers will be told, but for names.
pub(super) struct Prepared {
    pub steal: steal::Spec,
    /// As it is shown.
    pub effective: serde_json::Value,
    pub snapshot: Arc<Snapshot>,
    pub compiled: Arc<Compiled>,
    pub change: Arc<Change>,
    pub certificates: Certificates,
    /// By listener, then by worker, where they are new.
    pub sockets: Vec<Option<Vec<TcpListener>>>,
}

/// What every reload of this process needs.
pub(super) struct Reloader {
    pub supervisor: Arc<Supervisor>,
    pub machine: Machine,
}

impl Reloader {
    /// Everything up to the commit.
    ///
    /// # Errors
    /// Every problem, a line each, with the cure.
    pub(super) async fn prepare(
        self: Arc<Self>,
        present: Arc<Snapshot>,
        ticket_keys: Arc<TicketKeys>,
    ) -> Result<Box<Prepared>, Vec<String>> {
        on_thread(move || self.prepare_here(&present, &ticket_keys)).await
    }

    /// Has the supervisor take it into use: from then on a data process that follows begins with it.
    pub(super) async fn commit(self: Arc<Self>) -> Result<(), Vec<String>> {
        on_thread(move || self.supervisor.commit()).await
    }

    /// Has another binary take over. With a line on it.
    ///
    /// # Errors
    /// Why this process goes on.
    pub(super) async fn upgrade(self: Arc<Self>) -> Outcome {
        let version = on_thread(move || self.supervisor.upgrade()).await?;
        Ok(format!("version {version} serves; this process, of version {VERSION}, finishes what it accepted"))
    }

    fn prepare_here(
        &self,
        present: &Snapshot,
        ticket_keys: &Arc<TicketKeys>,
    ) -> Result<Box<Prepared>, Vec<String>> {
        let judge =
            |requests::Prepared { source, sockets }| self.judge(&source, sockets, present, ticket_keys);
        // Also where the answer did not come through: what was opened for it listens already.
        self.supervisor.prepare().and_then(judge).inspect_err(|_| self.supervisor.abandon())
    }

    fn judge(
        &self,
        source: &Source,
        sockets: Vec<Option<Vec<TcpListener>>>,
        present: &Snapshot,
        ticket_keys: &Arc<TicketKeys>,
    ) -> Result<Box<Prepared>, Vec<String>> {
        let mut config = source.parse().map_err(|text| vec![text])?;
        self.machine.hold(&mut config);
        prove_socket_options(&mut config.snapshot);
        let Config { mut snapshot, steal, effective, .. } = config;
        keep_budgets(present, &mut snapshot);
        let snapshot = Arc::new(snapshot);
        let change = Change::between(present, &snapshot);
        // The supervisor judged from the same text: it is to have opened what is new, and no more.
        let agrees = change.sockets.len() == sockets.len()
            && change
                .sockets
                .iter()
                .zip(&sockets)
                .all(|(stands, opened)| stands.is_some() != opened.is_some());
        if !agrees {
            return Err(vec![
                "the configuration in use is not the supervisor's; restart the gateway".to_owned(),
            ]);
        }
        try_out_access_log(&snapshot, present)?;
        let certificates = Certificates::read(&snapshot, unix_s())
            .map_err(|failures| failures.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        try_out(&certificates, ticket_keys, &snapshot)?;
        let compiled = Compiled::new(snapshot.clone());
        let change = Arc::new(change);
        Ok(Box::new(Prepared { steal, effective, snapshot, compiled, change, certificates, sockets }))
    }
}

/// Opens another target than the present one.
fn try_out_access_log(snapshot: &Snapshot, present: &Snapshot) -> Result<(), Vec<String>> {
    let target = |snapshot: &Snapshot| snapshot.access_log.as_ref().map(|spec| spec.target.clone());
    match target(snapshot) {
        Some(target_now) if target(present).as_ref() != Some(&target_now) => {
            access_log::try_out(&target_now).map_err(|problem| vec![problem])
        }
        _ => Ok(()),
    }
}

/// Makes what every worker will make of the certificates: none of them can refuse it any more.
fn try_out(
    certificates: &Certificates,
    ticket_keys: &Arc<TicketKeys>,
    snapshot: &Snapshot,
) -> Result<(), Vec<String>> {
    let materials = materials(certificates, ticket_keys, snapshot);
    let tls = Tls::new(&materials);
    let listeners = snapshot.listeners.iter().zip(&materials.listeners).filter_map(|(listener, material)| {
        let error = tls.server(&listener.name, listener.protocol, material.as_ref()?).err()?;
        Some(format!(
            "listener \"{}\": its certificates cannot be served: {error}; look at [listener.tls]",
            listener.name
        ))
    });
    let clusters = snapshot.clusters.iter().zip(&materials.clusters).filter_map(|(cluster, material)| {
        let error = tls.client(material.as_ref()?, cluster.protocol).err()?;
        Some(format!(
            "cluster \"{}\": its certificates cannot be used: {error}; look at [cluster.tls]",
            cluster.name
        ))
    });
    let problems: Vec<String> = listeners.chain(clusters).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Runs what may wait or take long on a thread of its own.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Vec<String>> + Send + 'static,
) -> Result<T, Vec<String>> {
    let (tell, outcome) = oneshot::channel();
    let run = move || {
        // Of its own accord it would have the priority of the control thread, which may be a worker's.
        let _ = process::lower_priority();
        let _ = tell.send(work());
    };
    if let Err(error) = std::thread::Builder::new().name("reload".into()).spawn(run) {
        return Err(vec![format!("cannot start a thread: {error}; try again")]);
    }
    outcome.await.unwrap_or_else(|_| Err(vec!["the reload ended without a word".to_owned()]))
}
