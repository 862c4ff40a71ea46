//! A downstream stream whose request goes up on a connection in HTTP/1.1.

use std::cell::Cell;
use std::pin::pin;

use crate::http::Reject;
use crate::limits;
use crate::metrics::{ClusterCounter, Histogram};
use crate::runtime::{RecvBuf, TimedOut};

use super::super::super::http1::failure::{Failure, TIMED_OUT, UNANSWERED, invalid};
use super::super::super::http1::head_input::{HeadError, HeadInput};
use super::super::super::http1::judge::Request;
use super::super::super::transfer::{Sink, Source, transfer};
use super::super::super::tunnel::Behind;
use super::super::super::upstream::Connection;
use super::super::stream::Receiver;
use super::{Destination, Exchange, Gone, Parsed, Responded, ResponsePlan};

impl Exchange<'_> {
    /// Sends the request on a connection in HTTP/1.1 and brings the response. `Err` where the client's side ended it.
    pub(super) async fn over_connection(
        &self,
        request: &Request,
        connection: Connection,
        to: &Destination<'_>,
        body: &mut Receiver,
    ) -> Result<Responded, Gone> {
        let upstreams = &self.serving.upstreams;
        let responded = self.on_connection(request, &connection, to, body).await;
        match &responded {
            Ok(Responded::Complete { reusable }) => {
                upstreams.on_answer(&connection);
                if *reusable && !self.session.guard.is_draining() {
                    upstreams.release(connection);
                } else {
                    connection.abort();
                }
            }
            Ok(Responded::Failed(_) | Responded::Broken { by_endpoint: true }) => {
                upstreams.on_failure(&connection);
                connection.abort();
            }
            // Where the client is gone the endpoint must not take what it got for the whole.
            Err(Gone) | Ok(_) => connection.abort(),
        }
        responded
    }

    async fn on_connection(
        &self,
        request: &Request,
        connection: &Connection,
        to: &Destination<'_>,
        body: &mut Receiver,
    ) -> Result<Responded, Gone> {
        let &Destination { cluster, route, head } = to;
        let Some(spec) = self.serving.upstreams.spec(cluster) else { return Ok(Responded::Unanswered) };
        let request_timeout = spec.request_timeout;
        let has_body = request.framing.has_body();
        // Many streams share what the client's connection may hold: none receives ahead of it.
        connection.stream.set_bulk(false);
        connection.stream.set_on_demand(true);
        connection.stream.send(head, has_body);
        let respond = pin!(self.respond(connection, cluster, route));
        if !has_body {
            self.deadline.set(self.context.runtime.now() + request_timeout);
            return self.unless_gone(respond).await;
        }
        if request.expect_continue {
            self.inform(100);
        }
        let pace = self.upload_pace(request_timeout);
        let moved = Cell::new(0);
        let mut source = Source::H2(body);
        let mut sink = Sink::h1(&connection.stream, request.framing);
        let upload = pin!(transfer(&self.context.runtime, &mut source, &mut sink, pace, &moved));
        let result = self.both_ways(upload, respond, request_timeout).await;
        let shard = self.serving.upstreams.counts(cluster);
        shard.add(ClusterCounter::SentBytes, moved.get());
        result
    }

    /// Brings the endpoint's response to the client.
    pub(super) async fn respond(&self, connection: &Connection, cluster: u16, route: u16) -> Responded {
        let mut interim_left = limits::INTERIM_RESPONSES_MAX;
        let sent_at = self.context.runtime.now();
        let mut first = match self.deadline.within(connection.stream.recv()).await {
            Ok(Ok(buf)) if !buf.is_empty() => buf,
            Ok(_) if connection.reused => return Responded::Unanswered,
            Ok(_) => return Responded::Failed(UNANSWERED),
            Err(TimedOut) => return Responded::Failed(TIMED_OUT),
        };
        self.context.shard.observe(Histogram::UpstreamFirstByte, self.context.runtime.now().since(sent_at));
        let shard = self.serving.upstreams.counts(cluster);
        loop {
            let (plan, rest) = match self.receive_head(connection, route, first).await {
                Ok(received) => received,
                Err(failure) => return Responded::Failed(failure),
            };
            shard.add(ClusterCounter::ReceivedBytes, (plan.head_len + rest.len()) as u64);
            if !plan.interim {
                self.count_response(cluster, Some(plan.status));
                if plan.opens {
                    return self.tell_opened(plan, Behind::Connection(rest));
                }
                let source = Source::h1(&connection.stream, plan.framing, rest);
                return self.deliver(plan, source, cluster).await;
            }
            if interim_left == 0 {
                return Responded::Failed(invalid(Reject::BAD_STATUS_LINE.by_upstream()));
            }
            interim_left -= 1;
            // 100 was answered here.
            if plan.status != 100 {
                self.send_interim(plan.response);
            }
            first = rest;
            if first.is_empty() {
                first = match self.deadline.within(connection.stream.recv()).await {
                    Ok(Ok(buf)) if !buf.is_empty() => buf,
                    Ok(_) => return Responded::Failed(UNANSWERED),
                    Err(TimedOut) => return Responded::Failed(TIMED_OUT),
                };
            }
        }
    }

    /// Reads a response head of an HTTP/1.1 connection, and gives what follows it.
    async fn receive_head(
        &self,
        connection: &Connection,
        route: u16,
        first: RecvBuf,
    ) -> Result<(ResponsePlan, RecvBuf), Failure> {
        let mut input = HeadInput::new(&self.context.runtime, first);
        let plan = loop {
            match self.plan(input.bytes(), route) {
                Ok(Parsed::Complete(plan)) => break plan,
                Ok(Parsed::Partial) => {}
                Err(reject) => return Err(invalid(reject)),
            }
            let bytes_max = self.serving.head_limits.head_bytes_max;
            match input.more(&connection.stream, &self.deadline, bytes_max).await {
                Ok(()) => {}
                Err(HeadError::TimedOut) => return Err(TIMED_OUT),
                Err(HeadError::Ended | HeadError::Broken) => return Err(UNANSWERED),
            }
        };
        let rest = input.rest(plan.head_len);
        Ok((plan, rest))
    }
}
