//! The io_uring backend: multishot accept, multishot receive from a ring of provided buffers, sends of owned
//! buffers where the socket is full, readiness for the rest. One entry into the kernel a turn.
//!
//! Two phases: completions are first taken out of the ring, then applied to their sockets. Applying one never
//! runs a task: it wakes it.

mod buffer_ring;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::base::slab::{GENERATION_BITS, Key, Slab};

use super::super::buffers::{Buffers, RecvBuf, Size};
use super::setup::Setup;
use super::{INBOX_MAX, ReactorStats, Received, Receiving, Sending, Slot};
use buffer_ring::{BUFFER_GROUP, BufferRing};

const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 8;

/// What an operation was, in the low bits of its completion's `user_data`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
enum Op {
    Accept = 1,
    Receive,
    Readable,
    Writable,
    Send,
    Cancel,
}

impl Op {
    const fn from_word(word: u64) -> Option<Self> {
        Some(match word as u8 {
            1 => Self::Accept,
            2 => Self::Receive,
            3 => Self::Readable,
            4 => Self::Writable,
            5 => Self::Send,
            6 => Self::Cancel,
            _ => return None,
        })
    }

    /// index 32 bits | generation 24 bits | operation 8 bits
    const fn word(self, key: Key) -> u64 {
        (key.index as u64) << 32 | (key.generation as u64) << 8 | self as u64
    }
}

const _: () = assert!(GENERATION_BITS == 24, "the generation fits between index and operation");

const fn key_of(word: u64) -> Key {
    Key { index: (word >> 32) as u32, generation: (word >> 8) as u32 & ((1 << GENERATION_BITS) - 1) }
}

#[derive(Clone, Copy)]
struct Completion {
    word: u64,
    result: i32,
    flags: u32,
}

pub(super) struct Uring {
    // Field order is drop order: the kernel lets go of the buffers when the ring goes.
    ring: IoUring,
    buffer_ring: BufferRing,
    multishot_receive: bool,
    /// Taken out of the ring, not applied yet.
    reaped: VecDeque<Completion>,
    overflows_seen: u64,
}

impl Uring {
    pub(super) fn new(ring: IoUring, setup: &Setup, buffers: &Rc<Buffers>) -> io::Result<Self> {
        let buffer_ring = BufferRing::new(&ring, setup.recv_buffers, buffers)?;
        Ok(Self {
            ring,
            buffer_ring,
            multishot_receive: setup.multishot_receive,
            reaped: VecDeque::new(),
            overflows_seen: 0,
        })
    }

    /// Forbids every operation but those below, and starts the ring. Called once, before the first operation.
    pub(super) fn restrict_and_enable(&self) -> io::Result<()> {
        use io_uring::register::Restriction;
        let mut allowed = vec![
            Restriction::sqe_op(opcode::AcceptMulti::CODE),
            Restriction::sqe_op(opcode::RecvMulti::CODE),
            Restriction::sqe_op(opcode::PollAdd::CODE),
            Restriction::sqe_op(opcode::Send::CODE),
            Restriction::sqe_op(opcode::AsyncCancel::CODE),
            Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits()),
        ];
        self.ring.submitter().register_restrictions(&mut allowed)?;
        self.ring.submitter().register_enable_rings()
    }

    pub(super) fn turn(
        &mut self,
        slots: &mut Slab<Slot>,
        buffers: &Rc<Buffers>,
        stats: &mut ReactorStats,
        wait: Duration,
    ) -> io::Result<()> {
        self.buffer_ring.refill(buffers);
        // Completions that wait already must not be slept upon.
        let wait = if self.reaped.is_empty() { wait } else { Duration::ZERO };
        self.enter(Some(wait))?;
        self.reap();
        stats.completion_overflows = self.overflows_seen;
        while let Some(completion) = self.reaped.pop_front() {
            self.apply(completion, slots, buffers, stats);
        }
        Ok(())
    }

    /// A receive for a socket that has none armed: from the buffer ring where possible, else one of our own.
    pub(super) fn receive(&mut self, slot: &mut Slot, key: Key, buffers: &Rc<Buffers>) -> Option<Received> {
        if slot.bulk || !self.buffer_ring.has_free() {
            let received = slot.recv_now(buffers);
            if received.is_none() {
                self.arm_readable(slot, key);
            }
            return received;
        }
        self.arm_receive(slot, key);
        None
    }

    pub(super) fn arm_receive(&mut self, slot: &mut Slot, key: Key) {
        if slot.bulk || !self.buffer_ring.has_free() {
            self.arm_readable(slot, key);
            return;
        }
        let fd = types::Fd(slot.fd.as_raw_fd());
        let entry = if self.multishot_receive {
            slot.receiving = Receiving::Multishot;
            opcode::RecvMulti::new(fd, BUFFER_GROUP).build()
        } else {
            slot.receiving = Receiving::Single;
            opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        slot.readable = false;
        self.push(entry.user_data(Op::Receive.word(key)));
    }

    pub(super) fn arm_accept(&mut self, slot: &mut Slot, key: Key) {
        let fd = types::Fd(slot.fd.as_raw_fd());
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        slot.receiving = Receiving::Accepting;
        self.push(opcode::AcceptMulti::new(fd).flags(flags).build().user_data(Op::Accept.word(key)));
    }

    pub(super) fn arm_readable(&mut self, slot: &mut Slot, key: Key) {
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        slot.receiving = Receiving::Readiness;
        self.push(
            opcode::PollAdd::new(types::Fd(slot.fd.as_raw_fd()), events)
                .build()
                .user_data(Op::Readable.word(key)),
        );
    }

    pub(super) fn arm_writable(&mut self, slot: &mut Slot, key: Key) {
        slot.sending = Sending::Readiness;
        self.push(
            opcode::PollAdd::new(types::Fd(slot.fd.as_raw_fd()), libc::POLLOUT as u32)
                .build()
                .user_data(Op::Writable.word(key)),
        );
    }

    /// Sends the front of the outbox. It stays there, untouched, until the completion.
    pub(super) fn arm_send(&mut self, slot: &mut Slot, key: Key) {
        let more = slot.outbox.len() > 1;
        let Some(front) = slot.outbox.front_mut() else { return };
        let bytes = front.bytes();
        // Without MSG_WAITALL: a short send shows that the peer takes something, which its deadline asks.
        let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let entry = opcode::Send::new(types::Fd(slot.fd.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .flags(flags)
            .build();
        slot.sending = Sending::InFlight;
        self.push(entry.user_data(Op::Send.word(key)));
    }

    /// Asks the kernel to stop a multishot. It counts as armed until its last completion.
    pub(super) fn cancel_receive(&mut self, slot: &mut Slot, key: Key) {
        let op = match slot.receiving {
            Receiving::Idle | Receiving::Readiness => return,
            Receiving::Accepting => Op::Accept,
            Receiving::Multishot | Receiving::Single => Op::Receive,
        };
        if !slot.cancelling {
            slot.cancelling = true;
            let builder = types::CancelBuilder::user_data(op.word(key));
            self.push(opcode::AsyncCancel2::new(builder).build().user_data(Op::Cancel.word(key)));
        }
    }

    /// Asks the kernel to give back everything it holds for this socket.
    pub(super) fn cancel_all(&mut self, slot: &mut Slot, key: Key) {
        let builder = types::CancelBuilder::fd(types::Fd(slot.fd.as_raw_fd())).all();
        slot.cancelling = true;
        self.push(opcode::AsyncCancel2::new(builder).build().user_data(Op::Cancel.word(key)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: memory an entry names outlives the operation: send bytes sit in an outbox that is left
            // alone while `Sending::InFlight` (slots outlive their operations), receive memory belongs to the
            // buffer ring. Descriptors are closed only when no operation on them is left.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Queue full: hand it over without waiting. EBUSY means that completions must be taken first.
            let entered = self.enter(None);
            self.reap();
            debug_assert!(entered.is_ok(), "submitting a full queue: {entered:?}");
        }
    }

    /// Submits what is queued; with a `wait`, also runs the kernel's deferred work and waits for a completion.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let timespec = wait.map_or_else(types::Timespec::new, types::Timespec::from);
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        let overflowing = self.ring.submission().cq_overflow();
        if overflowing {
            self.overflows_seen += 1;
        }
        let completions_wait = !self.ring.completion().is_empty();
        let min_complete =
            u32::from(wait.is_some_and(|wait| !wait.is_zero()) && !completions_wait && !overflowing);
        let to_submit = self.ring.submission().len() as u32;
        // SAFETY: `arguments` and the timespec it points to live through the call; the flags match it.
        let result = unsafe {
            self.ring.submitter().enter(
                to_submit,
                min_complete,
                ENTER_GETEVENTS | ENTER_EXT_ARG,
                Some(&arguments),
            )
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    fn reap(&mut self) {
        for entry in self.ring.completion() {
            self.reaped.push_back(Completion {
                word: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
            });
        }
    }

    fn apply(
        &mut self,
        completion: Completion,
        slots: &mut Slab<Slot>,
        buffers: &Rc<Buffers>,
        stats: &mut ReactorStats,
    ) {
        let Completion { word, result, flags } = completion;
        // The buffer is ours again whatever became of the socket.
        let buf = cqueue::buffer_select(flags)
            .and_then(|id| self.buffer_ring.take(id))
            .map(|base| buffers.adopt(base, Size::Usual, usize::try_from(result).unwrap_or(0)));
        let key = key_of(word);
        let Some(slot) = slots.get_mut(key) else {
            stats.stale += 1;
            return;
        };
        let over = !cqueue::more(flags);
        match Op::from_word(word) {
            Some(Op::Accept) => {
                end_receive(slot, over, stats);
                match result {
                    0.. => slot.deliver(Received::Accepted(buffer_ring::accepted(result))),
                    _ if result == -libc::ECANCELED => slot.wake_reader(),
                    _ => slot.deliver(Received::Failed(-result)),
                }
            }
            Some(Op::Receive) => {
                end_receive(slot, over, stats);
                self.received(slot, key, result, buf, stats);
            }
            Some(Op::Readable) => {
                slot.receiving = Receiving::Idle;
                slot.cancelling = false;
                let ended = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
                slot.hung_up |= result > 0 && result & i32::from(ended) != 0;
                slot.readable |= result > 0;
                slot.wake_reader();
            }
            Some(Op::Writable) => {
                slot.sending = Sending::Idle;
                slot.writable |= result > 0;
                slot.wake_writer();
            }
            Some(Op::Send) => self.sent(slot, key, result),
            Some(Op::Cancel) | None => {}
        }
        if slot.closing && slot.receiving == Receiving::Idle && slot.sending == Sending::Idle {
            slots.remove(key);
        }
    }

    fn received(
        &mut self,
        slot: &mut Slot,
        key: Key,
        result: i32,
        buf: Option<RecvBuf>,
        stats: &mut ReactorStats,
    ) {
        if slot.closing {
            return;
        }
        match (result, buf) {
            (1.., Some(buf)) => {
                slot.deliver(Received::Bytes(buf));
                // Nobody takes them: stop receiving until somebody does. What arrives meanwhile is kept.
                if slot.inbox.len() >= INBOX_MAX {
                    self.cancel_receive(slot, key);
                }
            }
            (0, _) => slot.deliver(Received::End),
            _ if result == -libc::ENOBUFS => {
                stats.recv_starved += 1;
                slot.wake_reader();
            }
            _ if result == -libc::ECANCELED => slot.wake_reader(),
            _ => slot.deliver(Received::Failed(if result < 0 { -result } else { libc::EIO })),
        }
    }

    fn sent(&mut self, slot: &mut Slot, key: Key, result: i32) {
        slot.sending = Sending::Idle;
        match usize::try_from(result) {
            Ok(count) => slot.sent(count),
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => {}
            Err(_) => slot.fail_send(&io::Error::from_raw_os_error(-result)),
        }
        if !slot.closing && !slot.outbox.is_empty() {
            self.arm_send(slot, key);
        }
        slot.wake_writer();
    }
}

/// A multishot operation counts as armed until the completion that has no more behind it.
fn end_receive(slot: &mut Slot, over: bool, stats: &mut ReactorStats) {
    if over {
        let repeats = matches!(slot.receiving, Receiving::Accepting | Receiving::Multishot);
        stats.rearmed += u64::from(repeats && !slot.cancelling);
        slot.receiving = Receiving::Idle;
        slot.cancelling = false;
    }
}
