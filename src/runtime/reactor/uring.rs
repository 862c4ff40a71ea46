//! The io_uring backend: multishot accept, multishot receive from a ring of provided buffers, sends of owned
//! buffers where the socket is full, readiness for the rest. One entry into the kernel a turn.
//!
//! Two phases: completions are first taken out of the ring, then applied to their sockets. Applying one never
//! runs a task: it wakes it.

mod buffer_ring;
#[cfg(test)]
pub(super) mod faults;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::base::slab::{GENERATION_BITS, Key, Slab};

use super::super::buffers::{Buffers, RecvBuf, Size};
use super::closing::Closing;
use super::setup::Setup;
use super::{ACCEPTED_MAX, INBOX_MAX, ReactorStats, Received, Receiving, Sending, Slot};
use buffer_ring::{BUFFER_GROUP, BufferRing};

const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 8;
/// Bytes that one send asks for. Only a bound for the entry's 32-bit length: short sends are carried on.
const SEND_BYTES_MAX: usize = 1 << 20;

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

/// An entry that brings so many completions may have left others behind: from Linux 6.13 on one entry runs no more than 20
/// pieces of deferred work (`IO_LOCAL_TW_DEFAULT_MAX`, io_uring/io_uring.h), some of which complete nothing.
const MORE_MAY_WAIT: usize = 10;
/// Completions of a turn from which on the tasks go first.
const TURN_COMPLETIONS_MAX: usize = 1_024;

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

pub(in crate::runtime) struct Uring {
    // Field order is drop order: the kernel lets go of the buffers when the ring goes.
    ring: IoUring,
    buffer_ring: BufferRing,
    multishot_receive: bool,
    /// Taken out of the ring, not applied yet.
    reaped: VecDeque<Completion>,
    /// Operations that found the submission queue full, in order. They go before any later one.
    backlog: VecDeque<squeue::Entry>,
    overflows_seen: u64,
    #[cfg(test)]
    faults: faults::Faults,
}

impl Uring {
    pub(super) fn new(ring: IoUring, setup: &Setup, buffers: &Rc<Buffers>) -> io::Result<Self> {
        let buffer_ring = BufferRing::new(&ring, setup.recv_buffers, buffers)?;
        Ok(Self {
            ring,
            buffer_ring,
            multishot_receive: setup.multishot_receive,
            reaped: VecDeque::new(),
            backlog: VecDeque::new(),
            overflows_seen: 0,
            #[cfg(test)]
            faults: faults::Faults::default(),
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

    /// For the end: no operation is left.
    pub(super) fn reclaim_buffers(&mut self, buffers: &Buffers) {
        self.buffer_ring.reclaim(buffers);
    }

    /// Enters the kernel until all that is ready is seen, or so much that its tasks go first. Which of the two.
    pub(super) fn turn(
        &mut self,
        slots: &mut Slab<Slot>,
        buffers: &Rc<Buffers>,
        stats: &mut ReactorStats,
        closing: &mut Closing,
        wait: Duration,
    ) -> io::Result<bool> {
        let (mut wait, mut seen) = (wait, 0);
        while seen < TURN_COMPLETIONS_MAX {
            self.buffer_ring.refill(buffers);
            self.submit_backlog();
            // Neither completions that wait already nor operations still to be submitted may be slept upon.
            let idle = self.reaped.is_empty() && self.backlog.is_empty();
            self.enter(if idle { wait } else { Duration::ZERO })?;
            self.reap();
            stats.completion_overflows = self.overflows_seen;
            let count = self.reaped.len();
            while let Some(completion) = self.reaped.pop_front() {
                self.apply(completion, slots, buffers, stats, closing);
            }
            if count < MORE_MAY_WAIT {
                return Ok(true);
            }
            seen += count;
            wait = Duration::ZERO;
        }
        Ok(false)
    }

    /// A receive for a socket that has none armed: from the buffer ring where possible, else one of our own.
    pub(super) fn receive(&mut self, slot: &mut Slot, key: Key, buffers: &Rc<Buffers>) -> Option<Received> {
        // What is known to be there is taken at once. A bulk receive that came short emptied the socket: no call to
        // hear that again.
        if slot.readable || !(slot.bulk || self.buffer_ring.has_free()) {
            let received = slot.recv_now(buffers);
            if received.is_some() {
                return received;
            }
        }
        self.arm_receive(slot, key);
        None
    }

    pub(super) fn arm_receive(&mut self, slot: &mut Slot, key: Key) {
        // Before Linux 6.1 a poll lost what came together with something else; Linux whose multishot receive is fair is newer.
        if slot.on_demand && self.multishot_receive {
            self.arm_edges(slot, key);
            return;
        }
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
        slot.receiving = Receiving::Readiness;
        // The poll tells, at once if something is there.
        slot.readable = false;
        self.push_poll(slot, libc::POLLIN | libc::POLLRDHUP, Op::Readable.word(key));
    }

    /// One poll for as long as the connection lasts, where a receive for each response would be armed and complete each time.
    fn arm_edges(&mut self, slot: &mut Slot, key: Key) {
        slot.receiving = Receiving::Edges;
        slot.readable = false;
        let fd = types::Fd(slot.fd.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, (libc::POLLIN | libc::POLLRDHUP) as u32).multi(true).build();
        self.push(poll.user_data(Op::Readable.word(key)));
    }

    /// Waits for the end of the peer's stream while nobody wants its bytes: a poll for those would be ready again
    /// and again.
    pub(super) fn arm_hang_up(&mut self, slot: &mut Slot, key: Key) {
        slot.receiving = Receiving::HangUp;
        self.push_poll(slot, libc::POLLRDHUP, Op::Readable.word(key));
    }

    fn push_poll(&mut self, slot: &Slot, events: i16, word: u64) {
        let fd = types::Fd(slot.fd.as_raw_fd());
        self.push(opcode::PollAdd::new(fd, events as u32).build().user_data(word));
    }

    pub(super) fn arm_writable(&mut self, slot: &mut Slot, key: Key) {
        slot.sending = Sending::Readiness;
        self.push_poll(slot, libc::POLLOUT, Op::Writable.word(key));
    }

    /// Sends the front of the outbox. It stays there, untouched, until the completion.
    pub(super) fn arm_send(&mut self, slot: &mut Slot, key: Key) {
        let more = slot.outbox.len() > 1;
        let Some(front) = slot.outbox.front_mut() else { return };
        let bytes = front.bytes();
        // Without MSG_WAITALL: a short send shows that the peer takes something, which its deadline asks.
        let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let len = bytes.len().min(SEND_BYTES_MAX) as u32;
        let entry =
            opcode::Send::new(types::Fd(slot.fd.as_raw_fd()), bytes.as_ptr(), len).flags(flags).build();
        slot.sending = Sending::InFlight;
        self.push(entry.user_data(Op::Send.word(key)));
    }

    /// Asks the kernel to stop what takes bytes or connections out of the socket. It counts as armed until its
    /// last completion.
    pub(super) fn cancel_receive(&mut self, slot: &mut Slot, key: Key) {
        if slot.cancelling || slot.receiving == Receiving::Readiness {
            return;
        }
        if let Some(op) = receiving_op(slot.receiving) {
            slot.cancelling = true;
            self.push_cancel(op, key);
        }
    }

    /// Asks the kernel to give back everything it holds for this socket.
    pub(super) fn cancel_all(&mut self, slot: &mut Slot, key: Key) {
        slot.cancelling = true;
        if let Some(op) = receiving_op(slot.receiving) {
            self.push_cancel(op, key);
        }
        match slot.sending {
            Sending::Idle => {}
            Sending::InFlight => self.push_cancel(Op::Send, key),
            Sending::Readiness => self.push_cancel(Op::Writable, key),
        }
    }

    /// Names its target by `user_data`, which the kernel finds by hash. By descriptor it would look at every
    /// operation of the ring: 25 % of the time with 4,000 connections.
    fn push_cancel(&mut self, op: Op, key: Key) {
        let builder = types::CancelBuilder::user_data(op.word(key));
        self.push(opcode::AsyncCancel2::new(builder).build().user_data(Op::Cancel.word(key)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.submit(&entry) {
            self.backlog.push_back(entry);
            self.submit_backlog();
        }
    }

    /// Puts an entry into the submission queue. `false` when that is full.
    fn submit(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: memory an entry names outlives the operation: send bytes sit in an outbox that is left
        // alone while `Sending::InFlight` (slots outlive their operations), receive memory belongs to the
        // buffer ring. Descriptors are closed only when no operation on them is left.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Hands the kernel a full queue, without waiting, for as long as that makes room for what did not fit. EBUSY
    /// and the like leave the rest to the next turn, which takes completions first; other errors show there again.
    fn submit_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if self.submit(&entry) {
                continue;
            }
            let entered = self.enter(Duration::ZERO);
            self.reap();
            if entered.is_err() || !self.submit(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    /// Submits what is queued, runs the kernel's deferred work, and waits up to `wait` for a completion.
    fn enter(&mut self, wait: Duration) -> io::Result<()> {
        let overflowing = self.ring.submission().cq_overflow();
        if overflowing {
            self.overflows_seen += 1;
        }
        let completions_wait = !self.ring.completion().is_empty();
        let min_complete = u32::from(!wait.is_zero() && !completions_wait && !overflowing);
        let to_submit = self.ring.submission().len() as u32;
        match self.system_call(to_submit, min_complete, wait) {
            Ok(_) => Ok(()),
            // Nothing is lost: what was not submitted stays queued, what completed stays in the ring.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn system_call(&mut self, to_submit: u32, min_complete: u32, wait: Duration) -> io::Result<usize> {
        #[cfg(test)]
        let to_submit = self.faults.next(to_submit)?;
        let timespec = types::Timespec::from(wait);
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        let flags = ENTER_GETEVENTS | ENTER_EXT_ARG;
        // SAFETY: `arguments` and the timespec it points to live through the call; the flags match it.
        unsafe { self.ring.submitter().enter(to_submit, min_complete, flags, Some(&arguments)) }
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
        closing: &mut Closing,
    ) {
        let Completion { word, result, flags } = completion;
        // The buffer is ours again whatever became of the socket.
        let buf = cqueue::buffer_select(flags)
            .and_then(|id| self.buffer_ring.take(id))
            .map(|base| buffers.adopt(base, Size::Usual, usize::try_from(result).unwrap_or(0)));
        let key = key_of(word);
        let op = Op::from_word(word);
        let Some(slot) = slots.get_mut(key) else {
            // A cancel may well complete after its target; anything else would be a slot freed too early.
            if op != Some(Op::Cancel) {
                stats.stale += 1;
            }
            if op == Some(Op::Accept) && result >= 0 {
                drop(buffer_ring::accepted(result));
            }
            return;
        };
        let over = !cqueue::more(flags);
        match op {
            Some(Op::Accept) => {
                end_receive(slot, over, result, stats);
                self.accepted(slot, key, result);
            }
            Some(Op::Receive) => {
                end_receive(slot, over, result, stats);
                self.received(slot, key, result, buf, stats);
            }
            Some(Op::Readable) => {
                end_receive(slot, over, result, stats);
                readable(slot, result, buffers);
            }
            Some(Op::Writable) => {
                slot.sending = Sending::Idle;
                slot.writable |= result > 0;
                self.carry_on_sending(slot, key);
            }
            Some(Op::Send) => self.sent(slot, key, result),
            Some(Op::Cancel) => self.cancelled(slot, key, result),
            None => {}
        }
        if slot.closing {
            if slot.receiving == Receiving::Idle
                && slot.sending == Sending::Idle
                && let Some(slot) = slots.remove(key)
            {
                closing.close(slot);
            }
        } else if slot.watched && slot.receiving == Receiving::Idle && slot.nothing_arrived() {
            self.arm_receive(slot, key);
        }
    }

    fn accepted(&mut self, slot: &mut Slot, key: Key, result: i32) {
        if slot.closing && result < 0 {
            return;
        }
        match result {
            0.. => {
                slot.deliver(Received::Accepted(buffer_ring::accepted(result)));
                // Nobody takes them: leave the next ones in the kernel's queue, which has a bound.
                if slot.inbox.len() >= ACCEPTED_MAX {
                    self.cancel_receive(slot, key);
                }
            }
            _ if result == -libc::EAGAIN => self.arm_readable(slot, key),
            _ if ended_early(result) => slot.wake_reader(),
            _ => slot.deliver(Received::Failed(-result)),
        }
    }

    /// A cancel that could not even look for its target (no memory) leaves a socket nobody would ever close.
    fn cancelled(&mut self, slot: &mut Slot, key: Key, result: i32) {
        let looked = result >= 0 || matches!(-result, libc::ENOENT | libc::EALREADY);
        if looked || (slot.receiving == Receiving::Idle && slot.sending == Sending::Idle) {
            return;
        }
        if slot.closing {
            self.cancel_all(slot, key);
        } else if slot.cancelling {
            slot.cancelling = false;
            self.cancel_receive(slot, key);
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
                // Bytes may well be there: not quiet until the next receive has looked.
                slot.readable = true;
                slot.wake_reader();
            }
            // Not again at once: the poll waits until something is there.
            _ if result == -libc::EAGAIN => self.arm_readable(slot, key),
            _ if ended_early(result) => slot.wake_reader(),
            _ => slot.deliver(Received::Failed(if result < 0 { -result } else { libc::EIO })),
        }
    }

    fn sent(&mut self, slot: &mut Slot, key: Key, result: i32) {
        slot.sending = Sending::Idle;
        match usize::try_from(result) {
            Ok(count) => slot.sent(count),
            Err(_) if result == -libc::EINTR => {}
            // Not again at once: the poll waits until there is room.
            Err(_) if result == -libc::EAGAIN && !slot.closing => return self.arm_writable(slot, key),
            Err(_) => slot.fail_send(&io::Error::from_raw_os_error(-result)),
        }
        self.carry_on_sending(slot, key);
    }

    fn carry_on_sending(&mut self, slot: &mut Slot, key: Key) {
        if slot.closing {
            return;
        }
        if slot.outbox.is_empty() {
            slot.end_if_asked();
        } else {
            self.arm_send(slot, key);
        }
        slot.wake_writer();
    }
}

/// The kernel gave up an operation that says nothing about the socket: it is armed again when somebody asks.
fn ended_early(result: i32) -> bool {
    matches!(-result, libc::ECANCELED | libc::EINTR | libc::EAGAIN)
}

/// The operation that a receiving side has with the kernel.
const fn receiving_op(receiving: Receiving) -> Option<Op> {
    match receiving {
        Receiving::Idle => None,
        Receiving::Accepting => Some(Op::Accept),
        Receiving::Multishot | Receiving::Single => Some(Op::Receive),
        Receiving::Readiness | Receiving::Edges | Receiving::HangUp => Some(Op::Readable),
    }
}

/// A poll has told something.
fn readable(slot: &mut Slot, result: i32, buffers: &Rc<Buffers>) {
    // After a failure nothing is known, so something may be there.
    let events = if result >= 0 { result } else { i32::from(libc::POLLIN) };
    let ended = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    if result != -libc::ECANCELED {
        slot.hung_up |= events & i32::from(ended) != 0;
        slot.readable = true;
    }
    // What came may have been received since, with what came before it: a quiet connection stays quiet. One that is not is
    // known for it.
    if slot.watched
        && slot.inbox.is_empty()
        && !slot.closing
        && slot.receiving == Receiving::Edges
        && let Some(received) = slot.recv_now(buffers)
    {
        slot.deliver(received);
    }
    slot.wake_reader();
}

/// A multishot operation counts as armed until the completion that has no more behind it.
fn end_receive(slot: &mut Slot, over: bool, result: i32, stats: &mut ReactorStats) {
    if over {
        let repeats =
            matches!(slot.receiving, Receiving::Accepting | Receiving::Multishot | Receiving::Edges);
        let wants_more = result > 0 || result == -libc::ENOBUFS || ended_early(result);
        stats.rearmed += u64::from(repeats && wants_more && !slot.cancelling);
        slot.receiving = Receiving::Idle;
        slot.cancelling = false;
    }
}
