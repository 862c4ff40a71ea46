//! A TLS session over a socket, seen as a byte stream. Plaintext leaves it in buffers of the pool, and goes into
//! records in such buffers; bytes of a record or message that is not whole yet wait in a block. Never decides whom to
//! talk to: the handshake is driven by `handshake.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, ready};

use rustls::AlertDescription;

use crate::limits;
use crate::runtime::{BufMaker, RecvBuf, Runtime, Socket};
use crate::tls::{Phase, RECORD_PLAINTEXT_BYTES_MAX, Session, sealed_bytes_max};

pub struct TlsStream {
    socket: Socket,
    memory: Charge,
    session: RefCell<Session>,
    /// The beginning of a record or message; empty most of the time, and then without memory.
    partial: RefCell<Vec<u8>>,
    boundary: Cell<Boundary>,
    /// Plaintext that nobody took yet, in order.
    plain: RefCell<VecDeque<RecvBuf>>,
    end: Cell<End>,
    /// The fatal alert that the peer sent.
    alert: Cell<Option<AlertDescription>>,
    /// Bytes received since the last plaintext.
    barren_bytes: Cell<usize>,
}

const RECORD_HEADER_BYTES: usize = 5;
/// Receives without plaintext after which others get a turn.
const BARREN_RECEIVES_A_TURN: u32 = 4;
/// The alert record_overflow as a plaintext record (RFC 8446 §6.2).
const RECORD_OVERFLOW: [u8; 7] = [21, 3, 3, 0, 2, 2, 22];

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

/// The moments at which a handshake's session is at work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    Begins,
    Ends,
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
            boundary: Cell::default(),
            end: Cell::new(End::Open),
            alert: Cell::new(None),
            barren_bytes: Cell::new(0),
        })
    }

    pub const fn socket(&self) -> &Socket {
        &self.socket
    }

    pub const fn session(&self) -> &RefCell<Session> {
        &self.session
    }

    /// Drives the handshake to its end. `step` is called before and after the session takes something.
    ///
    /// # Errors
    /// Where it fails; the alert is on its way then.
    pub async fn handshake(&self, step: impl Fn(Step)) -> Result<(), Failure> {
        let around = |take: &dyn Fn() -> Result<Phase, rustls::Error>| {
            step(Step::Begins);
            let phase = take();
            step(Step::Ends);
            phase
        };
        // A client has the first word.
        let mut phase = around(&|| self.process(&mut [], &self.memory.runtime.empty_buffer().maker()).1);
        loop {
            match phase {
                Ok(Phase::Handshake) => {}
                Ok(Phase::Open | Phase::PeerClosed) => return Ok(()),
                Err(error) => return Err(Failure::Protocol(error)),
            }
            phase = match self.socket.recv().await {
                Ok(buf) if !buf.is_empty() => {
                    let buf = Cell::new(Some(buf));
                    around(&|| buf.take().map_or(Ok(Phase::Handshake), |buf| self.open(buf)))
                }
                _ => return Err(Failure::Closed),
            };
        }
    }

    /// Takes received bytes: plaintext into `plain`, answers of the protocol to the socket, what is not whole yet into
    /// `partial`.
    fn open(&self, mut buf: RecvBuf) -> Result<Phase, rustls::Error> {
        let mut phase = Ok(Phase::Open);
        let mut partial = self.partial.take();
        let mut boundary = self.boundary.get();
        // No more of the buffer is copied than completes what had begun.
        while !partial.is_empty() && !buf.is_empty() {
            let missing = boundary.missing().min(buf.len());
            partial.extend_from_slice(&buf[..missing]);
            boundary.advance(&buf[..missing]);
            buf.advance(missing);
            if boundary.is_news() {
                let (consumed, after) = self.process(&mut partial, &buf.maker());
                partial.drain(..consumed);
                phase = after;
                phase.as_ref().map_err(Clone::clone)?;
            }
        }
        // Before rustls has the bytes: it may move what they are made of.
        boundary.advance(&buf);
        if partial.is_empty() {
            partial = Vec::new();
            if !buf.is_empty() {
                let maker = buf.maker();
                let (consumed, after) = self.process(&mut buf, &maker);
                phase = after;
                if phase.is_ok() {
                    partial.extend_from_slice(&buf[consumed..]);
                }
            }
        }
        if partial.len() > limits::TLS_MESSAGE_BYTES_MAX {
            return Err(self.too_long());
        }
        self.memory.set_extra(partial.capacity());
        self.partial.replace(partial);
        self.boundary.set(boundary);
        phase
    }

    /// Ends a session whose peer began a message longer than any that is taken.
    fn too_long(&self) -> rustls::Error {
        self.end.set(End::Broken);
        if self.session.borrow().agreed().protocol_version().is_none() {
            // No keys yet: the alert can go in plaintext.
            self.socket.send(&RECORD_OVERFLOW, false);
        }
        rustls::Error::PeerSentOversizedRecord
    }

    /// Puts records in, and what comes of them where it belongs. Returns the bytes that are done with.
    fn process(&self, input: &mut [u8], maker: &BufMaker) -> (usize, Result<Phase, rustls::Error>) {
        let runtime = &self.memory.runtime;
        let mut out = runtime.take_block();
        let mut plain = self.plain.borrow_mut();
        let keep = |bytes: &[u8]| {
            if plain.back_mut().is_some_and(|last| last.append(bytes)) {
                return;
            }
            for piece in bytes.chunks(limits::RECV_BUF_BYTES) {
                let mut buf = maker.make();
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
            Err(error) => {
                self.end.set(End::Broken);
                if let rustls::Error::AlertReceived(alert) = error {
                    self.alert.set(Some(*alert));
                }
            }
        }
        (processed.consumed, processed.phase)
    }

    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        for _ in 0..BARREN_RECEIVES_A_TURN {
            if let Some(buf) = self.plain.borrow_mut().pop_front() {
                self.barren_bytes.set(0);
                return Poll::Ready(Ok(buf));
            }
            match self.end.get() {
                End::Open => {}
                End::Closed => return Poll::Ready(Ok(self.memory.runtime.empty_buffer())),
                End::Truncated => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                End::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            let buf = ready!(self.socket.poll_recv(cx))?;
            let barren_bytes = self.barren_bytes.get() + buf.len();
            self.barren_bytes.set(barren_bytes);
            if buf.is_empty() {
                self.end.set(End::Truncated);
            } else {
                // An error shows above, behind the plaintext that came before it.
                let _ = self.open(buf);
                if barren_bytes > limits::TLS_BARREN_BYTES_MAX && self.plain.borrow().is_empty() {
                    // Key updates and empty records cost us more than their sender.
                    self.end.set(End::Broken);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    pub fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.end.get() == End::Open { self.socket.poll_hung_up(cx) } else { Poll::Ready(()) }
    }

    pub fn is_hung_up(&self) -> bool {
        self.end.get() != End::Open || self.socket.is_hung_up()
    }

    /// The fatal alert that the peer sent, if it did.
    pub const fn alert(&self) -> Option<AlertDescription> {
        self.alert.get()
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
        let sealed = out.write_with(room, |room| session.encrypt(&mut partial, plain, room));
        if sealed.is_err() {
            self.end.set(End::Broken);
            self.socket.shutdown_write();
            return None;
        }
        Some(out)
    }

    pub fn poll_sent(&self, bytes_max: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What could not be sealed was not sent.
        if self.end.get() == End::Broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
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
            && self.partial.borrow().is_empty()
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
        self.session.borrow_mut().close(&mut self.partial.borrow_mut(), &mut out);
        if !out.is_empty() {
            self.socket.send(&out, true);
        }
        self.memory.runtime.put_block(out);
    }

    pub fn abort(self) {
        self.socket.abort();
    }
}

/// Where the bytes received so far end among the records. Kept apart from them: rustls moves what it has been given.
#[derive(Clone, Copy, Debug, Default)]
struct Boundary {
    header: [u8; RECORD_HEADER_BYTES],
    /// Bytes of the header that are here.
    header_bytes: usize,
    /// Bytes of the record that are not here yet, once its header is.
    body_left: usize,
}

impl Boundary {
    /// Bytes until the last record is whole, or until its header is.
    const fn missing(&self) -> usize {
        if self.header_bytes < RECORD_HEADER_BYTES {
            RECORD_HEADER_BYTES - self.header_bytes
        } else {
            self.body_left
        }
    }

    /// Goes past the bytes that came next.
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (these, rest) = bytes.split_at(self.missing().min(bytes.len()));
            bytes = rest;
            if self.header_bytes < RECORD_HEADER_BYTES {
                self.header[self.header_bytes..][..these.len()].copy_from_slice(these);
                self.header_bytes += these.len();
                self.body_left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
            } else {
                self.body_left -= these.len();
            }
            if self.header_bytes == RECORD_HEADER_BYTES && self.body_left == 0 {
                self.header_bytes = 0;
            }
        }
    }

    /// Whether a record, or the header of one, has just become whole: rustls has no use for less.
    fn is_news(&self) -> bool {
        let length = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        self.header_bytes == 0 || (self.header_bytes == RECORD_HEADER_BYTES && self.body_left == length)
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
        let mut boundary = Boundary::default();
        boundary.advance(records);
        boundary.missing()
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
    fn only_a_whole_record_and_a_whole_header_are_news() {
        let mut boundary = Boundary::default();
        let news: Vec<bool> = [22, 3, 3, 0, 2, 1, 1, 23]
            .iter()
            .map(|byte| {
                boundary.advance(&[*byte]);
                boundary.is_news()
            })
            .collect();
        assert_eq!(news, [false, false, false, false, true, false, true, false]);
    }
}
