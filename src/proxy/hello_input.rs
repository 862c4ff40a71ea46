//! The bytes of a ClientHello, or of a PROXY header, as they arrive, for whoever must know it whole before anything is made
//! of it. Never judges them.

use crate::metrics::HandshakeFailure;
use crate::runtime::{Deadline, RecvBuf, Runtime, Socket, TimedOut};

use super::handshake::Failed;
use super::outcome::Termination;

/// Usually all of a hello is in the first buffer, and nothing is copied. While more is waited for, the buffer is back
/// in the pool and what came is kept in the room it needs, which the worker's budget knows of.
/// `limits::HELLO_BYTES_MAX`, `HELLO_RECORDS_MAX` and `PROXY_HEADER_BYTES_MAX` bound it.
pub(super) struct HelloInput<'r> {
    runtime: &'r Runtime,
    only: Option<RecvBuf>,
    assembled: Vec<u8>,
}

impl<'r> HelloInput<'r> {
    pub(super) const fn new(runtime: &'r Runtime, first: RecvBuf) -> Self {
        Self { runtime, only: Some(first), assembled: Vec::new() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.only.as_deref().unwrap_or(&self.assembled)
    }

    /// Waits for more.
    pub(super) async fn receive(&mut self, socket: &Socket, deadline: &Deadline) -> Result<(), Failed> {
        if let Some(only) = self.only.take() {
            self.append(&only);
        }
        match deadline.within(socket.recv()).await {
            Ok(Ok(buf)) if !buf.is_empty() => {
                self.append(&buf);
                Ok(())
            }
            Ok(_) => Err((HandshakeFailure::Closed, Termination::ClientAborted)),
            Err(TimedOut) => Err((HandshakeFailure::TimedOut, Termination::HandshakeTimeout)),
        }
    }

    /// Gives all of it back to the socket: the next receives have it again.
    pub(super) fn unread(self, socket: &Socket) {
        self.unread_from(0, socket);
    }

    /// As `unread`, without the first `start` bytes.
    pub(super) fn unread_from(mut self, start: usize, socket: &Socket) {
        if let Some(mut only) = self.only.take() {
            only.advance(start);
            // An empty buffer would be the end of the stream.
            if !only.is_empty() {
                socket.unread(only);
            }
            return;
        }
        let mut rest = &self.assembled[start..];
        let mut bufs = Vec::new();
        while !rest.is_empty() {
            let mut buf = self.runtime.empty_buffer();
            let (piece, behind) = rest.split_at(rest.len().min(crate::limits::RECV_BUF_BYTES));
            let fits = buf.append(piece);
            debug_assert!(fits, "an empty buffer takes {} bytes", piece.len());
            bufs.push(buf);
            rest = behind;
        }
        bufs.into_iter().rev().for_each(|buf| socket.unread(buf));
    }

    fn append(&mut self, bytes: &[u8]) {
        let before = self.assembled.capacity();
        self.assembled.extend_from_slice(bytes);
        self.runtime.charge(self.assembled.capacity() - before);
    }
}

impl Drop for HelloInput<'_> {
    fn drop(&mut self) {
        self.runtime.discharge(self.assembled.capacity());
    }
}
