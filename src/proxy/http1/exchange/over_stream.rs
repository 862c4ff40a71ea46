//! A downstream HTTP/1.1 exchange whose cluster may speak HTTP/2: the request goes up on a stream, or on a connection
//! where the endpoint chose HTTP/1.1.

use std::cell::Cell;
use std::pin::pin;

use crate::limit::retry::Failed;
use crate::metrics::{ClusterCounter, ListenerCounter};
use crate::runtime::RecvBuf;

use super::super::super::ask::{Attempt, Gone, Plan, acquire_in_time, broken_by, unless_gone};
use super::super::super::body::{BodyError, Pace};
use super::super::super::http2::Receiver;
use super::super::super::outcome::{Ending, Termination};
use super::super::super::transfer::{Sink, Source, transfer};
use super::super::super::upstream::{self, Acquired, Tried};
use super::super::Next;
use super::super::failure::UNANSWERED;
use super::{Exchange, Head, Responded};

/// CANCEL (RFC 9113 §7).
const CANCEL: u32 = 8;

/// What became of the request's body: what followed it on the connection, if it is decided.
type Uploaded = Option<Result<Option<RecvBuf>, BodyError>>;

impl Exchange<'_> {
    /// As `forward`, for a cluster whose endpoints may speak HTTP/2.
    pub(super) async fn forward_any(
        &self,
        cluster: u16,
        route: u16,
        head: &[u8],
        mut rest: Option<RecvBuf>,
    ) -> Next {
        let upstreams = &self.serving.upstreams;
        let mut tried = Tried::new(self.caller());
        loop {
            let acquired = {
                let whole = tried.deadline();
                let acquire = pin!(upstreams.acquire_any(cluster, tried.is_again(), &mut tried));
                acquire_in_time(self, whole, acquire).await
            };
            let exchange = match acquired {
                Err(Gone) => return Next::End(Ending::Abort(Termination::ClientAborted)),
                Ok(Err(failure)) => return self.fail(failure, rest).await,
                Ok(Ok(Acquired::Connection(connection))) => {
                    let attempt = self.attempt(connection, (cluster, route), head, &mut rest, &mut tried);
                    match attempt.await {
                        Some(next) => return next,
                        None => continue,
                    }
                }
                Ok(Ok(Acquired::Stream(exchange))) => exchange,
            };
            let over_stream = self.over_stream(exchange, (cluster, route), head, &mut rest, &mut tried);
            let (responded, uploaded) = over_stream.await;
            let untouched = uploaded.is_none() && rest.is_some();
            let retries = tried.retries();
            let goes_again = match responded {
                Some(Responded::Refused) => {
                    untouched && upstreams.goes_again(cluster, retries, Failed::Refused)
                }
                Some(Responded::Again(_)) => true,
                _ => false,
            };
            if !goes_again {
                return self.end_of_stream(responded, uploaded, rest).await;
            }
            tried.again();
        }
    }

    /// Sends the request on a stream and brings the response. No response: the client is gone, or did not bring its
    /// body.
    async fn over_stream(
        &self,
        mut exchange: upstream::Exchange,
        (cluster, route): (u16, u16),
        head: &[u8],
        rest: &mut Option<RecvBuf>,
        tried: &mut Tried,
    ) -> (Option<Responded>, Uploaded) {
        let upstreams = &self.serving.upstreams;
        let Some(spec) = upstreams.spec(cluster) else { return (Some(Responded::Unanswered), None) };
        let has_body = self.request.framing.has_body();
        let mut attempt =
            Attempt::new(self.context, self.serving, self.line, (cluster, route), self.request.is_head);
        if !has_body {
            attempt.wait_for(self.deadline, tried, self.request.idempotent);
        }
        let sent = attempt.send(&mut exchange, head, self.request.te_trailers, !has_body);
        let (mut call, mut sender) = match sent {
            Ok(sent) => sent,
            Err(responded) => {
                attempt.judge_stream(&exchange, &responded, tried);
                return (Some(responded), None);
            }
        };
        let respond = pin!(attempt.respond_from_stream(self, &exchange, &mut call));
        let (uploaded, responded) = if has_body {
            if self.request.expect_continue && rest.as_ref().is_none_or(|rest| rest.is_empty()) {
                self.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n", false);
            }
            let pace = Pace {
                source_idle: self.timeouts.body_idle,
                source_bytes_per_s_min: self.timeouts.body_rate_min_bytes_per_s,
                sink_stall: spec.request_timeout,
            };
            let moved = Cell::new(0);
            let first = rest.take().unwrap_or_else(|| self.context.runtime.empty_buffer());
            let upload = async {
                let mut source = Source::h1(self.stream, self.request.framing, first);
                let mut sink = Sink::H2(&mut sender);
                transfer(&self.context.runtime, &mut source, &mut sink, pace, &moved).await?;
                Ok(source.into_rest())
            };
            let ends = self.both_ways(pin!(upload), respond, spec.request_timeout).await;
            self.guard.counts().add(ListenerCounter::ReceivedBytes, moved.get());
            self.line.received(moved.get());
            attempt.add(ClusterCounter::SentBytes, moved.get());
            ends
        } else {
            (None, unless_gone(self, respond).await.ok())
        };
        if !sender.is_ended() {
            // The endpoint must not take what it got for the whole.
            sender.reset(CANCEL);
        }
        if let Some(responded) = &responded {
            attempt.judge_stream(&exchange, responded, tried);
        }
        (responded, uploaded)
    }

    /// What follows an exchange that went over a stream.
    async fn end_of_stream(
        &self,
        responded: Option<Responded>,
        uploaded: Uploaded,
        rest: Option<RecvBuf>,
    ) -> Next {
        let has_body = self.request.framing.has_body();
        let failure = match responded {
            None if has_body => {
                return self.fail_body(uploaded.and_then(Result::err).unwrap_or(BodyError::SourceBroken));
            }
            None => return Next::End(Ending::Abort(Termination::ClientAborted)),
            Some(Responded::Complete { .. }) => {
                return match uploaded {
                    None if !has_body => self.after_response(rest).await,
                    Some(Ok(following)) => self.after_response(following).await,
                    _ => Next::End(Ending::Graceful(Termination::EarlyResponse)),
                };
            }
            Some(Responded::Broken(termination)) => return Next::End(Ending::Abort(termination)),
            Some(Responded::Unanswered | Responded::Refused | Responded::Again(_) | Responded::Opened(_)) => {
                UNANSWERED
            }
            Some(Responded::Failed(failure)) => failure,
        };
        self.fail(failure, rest).await
    }

    /// Sends head and body of the final response.
    pub(super) async fn deliver_from_stream(
        &self,
        attempt: &Attempt<'_>,
        plan: Plan<Head>,
        receiver: &mut Receiver,
    ) -> Responded {
        let Plan { framing, to_client: Head { framing: framing_out, bytes: out }, .. } = plan;
        if !framing.has_body() {
            self.send_block(out);
            return Responded::Complete { reusable: true };
        }
        let pace = attempt.response_pace(self.timeouts.write_stall);
        self.at_once.set(false);
        self.stream.send(&out, false);
        let counting = attempt.counting(ClusterCounter::ReceivedBytes);
        let mut source = Source::H2(receiver);
        let mut sink = Sink::h1(self.stream, framing_out);
        let runtime = &self.context.runtime;
        let result = transfer(runtime, &mut source, &mut sink, pace, &counting.moved).await;
        let shard = self.guard.counts();
        shard.add(ListenerCounter::SentBytes, out.len() as u64 + counting.moved.get());
        runtime.put_block(out);
        match result {
            Ok(()) => Responded::Complete { reusable: true },
            Err(error) => Responded::Broken(broken_by(error)),
        }
    }
}
