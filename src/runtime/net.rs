//! Sockets as sessions see them. A receive lends a buffer of the pool, a send takes one; nothing here allocates
//! for an idle connection.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::{Domain, Protocol, SockRef, Type};

use crate::base::slab::Key;
use crate::sys::socket_options::SocketOptions;

use super::syscalls;
use super::{RecvBuf, Runtime};

/// A connected stream. Dropping it closes it, with FIN; what is unsent is lost.
///
/// At most one task waits to receive (`recv`, `poll_recv`, `poll_hung_up`) and one to send (`sent`, `poll_sent`): a
/// second would take the first one's place and leave it asleep.
pub struct Socket {
    runtime: Runtime,
    key: Key,
}

impl Socket {
    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// When the reactor cannot watch it.
    pub fn new(runtime: &Runtime, fd: OwnedFd) -> io::Result<Self> {
        SockRef::from(&fd).set_nonblocking(true)?;
        Self::register(runtime, fd, true)
    }

    fn register(runtime: &Runtime, fd: OwnedFd, input_likely: bool) -> io::Result<Self> {
        let key = runtime.0.reactor.borrow_mut().register(fd, input_likely)?;
        Ok(Self { runtime: runtime.clone(), key })
    }

    /// Connects to `address`. The caller sets the deadline.
    ///
    /// # Errors
    /// What connect(2) reports, at once or later; what setsockopt(2) does.
    pub async fn connect(
        runtime: &Runtime,
        address: SocketAddr,
        options: &SocketOptions,
    ) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        options.apply(&socket)?;
        let pending = match socket.connect(&address.into()) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(error) => return Err(error),
        };
        let this = Self::register(runtime, socket.into(), false)?;
        if pending {
            std::future::poll_fn(|cx| this.runtime.0.reactor.borrow_mut().poll_writable(this.key, cx)).await;
            if let Some(error) = this.with_fd(|socket| socket.take_error())? {
                return Err(error);
            }
        }
        Ok(this)
    }

    /// The next received bytes; an empty buffer is the end of the stream.
    ///
    /// # Errors
    /// What recv(2) reports, again on every later call.
    pub async fn recv(&self) -> io::Result<RecvBuf> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        self.runtime.0.reactor.borrow_mut().poll_recv(self.key, cx)
    }

    /// Gives back what was received: the next receive has it again. For whoever looks at the first bytes to find out
    /// who is to read them.
    pub fn unread(&self, buf: RecvBuf) {
        self.runtime.0.reactor.borrow_mut().unread(self.key, buf);
    }

    /// Ready when the peer has ended its stream or broken the connection, even behind bytes not yet received.
    pub fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.runtime.0.reactor.borrow_mut().poll_hung_up(self.key, cx)
    }

    /// Whether the peer is known to have done so.
    pub fn is_hung_up(&self) -> bool {
        self.runtime.0.reactor.borrow().is_hung_up(self.key)
    }

    /// Whether bytes are known to have come that nobody took.
    pub fn has_input(&self) -> bool {
        self.runtime.0.reactor.borrow().has_input(self.key)
    }

    /// Sends a copy of what the socket does not take at once. `more`: further bytes follow immediately.
    /// A failure shows in `sent` and in the next receive.
    pub fn send(&self, bytes: &[u8], more: bool) {
        self.runtime.0.reactor.borrow_mut().send_slice(self.key, bytes, more);
    }

    /// Sends a received buffer without copying it.
    pub fn send_buf(&self, buf: RecvBuf, more: bool) {
        self.runtime.0.reactor.borrow_mut().send_buf(self.key, buf, more);
    }

    /// Waits until at most `bytes_max` bytes wait for the kernel to take them.
    ///
    /// # Errors
    /// What send(2) reported; the connection sends nothing any more.
    pub async fn sent(&self, bytes_max: usize) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_sent(bytes_max, cx)).await
    }

    pub fn poll_sent(&self, bytes_max: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.runtime.0.reactor.borrow_mut().poll_sent(self.key, bytes_max, cx)
    }

    /// Bytes that wait for the kernel to take them.
    pub fn unsent(&self) -> usize {
        self.runtime.0.reactor.borrow().unsent(self.key)
    }

    /// Receive in large buffers from now on, or in usual ones again.
    pub fn set_bulk(&self, bulk: bool) {
        self.runtime.0.reactor.borrow_mut().set_bulk(self.key, bulk);
    }

    /// Leave what nobody waits for with the kernel from now on, or receive ahead again: many of these must not hold
    /// much.
    pub fn set_on_demand(&self, on_demand: bool) {
        self.runtime.0.reactor.borrow_mut().set_on_demand(self.key, on_demand);
    }

    /// Has what arrives unasked on an idle connection noticed, for `is_quiet`, until the next receive.
    pub fn watch(&self) {
        self.runtime.0.reactor.borrow_mut().watch(self.key);
    }

    /// Whether this is watched, and nothing came that nobody asked for.
    pub fn is_quiet(&self) -> bool {
        self.runtime.0.reactor.borrow().is_quiet(self.key)
    }

    /// Ends our direction behind what was sent; the other goes on. Nothing is sent after it.
    pub fn shutdown_write(&self) {
        self.runtime.0.reactor.borrow_mut().shutdown_write(self.key);
    }

    /// Bytes that the kernel took and the peer's has not acknowledged, our FIN among them. RST would lose them.
    pub fn unacknowledged(&self) -> usize {
        self.runtime.0.reactor.borrow().fd(self.key).map_or(0, syscalls::unacknowledged)
    }

    /// Closes with RST: the peer learns that the stream did not end well.
    pub fn abort(self) {
        self.runtime.0.reactor.borrow_mut().reset_on_close(self.key);
    }

    /// # Errors
    /// What getpeername(2) reports: the peer may be gone.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.with_fd(|socket| socket.peer_addr())?.as_socket().ok_or_else(not_inet)
    }

    /// # Errors
    /// What getsockname(2) reports.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.with_fd(|socket| socket.local_addr())?.as_socket().ok_or_else(not_inet)
    }

    fn with_fd<T>(&self, call: impl FnOnce(SockRef<'_>) -> io::Result<T>) -> io::Result<T> {
        let reactor = self.runtime.0.reactor.borrow();
        let fd = reactor.fd(self.key).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        call(SockRef::from(&fd))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.runtime.0.reactor.borrow_mut().close(self.key);
    }
}

fn not_inet() -> io::Error {
    io::Error::from_raw_os_error(libc::EAFNOSUPPORT)
}

/// A connection a listener accepted: not yet part of any session.
pub struct Incoming(OwnedFd);

impl Incoming {
    /// Whether one waits in a queue that is nobody's in this runtime.
    pub fn waits_at(listener: &std::net::TcpListener) -> bool {
        syscalls::is_readable(listener.as_fd())
    }

    /// One that waits in a queue that is nobody's in this runtime, if there is one. The listener does not block.
    pub fn waiting_at(listener: &std::net::TcpListener) -> Option<Self> {
        syscalls::accept(listener.as_fd()).ok().map(Self)
    }

    /// # Errors
    /// When the reactor cannot watch it.
    pub fn open(self, runtime: &Runtime) -> io::Result<Socket> {
        Socket::register(runtime, self.0, true)
    }

    /// Closes it with RST.
    pub fn refuse(self) {
        syscalls::reset_on_close(self.0.as_fd());
    }
}

/// A listening socket of this worker.
pub struct Listener {
    runtime: Runtime,
    key: Key,
    singly: Cell<bool>,
    is_watched: Cell<bool>,
}

impl Listener {
    /// Takes over a listening socket. Accepted connections inherit its TCP_NODELAY.
    pub fn new(runtime: &Runtime, listener: std::net::TcpListener) -> Self {
        let _ = listener.set_nonblocking(true);
        let _ = SockRef::from(&listener).set_tcp_nodelay(true);
        let key = runtime.0.reactor.borrow_mut().register_unwatched(listener.into());
        Self { runtime: runtime.clone(), key, singly: Cell::new(false), is_watched: Cell::new(false) }
    }

    /// Whether a connection is taken from the kernel's queue only when it is asked for. Otherwise the ring takes all that come,
    /// which is cheaper, and nobody else can have them.
    pub fn set_singly(&self, singly: bool) {
        if self.singly.replace(singly) != singly {
            self.stop();
        }
    }

    pub const fn is_singly(&self) -> bool {
        self.singly.get()
    }

    /// The next connection.
    ///
    /// # Errors
    /// What accept(2) reports, or that the reactor cannot watch the socket yet (ENOSPC, ENOMEM). After EMFILE, ENFILE and
    /// these the caller waits before it asks again.
    pub async fn accept(&self) -> io::Result<Incoming> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Incoming>> {
        let mut reactor = self.runtime.0.reactor.borrow_mut();
        if !self.is_watched.get() {
            reactor.watch_unwatched(self.key)?;
            self.is_watched.set(true);
        }
        reactor.poll_accept(self.key, self.singly.get(), cx).map_ok(Incoming)
    }

    /// Does something to the socket that is none of the reactor's business. `None` once it is closed.
    pub fn with_socket<T>(&self, act: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        self.runtime.0.reactor.borrow().fd(self.key).map(act)
    }

    /// Accepts no more from the ring; `accept_rest` hands out what was accepted or waits in the queue.
    pub fn stop(&self) {
        self.runtime.0.reactor.borrow_mut().stop_accept(self.key);
    }

    /// After `stop`: the connections that were made before it, then `None`.
    pub async fn accept_rest(&self) -> Option<Incoming> {
        std::future::poll_fn(|cx| self.runtime.0.reactor.borrow_mut().poll_accept_rest(self.key, cx))
            .await
            .map(Incoming)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.runtime.0.reactor.borrow_mut().close_shared(self.key);
    }
}

/// Where other threads tell this worker that there is something to read in its inbox.
pub struct Mailbox {
    runtime: Runtime,
    key: Key,
}

/// Wakes the worker that owns the mailbox, from any thread.
#[derive(Clone)]
pub struct MailboxWaker(Arc<OwnedFd>);

impl Mailbox {
    /// # Errors
    /// When no descriptor is left.
    pub fn new(runtime: &Runtime) -> io::Result<(Self, MailboxWaker)> {
        let fd = syscalls::eventfd()?;
        let waker = MailboxWaker(Arc::new(fd.try_clone()?));
        let key = runtime.0.reactor.borrow_mut().register(fd, false)?;
        Ok((Self { runtime: runtime.clone(), key }, waker))
    }

    /// Waits until some thread called `MailboxWaker::wake` since the last time.
    pub async fn notified(&self) {
        std::future::poll_fn(|cx| self.runtime.0.reactor.borrow_mut().poll_notified(self.key, cx)).await;
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.runtime.0.reactor.borrow_mut().close_shared(self.key);
    }
}

impl MailboxWaker {
    pub fn wake(&self) {
        syscalls::eventfd_signal(self.0.as_fd());
    }
}
