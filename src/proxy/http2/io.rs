//! A [`Stream`] as the `h2` crate wants it: reads copied out of lent buffers, writes gathered into one send for each
//! turn of the connection. Counts frames on their way (`tap`). Never decides what to do about them.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::time::Instant;
use crate::base::units::KIB;
use crate::limits;
use crate::runtime::{RecvBuf, Runtime};

use super::super::stream::Stream;
use super::stream::SMALL_FRAME_BYTES;
use super::tap::Tap;

/// Gathered bytes are sent at the latest once there are this many: copying a frame costs less than a call for each.
const GATHERED_BYTES_MAX: usize = 64 * KIB;
/// Larger ones are not the pool's.
const BLOCK_BYTES_MAX: usize = 4 * KIB;
/// Bytes that wait for the kernel before the crate is told to wait too: bounds what a peer that reads nothing costs.
const UNSENT_BYTES_MAX: usize = 64 * KIB;

/// Receives of one turn.
const RECEIVES_A_TURN: u32 = 8;
/// Frames after which their streams take what came: the crate ends a connection in which too many small ones wait
/// ([`limits::HTTP2_SMALL_FRAMES_BYTES_MAX`]).
const FRAMES_A_TURN: u64 = 1_024;
const _: () = assert!(FRAMES_A_TURN as usize * SMALL_FRAME_BYTES <= limits::HTTP2_SMALL_FRAMES_BYTES_MAX / 2);
/// Bytes, payloads of DATA apart, of a turn in which a client brings field blocks: an octet of HPACK can stand for a field
/// of a hundred in memory, a dozen for a whole request, and whoever judges them, and everybody else on this worker, comes
/// between turns.
pub(super) const BYTES_WITH_FIELDS_A_TURN: usize = KIB;
/// The same of an endpoint, which answers no more than it was asked: the more responses of a turn, the fewer sends to
/// clients who wait for several of them.
pub(super) const BYTES_WITH_RESPONSES_A_TURN: usize = 8 * KIB;

/// Such a part of either is what a suspect peer gets: each of its streams may cost as much as a good request, and is served
/// nobody.
const SUSPECT_PART: usize = 8;

/// What the session and the crate's connection share: the transport, and what was seen pass.
pub(super) struct Link {
    runtime: Runtime,
    stream: Stream,
    /// What the crate has not taken of the last buffer.
    input: RefCell<Option<RecvBuf>>,
    output: RefCell<Vec<u8>>,
    pub(super) tap: RefCell<Tap>,
    pub(super) received_bytes: Cell<u64>,
    pub(super) sent_bytes: Cell<u64>,
    /// Buffers that may still be received in this turn.
    receives_left: Cell<u32>,
    /// Bytes but those of DATA that the crate takes in a turn which brings field blocks.
    bytes_a_turn: usize,
    /// Those that it took in this turn, and field blocks begun before it.
    taken: Cell<usize>,
    blocks: Cell<u64>,
    /// Frames begun before it.
    frames: Cell<u64>,
}

impl Link {
    /// `bytes_a_turn`: how much of a turn may be something else than DATA.
    pub(super) fn new(runtime: &Runtime, stream: Stream, tap: Tap, bytes_a_turn: usize) -> Rc<Self> {
        Rc::new(Self {
            runtime: runtime.clone(),
            stream,
            input: RefCell::default(),
            output: RefCell::default(),
            tap: RefCell::new(tap),
            received_bytes: Cell::new(0),
            sent_bytes: Cell::new(0),
            receives_left: Cell::new(RECEIVES_A_TURN),
            bytes_a_turn,
            taken: Cell::new(0),
            blocks: Cell::new(0),
            frames: Cell::new(0),
        })
    }

    /// Ends the transport where nobody else holds the link any more.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Ends our direction: the connection carries no more.
    pub(super) fn close(&self) {
        self.stream.shutdown_write();
    }

    pub(super) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// To be called before every poll of the connection: nobody keeps the others waiting by sending without end.
    pub(super) fn begin_turn(&self) {
        self.receives_left.set(RECEIVES_A_TURN);
        self.taken.set(0);
        let tap = self.tap.borrow();
        self.blocks.set(tap.blocks());
        self.frames.set(tap.frames());
    }

    /// Whether the crate has had enough for one turn.
    fn turn_is_over(&self) -> bool {
        let tap = self.tap.borrow();
        let has_blocks = tap.blocks() > self.blocks.get();
        (has_blocks && self.taken.get() >= self.allowance(&tap))
            || tap.frames() - self.frames.get() >= FRAMES_A_TURN
    }

    /// Bytes but those of DATA for one turn, and for one look of the crate.
    const fn allowance(&self, tap: &Tap) -> usize {
        if tap.is_suspect() { self.bytes_a_turn / SUSPECT_PART } else { self.bytes_a_turn }
    }

    /// Sends what was gathered. To be called after every poll of the connection.
    pub(super) fn push(&self) {
        let mut output = self.output.borrow_mut();
        if !output.is_empty() {
            self.stream.send(&output, false);
            if output.capacity() <= BLOCK_BYTES_MAX {
                self.runtime.put_block(std::mem::take(&mut *output));
            }
            output.clear();
        }
    }

    /// Gives memory back that only a busy connection needs.
    pub(super) fn rest(&self) {
        let mut output = self.output.borrow_mut();
        if output.is_empty() {
            *output = Vec::new();
        }
    }

    /// Bytes that the kernel has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.stream.unsent() + self.output.borrow().len()
    }

    /// Whether what waits for the kernel holds the crate back.
    pub(super) fn is_full(&self) -> bool {
        self.stream.unsent() > UNSENT_BYTES_MAX / 2
    }

    /// Ready once the kernel has all. Only for who has nothing more to write: it replaces the wait of the crate.
    pub(super) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_sent(0, cx)
    }

    fn poll_read(&self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turn_is_over() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut input = self.input.borrow_mut();
        let mut buf = match input.take() {
            Some(buf) => buf,
            None if self.receives_left.get() == 0 => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            None => match self.stream.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(buf)) => {
                    self.receives_left.set(self.receives_left.get() - 1);
                    buf
                }
            },
        };
        let mut tap = self.tap.borrow_mut();
        // What is not the payload of DATA comes in small pieces.
        let most = tap.data_left().max(self.allowance(&tap));
        let taken = buf.len().min(into.remaining()).min(most);
        let data_before = tap.data_received();
        tap.received(&buf[..taken]);
        let of_data = (tap.data_received() - data_before) as usize;
        if tap.violation().is_some() || tap.is_spent() {
            // The crate does not get to see it: the driver ends the connection.
            return Poll::Pending;
        }
        self.received_bytes.set(self.received_bytes.get() + taken as u64);
        self.taken.set(self.taken.get() + taken - of_data);
        into.put_slice(&buf[..taken]);
        buf.advance(taken);
        if !buf.is_empty() {
            *input = Some(buf);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.stream.unsent() > UNSENT_BYTES_MAX {
            match self.stream.poll_sent(UNSENT_BYTES_MAX / 2, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
        }
        self.tap.borrow_mut().sent(bytes);
        self.sent_bytes.set(self.sent_bytes.get() + bytes.len() as u64);
        if self.output.borrow().len() + bytes.len() > GATHERED_BYTES_MAX {
            self.push();
        }
        let mut output = self.output.borrow_mut();
        if output.capacity() == 0 {
            *output = self.runtime.take_block();
        }
        output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
}

/// Notices that the kernel takes nothing of what waits for it, since the peer does not read.
pub(super) struct Stall {
    waiting: bool,
    /// Bytes that the kernel took, but for what TLS adds to those that wait.
    taken: i64,
    since: Instant,
}

impl Stall {
    pub(super) const fn new(now: Instant) -> Self {
        Self { waiting: false, taken: 0, since: now }
    }

    /// To be asked after every poll. Since when nothing went, where something waits.
    pub(super) fn since(&mut self, link: &Link, now: Instant) -> Option<Instant> {
        let unsent = link.unsent();
        // The level alone tells nothing: what comes in may hide what went.
        let taken = link.sent_bytes.get() as i64 - unsent as i64;
        if !self.waiting || taken > self.taken {
            self.since = now;
        }
        (self.waiting, self.taken) = (unsent > 0, taken);
        self.waiting.then_some(self.since)
    }
}

/// The crate's hold on a [`Link`].
pub(super) struct Io(pub(super) Rc<Link>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, into)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    /// Whatever was written goes out with the next push.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ready once the kernel has all. The session ends the stream.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.push();
        self.0.stream.poll_sent(0, cx)
    }
}
