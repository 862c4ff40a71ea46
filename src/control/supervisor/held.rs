//! What the supervisor holds for its data processes: the configuration and the sockets. Answers what a data process
//! asks for.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::config::{self, Config};
use crate::control::handover::{self, Facts, Sockets};
use crate::control::requests::{self, Answer, Ask, Content, Question, Said};
use crate::control::source::Source;
use crate::proxy::snapshot::change::Change;
use crate::sys::fd_passing::Channel;
use crate::sys::listeners;

/// Shared by the supervisor's loop and the threads that answer data processes.
#[derive(Clone)]
pub(super) struct Held {
    path: Option<Arc<Path>>,
    present: Arc<Mutex<Present>>,
}

/// What the next data process gets.
struct Present {
    facts: Facts,
    config: Arc<Config>,
    /// `None` once the gateway is told to stop: connections shall be refused from then on.
    sockets: Option<Arc<Sockets>>,
}

/// A data process, as it is spoken to.
pub(super) struct Attended {
    channel: Channel,
    /// Held while an answer is made and sent.
    prepared: Mutex<Option<Prepared>>,
}

impl Attended {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, prepared: Mutex::default() }
    }
}

/// What was asked for, opened, and is not in use yet.
struct Prepared {
    source: Source,
    config: Config,
    change: Change,
    /// By listener, then by worker, where they are new.
    opened: Vec<Option<Vec<TcpListener>>>,
}

impl Held {
    pub(super) fn new(path: Option<&Path>, config: Config, facts: Facts, sockets: Sockets) -> Self {
        let present = Present { facts, config: Arc::new(config), sockets: Some(Arc::new(sockets)) };
        Self { path: path.map(Into::into), present: Arc::new(Mutex::new(present)) }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn restarts(&self) -> u32 {
        self.present().facts.restarts
    }

    pub(super) fn count_restart(&self) {
        self.present().facts.restarts += 1;
    }

    pub(super) fn drain_deadline(&self) -> Duration {
        self.present().config.snapshot.drain.deadline
    }

    pub(super) fn admin_socket(&self) -> Option<PathBuf> {
        self.present().facts.admin_socket.clone()
    }

    /// Lets go of the sockets, so that they close when the data process has served what waits in them.
    pub(super) fn close(&self) {
        self.present().sockets = None;
    }

    /// Gives a new data process what it needs, and then tells `heard` what it says until it has ended. Blocks.
    pub(super) fn attend(&self, attended: &Attended, heard: &UnboundedSender<Said>) {
        let (facts, sockets) = {
            let present = self.present();
            (present.facts.clone(), present.sockets.clone())
        };
        let Some(sockets) = sockets else { return };
        if let Err(error) = handover::send(&attended.channel, &facts, &sockets) {
            tracing::error!(%error, "the data process did not take its sockets");
            return;
        }
        // They would stay open while this thread waits.
        drop(sockets);
        while let Ok(said) = requests::next_said(&attended.channel) {
            if heard.send(said).is_err() {
                return;
            }
        }
    }

    /// Answers a question. Blocks: reading a file and opening sockets may take their time.
    pub(super) fn answer(&self, attended: &Attended, question: Question) {
        let mut prepared = attended.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.try_answer(&attended.channel, question, &mut prepared) {
            tracing::warn!(%error, "the data process did not take an answer");
        }
    }

    fn try_answer(
        &self,
        channel: &Channel,
        question: Question,
        prepared: &mut Option<Prepared>,
    ) -> io::Result<()> {
        let answer = |content| Answer { number: question.number, content };
        let outcome = match question.ask {
            Ask::Prepare => {
                // What an earlier question opened may be what this one asks for.
                *prepared = None;
                match self.prepare() {
                    Ok(new) => {
                        let is_new = new.opened.iter().map(Option::is_some).collect();
                        let content = Content::Prepared { source: new.source.clone(), is_new };
                        let new = prepared.insert(new);
                        return answer(content).send(channel, &requests::borrowed(&new.opened));
                    }
                    Err(problems) => Err(problems),
                }
            }
            Ask::Commit => match prepared.take() {
                Some(prepared) => self.commit(prepared).map_err(|problem| vec![problem]),
                None => Err(vec!["nothing is prepared; ask for the reload again".to_owned()]),
            },
            Ask::Abandon => {
                *prepared = None;
                Ok(())
            }
        };
        let content = outcome.map_or_else(Content::Refused, |()| Content::Done);
        answer(content).send(channel, &[])
    }

    fn prepare(&self) -> Result<Prepared, Vec<String>> {
        let (old, workers, runs) = {
            let present = self.present();
            (present.config.clone(), present.facts.cpus.len(), present.sockets.is_some())
        };
        if !runs {
            return Err(vec![DRAINING.to_owned()]);
        }
        let (source, config) = Source::read_again(self.path.as_deref())
            .map_err(|text| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>())?;
        let named = source.named();
        let mut problems = config::unchangeable(&old, &config, named);
        let change = Change::between(&old.snapshot, &config.snapshot);
        let mut opened = Vec::new();
        for (index, listener) in config.snapshot.listeners.iter().enumerate() {
            if change.sockets.get(index).is_some_and(Option::is_some) {
                opened.push(None);
                continue;
            }
            match listeners::open(listener.address, workers, listener.backlog) {
                Ok(sockets) => opened.push(Some(sockets)),
                Err(error) => {
                    let what = format!("listener \"{}\": {error}", listener.name);
                    problems.extend(config::at_listener(index, &what, named));
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems.iter().map(ToString::to_string).collect());
        }
        Ok(Prepared { source, config, change, opened })
    }

    fn commit(&self, prepared: Prepared) -> Result<(), String> {
        let Prepared { source, config, change, opened } = prepared;
        let mut present = self.present();
        let Some(old) = present.sockets.clone() else { return Err(DRAINING.to_owned()) };
        let copied = |error: io::Error| format!("the sockets cannot be kept: {error}; raise LimitNOFILE=");
        let mut workers: Vec<Vec<TcpListener>> = old.workers.iter().map(|_| Vec::new()).collect();
        for ((listener, opened), stands) in config.snapshot.listeners.iter().zip(opened).zip(&change.sockets)
        {
            let sockets = match (opened, stands) {
                (Some(opened), _) => opened,
                (None, stands) => {
                    let stands = usize::from(stands.unwrap_or_default());
                    let kept = old.workers.iter().filter_map(|sockets| sockets.get(stands));
                    let kept = kept.map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>();
                    let kept = kept.map_err(copied)?;
                    if present.config.snapshot.listeners[stands].backlog != listener.backlog {
                        kept.iter().for_each(|socket| listeners::set_backlog(socket, listener.backlog));
                    }
                    kept
                }
            };
            for (worker, socket) in workers.iter_mut().zip(sockets) {
                worker.push(socket);
            }
        }
        let admin_tcp = old.admin_tcp.try_clone().map_err(copied)?;
        let admin_unix = old.admin_unix.as_ref().map(|unix| unix.try_clone()).transpose().map_err(copied)?;
        present.sockets = Some(Arc::new(Sockets { workers, admin_tcp, admin_unix }));
        present.facts.source = source;
        present.config = Arc::new(config);
        Ok(())
    }
}

const DRAINING: &str = "the gateway drains: nothing is taken into use any more";
