//! Moves a body between any two transports: from an HTTP/1.1 connection or an HTTP/2 stream to either. At most one piece
//! is on its way, and the sender's window opens only as the receiver takes. Knows no heads and no statuses. Between two
//! HTTP/1.1 connections `body` does the same with less.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use crate::base::time::Instant;
use crate::h1::{CHUNK_END, CHUNK_HEADER_BYTES_MAX, write_chunk_header, write_last_chunk};
use crate::http::{BodyFraming, Reject};
use crate::runtime::{Deadline, RecvBuf, Runtime, TimedOut};

use super::body::{BodyError, Pace, Reader, drained};
use super::http2::{Piece, Receiver, Sender, StreamFault};
use super::stream::Stream;

/// Pieces in a row after which others get a turn, though more is there.
const PIECES_A_TURN: u32 = 8;
/// A piece of at most this many bytes is copied together with its chunk framing, so that it goes out in one send.
const COPIED_BYTES_MAX: usize = 4_096;

/// Where a body comes from.
pub enum Source<'a> {
    H1(H1Source<'a>),
    H2(&'a mut Receiver),
}

/// The body of a message on an HTTP/1.1 connection.
pub struct H1Source<'a> {
    stream: &'a Stream,
    reader: Reader,
    /// Received with the head.
    first: Option<RecvBuf>,
    /// What followed the body.
    rest: Option<RecvBuf>,
    done: bool,
}

/// What a source gave.
enum Part {
    /// Some of the body; whether it is the last, with no trailers behind it.
    Data(Piece, bool),
    /// The end, perhaps with trailers.
    End,
}

impl<'a> Source<'a> {
    pub fn h1(stream: &'a Stream, framing: BodyFraming, first: RecvBuf) -> Self {
        let done = !framing.has_body();
        let (first, rest) = if done { (None, Some(first)) } else { (Some(first), None) };
        Self::H1(H1Source { stream, reader: Reader::new(framing), first, rest, done })
    }

    /// What came behind the body on its HTTP/1.1 connection.
    pub fn into_rest(self) -> Option<RecvBuf> {
        match self {
            Self::H1(source) => source.rest.filter(|rest| !rest.is_empty()),
            Self::H2(_) => None,
        }
    }

    /// How the peer broke the body off, where it came in HTTP/2.
    pub const fn fault(&self) -> Option<StreamFault> {
        match self {
            Self::H1(_) => None,
            Self::H2(receiver) => receiver.fault(),
        }
    }

    /// The trailer section, once the body ended.
    pub fn trailers(&self) -> &[u8] {
        match self {
            Self::H1(source) => source.reader.trailers(),
            Self::H2(receiver) => receiver.trailers(),
        }
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, BodyError>> {
        match self {
            Self::H1(source) => source.poll_part(cx),
            Self::H2(receiver) => receiver.poll_piece(cx).map(|received| match received {
                Ok(Some(piece)) => Ok(Part::Data(piece, receiver.is_ended())),
                Ok(None) => Ok(Part::End),
                Err(fault) => Err(BodyError::from_source(fault)),
            }),
        }
    }

    /// Polls the receiver that is to take what came.
    fn poll_beside<F: Future>(&mut self, cx: &mut Context<'_>, taken: Pin<&mut F>) -> Poll<F::Output> {
        match self {
            Self::H1(_) => taken.poll(cx),
            Self::H2(receiver) => receiver.poll_beside(cx, taken),
        }
    }

    /// `count` bytes were taken by the receiver.
    fn taken(&mut self, count: usize) {
        if let Self::H2(receiver) = self {
            receiver.release(count);
        }
    }
}

impl H1Source<'_> {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, BodyError>> {
        while !self.done {
            let (mut buf, received) = match self.first.take() {
                Some(buf) => (buf, false),
                None => match self.stream.poll_recv(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(buf)) => (buf, true),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(BodyError::SourceBroken)),
                },
            };
            if received && buf.is_empty() {
                self.done = true;
                return Poll::Ready(match self.reader {
                    Reader::UntilClose => Ok(Part::End),
                    Reader::Length(_) | Reader::Chunked(_) => Err(BodyError::Truncated),
                });
            }
            let step = self.reader.decode(&mut buf)?;
            self.done = step.done;
            if step.done {
                self.rest = step.rest;
            }
            if !buf.is_empty() {
                let last = step.done && self.reader.trailers().is_empty();
                return Poll::Ready(Ok(Part::Data(Piece::new(buf), last)));
            }
        }
        Poll::Ready(Ok(Part::End))
    }
}

/// Where a body goes.
pub enum Sink<'a> {
    H1(H1Sink<'a>),
    H2(&'a mut Sender),
}

/// A body on its way out over an HTTP/1.1 connection.
pub struct H1Sink<'a> {
    stream: &'a Stream,
    chunked: bool,
    /// Of a length that was announced. What does not add up to it never looks whole.
    left: Option<u64>,
}

impl<'a> Sink<'a> {
    pub const fn h1(stream: &'a Stream, framing: BodyFraming) -> Self {
        let (chunked, left) = match framing {
            BodyFraming::None => (false, Some(0)),
            BodyFraming::Length(length) => (false, Some(length)),
            BodyFraming::Chunked => (true, None),
            BodyFraming::UntilClose => (false, None),
        };
        Self::H1(H1Sink { stream, chunked, left })
    }
    /// Sends a piece and waits until the receiver has taken it.
    async fn send(
        &mut self,
        runtime: &Runtime,
        deadline: &Deadline,
        pace: Pace,
        mut piece: Piece,
        last: bool,
    ) -> Result<(), BodyError> {
        match self {
            Self::H1(sink) => {
                sink.send(&piece, last)?;
                drained(runtime, sink.stream, deadline, pace.sink_stall).await
            }
            Self::H2(sender) => loop {
                let waiting = piece.len();
                deadline.set(runtime.now() + pace.sink_stall);
                let sent = {
                    let sending = std::future::poll_fn(|cx| sender.poll_send(cx, &mut piece, last));
                    deadline.within(pin!(sending)).await
                };
                match sent {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(_)) => return Err(BodyError::SinkBroken),
                    Err(TimedOut) if piece.len() < waiting => {}
                    Err(TimedOut) => return Err(BodyError::SinkStalled),
                }
            },
        }
    }

    /// Whether the receiver reset its stream. Has the task woken when it does. An HTTP/1.1 connection that ends is
    /// seen by whoever waits for its other direction.
    fn is_broken(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(sender) => sender.poll_fault(cx).is_ready(),
        }
    }

    /// Ends the body, with the trailers that it has.
    async fn finish(
        &mut self,
        runtime: &Runtime,
        deadline: &Deadline,
        pace: Pace,
        trailers: &[u8],
    ) -> Result<(), BodyError> {
        match self {
            Self::H1(sink) => {
                if sink.left.is_some_and(|left| left > 0) {
                    return Err(BodyError::Truncated);
                }
                if sink.chunked {
                    let mut end = runtime.take_block();
                    write_last_chunk(&mut end, trailers);
                    sink.stream.send(&end, false);
                    runtime.put_block(end);
                }
                drained(runtime, sink.stream, deadline, pace.sink_stall).await
            }
            Self::H2(sender) => sender.finish(trailers).map_err(|_| BodyError::SinkBroken),
        }
    }
}

impl H1Sink<'_> {
    fn send(&mut self, piece: &Piece, last: bool) -> Result<(), BodyError> {
        let bytes = piece.bytes();
        if let Some(left) = &mut self.left {
            let rest = left.checked_sub(bytes.len() as u64);
            *left = rest.ok_or(BodyError::Malformed(Reject::BAD_CONTENT_LENGTH))?;
            if last && *left > 0 {
                return Err(BodyError::Truncated);
            }
        }
        if !self.chunked {
            self.stream.send(bytes, false);
            return Ok(());
        }
        let end: &[u8] = if last { b"\r\n0\r\n\r\n" } else { CHUNK_END };
        let mut header = [0; CHUNK_HEADER_BYTES_MAX];
        let header = write_chunk_header(&mut header, bytes.len() as u64);
        if bytes.len() <= COPIED_BYTES_MAX {
            let mut whole = Vec::with_capacity(header.len() + bytes.len() + end.len());
            whole.extend_from_slice(header);
            whole.extend_from_slice(bytes);
            whole.extend_from_slice(end);
            self.stream.send(&whole, false);
        } else {
            self.stream.send(header, true);
            self.stream.send(bytes, true);
            self.stream.send(end, false);
        }
        Ok(())
    }
}

/// Moves a body from `source` to `sink`, whole with its trailers. `moved` counts payload bytes that went.
///
/// # Errors
/// When either side fails; what was moved until then has gone to `sink`.
pub async fn transfer(
    runtime: &Runtime,
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    pace: Pace,
    moved: &Cell<u64>,
) -> Result<(), BodyError> {
    let deadline = runtime.deadline();
    let started = runtime.now();
    let mut pieces = 0;
    loop {
        deadline.set(runtime.now() + pace.source_idle);
        let part = {
            let receiving = std::future::poll_fn(|cx| match source.poll_part(cx) {
                // A receiver that left is noticed also while there is nothing for it.
                Poll::Pending if sink.is_broken(cx) => Poll::Ready(Err(BodyError::SinkBroken)),
                received => received,
            });
            deadline.within(pin!(receiving)).await
        };
        match part {
            Err(TimedOut) => return Err(BodyError::SourceTimedOut),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Part::End)) => {
                return sink.finish(runtime, &deadline, pace, source.trailers()).await;
            }
            Ok(Ok(Part::Data(piece, last))) => {
                let count = piece.len();
                {
                    let mut taken = pin!(sink.send(runtime, &deadline, pace, piece, last));
                    std::future::poll_fn(|cx| source.poll_beside(cx, taken.as_mut())).await?;
                }
                source.taken(count);
                moved.set(moved.get() + count as u64);
                if last {
                    return Ok(());
                }
            }
        }
        check_rate(moved.get(), started, runtime.now(), pace)?;
        pieces += 1;
        if pieces % PIECES_A_TURN == 0 {
            runtime.yield_now().await;
        }
    }
}

fn check_rate(moved: u64, started: Instant, now: Instant, pace: Pace) -> Result<(), BodyError> {
    let elapsed = now.since(started);
    let owed = u128::from(pace.source_bytes_per_s_min) * elapsed.as_millis() / 1_000;
    if elapsed > pace.source_idle && u128::from(moved) < owed {
        return Err(BodyError::SourceTimedOut);
    }
    Ok(())
}

impl BodyError {
    fn from_source(fault: StreamFault) -> Self {
        match fault {
            StreamFault::Malformed => Self::Malformed(Reject::BAD_TRAILER),
            _ => Self::SourceBroken,
        }
    }
}
