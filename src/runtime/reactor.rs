//! Sockets of one worker and what the kernel reported about them. The seam: everything above speaks of keys,
//! buffers and wakers; the backends below (`uring`, `epoll`) only arm what is wanted and report events.
//!
//! A slot lives until the kernel has given back every operation on it: only then is its descriptor closed, so a
//! number is never reused while an operation on the old file is in flight.

mod closing;
mod epoll;
#[cfg(test)]
mod hooks;
mod queue;
mod setup;
mod slot;
mod uring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::base::slab::{Key, Slab};

use super::buffers::{Blocks, BufferStats, Buffers, RecvBuf, Size};
use super::syscalls;
use closing::Closing;
use epoll::Epoll;
#[cfg(test)]
pub(super) use hooks::{Fault, Inside};
use queue::Queue;
pub use setup::{Engine, EngineChoice, EngineReport, RingSizes};
pub use setup::{Refusal, Release, multishot_receive_is_fair, parse_release, probe};
use slot::{Outgoing, Received, Receiving, Sending, Slot, set_waker};
use uring::Uring;

/// Received buffers that may wait in one socket before its receive is stopped.
pub(super) const INBOX_MAX: usize = 4;

/// Accepted connections that may wait in one listener before its accept is stopped; the kernel's queue, which the
/// listener's backlog bounds, holds the others. What is on its way when the accept stops comes on top.
pub(super) const ACCEPTED_MAX: usize = 64;

/// Turns that the end of a reactor waits, up to `DRAIN_WAIT` each, for the kernel to give everything back.
const DRAIN_TURNS_MAX: u32 = 100;
const DRAIN_WAIT: Duration = Duration::from_millis(10);

/// Counters of one reactor since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReactorStats {
    /// Receives that found the buffer ring empty (ENOBUFS).
    pub recv_starved: u64,
    /// Times the completion queue overflowed into the kernel's list.
    pub completion_overflows: u64,
    /// Multishot operations that the kernel ended by itself and that were armed again.
    pub rearmed: u64,
    /// Completions that named a socket which was gone.
    pub stale: u64,
}

enum Backend {
    Epoll(Epoll),
    Uring(Box<Uring>),
}

pub(super) struct Reactor {
    slots: Slab<Slot>,
    // Before `buffers`: the ring must be gone before the memory it receives into is.
    backend: Backend,
    buffers: Rc<Buffers>,
    blocks: Blocks,
    stats: ReactorStats,
    closing: Closing,
}

impl Reactor {
    pub(super) fn new(choice: EngineChoice, sizes: RingSizes) -> io::Result<(Self, EngineReport)> {
        setup::choose(choice, sizes)
    }

    fn with_backend(backend: Backend, buffers: Rc<Buffers>) -> Self {
        Self {
            slots: Slab::default(),
            backend,
            buffers,
            blocks: Blocks::default(),
            stats: ReactorStats::default(),
            closing: Closing::default(),
        }
    }

    pub(super) const fn engine(&self) -> Engine {
        match self.backend {
            Backend::Epoll(_) => Engine::Epoll,
            Backend::Uring(_) => Engine::IoUring,
        }
    }

    pub(super) const fn stats(&self) -> ReactorStats {
        self.stats
    }

    pub(super) fn buffer_stats(&self) -> BufferStats {
        self.buffers.stats()
    }

    pub(super) fn empty_buffer(&self) -> RecvBuf {
        self.buffers.take(Size::Usual)
    }

    pub(super) fn take_block(&mut self) -> Vec<u8> {
        self.blocks.take()
    }

    pub(super) fn put_block(&mut self, block: Vec<u8>) {
        self.blocks.put(block);
    }

    /// Takes over a connected, connecting or listening socket, or an eventfd.
    /// `input_likely`: something may be there to receive, and the first receive looks before it waits.
    pub(super) fn register(&mut self, fd: OwnedFd, input_likely: bool) -> io::Result<Key> {
        let key = self.slots.insert(Slot { readable: input_likely, ..Slot::new(fd) });
        if let Err(error) = self.watch_unwatched(key) {
            self.slots.remove(key);
            return Err(error);
        }
        Ok(key)
    }

    /// Takes over a socket that must not be lost where it cannot be watched at once. Nothing is heard of it before
    /// `watch_unwatched`, nor has what came meanwhile gone unseen then.
    pub(super) fn register_unwatched(&mut self, fd: OwnedFd) -> Key {
        self.slots.insert(Slot { readable: true, ..Slot::new(fd) })
    }

    /// # Errors
    /// When epoll cannot: ENOSPC beyond `fs.epoll.max_user_watches`, ENOMEM.
    pub(super) fn watch_unwatched(&self, key: Key) -> io::Result<()> {
        match (&self.backend, self.slots.get(key)) {
            (Backend::Epoll(epoll), Some(slot)) => epoll.add(slot.fd.as_fd(), key),
            _ => Ok(()),
        }
    }

    /// Enters the kernel: submits what is armed, waits up to `wait`, and wakes whom the events concern. Whether all that is
    /// ready was seen.
    pub(super) fn turn(&mut self, wait: Duration) -> io::Result<bool> {
        let Self { slots, backend, buffers, stats, closing, .. } = self;
        closing.turn();
        match backend {
            Backend::Epoll(epoll) => epoll.turn(slots, wait),
            Backend::Uring(uring) => uring.turn(slots, buffers, stats, closing, wait),
        }
    }

    /// Closes what waits for turns to come: there may be none.
    pub(super) fn close_waiting(&mut self) {
        self.closing = Closing::default();
    }

    /// Whether descriptors wait to be closed in turns to come.
    pub(super) fn is_closing(&self) -> bool {
        !self.closing.is_empty()
    }

    pub(super) fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.slots.get(key).map(|slot| slot.fd.as_fd())
    }

    /// The next received bytes; an empty buffer is the end of the stream, again and again.
    pub(super) fn poll_recv(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<RecvBuf>> {
        let received = match self.poll_received(key, cx) {
            Poll::Ready(received) => received?,
            Poll::Pending => return Poll::Pending,
        };
        Poll::Ready(match received {
            Received::Bytes(buf) => Ok(buf),
            Received::Accepted(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            Received::Failed(errno) => {
                self.stand(key, Received::Failed(errno));
                Err(io::Error::from_raw_os_error(errno))
            }
            Received::End => {
                self.stand(key, Received::End);
                Ok(self.buffers.take(Size::Usual))
            }
        })
    }

    /// The next accepted connection. `singly`: taken from the kernel's queue only now; a multishot accept is stopped before.
    pub(super) fn poll_accept(
        &mut self,
        key: Key,
        singly: bool,
        cx: &Context<'_>,
    ) -> Poll<io::Result<OwnedFd>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        loop {
            match slot.inbox.pop() {
                Some(Received::Accepted(fd)) => return Poll::Ready(Ok(fd)),
                Some(Received::Failed(errno)) => {
                    return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
                }
                Some(Received::Bytes(_) | Received::End) => {}
                None => break,
            }
        }
        slot.set_reader(cx);
        if matches!(self.backend, Backend::Epoll(_)) || singly {
            let accepted = if slot.readable { accept_now(slot) } else { None };
            if let Some(result) = accepted {
                return Poll::Ready(result);
            }
        }
        if let Backend::Uring(uring) = &mut self.backend
            && slot.receiving == Receiving::Idle
            && !slot.closing
        {
            if singly {
                uring.arm_readable(slot, key);
            } else {
                uring.arm_accept(slot, key);
            }
        }
        Poll::Pending
    }

    /// Stops a multishot accept. What it accepted already is still handed out; `accept_stopped` tells when the
    /// kernel will report no more.
    pub(super) fn stop_accept(&mut self, key: Key) {
        if let (Backend::Uring(uring), Some(slot)) = (&mut self.backend, self.slots.get_mut(key)) {
            uring.cancel_receive(slot, key);
        }
    }

    /// A connection that was accepted, or waits in the kernel's queue, after `stop_accept`. `None` also when no
    /// descriptor is left for those that wait.
    pub(super) fn poll_accept_rest(&mut self, key: Key, cx: &Context<'_>) -> Poll<Option<OwnedFd>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(None) };
        while let Some(received) = slot.inbox.pop() {
            if let Received::Accepted(fd) = received {
                return Poll::Ready(Some(fd));
            }
        }
        if slot.receiving == Receiving::Accepting {
            slot.set_reader(cx);
            return Poll::Pending;
        }
        loop {
            match accept_now(slot) {
                Some(Ok(fd)) => return Poll::Ready(Some(fd)),
                // One that broke while it waited; others may be behind it.
                Some(Err(error)) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
    }

    /// Ready when the peer has ended its stream or the connection broke, even behind bytes not yet received.
    pub(super) fn poll_hung_up(&mut self, key: Key, cx: &Context<'_>) -> Poll<()> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(()) };
        if slot.hung_up {
            return Poll::Ready(());
        }
        slot.set_reader(cx);
        if let Backend::Uring(uring) = &mut self.backend
            && slot.receiving == Receiving::Idle
        {
            if slot.bulk || slot.on_demand || slot.readable || slot.inbox.len() >= INBOX_MAX {
                uring.arm_hang_up(slot, key);
            } else {
                uring.arm_receive(slot, key);
            }
        }
        Poll::Pending
    }

    pub(super) fn is_hung_up(&self, key: Key) -> bool {
        self.slots.get(key).is_none_or(|slot| slot.hung_up)
    }

    pub(super) fn has_input(&self, key: Key) -> bool {
        self.slots.get(key).is_some_and(|slot| !slot.inbox.is_empty() || slot.readable)
    }

    /// Keeps an eye on a socket that nobody reads, until somebody does: `is_quiet` is only true of a watched one.
    pub(super) fn watch(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.watched = true;
        if !slot.inbox.is_empty() {
            return;
        }
        match &mut self.backend {
            // The last receive may have filled its buffer to the brim and left nothing behind.
            Backend::Uring(_) if slot.receiving == Receiving::Edges => {
                if slot.readable
                    && let Some(received) = slot.recv_now(&self.buffers)
                {
                    slot.deliver(received);
                }
            }
            Backend::Uring(uring) => {
                // Whatever is armed next tells at once if something is there.
                slot.readable = false;
                match slot.receiving {
                    Receiving::Idle => uring.arm_receive(slot, key),
                    // Armed for good as soon as this has ended.
                    Receiving::HangUp => uring.cancel_receive(slot, key),
                    _ => {}
                }
            }
            // The last receive may have filled its buffer to the brim and left nothing behind.
            Backend::Epoll(_) if slot.readable => {
                if let Some(received) = slot.recv_now(&self.buffers) {
                    slot.deliver(received);
                }
            }
            Backend::Epoll(_) => {}
        }
    }

    /// Whether nothing has arrived that nobody asked for: no bytes, no end, no error, and nothing left to send.
    /// A socket that is not watched, or whose receive has ended, is never quiet: nobody would know.
    pub(super) fn is_quiet(&self, key: Key) -> bool {
        let blind = match self.backend {
            Backend::Epoll(_) => &[][..],
            Backend::Uring(_) => &[Receiving::Idle, Receiving::HangUp],
        };
        self.slots.get(key).is_some_and(|slot| {
            slot.watched
                && slot.nothing_arrived()
                && !blind.contains(&slot.receiving)
                && slot.send_error == 0
                && slot.outbox.is_empty()
        })
    }

    /// Receives the coming bytes in large buffers, or in usual ones again.
    pub(super) fn set_bulk(&mut self, key: Key, bulk: bool) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if std::mem::replace(&mut slot.bulk, bulk) == bulk {
            return;
        }
        if let (true, Backend::Uring(uring)) = (bulk, &mut self.backend) {
            slot.readable = true;
            uring.cancel_receive(slot, key);
        }
    }

    /// Leaves what nobody waits for with the kernel from now on, or receives ahead again.
    pub(super) fn set_on_demand(&mut self, key: Key, on_demand: bool) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if std::mem::replace(&mut slot.on_demand, on_demand) == on_demand {
            return;
        }
        if let Backend::Uring(uring) = &mut self.backend
            && slot.receiving == if on_demand { Receiving::Multishot } else { Receiving::Edges }
        {
            uring.cancel_receive(slot, key);
        }
    }

    /// Sends `bytes`, as many as the socket takes now; keeps a copy of the rest and sends it when it can.
    pub(super) fn send_slice(&mut self, key: Key, bytes: &[u8], more: bool) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let sent = send_at_once(slot, bytes, more);
        if sent < bytes.len() && slot.send_error == 0 {
            let mut rest = self.blocks.take();
            rest.extend_from_slice(&bytes[sent..]);
            self.enqueue(key, Outgoing::Block { bytes: rest, start: 0 });
        }
    }

    /// Sends a buffer and gives it back to the pool.
    pub(super) fn send_buf(&mut self, key: Key, mut buf: RecvBuf, more: bool) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let sent = send_at_once(slot, &buf, more);
        if sent < buf.len() && slot.send_error == 0 {
            buf.advance(sent);
            self.enqueue(key, Outgoing::Buf(buf));
        }
    }

    /// Ready when at most `bytes_max` bytes wait to be sent, or sending failed.
    pub(super) fn poll_sent(&mut self, key: Key, bytes_max: usize, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        if slot.send_error != 0 {
            return Poll::Ready(Err(io::Error::from_raw_os_error(slot.send_error)));
        }
        if slot.outbox_bytes <= bytes_max {
            return Poll::Ready(Ok(()));
        }
        set_waker(&mut slot.writer, cx);
        Poll::Pending
    }

    pub(super) fn unsent(&self, key: Key) -> usize {
        self.slots.get(key).map_or(0, |slot| slot.outbox_bytes)
    }

    /// Ready when a connecting socket is connected or has failed to.
    pub(super) fn poll_writable(&mut self, key: Key, cx: &Context<'_>) -> Poll<()> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(()) };
        if slot.writable {
            return Poll::Ready(());
        }
        set_waker(&mut slot.writer, cx);
        if let Backend::Uring(uring) = &mut self.backend
            && slot.sending == Sending::Idle
        {
            uring.arm_writable(slot, key);
        }
        Poll::Pending
    }

    /// Ready when an eventfd was signalled; sets it back to zero.
    pub(super) fn poll_notified(&mut self, key: Key, cx: &Context<'_>) -> Poll<()> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Pending };
        if slot.readable {
            slot.readable = false;
            syscalls::eventfd_clear(slot.fd.as_fd());
            return Poll::Ready(());
        }
        slot.set_reader(cx);
        if let Backend::Uring(uring) = &mut self.backend
            && slot.receiving == Receiving::Idle
        {
            uring.arm_readable(slot, key);
        }
        Poll::Pending
    }

    /// Ends our direction behind what waits to be sent.
    pub(super) fn shutdown_write(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.ending = true;
        if slot.outbox.is_empty() {
            slot.end_if_asked();
        }
    }

    pub(super) fn reset_on_close(&mut self, key: Key) {
        if let Some(fd) = self.fd(key) {
            syscalls::reset_on_close(fd);
        }
    }

    /// Has every socket that is still there end with RST when it is closed.
    pub(super) fn reset_all_on_close(&self) {
        for (_, slot) in self.slots.iter() {
            syscalls::reset_on_close(slot.fd.as_fd());
        }
    }

    /// Lets go of a socket. Its descriptor is closed as soon as the kernel holds nothing of ours on it: close(2)
    /// alone would neither end a pending receive nor send FIN (liburing issues 568, 932).
    pub(super) fn close(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.reader = None;
        slot.writer = None;
        slot.inbox = Queue::new();
        slot.ending = false;
        if let Backend::Uring(uring) = &mut self.backend
            && (slot.receiving != Receiving::Idle || slot.sending != Sending::Idle)
        {
            slot.closing = true;
            uring.cancel_all(slot, key);
            return;
        }
        if let Some(slot) = self.slots.remove(key) {
            self.closing.close(slot);
        }
    }

    /// Lets go of a descriptor that may have copies in other hands: only the last close takes it out of epoll, and
    /// until then every event on it would wake this worker.
    pub(super) fn close_shared(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.shared = true;
        if let Backend::Epoll(epoll) = &self.backend {
            epoll.remove(slot.fd.as_fd());
        }
        self.close(key);
    }

    /// Has the end of the stream (or its failure) found again by the next receive.
    fn stand(&mut self, key: Key, received: Received) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.hung_up = true;
            slot.inbox.push(received);
        }
    }

    /// Has the next receive give `buf`, as if it had not been received yet.
    pub(super) fn unread(&mut self, key: Key, buf: RecvBuf) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.inbox.push_front(Received::Bytes(buf));
            slot.wake_reader();
        }
    }

    fn poll_received(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<Received>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        slot.watched = false;
        if let Some(received) = slot.inbox.pop() {
            return Poll::Ready(Ok(received));
        }
        let received = match &mut self.backend {
            Backend::Epoll(_) if !slot.readable => None,
            Backend::Epoll(_) => slot.recv_now(&self.buffers),
            Backend::Uring(uring) => match slot.receiving {
                Receiving::Idle => uring.receive(slot, key, &self.buffers),
                Receiving::HangUp => {
                    // Takes no bytes, so receiving beside it keeps their order.
                    let received = slot.recv_now(&self.buffers);
                    if received.is_none() {
                        uring.cancel_receive(slot, key);
                    }
                    received
                }
                Receiving::Edges if slot.readable => slot.recv_now(&self.buffers),
                _ => None,
            },
        };
        match received {
            Some(received) => Poll::Ready(Ok(received)),
            None => {
                slot.set_reader(cx);
                Poll::Pending
            }
        }
    }

    fn enqueue(&mut self, key: Key, outgoing: Outgoing) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.outbox_bytes += outgoing.bytes().len();
        slot.outbox.push(outgoing);
        if let Backend::Uring(uring) = &mut self.backend
            && slot.sending == Sending::Idle
        {
            uring.arm_send(slot, key);
        }
    }
}

impl Drop for Reactor {
    /// The memory of our sends must outlive them, and closing the ring ends them only later: so they are ended, and
    /// what the kernel does not give back is left to the end of the process.
    fn drop(&mut self) {
        if matches!(self.backend, Backend::Epoll(_)) {
            return;
        }
        let keys: Vec<Key> = self.slots.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.close(key);
        }
        for _ in 0..DRAIN_TURNS_MAX {
            if self.slots.is_empty() || self.turn(DRAIN_WAIT).is_err() {
                break;
            }
        }
        if !self.slots.is_empty() {
            std::mem::forget(std::mem::take(&mut self.slots));
        } else if let Backend::Uring(uring) = &mut self.backend {
            uring.reclaim_buffers(&self.buffers);
        }
    }
}

/// What of `bytes` the socket takes now, unless older bytes wait before them.
fn send_at_once(slot: &mut Slot, bytes: &[u8], more: bool) -> usize {
    let mut sent = 0;
    while slot.outbox.is_empty() && slot.send_error == 0 && sent < bytes.len() {
        match syscalls::send(slot.fd.as_fd(), &bytes[sent..], more) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => slot.fail_send(&error),
        }
    }
    sent
}

fn accept_now(slot: &mut Slot) -> Option<io::Result<OwnedFd>> {
    loop {
        match syscalls::accept(slot.fd.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                slot.readable = false;
                return None;
            }
            result => return Some(result),
        }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
