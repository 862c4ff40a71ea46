//! What the supervisor gives a data process at its start: sockets, the text of the configuration, and a few facts.
//! One message over the channel that the data process finds as its standard input.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::source::Source;
use crate::sys::fd_passing::Channel;

/// Facts beside the sockets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Facts {
    /// The configuration's text; the data process reads no file that may have changed since the supervisor read it.
    pub source: Source,
    /// The CPU of each worker, in worker order.
    pub cpus: Vec<usize>,
    /// Where the admin Unix socket is, if there is one.
    pub admin_socket: Option<PathBuf>,
    /// Times the data process was started again after a crash.
    pub restarts: u32,
    /// Process id of the supervisor.
    pub supervisor: u32,
    /// How often the supervisor wants a sign of life, if at all.
    pub alive_every: Option<Duration>,
}

/// Every socket of the gateway. The supervisor keeps its copies, so that accept queues outlive a data process.
pub struct Sockets {
    /// For each worker, its socket of each listener of the configuration, in order.
    pub workers: Vec<Vec<TcpListener>>,
    pub admin_tcp: TcpListener,
    pub admin_unix: Option<UnixListener>,
}

/// Sends copies of `sockets`. Blocks until the other side has taken most of it.
pub fn send(channel: &Channel, facts: &Facts, sockets: &Sockets) -> io::Result<()> {
    let payload = serde_json::to_vec(facts)?;
    let workers = sockets.workers.iter().flatten().map(AsFd::as_fd);
    let admin_unix = sockets.admin_unix.iter().map(AsFd::as_fd);
    let fds: Vec<BorrowedFd<'_>> = workers.chain([sockets.admin_tcp.as_fd()]).chain(admin_unix).collect();
    channel.send(&payload, &fds)
}

/// Receives what [`send`] sent.
pub fn receive(channel: &Channel) -> io::Result<(Facts, Sockets)> {
    let (payload, mut fds) = channel.recv()?;
    let facts: Facts = serde_json::from_slice(&payload)?;
    let admin_unix = facts.admin_socket.is_some().then(|| fds.pop()).flatten().map(UnixListener::from);
    let admin_tcp = TcpListener::from(fds.pop().ok_or_else(incomplete)?);
    let count = facts.cpus.len();
    if count == 0 || fds.len() % count != 0 {
        return Err(incomplete());
    }
    let each = fds.len() / count;
    let mut fds = fds.into_iter();
    let mut next = || fds.by_ref().take(each).map(|fd: OwnedFd| TcpListener::from(fd)).collect();
    let workers = (0..count).map(|_| next()).collect();
    Ok((facts, Sockets { workers, admin_tcp, admin_unix }))
}

fn incomplete() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the sockets handed over do not match the workers")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(cpus: &[usize], admin_socket: Option<&str>) -> Facts {
        Facts {
            source: Source::Embedded,
            cpus: cpus.into(),
            admin_socket: admin_socket.map(Into::into),
            restarts: 2,
            supervisor: 77,
            alive_every: Some(Duration::from_secs(15)),
        }
    }

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn every_worker_gets_its_own_sockets_in_order() {
        let (left, right) = Channel::pair().unwrap();
        let workers = vec![vec![listener(), listener()], vec![listener(), listener()]];
        let sent = Sockets { workers, admin_tcp: listener(), admin_unix: None };
        send(&left, &facts(&[0, 1], None), &sent).unwrap();
        let (received_facts, received) = receive(&right).unwrap();
        assert_eq!(received_facts, facts(&[0, 1], None));
        let addresses = |sockets: &Sockets| -> Vec<Vec<_>> {
            let of = |worker: &Vec<TcpListener>| worker.iter().map(|s| s.local_addr().unwrap()).collect();
            sockets.workers.iter().map(of).collect()
        };
        assert_eq!(addresses(&received), addresses(&sent));
        assert_eq!(received.admin_tcp.local_addr().unwrap(), sent.admin_tcp.local_addr().unwrap());
        assert!(received.admin_unix.is_none());
    }

    #[test]
    fn sockets_that_do_not_match_the_workers_are_refused() {
        let (left, right) = Channel::pair().unwrap();
        let sent = Sockets {
            workers: vec![vec![listener(), listener()], vec![listener()]],
            admin_tcp: listener(),
            admin_unix: None,
        };
        send(&left, &facts(&[0, 1], None), &sent).unwrap();
        assert!(receive(&right).is_err());
        left.send(&serde_json::to_vec(&facts(&[0], None)).unwrap(), &[]).unwrap();
        assert!(receive(&right).is_err());
    }
}
