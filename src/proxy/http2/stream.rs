//! The two directions of one HTTP/2 stream, as bodies see them: pieces come in and their window is given back once
//! somebody took them; pieces go out as the peer's window allows. Holds no more than the windows let in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};

use crate::limits;
use crate::runtime::Runtime;

use super::piece::Piece;
use super::translate;

/// Why a stream went no further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamFault {
    /// The peer says that it has not begun the request: it may be sent again, whatever it is.
    Refused,
    /// The peer reset the stream, with this code.
    Reset(u32),
    /// What the peer sent is no valid message.
    Malformed,
    /// What we were to send has no place in HTTP/2. Nothing went out, and the peer is not to blame.
    Unsendable,
    /// As `Unsendable`, for want of room: it has more fields than we read.
    TooManyFields,
    /// The connection broke or was closed.
    Disconnected,
}

impl StreamFault {
    pub(super) fn from_error(error: &h2::Error) -> Self {
        match error.reason() {
            Some(Reason::REFUSED_STREAM) if error.is_reset() && error.is_remote() => Self::Refused,
            Some(reason) if error.is_reset() && error.is_remote() => Self::Reset(reason.into()),
            Some(_) if error.is_reset() && error.is_library() => Self::Malformed,
            _ => Self::Disconnected,
        }
    }
}

/// DATA frames below this size cost the crate more to hold than they bring: it ends a connection that has many of them
/// waiting, for all its streams (`DEFAULT_DATA_FRAME_OVERHEAD_THRESHOLD` of h2 0.4.20).
pub(super) const SMALL_FRAME_BYTES: usize = 256;

/// A body as it arrives.
pub struct Receiver {
    stream: RecvStream,
    ahead: Option<Box<Ahead>>,
    /// The trailer section in its neutral form, once the body has ended.
    trailers: Vec<u8>,
    data_ended: bool,
    /// Whether any of the body was taken, so that it cannot be sent again.
    touched: bool,
    fault: Option<StreamFault>,
    held: Option<Held>,
}

/// What was taken from the crate while nobody waited for it, in its order.
#[derive(Default)]
struct Ahead {
    pieces: VecDeque<Bytes>,
    /// Of small frames.
    gathered: BytesMut,
    fault: Option<StreamFault>,
}

impl Ahead {
    fn take(&mut self, data: Bytes) {
        if data.len() < SMALL_FRAME_BYTES {
            return self.gathered.extend_from_slice(&data);
        }
        let gathered = self.gathered.split().freeze();
        self.pieces.extend([gathered, data].into_iter().filter(|piece| !piece.is_empty()));
    }

    fn give(&mut self) -> Option<Bytes> {
        let gathered = || Some(self.gathered.split().freeze()).filter(|gathered| !gathered.is_empty());
        self.pieces.pop_front().or_else(gathered)
    }
}

/// What a peer may have sent ahead, charged while somebody keeps the body waiting.
struct Held {
    runtime: Runtime,
    charged: bool,
}

impl Held {
    fn set(&mut self, charged: bool) {
        if std::mem::replace(&mut self.charged, charged) == charged {
            return;
        }
        match charged {
            true => self.runtime.charge(limits::HTTP2_STREAM_WINDOW_BYTES as usize),
            false => self.runtime.discharge(limits::HTTP2_STREAM_WINDOW_BYTES as usize),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Receiver {
    /// A body whose window somebody else accounts for.
    pub(super) const fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            ahead: None,
            trailers: Vec::new(),
            data_ended: false,
            touched: false,
            fault: None,
            held: None,
        }
    }

    /// A body whose window is charged while there is something in it.
    pub(super) fn charged(stream: RecvStream, runtime: &Runtime) -> Self {
        let held = Held { runtime: runtime.clone(), charged: false };
        Self { held: Some(held), ..Self::new(stream) }
    }

    /// Whether the body has ended, so that nothing of it is still to come.
    pub fn is_ended(&self) -> bool {
        self.stream.is_end_stream() && self.ahead.is_none()
    }

    /// Polls what keeps the body waiting, and makes one piece of the small ones that come meanwhile. Their bytes count against the
    /// peer's window as before.
    pub fn poll_beside<F: Future>(&mut self, cx: &mut Context<'_>, waiting: Pin<&mut F>) -> Poll<F::Output> {
        let done = waiting.poll(cx);
        if done.is_pending() {
            self.gather(cx);
        }
        done
    }

    fn gather(&mut self, cx: &mut Context<'_>) {
        while !self.data_ended && self.ahead.as_ref().is_none_or(|ahead| ahead.fault.is_none()) {
            let Poll::Ready(received) = self.stream.poll_data(cx) else { return };
            match received {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => self.ahead.get_or_insert_default().take(data),
                Some(Err(error)) => {
                    self.ahead.get_or_insert_default().fault = Some(StreamFault::from_error(&error));
                }
                None => self.data_ended = true,
            }
        }
    }

    /// What was gathered, then what ended it.
    fn next_gathered(&mut self) -> Option<Result<Bytes, StreamFault>> {
        let ahead = self.ahead.as_mut()?;
        if let Some(piece) = ahead.give() {
            if ahead.pieces.is_empty() && ahead.gathered.is_empty() && ahead.fault.is_none() {
                self.ahead = None;
            }
            return Some(Ok(piece));
        }
        let fault = ahead.fault;
        self.ahead = None;
        fault.map(Err)
    }

    /// A small frame, and others as small that are there already.
    fn with_following(&mut self, first: Bytes, cx: &mut Context<'_>) -> Bytes {
        self.gather(cx);
        let follow = |ahead: &Ahead| ahead.pieces.is_empty() && !ahead.gathered.is_empty();
        if !self.ahead.as_deref().is_some_and(follow) {
            return first;
        }
        match self.next_gathered() {
            Some(Ok(following)) => [&first[..], &following].concat().into(),
            _ => first,
        }
    }

    /// The next piece; `None` at the end. Its bytes count against the peer's window until `release`.
    ///
    /// # Errors
    /// When the stream or the connection broke.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, StreamFault>> {
        let received = self.poll_next(cx);
        if let Some(held) = &mut self.held {
            // Once all was taken nothing waits; behind a piece there may be as much as the window lets in.
            held.set(matches!(received, Poll::Ready(Ok(Some(_)))));
        }
        let received = ready!(received);
        match &received {
            Ok(_) => self.touched = true,
            Err(fault) => self.fault = Some(*fault),
        }
        Poll::Ready(received)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, StreamFault>> {
        if let Some(gathered) = self.next_gathered() {
            return Poll::Ready(gathered.map(|data| Some(Piece::shared(data))));
        }
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                // An empty frame brings nothing; the flood of them is counted where frames are.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    let is_small = data.len() < SMALL_FRAME_BYTES && !self.stream.is_end_stream();
                    let data = if is_small { self.with_following(data, cx) } else { data };
                    return Poll::Ready(Ok(Some(Piece::shared(data))));
                }
                Some(Err(error)) => return Poll::Ready(Err(StreamFault::from_error(&error))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(None) => Poll::Ready(Ok(None)),
            Ok(Some(fields)) => {
                let written = translate::write_trailers(&mut self.trailers, &fields);
                Poll::Ready(written.map(|()| None).map_err(|_| StreamFault::Malformed))
            }
            Err(error) => Poll::Ready(Err(StreamFault::from_error(&error))),
        }
    }

    /// Whether any of the body was given out.
    pub const fn is_touched(&self) -> bool {
        self.touched
    }

    /// Why the body broke off, if it did.
    pub const fn fault(&self) -> Option<StreamFault> {
        self.fault
    }

    /// Lets the peer send `count` bytes more.
    pub fn release(&mut self, count: usize) {
        // Fails only where the stream is gone, and its window with it.
        let _ = self.stream.flow_control().release_capacity(count);
    }

    /// The trailer section; empty until the end, and where there is none.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }
}

/// A body as it is sent.
pub struct Sender {
    stream: SendStream<Piece>,
    ended: bool,
    /// Bytes that go with the head, in one send: the crate gives a stream capacity only once its head went out. They count as sent
    /// also where the window of the connection holds them back.
    with_head: usize,
}

impl Sender {
    pub(super) const fn new(stream: SendStream<Piece>, ended: bool) -> Self {
        Self { stream, ended, with_head: 0 }
    }

    /// Of a request. `window`: what the peer lets the stream begin with.
    pub(super) fn with_room(stream: SendStream<Piece>, ended: bool, window: usize) -> Self {
        Self { with_head: window.min(limits::HTTP2_STREAM_SEND_BYTES_MAX), ..Self::new(stream, ended) }
    }

    /// Gives the crate as much of `piece` as the peer takes. Ready once it has all. `last`: the body ends with it.
    ///
    /// # Errors
    /// When the stream or the connection broke.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        piece: &mut Piece,
        last: bool,
    ) -> Poll<Result<(), StreamFault>> {
        while !piece.is_empty() {
            let room = if piece.len() <= std::mem::take(&mut self.with_head) {
                piece.len()
            } else {
                self.stream.reserve_capacity(piece.len());
                self.stream.capacity()
            };
            if room == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(StreamFault::from_error(&error))),
                    None => return Poll::Ready(Err(self.fault(cx))),
                }
                continue;
            }
            let part = piece.split_to(room);
            let ends = last && piece.is_empty();
            if let Err(error) = self.stream.send_data(part, ends) {
                return Poll::Ready(Err(match self.fault(cx) {
                    StreamFault::Disconnected => StreamFault::from_error(&error),
                    fault => fault,
                }));
            }
            self.ended = ends;
        }
        if last && !self.ended {
            return Poll::Ready(self.finish(&[]));
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the body with these trailers, in their neutral form.
    ///
    /// # Errors
    /// When the stream is closed already.
    pub fn finish(&mut self, trailers: &[u8]) -> Result<(), StreamFault> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        let fields = translate::trailers(trailers);
        let sent = if fields.is_empty() {
            self.stream.send_data(Piece::empty(), true)
        } else {
            self.stream.send_trailers(fields)
        };
        sent.map_err(|error| StreamFault::from_error(&error))
    }

    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Ready when the peer reset the stream or the connection broke.
    pub fn poll_fault(&mut self, cx: &mut Context<'_>) -> Poll<StreamFault> {
        self.stream.poll_reset(cx).map(|reset| fault_of(&reset))
    }

    /// Ends the stream with this code.
    pub fn reset(&mut self, code: u32) {
        self.stream.send_reset(Reason::from(code));
    }

    fn fault(&mut self, cx: &mut Context<'_>) -> StreamFault {
        match self.poll_fault(cx) {
            Poll::Ready(fault) => fault,
            Poll::Pending => StreamFault::Disconnected,
        }
    }
}

/// What `poll_reset` told.
pub(super) fn fault_of(reset: &Result<Reason, h2::Error>) -> StreamFault {
    match reset {
        Ok(Reason::REFUSED_STREAM) => StreamFault::Refused,
        Ok(reason) => StreamFault::Reset((*reason).into()),
        Err(error) => StreamFault::from_error(error),
    }
}
