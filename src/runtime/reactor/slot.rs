//! What is known of one socket, and what the kernel holds of ours for it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Waker};

use super::super::buffers::{Buffers, RecvBuf, Size};
use super::super::syscalls;
use super::queue::Queue;

pub(super) enum Received {
    Accepted(OwnedFd),
    Bytes(RecvBuf),
    End,
    Failed(i32),
}

pub(super) enum Outgoing {
    Buf(RecvBuf),
    Block { bytes: Vec<u8>, start: usize },
}

impl Outgoing {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Buf(buf) => buf,
            Self::Block { bytes, start } => &bytes[*start..],
        }
    }

    pub(super) fn advance(&mut self, count: usize) {
        match self {
            Self::Buf(buf) => buf.advance(count),
            Self::Block { start, .. } => *start += count,
        }
    }
}

/// What the kernel holds of ours for the receiving side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Receiving {
    Idle,
    /// An accept that completes once for each connection.
    Accepting,
    /// A receive that may complete many times.
    Multishot,
    /// A receive that completes once. For kernels whose multishot starves other sockets.
    Single,
    /// Waits until the socket is readable; we receive then.
    Readiness,
    /// Tells whenever something came, until it is stopped; we receive when somebody waits. As epoll does.
    Edges,
    /// Waits until the peer ends its stream, while nobody wants its bytes.
    HangUp,
}

/// What the kernel holds of ours for the sending side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sending {
    Idle,
    /// The front of the outbox belongs to the kernel.
    InFlight,
    /// Waits until the socket is writable.
    Readiness,
}

pub(super) struct Slot {
    pub(super) fd: OwnedFd,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) inbox: Queue<Received>,
    pub(super) outbox: Queue<Outgoing>,
    pub(super) outbox_bytes: usize,
    /// errno of the failed send; nothing is sent any more.
    pub(super) send_error: i32,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    /// The kernel was asked to stop the receive.
    pub(super) cancelling: bool,
    /// Nobody wants this socket any more; it goes when both sides are idle.
    pub(super) closing: bool,
    /// Receive long runs of bytes in large buffers.
    pub(super) bulk: bool,
    /// Receive only what somebody waits for.
    pub(super) on_demand: bool,
    /// Something can be received, as far as is known. Only for receives of our own.
    pub(super) readable: bool,
    /// The peer's end of stream or an error has arrived, perhaps behind bytes that wait.
    pub(super) hung_up: bool,
    pub(super) writable: bool,
    /// Nobody reads, but what arrives is to be noticed.
    pub(super) watched: bool,
    /// Our direction ends when the outbox is empty.
    pub(super) ending: bool,
    /// Others may have copies of the descriptor, or it listens: its close waits for no other.
    pub(super) shared: bool,
}

/// An idle connection pays for its slot: growing it is a decision, not an accident.
const _: () = assert!(size_of::<Slot>() <= 168);

impl Slot {
    pub(super) const fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            reader: None,
            writer: None,
            inbox: Queue::new(),
            outbox: Queue::new(),
            outbox_bytes: 0,
            send_error: 0,
            receiving: Receiving::Idle,
            sending: Sending::Idle,
            cancelling: false,
            closing: false,
            bulk: false,
            on_demand: false,
            readable: false,
            hung_up: false,
            writable: false,
            watched: false,
            ending: false,
            shared: false,
        }
    }

    pub(super) fn deliver(&mut self, received: Received) {
        if matches!(received, Received::End | Received::Failed(_)) {
            self.hung_up = true;
        }
        self.inbox.push(received);
        self.wake_reader();
    }

    pub(super) fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Sends from the outbox until it is empty or the socket is full.
    pub(super) fn flush(&mut self) {
        while let Some(front) = self.outbox.front_mut() {
            match syscalls::send(self.fd.as_fd(), front.bytes(), false) {
                Ok(sent) => self.sent(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    break;
                }
                Err(error) => self.fail_send(&error),
            }
        }
        if self.outbox.is_empty() {
            self.end_if_asked();
        }
    }

    pub(super) fn end_if_asked(&mut self) {
        if self.ending {
            self.ending = false;
            syscalls::shutdown(self.fd.as_fd(), Shutdown::Write);
        }
    }

    /// Whether nothing has arrived that nobody took: no bytes, no end, no error.
    pub(super) const fn nothing_arrived(&self) -> bool {
        self.inbox.is_empty() && !self.readable && !self.hung_up
    }

    /// Accounts for `count` bytes of the front of the outbox.
    pub(super) fn sent(&mut self, count: usize) {
        self.outbox_bytes -= count;
        let Some(front) = self.outbox.front_mut() else { return };
        front.advance(count);
        if front.bytes().is_empty() {
            self.outbox.pop();
        }
    }

    pub(super) fn fail_send(&mut self, error: &io::Error) {
        self.send_error = error.raw_os_error().unwrap_or(libc::EIO);
        self.outbox = Queue::new();
        self.outbox_bytes = 0;
    }

    /// One receive of our own. `None` when nothing is there.
    pub(super) fn recv_now(&mut self, buffers: &Rc<Buffers>) -> Option<Received> {
        let mut buf = buffers.take(if self.bulk { Size::Bulk } else { Size::Usual });
        let (address, len) = buf.spare();
        loop {
            // SAFETY: `spare` names `len` writable bytes of `buf`, which is ours alone.
            match unsafe { syscalls::recv(self.fd.as_fd(), address, len) } {
                Ok(0) => return Some(Received::End),
                Ok(count) => {
                    // A short receive emptied the socket; after a hang-up the end is still to be read.
                    if count < len && !self.hung_up {
                        self.readable = false;
                    }
                    // SAFETY: the kernel wrote `count` bytes at `spare`.
                    unsafe { buf.set_received(count) };
                    return Some(Received::Bytes(buf));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(error) => return Some(Received::Failed(error.raw_os_error().unwrap_or(libc::EIO))),
            }
        }
    }

    pub(super) fn set_reader(&mut self, cx: &Context<'_>) {
        set_waker(&mut self.reader, cx);
    }
}

pub(super) fn set_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(known) if known.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}
