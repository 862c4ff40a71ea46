//! What the admin endpoints show: the phase of the process, its workers, and where their numbers are.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot};

use super::views::Views;
use crate::control::data::reload::{Asked, Outcome, Requests};
use crate::control::handover::Facts;
use crate::control::log::Log;
use crate::control::steal::View;
use crate::metrics::{CertificateFacts, HealthFacts, Process, ProcessFacts, Shard, WorkerFacts};
use crate::sys::{clock, process};
use crate::worker::view::Question;

/// Where the data process is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    Starting,
    Serving,
    Draining,
}

impl Phase {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// How reloads went since the start.
struct Reloads {
    ok: u64,
    refused: u64,
    last: Result<(), Vec<String>>,
    /// When the configuration in use was taken into use.
    ok_unix_s: u64,
}

/// Shared by the admin endpoints and the control thread.
pub struct State {
    phase: AtomicU8,
    shards: Vec<Arc<Shard>>,
    workers: OnceLock<Vec<WorkerFacts>>,
    config: Mutex<Arc<serde_json::Value>>,
    log: Option<Log>,
    start_unix_s: u64,
    restarts: u32,
    descriptors_max: u64,
    drain: Notify,
    /// `None`: nobody takes them.
    requests: Option<Requests>,
    reloads: Mutex<Reloads>,
    /// Upgrades that led to this process, and what was wrong with the one that was tried last.
    upgrades: u32,
    upgrade: Mutex<Result<(), Vec<String>>>,
    /// Who passes questions on to the workers. Set once.
    questions: OnceLock<mpsc::UnboundedSender<Question>>,
    /// What to count of certificates, and what is wrong with their files.
    certificates: Mutex<(CertificateFacts, Vec<String>)>,
    health: Mutex<Vec<HealthFacts>>,
    steal: Mutex<View>,
    pub(super) views: Views,
}

impl State {
    /// `config` is the configuration in effect.
    pub fn new(
        shards: Vec<Arc<Shard>>,
        config: serde_json::Value,
        log: Option<Log>,
        facts: &Facts,
        descriptors_max: u64,
    ) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            shards,
            workers: OnceLock::new(),
            config: Mutex::new(Arc::new(config)),
            log,
            start_unix_s: clock::unix_seconds(),
            restarts: facts.restarts,
            descriptors_max,
            upgrades: facts.upgrades,
            upgrade: Mutex::new(Ok(())),
            drain: Notify::new(),
            requests: None,
            reloads: Mutex::new(Reloads {
                ok: 0,
                refused: 0,
                last: Ok(()),
                ok_unix_s: clock::unix_seconds(),
            }),
            questions: OnceLock::new(),
            certificates: Mutex::default(),
            health: Mutex::default(),
            steal: Mutex::default(),
            views: Views::default(),
        }
    }

    pub fn phase(&self) -> Phase {
        const SERVING: u8 = Phase::Serving as u8;
        const DRAINING: u8 = Phase::Draining as u8;
        match self.phase.load(Ordering::Relaxed) {
            SERVING => Phase::Serving,
            DRAINING => Phase::Draining,
            _ => Phase::Starting,
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Workers that reported ready. Set once.
    pub fn set_workers(&self, workers: Vec<WorkerFacts>) {
        let _ = self.workers.set(workers);
    }

    pub fn workers(&self) -> &[WorkerFacts] {
        self.workers.get().map_or(&[], Vec::as_slice)
    }

    pub fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    /// Has reloads and upgrades asked for go there.
    #[must_use]
    pub fn with_requests(mut self, requests: Requests) -> Self {
        self.requests = Some(requests);
        self
    }

    pub fn config(&self) -> Arc<serde_json::Value> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_config(&self, config: serde_json::Value) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Asks the control thread for a reload or an upgrade. `None`: nobody would.
    pub fn ask(&self, what: fn(oneshot::Sender<Outcome>) -> Asked) -> Option<oneshot::Receiver<Outcome>> {
        self.requests.as_ref().map(|requests| requests.ask(what))
    }

    /// Takes what an upgrade came to.
    pub fn note_upgrade(&self, outcome: Result<(), Vec<String>>) {
        *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }

    /// Why the upgrade that was tried last did not come about.
    pub fn upgrade_problems(&self) -> Vec<String> {
        self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).clone().err().unwrap_or_default()
    }

    /// Counts a reload; one that was refused with its problems.
    pub fn note_reload(&self, outcome: Result<(), Vec<String>>) {
        let mut reloads = self.reloads();
        match outcome {
            Ok(()) => (reloads.ok, reloads.ok_unix_s) = (reloads.ok + 1, clock::unix_seconds()),
            Err(_) => reloads.refused += 1,
        }
        reloads.last = outcome;
    }

    /// What is wrong with the configuration that was read last, if it is not in use.
    pub fn reload_problems(&self) -> Vec<String> {
        self.reloads().last.clone().err().unwrap_or_default()
    }

    fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `problems`: what is wrong with the files of certificates as they are now.
    pub fn set_certificates(&self, facts: CertificateFacts, problems: Vec<String>) {
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = (facts, problems);
    }

    pub fn certificate_problems(&self) -> Vec<String> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Of the clusters whose endpoints are probed.
    pub fn set_health(&self, facts: Vec<HealthFacts>) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    /// What is known of lost CPU time.
    pub fn steal(&self) -> MutexGuard<'_, View> {
        self.steal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Questions to the workers, for who passes them on. To be called once.
    pub fn take_questions(&self) -> mpsc::UnboundedReceiver<Question> {
        let (questions, asked) = mpsc::unbounded_channel();
        let _ = self.questions.set(questions);
        asked
    }

    /// Has each worker answer. Without workers nobody does.
    pub fn ask_workers(&self, question: Question) {
        if let Some(questions) = self.questions.get() {
            let _ = questions.send(question);
        }
    }

    /// Asks the control thread to drain. Asking again changes nothing.
    pub fn ask_to_drain(&self) {
        self.drain.notify_one();
    }

    /// Waits until somebody asked to drain.
    pub async fn asked_to_drain(&self) {
        self.drain.notified().await;
    }

    /// Facts of the process as they are now.
    pub fn process_facts(&self) -> ProcessFacts {
        let certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let steal = self.steal().facts(clock::now(), self.workers());
        let mut facts = ProcessFacts::new(env!("CARGO_PKG_VERSION"), certificates, steal);
        facts.set_health(self.health.lock().unwrap_or_else(PoisonError::into_inner).clone());
        facts.set(Process::Ready, u64::from(self.phase() == Phase::Serving));
        {
            let reloads = self.reloads();
            facts.set_reloads(reloads.ok, reloads.refused);
            facts.set(Process::ReloadSucceeded, u64::from(reloads.last.is_ok()));
            facts.set(Process::ReloadTime, reloads.ok_unix_s);
        }
        facts.set(Process::Upgrades, u64::from(self.upgrades));
        facts.set(Process::UpgradeSucceeded, u64::from(self.upgrade_problems().is_empty()));
        facts.set(Process::StartTime, self.start_unix_s);
        facts.set(Process::Restarts, u64::from(self.restarts));
        facts.set(Process::ResidentBytes, process::resident_bytes().unwrap_or(0));
        facts.set(Process::DescriptorsOpen, process::descriptors_open().unwrap_or(0));
        facts.set(Process::DescriptorsMax, self.descriptors_max);
        facts.set(Process::LogLinesDropped, self.log.as_ref().map_or(0, Log::lines_dropped));
        facts
    }
}
