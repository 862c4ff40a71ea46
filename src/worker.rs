//! Stand-in for the worker until the real one is merged: holds its listeners and ends when told to drain.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use crate::base::time::Instant;
use crate::metrics::Shard;
use crate::proxy::snapshot::Snapshot;

/// Why sessions end.
pub const TERMINATION_REASONS: &[&str] = &["none"];

/// Which engine the configuration asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EngineChoice {
    Auto,
    IoUring,
    Epoll,
}

/// Sizes of one worker's ring.
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    pub entries: u32,
    pub recv_buffers: u16,
}

/// All that a worker is made from.
pub struct Plan {
    pub index: u32,
    pub cpu: Option<usize>,
    pub engine: EngineChoice,
    /// Index of the listener in the snapshot, and this worker's socket of it.
    pub listeners: Vec<(u16, TcpListener)>,
    pub snapshot: Arc<Snapshot>,
    pub shard: Arc<Shard>,
    pub seed: u64,
    pub ring: RingSizes,
}

/// What the control thread tells a worker.
#[derive(Debug)]
pub enum Message {
    /// Stop accepting, finish, end by the deadline.
    Drain { deadline: Instant },
    /// All addresses of one cluster, sorted.
    Endpoints { cluster: u16, addresses: Vec<SocketAddr> },
    /// Serve from this from now on.
    Snapshot(Arc<Snapshot>),
}

/// The engine a worker ended up with.
#[derive(Clone, Debug)]
pub struct EngineReport {
    pub engine: &'static str,
    pub why: String,
}

/// A started worker.
pub struct Handle {
    thread: JoinHandle<()>,
    mailbox: Sender<Message>,
}

/// Starts a worker on a thread of its own.
pub fn spawn(plan: Plan) -> Handle {
    let (mailbox, messages) = mpsc::channel();
    let run = move || {
        let _listeners = plan.listeners;
        while let Ok(message) = messages.recv() {
            if matches!(message, Message::Drain { .. }) {
                break;
            }
        }
    };
    let thread = std::thread::Builder::new().name(format!("worker-{}", plan.index)).spawn(run);
    Handle { thread: thread.expect("a thread"), mailbox }
}

impl Handle {
    /// Waits until the worker serves, or failed to start.
    pub fn ready(&self) -> Result<EngineReport, String> {
        Ok(EngineReport { engine: "none", why: "stand-in".into() })
    }

    pub fn send(&self, message: Message) {
        let _ = self.mailbox.send(message);
    }

    pub fn finished(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn join(self) {
        let _ = self.thread.join();
    }
}
