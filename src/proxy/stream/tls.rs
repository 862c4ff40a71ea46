//! A TLS session over a socket, seen as a byte stream. Plaintext leaves it in buffers of the pool, and goes into
//! records in such buffers; bytes of a record or message that is not whole yet wait in a block. Never decides whom to
//! talk to: the handshake is driven by `handshake.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, ready};

use crate::limits;
use crate::runtime::{RecvBuf, Runtime, Socket};
use crate::tls::{Phase, RECORD_PLAINTEXT_BYTES_MAX, Session, sealed_bytes_max};

pub struct TlsStream {
    socket: Socket,
    memory: Charge,
    session: RefCell<Session>,
    partial: RefCell<Partial>,
    /// Plaintext that nobody took yet, in order.
    plain: RefCell<VecDeque<RecvBuf>>,
    end: Cell<End>,
}

const RECORD_HEADER_BYTES: usize = 5;

/// How far the peer's stream has come to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Open,
    /// With close_notify.
    Closed,
    /// Without: what came before it may be cut off (RFC 8446 §6.1).
    Truncated,
    /// By an error of the protocol, which the peer was told of.
    Broken,
}

/// A handshake that failed.
#[derive(Debug)]
pub enum Failure {
    /// The peer ended its stream, or reset the connection.
    Closed,
    /// It is no TLS, or not one both sides agree on; the peer was told by an alert.
    Protocol(rustls::Error),
}

impl TlsStream {
    pub fn new(runtime: &Runtime, socket: Socket, session: Session) -> Box<Self> {
        Box::new(Self {
            socket,
            memory: Charge::new(runtime),
            session: RefCell::new(session),
            partial: RefCell::default(),
            plain: RefCell::default(),
            end: Cell::new(End::Open),
        })
    }

    pub const fn socket(&self) -> &Socket {
        &self.socket
    }

    pub const fn session(&self) -> &RefCell<Session> {
        &self.session
    }

    /// Drives the handshake from the bytes received so far (a client has none at first) to its end. Calls `stepped`
    /// whenever the session took something.
    ///
    /// # Errors
    /// Where it fails; the alert is on its way then.
    pub async fn handshake(&self, first: Option<RecvBuf>, mut stepped: impl FnMut()) -> Result<(), Failure> {
        let mut phase = match first {
            Some(buf) => self.open(buf),
            None => self.process(&mut [], || self.memory.runtime.empty_buffer()).1,
        };
        loop {
            stepped();
            match phase {
                Ok(Phase::Handshake) => {}
                Ok(Phase::Open | Phase::PeerClosed) => return Ok(()),
                Err(error) => return Err(Failure::Protocol(error)),
            }
            match self.socket.recv().await {
                Ok(buf) if !buf.is_empty() => phase = self.open(buf),
                _ => return Err(Failure::Closed),
            }
        }
    }

    /// Takes received bytes: plaintext into `plain`, answers of the protocol to the socket, what is not whole yet into
    /// `partial`.
    fn open(&self, mut buf: RecvBuf) -> Result<Phase, rustls::Error> {
        let mut phase = Ok(Phase::Open);
        let mut partial = self.partial.take();
        // No more of the buffer is copied than completes what had begun.
        while !partial.bytes.is_empty() && !buf.is_empty() {
            let missing = partial.missing().min(buf.len());
            partial.bytes.extend_from_slice(&buf[..missing]);
            buf.advance(missing);
            let (consumed, after) = self.process(&mut partial.bytes, || buf.sibling());
            partial.take(consumed);
            phase = after;
            phase.as_ref().map_err(Clone::clone)?;
        }
        if partial.bytes.is_empty() && !buf.is_empty() {
            let spare = buf.sibling();
            let (consumed, after) = self.process(&mut buf, || spare.sibling());
            phase = after;
            partial = Partial::default();
            if consumed < buf.len() && phase.is_ok() {
                partial.bytes.extend_from_slice(&buf[consumed..]);
            }
        }
        if partial.bytes.len() > limits::TLS_MESSAGE_BYTES_MAX {
            self.end.set(End::Broken);
            return Err(rustls::Error::PeerSentOversizedRecord);
        }
        self.memory.set_extra(partial.bytes.capacity());
        self.partial.replace(partial);
        phase
    }

    /// Puts records in, and what comes of them where it belongs. Returns the bytes that are done with.
    fn process(
        &self,
        input: &mut [u8],
        spare: impl Fn() -> RecvBuf,
    ) -> (usize, Result<Phase, rustls::Error>) {
        let runtime = &self.memory.runtime;
        let mut out = runtime.take_block();
        let mut plain = self.plain.borrow_mut();
        let keep = |bytes: &[u8]| {
            if plain.back_mut().is_some_and(|last| last.append(bytes)) {
                return;
            }
            for piece in bytes.chunks(limits::RECV_BUF_BYTES) {
                let mut buf = spare();
                let fits = buf.append(piece);
                debug_assert!(fits, "an empty buffer takes {} bytes", piece.len());
                plain.push_back(buf);
            }
        };
        let processed = self.session.borrow_mut().process(input, &mut out, keep);
        if !out.is_empty() {
            self.socket.send(&out, false);
        }
        runtime.put_block(out);
        match &processed.phase {
            Ok(Phase::PeerClosed) => self.end.set(End::Closed),
            Ok(_) => {}
            Err(_) => self.end.set(End::Broken),
        }
        (processed.consumed, processed.phase)
    }

    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        loop {
            if let Some(buf) = self.plain.borrow_mut().pop_front() {
                return Poll::Ready(Ok(buf));
            }
            match self.end.get() {
                End::Open => {}
                End::Closed => return Poll::Ready(Ok(self.memory.runtime.empty_buffer())),
                End::Truncated => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                End::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            let buf = ready!(self.socket.poll_recv(cx))?;
            if buf.is_empty() {
                self.end.set(End::Truncated);
            } else {
                // An error shows above, behind the plaintext that came before it.
                let _ = self.open(buf);
            }
        }
    }

    pub fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.socket.poll_hung_up(cx)
    }

    pub fn is_hung_up(&self) -> bool {
        self.socket.is_hung_up()
    }

    pub fn has_input(&self) -> bool {
        !self.plain.borrow().is_empty() || self.end.get() != End::Open || self.socket.has_input()
    }

    pub fn send(&self, bytes: &[u8], more: bool) {
        let mut pieces = bytes.chunks(RECORD_PLAINTEXT_BYTES_MAX).peekable();
        while let Some(piece) = pieces.next() {
            let out = self.memory.runtime.empty_buffer();
            let Some(out) = self.seal(piece, out) else { return };
            self.socket.send(&out, more || pieces.peek().is_some());
        }
    }

    pub fn send_buf(&self, buf: RecvBuf, more: bool) {
        let out = buf.sibling();
        if sealed_bytes_max(buf.len()) > out.capacity() {
            return self.send(&buf, more);
        }
        let Some(out) = self.seal(&buf, out) else { return };
        drop(buf);
        self.socket.send_buf(out, more);
    }

    /// `None`: nothing can be sent any more, and the peer, if it is still there, is to see a broken stream.
    fn seal(&self, plain: &[u8], mut out: RecvBuf) -> Option<RecvBuf> {
        if self.end.get() == End::Broken {
            return None;
        }
        let (mut session, mut partial) = (self.session.borrow_mut(), self.partial.borrow_mut());
        let room = sealed_bytes_max(plain.len());
        let sealed = out.write_with(room, |room| session.encrypt(&mut partial.bytes, plain, room));
        if sealed.is_err() {
            self.end.set(End::Broken);
            self.socket.shutdown_write();
            return None;
        }
        Some(out)
    }

    pub fn poll_sent(&self, bytes_max: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_sent(bytes_max, cx)
    }

    pub fn unsent(&self) -> usize {
        self.socket.unsent()
    }

    pub fn set_bulk(&self, bulk: bool) {
        self.socket.set_bulk(bulk);
    }

    pub fn set_on_demand(&self, on_demand: bool) {
        self.socket.set_on_demand(on_demand);
    }

    pub fn watch(&self) {
        self.socket.watch();
    }

    pub fn is_quiet(&self) -> bool {
        self.plain.borrow().is_empty()
            && self.partial.borrow().bytes.is_empty()
            && self.end.get() == End::Open
            && self.socket.is_quiet()
    }

    /// Sends close_notify and ends our direction of the connection.
    pub fn shutdown_write(&self) {
        self.close_notify();
        self.socket.shutdown_write();
    }

    /// Tells the peer that our stream is whole.
    pub fn close_notify(&self) {
        if self.end.get() == End::Broken {
            return;
        }
        let mut out = self.memory.runtime.take_block();
        self.session.borrow_mut().close(&mut self.partial.borrow_mut().bytes, &mut out);
        if !out.is_empty() {
            self.socket.send(&out, true);
        }
        self.memory.runtime.put_block(out);
    }

    pub fn abort(self) {
        self.socket.abort();
    }
}

/// The beginning of a record or message; empty most of the time, and then without memory.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Where the last record begins: a message in many small records is gone through once.
    record_at: usize,
}

impl Partial {
    /// Bytes until the last record is whole, or until its header is.
    fn missing(&mut self) -> usize {
        loop {
            let record = &self.bytes[self.record_at..];
            let Some(&[_, _, _, high, low]) = record.first_chunk() else {
                return RECORD_HEADER_BYTES - record.len();
            };
            let whole = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
            if whole > record.len() {
                return whole - record.len();
            }
            self.record_at += whole;
        }
    }

    /// Removes what is done with.
    fn take(&mut self, consumed: usize) {
        self.bytes.drain(..consumed);
        self.record_at = self.record_at.saturating_sub(consumed);
    }
}

/// What the session is counted with in the worker's byte budget.
struct Charge {
    runtime: Runtime,
    extra: Cell<usize>,
}

impl Charge {
    fn new(runtime: &Runtime) -> Self {
        runtime.charge(limits::TLS_SESSION_BYTES);
        Self { runtime: runtime.clone(), extra: Cell::new(0) }
    }

    fn set_extra(&self, bytes: usize) {
        self.runtime.charge(bytes);
        self.runtime.discharge(self.extra.replace(bytes));
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.runtime.discharge(limits::TLS_SESSION_BYTES + self.extra.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(records: &[u8]) -> usize {
        Partial { bytes: records.to_vec(), record_at: 0 }.missing()
    }

    #[test]
    fn what_is_missing_is_the_rest_of_the_last_record_or_of_its_header() {
        assert_eq!(missing(&[22, 3, 3]), 2);
        assert_eq!(missing(&[22, 3, 3, 1, 0]), 256);
        assert_eq!(missing(&[22, 3, 3, 0, 2, 1]), 1);
        assert_eq!(missing(&[22, 3, 3, 0, 1, 1]), 5, "the next header");
        assert_eq!(missing(&[22, 3, 3, 0, 1, 1, 22, 3, 3, 0]), 1);
        assert_eq!(missing(&[22, 3, 3, 0, 0]), 5, "an empty record");
    }

    #[test]
    fn what_was_taken_no_longer_counts() {
        let mut partial = Partial { bytes: vec![22, 3, 3, 0, 1, 1, 22, 3, 3], record_at: 0 };
        assert_eq!(partial.missing(), 2);
        partial.take(6);
        assert_eq!((partial.record_at, partial.missing()), (0, 2));
    }
}
