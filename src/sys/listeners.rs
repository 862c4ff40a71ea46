//! Opens listening sockets: one SO_REUSEPORT socket a worker, after making sure that nobody else listens there.
//! Never accepts.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::holders::{self, Holder};

/// How long an address in use is tried again. The ring of a process killed a moment ago is torn down
/// asynchronously and may keep its listeners for some milliseconds.
const IN_USE_RETRY: Duration = Duration::from_secs(1);
/// The same for a Unix socket, which a killed process closes at once when it ends.
const UNIX_IN_USE_RETRY: Duration = Duration::from_millis(250);
const IN_USE_PAUSE: Duration = Duration::from_millis(20);

/// Why an address could not be listened on. Its text names cause and cure.
#[derive(Debug)]
pub struct OpenError {
    pub address: SocketAddr,
    pub cause: io::Error,
    /// Processes that listen there, where the cause is that the address is in use and they are visible.
    pub holders: Vec<Holder>,
}

/// Opens `count` sockets on one address, in worker order: non-blocking, closed on exec, listening.
///
/// SO_REUSEPORT would let a second copy of Ringfort started by mistake join in and take half of the connections.
/// So a socket without it is bound first, which fails while anyone listens there; and a copy that was started in
/// the same instant is seen by its listeners afterwards. Port 0 takes one free port for all. `backlog` is the accept
/// queue of each, which the kernel caps at `net.core.somaxconn`.
pub fn open(address: SocketAddr, count: usize, backlog: u32) -> Result<Vec<TcpListener>, OpenError> {
    until_free(IN_USE_RETRY, || try_open(address, count, backlog)).map_err(|cause| {
        let in_use = cause.kind() == io::ErrorKind::AddrInUse;
        let holders = if in_use { holders::of(&holders::listening_inodes(address)) } else { Vec::new() };
        OpenError { address, cause, holders }
    })
}

/// Opens `count` more sockets beside one that [`open`] opened. They do not listen yet: with [`listen`] each comes into the
/// group, behind those that are there, and gets its part of new connections.
///
/// # Errors
/// What the kernel reports, as where the group is another user's.
pub fn join(first: &TcpListener, count: usize) -> io::Result<Vec<TcpListener>> {
    let address = first.local_addr()?;
    (0..count).map(|_| bind_beside(address)).collect()
}

/// Has a socket listen, with an accept queue of this length. One that listens keeps what waits: Linux takes the new bound
/// with another listen(2).
///
/// # Errors
/// What the kernel reports; nothing has changed then.
pub fn listen(listener: &TcpListener, backlog: u32) -> io::Result<()> {
    SockRef::from(listener).listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// Opens a single socket, as for the admin endpoint.
pub fn open_one(address: SocketAddr, backlog: u32) -> Result<TcpListener, OpenError> {
    let mut sockets = open(address, 1, backlog)?;
    Ok(sockets.remove(0))
}

/// Opens a Unix socket at `path` that only this user may connect to. A file left by a process that is gone is
/// replaced; one that somebody answers on is `AddrInUse`.
pub fn open_unix(path: &Path, backlog: u32) -> io::Result<UnixListener> {
    until_free(UNIX_IN_USE_RETRY, || try_open_unix(path, backlog))
}

fn try_open_unix(path: &Path, backlog: u32) -> io::Result<UnixListener> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        let caller = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // A listener whose queue is full would block a blocking socket for as long as it stays so.
        caller.set_nonblocking(true)?;
        match caller.connect(&SockAddr::unix(path)?) {
            Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            // Refused: a socket file without a listener. Anything else may be somebody's.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The mode of the socket before bind is the mode of the file that bind makes: there is no moment in which the
    // file is there for others (unix(7) leaves this to the umask only).
    let file = fs::File::from(OwnedFd::from(socket));
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: ", self.address)?;
        match self.cause.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "the address is in use{}; stop it, or choose another address", self.by_whom())
            }
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "no interface of this machine has the address; add it, or choose another address")
            }
            io::ErrorKind::PermissionDenied => write!(
                f,
                "not permitted; ports below net.ipv4.ip_unprivileged_port_start (1024) need CAP_NET_BIND_SERVICE: \
                 grant it, start as root, or choose a higher port"
            ),
            _ => write!(f, "{}", self.cause),
        }
    }
}

impl std::error::Error for OpenError {}

impl OpenError {
    fn by_whom(&self) -> String {
        let own = std::process::id();
        match &self.holders[..] {
            [] => " by a process that this user cannot see".to_string(),
            [holder] if holder.id == own => " by another listener of this configuration".to_string(),
            holders => {
                let names: Vec<_> =
                    holders.iter().map(|holder| format!("{} (process {})", holder.name, holder.id)).collect();
                let again = holders.iter().any(|holder| holder.name.starts_with("ringfort"));
                let hint = if again { ", which may be a Ringfort that already runs" } else { "" };
                format!(" by {}{hint}", names.join(" and "))
            }
        }
    }
}

fn until_free<T>(retry: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let give_up = Instant::now() + retry;
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                // Two copies started together must not step on each other all the time: no fixed rhythm.
                let jitter = Duration::from_micros(super::random::seed() % 20_000);
                std::thread::sleep(IN_USE_PAUSE + jitter);
            }
            result => return result,
        }
    }
}

fn try_open(address: SocketAddr, count: usize, backlog: u32) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        let probe = new_socket(address)?;
        probe.bind(&address.into())?;
    }
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = bind_beside(address)?;
        listen(&listener, backlog)?;
        address = listener.local_addr()?;
        sockets.push(listener);
    }
    let own = sockets.iter().map(inode).collect::<io::Result<Vec<_>>>()?;
    if holders::listening_inodes(address).iter().all(|inode| own.contains(inode)) {
        Ok(sockets)
    } else {
        Err(io::ErrorKind::AddrInUse.into())
    }
}

fn bind_beside(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(TcpListener::from(OwnedFd::from(socket)))
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // [::] is IPv6 only, whatever the sysctl says, so that 0.0.0.0 with the same port is a listener beside it.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn inode(listener: &TcpListener) -> io::Result<u64> {
    Ok(fs::File::from(listener.as_fd().try_clone_to_owned()?).metadata()?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn free() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn every_worker_gets_a_socket_on_the_one_port() {
        let sockets = open(free(), 3, 8).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert_ne!(address.port(), 0);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        assert!(TcpStream::connect(address).is_ok());
        // Non-blocking: an empty accept queue does not block.
        drop(sockets);
        let fresh = open(free(), 1, 8).unwrap();
        assert_eq!(fresh[0].accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_socket_that_joins_gets_no_connection_before_it_listens() {
        let first = open(free(), 1, 64).unwrap().remove(0);
        let address = first.local_addr().unwrap();
        let joined = join(&first, 2).unwrap();
        for _ in 0..20 {
            let _client = TcpStream::connect(address).unwrap();
            let give_up = Instant::now() + Duration::from_secs(5);
            while first.accept().is_err() {
                assert!(Instant::now() < give_up, "it went to another socket");
                std::thread::yield_now();
            }
        }
        let listens = |socket: &TcpListener| SockRef::from(socket).is_listener().unwrap();
        assert!(!joined.iter().any(listens));
        joined.iter().for_each(|socket| listen(socket, 64).unwrap());
        assert!(joined.iter().all(listens));
    }

    #[test]
    fn a_second_copy_is_refused_and_told_who_is_there() {
        let first = open(free(), 2, 8).unwrap();
        let address = first[0].local_addr().unwrap();
        let started = Instant::now();
        let error = open(address, 2, 8).unwrap_err();
        assert!(started.elapsed() >= IN_USE_RETRY);
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.contains(&address.to_string()), "{text}");
        assert!(text.contains("another listener of this configuration"), "{text}");
    }

    #[test]
    fn another_process_is_named_with_its_cure() {
        let holders = vec![Holder { id: 4_000_000, name: "nginx".into() }];
        let error = OpenError {
            address: "0.0.0.0:80".parse().unwrap(),
            cause: io::ErrorKind::AddrInUse.into(),
            holders,
        };
        assert_eq!(
            error.to_string(),
            "cannot listen on 0.0.0.0:80: the address is in use by nginx (process 4000000); stop it, or choose \
             another address"
        );
    }

    #[test]
    fn an_address_freed_within_the_second_is_taken() {
        let mut attempts = 0;
        let opened = until_free(IN_USE_RETRY, || {
            attempts += 1;
            if attempts < 3 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(attempts) }
        });
        assert_eq!(opened.unwrap(), 3);
    }

    #[test]
    fn a_foreign_reuseport_listener_is_noticed_after_the_probe() {
        let foreign = new_socket(free()).unwrap();
        foreign.set_reuse_port(true).unwrap();
        foreign.bind(&free().into()).unwrap();
        foreign.listen(1).unwrap();
        let address = foreign.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(try_open(address, 1, 8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn an_address_of_no_interface_is_explained() {
        let error = open("192.0.2.1:1".parse().unwrap(), 1, 8).unwrap_err();
        assert!(error.to_string().contains("no interface"), "{error}");
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let folder = std::env::temp_dir().join(format!("ringfort-unix-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("admin.sock");
        // With room for one: the queue is full after the first attempt.
        let first = open_unix(&path, 1).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(open_unix(&path, 8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(open_unix(&path, 8).is_ok());
        fs::write(folder.join("file"), "not ours").unwrap();
        assert_eq!(open_unix(&folder.join("file"), 8).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(folder.join("file").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
