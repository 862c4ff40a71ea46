//! The byte stream that a session runs over. Receives lend buffers of the pool, sends take bytes or buffers; what
//! carries them (a socket, or TLS over one) is no session's concern.

use std::io;
use std::task::{Context, Poll};

use rustls::AlertDescription;

use crate::runtime::{RecvBuf, Socket};

mod tls;

pub use tls::{Failure, Step, TlsStream};

pub enum Stream {
    Socket(Socket),
    Tls(Box<TlsStream>),
}

macro_rules! delegate {
    ($($(#[$doc:meta])* fn $name:ident(&self $(, $arg:ident: $kind:ty)*) $(-> $output:ty)?;)*) => {
        impl Stream {
            $($(#[$doc])* pub fn $name(&self $(, $arg: $kind)*) $(-> $output)? {
                match self {
                    Self::Socket(socket) => socket.$name($($arg),*),
                    Self::Tls(tls) => tls.$name($($arg),*),
                }
            })*
        }
    };
}

delegate! {
    /// The next received bytes; an empty buffer is the end of the stream.
    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>>;
    /// Ready when the peer ended its stream or broke the connection, even behind bytes not yet received.
    fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()>;
    /// Whether that is known to have happened.
    fn is_hung_up(&self) -> bool;
    /// Whether bytes are known to have come that nobody took.
    fn has_input(&self) -> bool;
    /// Sends `bytes`; copies only what cannot go at once. `more`: further bytes follow immediately.
    fn send(&self, bytes: &[u8], more: bool);
    /// Sends a received buffer without copying it.
    fn send_buf(&self, buf: RecvBuf, more: bool);
    /// Ready when at most `bytes_max` bytes wait to go, or sending failed.
    fn poll_sent(&self, bytes_max: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Bytes that wait to go.
    fn unsent(&self) -> usize;
    /// Receive in large buffers from now on, or in usual ones again.
    fn set_bulk(&self, bulk: bool);
    /// Leave what nobody waits for with the kernel, or receive ahead again.
    fn set_on_demand(&self, on_demand: bool);
    /// Has what arrives unasked noticed, for `is_quiet`.
    fn watch(&self);
    /// Whether nothing came that nobody asked for.
    fn is_quiet(&self) -> bool;
    /// Ends our direction; the other goes on.
    fn shutdown_write(&self);
}

impl Stream {
    pub async fn recv(&self) -> io::Result<RecvBuf> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The fatal alert that the peer sent over TLS, if it did.
    pub const fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Socket(_) => None,
            Self::Tls(tls) => tls.alert(),
        }
    }

    /// Closes a stream on which all is said: the peer learns that it is whole.
    pub fn close(self) {
        if let Self::Tls(tls) = &self {
            tls.close_notify();
        }
    }

    /// Ends the stream so that the peer notices that it is cut off.
    pub fn abort(self) {
        match self {
            Self::Socket(socket) => socket.abort(),
            Self::Tls(tls) => tls.abort(),
        }
    }

    /// The protocol that a TLS handshake settled on (RFC 7301); `None` where there was none.
    pub fn alpn(&self) -> Option<Box<[u8]>> {
        match self {
            Self::Socket(_) => None,
            Self::Tls(tls) => tls.session().borrow().agreed().alpn_protocol().map(Into::into),
        }
    }

    /// What carries it in the end.
    pub const fn socket(&self) -> &Socket {
        match self {
            Self::Socket(socket) => socket,
            Self::Tls(tls) => tls.socket(),
        }
    }
}
