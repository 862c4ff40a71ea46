//! Moves one message body from one stream to another: decoded by its own framing, framed anew for the receiver,
//! with no copy of the payload and at most one receive buffer waiting to go. Knows no heads and no statuses.

use std::pin::pin;
use std::time::Duration;

use crate::base::time::Instant;
use crate::h1::{
    CHUNK_END, CHUNK_HEADER_BYTES_MAX, Decoder, LAST_CHUNK, write_chunk_header, write_last_chunk,
};
use crate::http::{BodyFraming, Reject};
use crate::limits;
use crate::runtime::{Deadline, RecvBuf, Runtime, TimedOut};

use super::stream::Stream;

/// Receives in a row after which others get a turn, though more is there.
const RECEIVES_A_TURN: u32 = 8;

/// Why a body was not moved whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BodyError {
    /// The sender ended its stream before the body ended.
    Truncated,
    /// The sender's connection broke.
    SourceBroken,
    /// The sender's framing is invalid.
    Malformed(Reject),
    /// The sender sent nothing for too long, or too little.
    SourceTimedOut,
    /// The receiver's connection broke.
    SinkBroken,
    /// The receiver took nothing for too long.
    SinkStalled,
}

/// Deadlines of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two receives.
    pub source_idle: Duration,
    /// Least average rate once `source_idle` has passed; 0 for any.
    pub source_bytes_per_s_min: u64,
    /// Between two moments at which the receiver takes something.
    pub sink_stall: Duration,
}

/// One body on its way.
pub struct Body {
    reader: Reader,
    /// Whether the receiver gets it in the chunked coding.
    chunked_out: bool,
    /// Payload bytes moved.
    pub moved: u64,
    /// Whether anything, the head included, went to the receiver.
    pub begun: bool,
}

/// How the sender's framing is followed.
pub(super) enum Reader {
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

/// What a buffer gave.
pub(super) struct Step {
    /// Bytes behind the end of the body: the next message's.
    pub(super) rest: Option<RecvBuf>,
    pub(super) done: bool,
}

impl Reader {
    pub(super) fn new(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::None => Self::Length(0),
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked => Self::Chunked(Decoder::new()),
            BodyFraming::UntilClose => Self::UntilClose,
        }
    }

    /// Narrows `buf` to the payload in it.
    pub(super) fn decode(&mut self, buf: &mut RecvBuf) -> Result<Step, BodyError> {
        let (payload, consumed, done) = match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
                *left -= taken as u64;
                (0..taken, taken, *left == 0)
            }
            Self::Chunked(decoder) => {
                let decoded = decoder.decode(buf).map_err(BodyError::Malformed)?;
                (decoded.payload, decoded.consumed, decoded.done)
            }
            Self::UntilClose => (0..buf.len(), buf.len(), false),
        };
        let rest = if consumed < buf.len() { Some(buf.split_off(consumed)) } else { None };
        buf.narrow(payload);
        Ok(Step { rest, done })
    }

    /// The trailer section, once the body was read.
    pub(super) fn trailers(&self) -> &[u8] {
        match self {
            Self::Chunked(decoder) => decoder.trailers(),
            Self::Length(_) | Self::UntilClose => &[],
        }
    }
}

impl Body {
    /// A body framed `from` as the sender said and `to` as the receiver was told.
    pub fn new(from: BodyFraming, to: BodyFraming) -> Self {
        let reader = Reader::new(from);
        Self { reader, chunked_out: to == BodyFraming::Chunked, moved: 0, begun: false }
    }

    /// Moves the body: what of it is in `first`, then what `source` brings. `head` goes before it, in one piece with
    /// its first bytes where that is possible. Returns what follows the body. A `source` that brought a long body is
    /// left receiving in bulk.
    ///
    /// # Errors
    /// When either side fails; what was moved until then has gone to `sink`.
    pub async fn relay(
        &mut self,
        runtime: &Runtime,
        source: &Stream,
        sink: &Stream,
        head: &[u8],
        first: RecvBuf,
        pace: Pace,
    ) -> Result<Option<RecvBuf>, BodyError> {
        let deadline = runtime.deadline();
        let started = runtime.now();
        let mut next = Some(first);
        let mut receives = 0;
        let mut bulk = false;
        loop {
            let buf = match next.take() {
                Some(buf) => buf,
                None => {
                    deadline.set(runtime.now() + pace.source_idle);
                    receive(source, &deadline).await?
                }
            };
            if buf.is_empty() && receives > 0 {
                self.end_of_stream(sink)?;
                drained(runtime, sink, &deadline, pace.sink_stall).await?;
                return Ok(None);
            }
            let step = self.forward(if receives == 0 { head } else { &[] }, buf, sink)?;
            // Everything is with the kernel before more is received: that bounds what a stalled reader costs.
            drained(runtime, sink, &deadline, pace.sink_stall).await?;
            if step.done {
                return Ok(step.rest);
            }
            self.check_rate(started, runtime.now(), pace)?;
            receives += 1;
            if !bulk && self.wants_bulk() {
                bulk = true;
                source.set_bulk(true);
            }
            if receives % RECEIVES_A_TURN == 0 {
                runtime.yield_now().await;
            }
        }
    }

    /// Reads the body without a receiver, up to `bytes_max` payload bytes and within `patience` in all. Returns what
    /// follows it.
    ///
    /// # Errors
    /// As `relay`; a body that is longer counts as `SourceTimedOut`.
    pub async fn discard(
        &mut self,
        runtime: &Runtime,
        source: &Stream,
        first: RecvBuf,
        patience: Duration,
        bytes_max: u64,
    ) -> Result<Option<RecvBuf>, BodyError> {
        let deadline = runtime.deadline();
        deadline.set(runtime.now() + patience);
        let mut next = Some(first);
        let mut receives = 0;
        loop {
            let mut buf = match next.take() {
                Some(buf) => buf,
                None => receive(source, &deadline).await?,
            };
            if buf.is_empty() && receives > 0 {
                return Err(BodyError::Truncated);
            }
            receives += 1;
            let step = self.reader.decode(&mut buf)?;
            self.moved += buf.len() as u64;
            if step.done {
                return Ok(step.rest);
            }
            if self.moved > bytes_max {
                return Err(BodyError::SourceTimedOut);
            }
        }
    }

    /// Sends `head` and what of the body is in `buf`.
    fn forward(&mut self, head: &[u8], mut buf: RecvBuf, sink: &Stream) -> Result<Step, BodyError> {
        let step = self.reader.decode(&mut buf)?;
        self.moved += buf.len() as u64;
        self.begun = true;
        let payload = buf.len();
        let mut last_chunk_due = self.chunked_out && step.done;
        if self.chunked_out && payload > 0 {
            let mut header = [0; CHUNK_HEADER_BYTES_MAX];
            let framed =
                buf.prepend(write_chunk_header(&mut header, payload as u64)) && buf.append(CHUNK_END);
            debug_assert!(framed, "a receive buffer has room for the framing of its chunk");
            if last_chunk_due && !self.has_trailers() && buf.append(LAST_CHUNK) {
                last_chunk_due = false;
            }
        }
        if !buf.prepend(head) {
            sink.send(head, payload > 0 || last_chunk_due);
        }
        if !buf.is_empty() {
            sink.send_buf(buf, last_chunk_due);
        }
        if last_chunk_due {
            self.send_last_chunk(sink);
        }
        Ok(step)
    }

    /// The sender's stream ended: the end of a body that lasts until then, else a truncation.
    fn end_of_stream(&self, sink: &Stream) -> Result<(), BodyError> {
        if !matches!(self.reader, Reader::UntilClose) {
            return Err(BodyError::Truncated);
        }
        if self.chunked_out {
            self.send_last_chunk(sink);
        }
        Ok(())
    }

    fn send_last_chunk(&self, sink: &Stream) {
        let trailers = self.reader.trailers();
        if trailers.is_empty() {
            sink.send(LAST_CHUNK, false);
        } else {
            let mut end = Vec::new();
            write_last_chunk(&mut end, trailers);
            sink.send(&end, false);
        }
    }

    fn has_trailers(&self) -> bool {
        !self.reader.trailers().is_empty()
    }

    fn wants_bulk(&self) -> bool {
        match self.reader {
            Reader::Length(left) => left >= limits::BULK_FROM_BYTES,
            Reader::Chunked(_) | Reader::UntilClose => self.moved >= limits::BULK_FROM_BYTES,
        }
    }

    fn check_rate(&self, started: Instant, now: Instant, pace: Pace) -> Result<(), BodyError> {
        let elapsed = now.since(started);
        let owed = u128::from(pace.source_bytes_per_s_min) * elapsed.as_millis() / 1_000;
        if elapsed > pace.source_idle && u128::from(self.moved) < owed {
            return Err(BodyError::SourceTimedOut);
        }
        Ok(())
    }
}

async fn receive(source: &Stream, deadline: &Deadline) -> Result<RecvBuf, BodyError> {
    match deadline.within(source.recv()).await {
        Ok(Ok(buf)) => Ok(buf),
        Ok(Err(_)) => Err(BodyError::SourceBroken),
        Err(TimedOut) => Err(BodyError::SourceTimedOut),
    }
}

/// Waits until the kernel has all that was sent to `sink`, as long as the peer keeps taking some of it.
///
/// # Errors
/// `SinkBroken` or `SinkStalled`.
pub async fn drained(
    runtime: &Runtime,
    sink: &Stream,
    deadline: &Deadline,
    stall: Duration,
) -> Result<(), BodyError> {
    let mut sent = pin!(std::future::poll_fn(|cx| sink.poll_sent(0, cx)));
    loop {
        let waiting = sink.unsent();
        if waiting > 0 {
            deadline.set(runtime.now() + stall);
        }
        match deadline.within(sent.as_mut()).await {
            Ok(result) => return result.map_err(|_| BodyError::SinkBroken),
            Err(TimedOut) if sink.unsent() < waiting => {}
            Err(TimedOut) => return Err(BodyError::SinkStalled),
        }
    }
}
