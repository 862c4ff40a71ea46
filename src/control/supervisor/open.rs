//! What the supervisor opens at start, in worker order, and where the admin Unix socket goes.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::upgrade::Group;
use crate::config::Config;
use crate::control::handover::Sockets;
use crate::control::{cpus, socket};
use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::proxy::snapshot::Listener;
use crate::sys::{affinity, listeners};

const ADMIN_BACKLOG: u32 = ADMIN_CONNECTIONS_MAX as u32;

/// The CPU of each worker, from configuration, affinity and control group.
pub fn cpus(config: &Config) -> Result<Vec<usize>, String> {
    let allowed =
        affinity::allowed_cpus().map_err(|error| format!("cannot read the affinity mask: {error}"))?;
    let quota = affinity::cpu_quota(&config.host.procfs, &config.host.cgroupfs);
    cpus::choose(&config.workers.cpus, &allowed, quota)
}

/// Sockets of the program before this one.
#[derive(Default)]
pub struct Inherited {
    /// By the address in its configuration, and by name where the kernel chose the port.
    pub listeners: Vec<(Group, Vec<TcpListener>)>,
    pub admin_tcp: Option<(SocketAddr, TcpListener)>,
    pub admin_unix: Option<(PathBuf, UnixListener)>,
}

impl Inherited {
    fn take(&mut self, listener: &Listener) -> Option<Vec<TcpListener>> {
        let is_same = |(group, _): &(Group, _)| {
            group.listen == listener.address && (group.listen.port() != 0 || group.name == *listener.name)
        };
        let at = self.listeners.iter().position(is_same)?;
        Some(self.listeners.swap_remove(at).1)
    }
}

/// All sockets of the gateway for `workers` workers, and the path of the admin Unix socket if there is one. What is
/// inherited stays what it is.
pub fn sockets(
    config: &Config,
    workers: usize,
    mut inherited: Inherited,
) -> Result<(Sockets, Option<PathBuf>), String> {
    let present: Vec<SocketAddr> = inherited.listeners.iter().map(|(group, _)| group.listen).collect();
    let mut all = Vec::new();
    for listener in &config.snapshot.listeners {
        let opened = match inherited.take(listener) {
            Some(sockets) => more(sockets, workers).map_err(|error| {
                format!("listener \"{}\": no socket for each worker: {error}", listener.name)
            }),
            None => beside(&present, listener, workers),
        };
        all.push(opened?);
    }
    let admin_tcp = match inherited.admin_tcp.filter(|(address, _)| *address == config.admin.listen) {
        Some((_, socket)) => socket,
        None => listeners::open_one(config.admin.listen, ADMIN_BACKLOG)
            .map_err(|error| format!("admin.listen: {error}"))?,
    };
    let stays = |path: &Path| match &config.admin.socket {
        Some(configured) => configured == path,
        None => socket::default_paths().iter().any(|default| default == path),
    };
    let admin_unix = match inherited.admin_unix.filter(|(path, _)| stays(path)) {
        Some((path, socket)) => Some((socket, path)),
        None => admin_socket(config.admin.socket.as_deref())?,
    };
    let (admin_unix, path) = admin_unix.unzip();
    Ok((Sockets { listeners: all, admin_tcp, admin_unix }, path))
}

/// Opens the sockets of a listener, while others are served at `present`.
///
/// # Errors
/// A text with cause and cure.
pub fn beside(
    present: &[SocketAddr],
    listener: &Listener,
    workers: usize,
) -> Result<Vec<TcpListener>, String> {
    let (name, address) = (&listener.name, listener.address);
    if let Some(other) = present.iter().find(|other| overlap(**other, address)) {
        return Err(format!(
            "listener \"{name}\": cannot listen on {address} beside {other}, which is served; restart the gateway \
             to change from one to the other"
        ));
    }
    listeners::open(address, workers, listener.backlog)
        .map_err(|error| format!("listener \"{name}\": {error}"))
}

/// Whether one of two is on all addresses and the other on one of them: the kernel calls either in use while the other
/// listens, as it would where it is another program's.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // [::] is IPv6 only. Port 0 is no port yet.
    (one.port(), one.is_ipv4()) == (other.port(), other.is_ipv4())
        && one.port() != 0
        && one.ip().is_unspecified() != other.ip().is_unspecified()
}

/// A socket for each worker. One that is too many stays open: what waits in it is to be served. One that is new does not
/// listen before there is a worker to accept from it: it would get connections.
fn more(mut sockets: Vec<TcpListener>, workers: usize) -> io::Result<Vec<TcpListener>> {
    if let Some(first) = sockets.first()
        && sockets.len() < workers
    {
        let joined = listeners::join(first, workers - sockets.len())?;
        sockets.extend(joined);
    }
    Ok(sockets)
}

/// A path from the configuration must work; of the default ones the first that works is taken, if any.
fn admin_socket(configured: Option<&Path>) -> Result<Option<(UnixListener, PathBuf)>, String> {
    if let Some(path) = configured {
        let listener = listeners::open_unix(path, ADMIN_BACKLOG).map_err(|error| {
            format!("admin.socket: cannot listen on {}: {}", path.display(), explain(&error))
        })?;
        return Ok(Some((listener, path.into())));
    }
    let mut notes = Vec::new();
    for path in socket::default_paths() {
        let Some(folder) = path.parent() else { continue };
        // Exists already under systemd's RuntimeDirectory=.
        let made = fs::create_dir(folder);
        let made = made.or_else(|error| if folder.is_dir() { Ok(()) } else { Err(error) });
        match made.and_then(|()| listeners::open_unix(&path, ADMIN_BACKLOG)) {
            Ok(listener) => return Ok(Some((listener, path))),
            Err(error) => notes.push(format!("{}: {}", path.display(), explain(&error))),
        }
    }
    let cause = notes.join("; ");
    tracing::info!(cause, "no admin Unix socket: set admin.socket to a path that this user may write");
    Ok(None)
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process answers on it".to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_and_all_of_them_overlap_on_the_same_port() {
        let overlap = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|address| address.parse().unwrap());
            assert_eq!(overlap(one, other), overlap(other, one));
            overlap(one, other)
        };
        assert!(overlap("0.0.0.0:80", "10.0.0.1:80") && overlap("[::]:80", "[::1]:80"));
        for (one, other) in [
            ("0.0.0.0:80", "10.0.0.1:81"),
            ("0.0.0.0:80", "[::1]:80"),
            ("10.0.0.2:80", "10.0.0.1:80"),
            ("0.0.0.0:0", "10.0.0.1:0"),
        ] {
            assert!(!overlap(one, other), "{one} {other}");
        }
    }

    #[test]
    fn a_configured_socket_that_cannot_be_opened_is_an_error_with_its_path() {
        let error = admin_socket(Some(Path::new("/nonexistent/admin.sock"))).unwrap_err();
        assert!(error.starts_with("admin.socket: cannot listen on /nonexistent/admin.sock: "), "{error}");
    }
}
