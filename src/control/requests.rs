//! What a data process tells and asks its supervisor while it runs, over the channel that its sockets came by. Words are
//! told and forgotten, and hold nobody up. Questions are for a reload: the configuration read anew and sockets for what is
//! new in it, then to take both into use. The supervisor reads the file and opens the sockets because it keeps the rights
//! that the gateway was started with; the data process judges the rest and has the last word, as it serves from it.
//! One question at a time, each answered once.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::source::Source;
use super::supervisor::upgrade::{PLAN_TIMEOUT, READY_TIMEOUT};
use crate::base::time::Instant;
use crate::sys::fd_passing::Channel;
use crate::tls::TicketKeys;

/// Longest wait for an answer. Opening an address that is in use is tried again for a second each.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for an upgrade, which the supervisor ends by deadlines of its own. Whoever gives up before would not hear that another
/// data process serves, and accept beside it until it is killed. Where the supervisor starves its deadlines stretch, and each
/// packet has its own: so much longer than all of them that only its end, which is heard, comes before.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(600);
const _: () = assert!(UPGRADE_TIMEOUT.as_secs() >= 10 * (PLAN_TIMEOUT.as_secs() + READY_TIMEOUT.as_secs()));

/// Secrets of tickets, as the supervisor keeps them for the next data process.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeptTicketKeys {
    secrets: Vec<u8>,
    /// When they were made, on the clock that all processes of a machine share (`CLOCK_MONOTONIC`).
    made_ns: u64,
}

impl KeptTicketKeys {
    pub fn new(keys: &TicketKeys, made: Instant) -> Self {
        Self { secrets: keys.to_bytes(), made_ns: made.nanos() }
    }

    /// The keys, and when they were made; `None` where they are not whole.
    pub fn keys(&self) -> Option<(TicketKeys, Instant)> {
        Some((TicketKeys::from_bytes(&self.secrets)?, Instant::ZERO + Duration::from_nanos(self.made_ns)))
    }
}

impl fmt::Debug for KeptTicketKeys {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptTicketKeys").finish_non_exhaustive()
    }
}

/// One message to the supervisor.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Said {
    /// It serves, with the files that it has read last.
    Ready,
    /// Its control thread runs.
    Alive,
    /// What a data process that follows is to open tickets with.
    TicketKeys(KeptTicketKeys),
    Asked(Question),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Ask {
    /// Read the configuration and open what is new in it. Nothing changes yet.
    Prepare,
    /// Hold what was prepared from now on, for a data process that follows too, and let go of what is not in it.
    Commit,
    /// Forget what was prepared.
    Abandon,
    /// Have another binary take over. Once that is done, whoever asked is to leave.
    Upgrade,
}

impl Ask {
    /// Longest wait for the answer.
    const fn timeout(self) -> Duration {
        match self {
            Self::Upgrade => UPGRADE_TIMEOUT,
            Self::Prepare | Self::Commit | Self::Abandon => ANSWER_TIMEOUT,
        }
    }
}

/// One question. Numbers tell an answer that came too late from the next one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Question {
    pub number: u64,
    pub ask: Ask,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Answer {
    pub number: u64,
    pub content: Content,
}

#[derive(Debug, Deserialize, Serialize)]
pub enum Content {
    /// With the sockets of each listener that is marked here, all workers' of one before those of the next.
    Prepared {
        source: Source,
        is_new: Vec<bool>,
    },
    Done,
    /// The version that has taken over.
    Upgraded {
        version: String,
    },
    /// Why not, a line each.
    Refused(Vec<String>),
}

impl Answer {
    /// Sends the answer with its sockets.
    pub fn send(&self, channel: &Channel, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        channel.send(&serde_json::to_vec(self)?, sockets)
    }
}

/// Takes the next message. `UnexpectedEof` once the data process has ended.
pub fn next_said(channel: &Channel) -> io::Result<Said> {
    let (payload, _) = channel.recv()?;
    Ok(serde_json::from_slice(&payload)?)
}

/// What the supervisor has prepared.
pub struct Prepared {
    pub source: Source,
    /// By listener, then by worker; `None` where the listener accepts from sockets that are there.
    pub sockets: Vec<Option<Vec<TcpListener>>>,
}

/// The supervisor, as its data process speaks to it. Questions block: they are for threads that may wait.
pub struct Supervisor {
    channel: Channel,
    /// Of the question asked last; held until it is answered.
    number: Mutex<u64>,
    workers: usize,
}

impl Supervisor {
    /// # Errors
    /// Where the channel takes no deadline.
    pub fn new(channel: Channel, workers: usize) -> io::Result<Self> {
        channel.set_timeout(ANSWER_TIMEOUT)?;
        Ok(Self { channel, number: Mutex::new(0), workers })
    }

    /// The control thread serves, with the files that it has read last.
    pub fn ready(&self) {
        self.say(Said::Ready);
    }

    /// Gives a sign of life as often as is wanted, for as long as the calling thread's tasks run.
    pub fn keep_saying_alive(self: &Arc<Self>, every: Duration) {
        let supervisor = self.clone();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::spawn(async move {
            loop {
                ticks.tick().await;
                supervisor.say(Said::Alive);
            }
        });
    }

    /// Has the next data process go on with these secrets of tickets.
    pub fn keep_ticket_keys(&self, keys: &TicketKeys, made: Instant) {
        self.say(Said::TicketKeys(KeptTicketKeys::new(keys, made)));
    }

    /// A supervisor that has not heard many before misses this one.
    fn say(&self, said: Said) {
        let _ = serde_json::to_vec(&said).map(|payload| self.channel.try_send(&payload));
    }

    /// # Errors
    /// Every problem of the new configuration, a line each, with the cure.
    pub fn prepare(&self) -> Result<Prepared, Vec<String>> {
        let (content, sockets) = self.ask(Ask::Prepare)?;
        let Content::Prepared { source, is_new } = content else { return Err(vec![unexpected()]) };
        let new = is_new.iter().filter(|is_new| **is_new).count();
        if sockets.len() != new * self.workers {
            return Err(vec![unexpected()]);
        }
        let mut sockets = sockets.into_iter();
        let mut of_one = || sockets.by_ref().take(self.workers).collect();
        let sockets = is_new.into_iter().map(|is_new| is_new.then(&mut of_one)).collect();
        Ok(Prepared { source, sockets })
    }

    /// # Errors
    /// Why the supervisor does not go along.
    pub fn commit(&self) -> Result<(), Vec<String>> {
        self.ask(Ask::Commit).map(drop)
    }

    /// Nothing is lost where it cannot be told: the next question says as much.
    pub fn abandon(&self) {
        let _ = self.ask(Ask::Abandon);
    }

    /// The version that has taken over: this process is to leave.
    ///
    /// # Errors
    /// Why this one goes on.
    pub fn upgrade(&self) -> Result<String, Vec<String>> {
        match self.ask(Ask::Upgrade)?.0 {
            Content::Upgraded { version } => Ok(version),
            _ => Err(vec![unexpected()]),
        }
    }

    fn ask(&self, ask: Ask) -> Result<(Content, Vec<TcpListener>), Vec<String>> {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        *number += 1;
        let (content, sockets) = exchange(&self.channel, Question { number: *number, ask })
            .map_err(|error| vec![Unanswered(error, ask.timeout()).to_string()])?;
        match content {
            Content::Refused(problems) => Err(problems),
            content => Ok((content, sockets)),
        }
    }
}

fn exchange(channel: &Channel, question: Question) -> io::Result<(Content, Vec<TcpListener>)> {
    channel.set_timeout(question.ask.timeout())?;
    channel.send(&serde_json::to_vec(&Said::Asked(question))?, &[])?;
    loop {
        let (payload, fds) = channel.recv()?;
        let answer: Answer = serde_json::from_slice(&payload)?;
        // One that came too late: the sockets with it close here.
        if answer.number == question.number {
            return Ok((answer.content, fds.into_iter().map(TcpListener::from).collect()));
        }
    }
}

struct Unanswered(io::Error, Duration);

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            _ if self.0.raw_os_error() == Some(libc::EMFILE) => write!(
                f,
                "no descriptors are left for the sockets of new listeners; raise LimitNOFILE= (ulimit -n), or listen on less"
            ),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => write!(
                f,
                "the supervisor did not answer within {} s; look whether its configuration file can be read, and try again",
                self.1.as_secs()
            ),
            _ => write!(f, "the supervisor cannot be asked: {}; restart the gateway", self.0),
        }
    }
}

fn unexpected() -> String {
    "the supervisor answered what was not asked; restart the gateway".to_owned()
}

/// The sockets of an answer, as they are sent.
pub fn borrowed(sockets: &[Option<Vec<TcpListener>>]) -> Vec<BorrowedFd<'_>> {
    sockets.iter().flatten().flatten().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn asked(channel: &Channel) -> Question {
        match next_said(channel).unwrap() {
            Said::Asked(question) => question,
            said => panic!("{said:?}"),
        }
    }

    #[tokio::test]
    async fn words_are_told_as_often_as_is_wanted_and_hold_nobody_up() {
        let (ours, theirs) = Channel::pair().unwrap();
        let supervisor = Arc::new(Supervisor::new(theirs, 1).unwrap());
        supervisor.ready();
        supervisor.keep_saying_alive(Duration::from_millis(1));
        let hear = move || ([(); 3].map(|()| next_said(&ours).unwrap()), ours);
        let (said, ours) = tokio::task::spawn_blocking(hear).await.unwrap();
        assert_eq!(said, [Said::Ready, Said::Alive, Said::Alive]);
        for _ in 0..10_000 {
            supervisor.ready();
        }
        drop(ours);
        supervisor.ready();
    }

    #[test]
    fn sockets_come_by_listener_and_worker_and_late_answers_are_passed_over() {
        let (ours, theirs) = Channel::pair().unwrap();
        let supervisor = Supervisor::new(theirs, 2).unwrap();
        let opened = [None, Some(vec![listener(), listener()]), Some(vec![listener(), listener()])];
        let addresses = |sockets: &[Option<Vec<TcpListener>>]| -> Vec<_> {
            sockets.iter().flatten().flatten().map(|socket| socket.local_addr().unwrap()).collect()
        };
        let expected = addresses(&opened);
        let answering = std::thread::spawn(move || {
            let question = asked(&ours);
            assert_eq!(question.ask, Ask::Prepare);
            Answer { number: question.number - 1, content: Content::Done }.send(&ours, &[]).unwrap();
            let is_new = opened.iter().map(Option::is_some).collect();
            let content = Content::Prepared { source: Source::Embedded, is_new };
            Answer { number: question.number, content }.send(&ours, &borrowed(&opened)).unwrap();
            let question = asked(&ours);
            let content = Content::Refused(vec!["draining".into()]);
            Answer { number: question.number, content }.send(&ours, &[]).unwrap();
        });
        let prepared = supervisor.prepare().map_err(|problems| problems.join("\n")).unwrap();
        assert_eq!(addresses(&prepared.sockets), expected);
        assert!(prepared.sockets[0].is_none() && prepared.sockets.len() == 3);
        assert_eq!(supervisor.commit(), Err(vec!["draining".into()]));
        answering.join().unwrap();
        let gone = supervisor.commit().unwrap_err();
        assert!(gone[0].contains("restart the gateway"), "{gone:?}");
    }
}
