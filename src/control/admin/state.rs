//! What the admin endpoints show: the phase of the process, its workers, and where their numbers are.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, mpsc};

use crate::control::log::Log;
use crate::control::steal::View;
use crate::metrics::{CertificateFacts, Process, ProcessFacts, Shard, WorkerFacts};
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

/// Shared by the admin endpoints and the control thread.
pub struct State {
    phase: AtomicU8,
    shards: Vec<Arc<Shard>>,
    workers: OnceLock<Vec<WorkerFacts>>,
    config: serde_json::Value,
    log: Option<Log>,
    start_unix_s: u64,
    restarts: u32,
    descriptors_max: u64,
    drain: Notify,
    /// Who passes questions on to the workers. Set once.
    questions: OnceLock<mpsc::UnboundedSender<Question>>,
    /// What to count of certificates, and what is wrong with their files.
    certificates: Mutex<(CertificateFacts, Vec<String>)>,
    steal: Mutex<View>,
}

impl State {
    /// `config` is the configuration in effect; `restarts` counts crashes of data processes before this one.
    pub fn new(
        shards: Vec<Arc<Shard>>,
        config: serde_json::Value,
        log: Option<Log>,
        restarts: u32,
        descriptors_max: u64,
    ) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            shards,
            workers: OnceLock::new(),
            config,
            log,
            start_unix_s: clock::unix_seconds(),
            restarts,
            descriptors_max,
            drain: Notify::new(),
            questions: OnceLock::new(),
            certificates: Mutex::default(),
            steal: Mutex::default(),
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

    pub const fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// `problems`: what is wrong with the files of certificates as they are now.
    pub fn set_certificates(&self, facts: CertificateFacts, problems: Vec<String>) {
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = (facts, problems);
    }

    pub fn certificate_problems(&self) -> Vec<String> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
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
        facts.set(Process::Ready, u64::from(self.phase() == Phase::Serving));
        facts.set(Process::StartTime, self.start_unix_s);
        facts.set(Process::Restarts, u64::from(self.restarts));
        facts.set(Process::ResidentBytes, process::resident_bytes().unwrap_or(0));
        facts.set(Process::DescriptorsOpen, process::descriptors_open().unwrap_or(0));
        facts.set(Process::DescriptorsMax, self.descriptors_max);
        facts.set(Process::LogLinesDropped, self.log.as_ref().map_or(0, Log::lines_dropped));
        facts
    }
}
