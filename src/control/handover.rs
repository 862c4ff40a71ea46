//! What the supervisor gives a data process at its start: sockets, the text of the configuration, and a few facts.
//! One message over the channel that the data process finds as its standard input.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::requests::KeptTicketKeys;
use super::source::Source;
use crate::sys::fd_passing::Channel;

/// Facts beside the sockets.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Facts {
    /// The configuration's text; the data process reads no file that may have changed since the supervisor read it.
    pub source: Source,
    /// The CPU of each worker, in worker order.
    pub cpus: Vec<usize>,
    /// Where the admin Unix socket is, if there is one.
    pub admin_socket: Option<PathBuf>,
    /// Times the data process was started again after a crash.
    pub restarts: u32,
    /// Binary upgrades that led to this data process.
    pub upgrades: u32,
    /// Another data process serves until this one says that it does.
    pub succeeds: bool,
    /// Process id of the supervisor.
    pub supervisor: u32,
    /// How often the supervisor wants a sign of life, if at all.
    pub alive_every: Option<Duration>,
    /// The secrets of tickets that a data process before this one had.
    pub ticket_keys: Option<KeptTicketKeys>,
}

/// Every socket of the gateway. The supervisor keeps its copies, so that accept queues outlive a data process.
pub struct Sockets {
    /// The sockets of each listener of the configuration, in the order in which they began to listen: one for each worker,
    /// and more where there were more workers once.
    pub listeners: Vec<Vec<TcpListener>>,
    pub admin_tcp: TcpListener,
    pub admin_unix: Option<UnixListener>,
}

/// What goes with descriptors: whose each one is.
#[derive(Debug, Deserialize, Serialize)]
pub struct Counts {
    listeners: Vec<usize>,
    admin_unix: bool,
}

#[derive(Deserialize, Serialize)]
struct Letter<F> {
    facts: F,
    counts: Counts,
}

impl Sockets {
    /// All of them in order, and how they are told apart again.
    pub fn parts(&self) -> (Counts, Vec<BorrowedFd<'_>>) {
        let listeners = self.listeners.iter().map(Vec::len).collect();
        let counts = Counts { listeners, admin_unix: self.admin_unix.is_some() };
        let fds = self.listeners.iter().flatten().map(AsFd::as_fd);
        let admin_unix = self.admin_unix.iter().map(AsFd::as_fd);
        (counts, fds.chain([self.admin_tcp.as_fd()]).chain(admin_unix).collect())
    }

    /// The other way round.
    ///
    /// # Errors
    /// Where the two do not match.
    pub fn from_parts(counts: &Counts, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let all = counts
            .listeners
            .iter()
            .try_fold(1 + usize::from(counts.admin_unix), |sum, count| sum.checked_add(*count));
        if all != Some(fds.len()) {
            return Err(incomplete());
        }
        let mut fds = fds.into_iter();
        let mut next = |count: &usize| fds.by_ref().take(*count).map(TcpListener::from).collect();
        let listeners = counts.listeners.iter().map(&mut next).collect();
        let admin_tcp = TcpListener::from(fds.next().ok_or_else(incomplete)?);
        Ok(Self { listeners, admin_tcp, admin_unix: fds.next().map(UnixListener::from) })
    }
}

/// Sends copies of `sockets`. Blocks until the other side has taken most of it.
pub fn send(channel: &Channel, facts: &impl Serialize, sockets: &Sockets) -> io::Result<()> {
    let (counts, fds) = sockets.parts();
    channel.send(&serde_json::to_vec(&Letter { facts, counts })?, &fds)
}

/// Receives what [`send`] sent.
pub fn receive<F: DeserializeOwned>(channel: &Channel) -> io::Result<(F, Sockets)> {
    let (payload, fds) = channel.recv()?;
    let Letter { facts, counts } = serde_json::from_slice(&payload)?;
    Ok((facts, Sockets::from_parts(&counts, fds)?))
}

fn incomplete() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the sockets handed over are not those that were told")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts(cpus: &[usize], admin_socket: Option<&str>) -> Facts {
        Facts {
            source: Source::Embedded,
            cpus: cpus.into(),
            admin_socket: admin_socket.map(Into::into),
            restarts: 2,
            upgrades: 1,
            succeeds: true,
            supervisor: 77,
            alive_every: Some(Duration::from_secs(15)),
            ticket_keys: None,
        }
    }

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn sent(listeners: Vec<Vec<TcpListener>>) -> Sockets {
        Sockets { listeners, admin_tcp: listener(), admin_unix: None }
    }

    fn addresses(listeners: &[Vec<TcpListener>]) -> Vec<Vec<std::net::SocketAddr>> {
        let of = |sockets: &Vec<TcpListener>| sockets.iter().map(|s| s.local_addr().unwrap()).collect();
        listeners.iter().map(of).collect()
    }

    #[test]
    fn sockets_arrive_by_listener_in_order() {
        let (left, right) = Channel::pair().unwrap();
        let sent = sent(vec![vec![listener(), listener()], vec![listener(), listener(), listener()]]);
        send(&left, &facts(&[0, 1], None), &sent).unwrap();
        let (received_facts, received) = receive::<Facts>(&right).unwrap();
        assert_eq!(received_facts, facts(&[0, 1], None));
        assert_eq!(addresses(&received.listeners), addresses(&sent.listeners));
        assert_eq!(received.admin_tcp.local_addr().unwrap(), sent.admin_tcp.local_addr().unwrap());
        assert!(received.admin_unix.is_none());
    }

    #[test]
    fn sockets_that_do_not_match_are_refused() {
        let (left, right) = Channel::pair().unwrap();
        let one = sent(vec![vec![listener()]]);
        for listeners in [vec![2], vec![1, 1], vec![usize::MAX, 2], vec![]] {
            let letter = Letter { facts: facts(&[0], None), counts: Counts { listeners, admin_unix: false } };
            left.send(&serde_json::to_vec(&letter).unwrap(), &one.parts().1).unwrap();
            assert!(receive::<Facts>(&right).is_err());
        }
    }
}
