//! A downstream HTTP/1.1 connection: one request after another, each answered here or by an endpoint. While it is
//! idle it holds this small future and nothing else; the state of an exchange lives in recycled memory.

mod exchange;
pub(super) mod failure;
pub(super) mod head_input;
pub(super) mod judge;

use std::future::Future;
use std::io;
use std::task::Poll;
use std::time::Duration;

use crate::detect::{self, First};
use crate::runtime::{Deadline, RecvBuf};

use super::body::{BodyError, drained};
use super::connections::Doing;
use super::context::SessionGuard;
use super::facts::Facts;
use super::http2::Http2;
use super::outcome::{Ending, Termination};
use super::stream::Stream;
use super::tunnel::{self, Tunnel};

/// How long a closing connection is read on, so that what the client still sends does not make the kernel answer
/// with RST and destroy the response on its way (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);

/// One downstream connection.
pub struct Http1 {
    guard: SessionGuard,
    stream: Stream,
    facts: Facts,
    deadline: Deadline,
    requests: u32,
    /// What the connection goes on as, once it is no HTTP any more.
    tunnel: Option<Box<Tunnel>>,
}

/// What follows an exchange.
enum Next {
    /// Another request; its first bytes may be here already.
    Request(Option<RecvBuf>),
    End(Ending),
    /// No more HTTP.
    Tunnel(Box<Tunnel>),
}

impl Http1 {
    pub fn new(guard: SessionGuard, stream: Stream, facts: Facts) -> Self {
        let deadline = guard.context().runtime.deadline();
        deadline.set(guard.context().runtime.now() + guard.timeouts().header);
        Self { guard, stream, facts, deadline, requests: 0, tunnel: None }
    }

    /// Serves until the connection ends.
    // Not an `async fn`, which would keep `self` twice for the whole life of the session.
    #[expect(clippy::manual_async_fn)]
    pub fn serve(mut self) -> impl Future<Output = ()> {
        async move {
            let ending = match self.speaks_h2().await {
                Ok(true) => {
                    let Self { guard, stream, facts, .. } = self;
                    // In a block of its own: a session in HTTP/1.1 must not pay for its size.
                    return Box::pin(Http2::new(guard, stream, facts).serve()).await;
                }
                Ok(false) => {
                    self.guard.does(Doing::Http1);
                    self.requests().await
                }
                Err(ending) => ending,
            };
            if let Some(tunnel) = self.tunnel.take() {
                let Self { guard, stream, .. } = self;
                return Box::pin(tunnel::over_connection(guard, stream, tunnel)).await;
            }
            // In recycled memory, like an exchange: an idle session must not pay for its end.
            let context = self.guard.context().clone();
            context.exchanges.place(self.end(ending)).await;
        }
    }

    /// Leaves the connection.
    async fn end(mut self, ending: Ending) {
        self.guard.ended(ending.termination());
        match ending {
            Ending::Graceful(_) => self.linger().await,
            Ending::Close(_) => {
                let _ = self.deliver().await;
                self.stream.close();
            }
            Ending::Abort(_) => self.stream.abort(),
        }
    }

    /// Whether a client without TLS begins with the preface of HTTP/2. In TLS the handshake has settled that.
    async fn speaks_h2(&mut self) -> Result<bool, Ending> {
        if !matches!(self.stream, Stream::Socket(_)) {
            return Ok(false);
        }
        let mut first = self.next_bytes().await?;
        if detect::first(&first) == First::Undecided {
            // Boxed: nearly every client sends it in one piece.
            first = Box::pin(self.more(first)).await;
        }
        let speaks_h2 = detect::first(&first) == First::Http2Preface;
        if let Stream::Socket(socket) = &self.stream {
            socket.unread(first);
        }
        Ok(speaks_h2)
    }

    /// Receives on until the bytes tell what they are, or the first head's deadline has come.
    async fn more(&self, mut first: RecvBuf) -> RecvBuf {
        while detect::first(&first) == First::Undecided {
            // What fails here fails again where heads are read, which says what is wrong.
            let Ok(Ok(mut more)) = self.deadline.within(self.stream.recv()).await else { break };
            if more.is_empty() || !more.prepend(&first) {
                break;
            }
            first = more;
        }
        first
    }

    /// Answers one request after another.
    async fn requests(&mut self) -> Ending {
        loop {
            // Within the loop: an idle session must not pay for the place of a buffer.
            let mut first = match self.next_bytes().await {
                Ok(buf) => buf,
                Err(ending) => return ending,
            };
            loop {
                let context = self.guard.context().clone();
                match context.exchanges.place(exchange::run(self, first)).await {
                    Next::Request(None) => break,
                    Next::Request(Some(rest)) => first = rest,
                    Next::End(ending) => return ending,
                    Next::Tunnel(tunnel) => {
                        self.tunnel = Some(tunnel);
                        return Ending::Close(Termination::TunnelClosed);
                    }
                }
                // Pipelined requests are answered in order, but do not keep other sessions waiting.
                context.runtime.yield_now().await;
            }
        }
    }

    /// Waits for the first bytes of a request.
    // Not an `async fn`: what an idle session awaits is to be small.
    fn next_bytes(&self) -> impl Future<Output = Result<RecvBuf, Ending>> {
        if self.requests > 0 {
            self.deadline.set(self.guard.context().runtime.now() + self.guard.timeouts().idle);
        }
        let until = self.deadline.due();
        std::future::poll_fn(move |cx| {
            if let Poll::Ready(received) = self.stream.poll_recv(cx) {
                return Poll::Ready(match received {
                    Ok(buf) if !buf.is_empty() => Ok(buf),
                    Ok(_) => Err(Ending::Close(Termination::ClientClosed)),
                    // Between requests nothing can be cut off: browsers leave so (RFC 9112 §9.8).
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        Err(Ending::Close(Termination::ClientClosed))
                    }
                    Err(_) => Err(Ending::Close(Termination::ClientAborted)),
                });
            }
            if let Some(since) = self.guard.drained_since() {
                self.deadline.set(until.min(self.guard.leaves_at(since, until)));
            }
            self.deadline.poll_past(cx).map(|()| {
                Err(Ending::Graceful(if self.guard.is_draining() {
                    Termination::Drained
                } else if self.requests == 0 {
                    Termination::FirstByteTimeout
                } else {
                    Termination::IdleTimeout
                }))
            })
        })
    }

    /// Waits until the kernel has all that was sent.
    async fn deliver(&self) -> Result<(), BodyError> {
        let stall = self.guard.timeouts().write_stall;
        drained(&self.guard.context().runtime, &self.stream, &self.deadline, stall).await
    }

    /// Sends FIN behind what is on its way and reads until the client's, for a while.
    async fn linger(&mut self) {
        if self.deliver().await.is_err() {
            return;
        }
        self.stream.shutdown_write();
        self.deadline.set(self.guard.context().runtime.now() + LINGER);
        while matches!(self.deadline.within(self.stream.recv()).await, Ok(Ok(buf)) if !buf.is_empty()) {}
    }
}
