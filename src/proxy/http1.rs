//! A downstream HTTP/1.1 connection: one request after another, each answered here or by an endpoint. While it is
//! idle it holds this small future and nothing else; the state of an exchange lives in recycled memory.

mod exchange;
mod judge;

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::base::time::Instant;
use crate::runtime::{Deadline, RecvBuf};

use super::context::Context;
use super::facts::Facts;
use super::outcome::{Ending, Termination};
use super::snapshot::Timeouts;
use super::stream::Stream;

/// How long a closing connection is read on, so that what the client still sends does not make the kernel answer
/// with RST and destroy the response on its way (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
/// Bytes read and dropped meanwhile.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// One downstream connection.
pub struct Http1 {
    context: Rc<Context>,
    stream: Stream,
    facts: Facts,
    timeouts: Timeouts,
    deadline: Deadline,
    requests: u32,
}

/// What follows an exchange.
enum Next {
    /// Another request; its first bytes may be here already.
    Request(Option<RecvBuf>),
    End(Ending),
}

impl Http1 {
    pub fn new(context: Rc<Context>, stream: Stream, facts: Facts, timeouts: Timeouts) -> Self {
        let deadline = context.runtime.deadline();
        Self { context, stream, facts, timeouts, deadline, requests: 0 }
    }

    /// Serves until the connection ends.
    pub async fn serve(mut self) -> Termination {
        let context = self.context.clone();
        let mut carry: Option<RecvBuf> = None;
        let ending = loop {
            let first = match carry.take() {
                Some(buf) => buf,
                None => match self.next_bytes().await {
                    Ok(buf) => buf,
                    Err(ending) => break ending,
                },
            };
            match context.exchanges.place(exchange::run(&mut self, first)).await {
                Next::Request(rest) => {
                    carry = rest;
                    // Pipelined requests are answered in order, but do not keep other sessions waiting.
                    if carry.is_some() {
                        context.runtime.yield_now().await;
                    }
                }
                Next::End(ending) => break ending,
            }
        };
        match ending {
            Ending::Graceful(termination) => {
                self.linger().await;
                termination
            }
            Ending::Abort(termination) => {
                self.stream.abort();
                termination
            }
        }
    }

    /// Waits for the first bytes of a request.
    async fn next_bytes(&mut self) -> Result<RecvBuf, Ending> {
        let started = self.context.runtime.now();
        let patience = if self.requests == 0 { self.timeouts.header } else { self.timeouts.idle };
        self.deadline.set(started + patience);
        let Self { context, stream, deadline, .. } = self;
        let received = std::future::poll_fn(|cx| {
            if let Poll::Ready(received) = stream.poll_recv(cx) {
                return Poll::Ready(Some(received));
            }
            if let Some(since) = context.drained_since() {
                deadline.set((started + patience).min(drain_deadline(context, since)));
            }
            deadline.poll_past(cx).map(|()| None)
        });
        match received.await {
            Some(Ok(buf)) if !buf.is_empty() => Ok(buf),
            Some(Ok(_)) => Err(Ending::Graceful(Termination::ClientClosed)),
            Some(Err(_)) => Err(Ending::Graceful(Termination::ClientAborted)),
            None if self.context.is_draining() => Err(Ending::Graceful(Termination::Drained)),
            None if self.requests == 0 => Err(Ending::Graceful(Termination::FirstByteTimeout)),
            None => Err(Ending::Graceful(Termination::IdleTimeout)),
        }
    }

    /// Sends FIN behind what is on its way and reads until the client's, for a while.
    async fn linger(&mut self) {
        let context = &self.context;
        let stall = self.timeouts.write_stall;
        if super::body::drained(&context.runtime, &self.stream, &self.deadline, stall).await.is_err() {
            return;
        }
        self.stream.shutdown_write();
        self.deadline.set(context.runtime.now() + LINGER);
        let mut discarded = 0;
        while discarded < LINGER_BYTES_MAX {
            match self.deadline.within(self.stream.recv()).await {
                Ok(Ok(buf)) if !buf.is_empty() => discarded += buf.len(),
                _ => return,
            }
        }
    }
}

/// Until when an idle connection may still bring a request.
fn drain_deadline(context: &Context, since: Instant) -> Instant {
    since + context.serving().snapshot.drain.idle_grace
}
