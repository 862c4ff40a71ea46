//! What the supervisor holds for its data processes: the configuration and the sockets. Answers what a data process
//! asks for.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::open;
use super::upgrade::{Estate, Group};
use crate::config::{self, Config};
use crate::control::handover::{self, Facts, Sockets};
use crate::control::requests::{self, Answer, Ask, Content, KeptTicketKeys, Question, Said};
use crate::control::source::Source;
use crate::proxy::snapshot::Listener;
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

    pub(super) const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Answers the question of that number.
    pub(super) fn tell(&self, number: u64, content: Content) {
        // Answers keep their order, and do not come between the parts of another.
        let _prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = (Answer { number, content }).send(&self.channel, &[]) {
            tracing::warn!(%error, "the data process did not take an answer");
        }
    }

    /// Tells `heard` what the data process says, until it has ended. Blocks.
    pub(super) fn listen(&self, heard: &UnboundedSender<Said>) {
        while let Ok(said) = requests::next_said(&self.channel) {
            if heard.send(said).is_err() {
                return;
            }
        }
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

    /// How many data processes have been started before the present one.
    pub(super) fn starts(&self) -> u32 {
        let present = self.present();
        present.facts.restarts + present.facts.upgrades
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        self.path.as_deref().map(Into::into)
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

    pub(super) fn keep_ticket_keys(&self, keys: KeptTicketKeys) {
        self.present().facts.ticket_keys = Some(keys);
    }

    /// What another program is to go on with, and the sockets; `None` once the gateway is told to stop.
    pub(super) fn estate(&self) -> Option<(Estate, Arc<Sockets>)> {
        let present = self.present();
        let group = |listener: &Listener| Group { name: listener.name.to_string(), listen: listener.address };
        let facts = &present.facts;
        let estate = Estate {
            config: self.path.as_deref().map(Into::into),
            listeners: present.config.snapshot.listeners.iter().map(group).collect(),
            admin_listen: present.config.admin.listen,
            admin_socket: facts.admin_socket.clone(),
            restarts: facts.restarts,
            upgrades: facts.upgrades,
            supervisor: facts.supervisor,
            alive_every: facts.alive_every,
            ticket_keys: facts.ticket_keys.clone(),
        };
        Some((estate, present.sockets.clone()?))
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
        attended.listen(heard);
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
            // The supervisor's loop answers it.
            Ask::Upgrade => return Ok(()),
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
        let served: Vec<_> = old.snapshot.listeners.iter().map(|listener| listener.address).collect();
        let mut opened = Vec::new();
        for (index, listener) in config.snapshot.listeners.iter().enumerate() {
            if change.sockets.get(index).is_some_and(Option::is_some) {
                opened.push(None);
                continue;
            }
            match open::beside(&served, listener, workers) {
                Ok(sockets) => opened.push(Some(sockets)),
                Err(what) => problems.extend(config::at_listener(index, &what, named)),
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
        let all = config.snapshot.listeners.iter().zip(opened).zip(&change.sockets);
        let all = all.map(|((listener, opened), stands)| match (opened, stands) {
            (Some(opened), _) => Ok(opened),
            (None, stands) => {
                let stands = usize::from(stands.unwrap_or_default());
                let kept = old.listeners.get(stands).into_iter().flatten();
                let kept = kept.map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
                if present.config.snapshot.listeners[stands].backlog != listener.backlog {
                    kept.iter().for_each(|socket| {
                        // Refused, it stays what it was.
                        let _ = listeners::listen(socket, listener.backlog);
                    });
                }
                Ok(kept)
            }
        });
        let all = all.collect::<io::Result<Vec<_>>>().map_err(copied)?;
        let admin_tcp = old.admin_tcp.try_clone().map_err(copied)?;
        let admin_unix = old.admin_unix.as_ref().map(|unix| unix.try_clone()).transpose().map_err(copied)?;
        present.sockets = Some(Arc::new(Sockets { listeners: all, admin_tcp, admin_unix }));
        present.facts.source = source;
        present.config = Arc::new(config);
        Ok(())
    }
}

pub(super) const DRAINING: &str = "the gateway drains: nothing is taken into use any more";
