//! The moment at which another binary comes in place of this one, in the same process: what it is told, and how it goes on.
//! Whoever started the gateway keeps its process, as does a service manager or a container; children stay children.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use tokio::time::Instant;

use super::held::Held;
use super::upgrade::{Kept, Note, Stage};
use super::{
    DRAIN_SLACK, FLUSH_TIMEOUT, Leaving, Started, Supervisor, Watched, attend, notify, program, signal,
};
use crate::control::handover::{Facts, Sockets};
use crate::control::log::Log;
use crate::control::requests::{Answer, Content};
use crate::sys::child::Child;
use crate::sys::fd_passing::Channel;
use crate::sys::process::Signal;
use crate::sys::{rlimit, succession};

const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Supervisor {
    /// Executes the binary whose data process serves. Returns only where that fails.
    pub(super) fn hand_over(&self, watched: &Watched) -> io::Error {
        let Some(Stage::Starting(candidate)) = watched.upgrade.as_ref().map(|upgrade| &upgrade.stage) else {
            return io::ErrorKind::InvalidInput.into();
        };
        let question = watched.upgrade.as_ref().map_or(0, |upgrade| upgrade.question);
        let (counts, sockets) = candidate.plan.sockets.parts();
        let kept = |id: u32, channel: BorrowedFd<'_>| Kept { id, channel: succession::number(channel) };
        let channels = [candidate.channel.as_fd(), watched.attended.channel().as_fd()];
        let now = Instant::now();
        let left = |leaving: &Leaving| (leaving.child.id(), leaving.kill_at.saturating_duration_since(now));
        let note = Note {
            config: self.held.path(),
            version: VERSION.to_owned(),
            facts: candidate.plan.facts.clone(),
            counts,
            sockets: sockets.iter().map(|socket| succession::number(*socket)).collect(),
            data: kept(candidate.child.id(), channels[0]),
            before: kept(watched.child.id(), channels[1]),
            before_within: self.held.drain_deadline() + DRAIN_SLACK,
            admin_socket_before: self.held.admin_socket(),
            question,
            leaving: self.leaving.iter().map(left).collect(),
        };
        let note = match serde_json::to_vec(&note) {
            Ok(note) => note,
            Err(error) => return error.into(),
        };
        self.log.flush(FLUSH_TIMEOUT);
        let kept: Vec<BorrowedFd<'_>> = sockets.into_iter().chain(channels).collect();
        succession::execute(&self.program, &note, &kept)
    }

    /// Goes on where another binary left off.
    pub(super) fn succeed(note: &[u8], log: Log) -> Result<(Self, Option<Started>), String> {
        let failed = |error: io::Error| format!("cannot take over from the binary before: {error}");
        let note: Note = serde_json::from_slice(note).map_err(|error| failed(error.into()))?;
        let mut facts: Facts = serde_json::from_value(note.facts).map_err(|error| failed(error.into()))?;
        let inherited = |number: &i32| succession::inherited(*number);
        let fds = note.sockets.iter().map(inherited).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let sockets = Sockets::from_parts(&note.counts, fds).map_err(failed)?;
        let [data, before] =
            [&note.data, &note.before].map(|kept| inherited(&kept.channel).map(Channel::from));
        let (data, before) = (data.map_err(failed)?, before.map_err(failed)?);
        let config = facts.source.parse()?;
        rlimit::raise_nofile().map_err(failed)?;
        if let Some(path) = note.admin_socket_before
            && facts.admin_socket.as_ref() != Some(&path)
        {
            let _ = std::fs::remove_file(path);
        }
        // The next one is started because this one has died.
        facts.succeeds = false;
        let held = Held::new(note.config.as_deref(), config, facts, sockets);
        let leaving = |(id, within): (u32, Duration)| Leaving {
            child: Child::adopted(id),
            kill_at: Instant::now() + within,
        };
        let leaving = note.leaving.into_iter().chain([(note.before.id, note.before_within)]).map(leaving);
        let (notify, program, leaving) = (notify()?, program()?, leaving.collect());
        let supervisor = Self { held, notify, log, program, leaving, waiting: Vec::new() };
        let child = Child::adopted(note.data.id);
        let mut started = attend(child, data, |attended, hear| attended.listen(hear)).map_err(failed)?;
        // The program before this one has heard it.
        started.serves = true;
        let answer = Answer { number: note.question, content: Content::Upgraded { version: VERSION.into() } };
        if let Err(error) = answer.send(&before, &[]) {
            tracing::warn!(%error, "the data process before this one cannot be told that it may leave: it is stopped by signal");
            signal(&Child::adopted(note.before.id), Signal::Terminate);
        }
        tracing::info!(from = note.version, to = VERSION, "upgraded: the new binary serves");
        supervisor.notify.ready();
        Ok((supervisor, Some(started)))
    }
}
