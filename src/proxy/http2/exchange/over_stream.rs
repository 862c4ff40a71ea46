//! A downstream stream whose request goes up on a stream of HTTP/2.

use std::cell::Cell;
use std::pin::pin;

use h2::Reason;

use crate::http::Reject;
use crate::limits;
use crate::metrics::{ClusterCounter, Histogram};
use crate::runtime::TimedOut;

use super::super::super::http1::failure::{TIMED_OUT, UNANSWERED, UNSENDABLE, invalid};
use super::super::super::http1::judge::Request;
use super::super::super::transfer::{Sink, Source, transfer};
use super::super::super::tunnel::Behind;
use super::super::super::upstream;
use super::super::client::{Answered, Call};
use super::super::stream::{Receiver, StreamFault};
use super::super::{Asked, response_in_neutral_form, send_request};
use super::{Destination, Exchange, Gone, Parsed, Responded};

impl Exchange<'_> {
    /// Sends the request on a stream and brings the response. `Err` where the client's side ended it.
    pub(super) async fn over_stream(
        &self,
        request: &Request,
        mut exchange: upstream::Exchange,
        to: &Destination<'_>,
        body: &mut Receiver,
        tried: &mut upstream::Tried,
    ) -> Result<Responded, Gone> {
        let upstreams = &self.serving.upstreams;
        let responded = self.on_stream(request, &mut exchange, to, body).await;
        match &responded {
            Ok(Responded::Complete { .. }) => upstreams.on_stream_answer(&exchange),
            Ok(Responded::Failed(failure)) if !failure.is_endpoints_fault() => {}
            Ok(Responded::Failed(_) | Responded::Broken { by_endpoint: true }) => {
                upstreams.on_stream_failure(&exchange);
            }
            Ok(Responded::Refused | Responded::Unanswered) => upstreams.on_stream_refusal(&exchange, tried),
            Err(Gone) | Ok(_) => {}
        }
        responded
    }

    async fn on_stream(
        &self,
        request: &Request,
        exchange: &mut upstream::Exchange,
        to: &Destination<'_>,
        body: &mut Receiver,
    ) -> Result<Responded, Gone> {
        let Some(spec) = self.serving.upstreams.spec(to.cluster) else { return Ok(Responded::Unanswered) };
        let request_timeout = spec.request_timeout;
        let scheme = if spec.tls.is_some() { "https" } else { "http" };
        let has_body = request.framing.has_body();
        let sent = {
            let endpoint = exchange.endpoint();
            send_request(&mut exchange.slot, to.head, endpoint, scheme, request.te_trailers, !has_body)
        };
        let (mut call, mut sender) = match sent {
            Ok(sent) => sent,
            Err(StreamFault::Refused) => return Ok(Responded::Refused),
            Err(StreamFault::Unsendable) => return Ok(Responded::Failed(UNSENDABLE)),
            Err(_) => return Ok(Responded::Failed(UNANSWERED)),
        };
        let respond = pin!(self.respond_from_stream(exchange, &mut call, to));
        if !has_body {
            self.deadline.set(self.context.runtime.now() + request_timeout);
            return self.unless_gone(respond).await;
        }
        if request.expect_continue {
            self.inform(100);
        }
        let moved = Cell::new(0);
        let result = {
            let mut source = Source::H2(body);
            let mut sink = Sink::H2(&mut sender);
            let pace = self.upload_pace(request_timeout);
            let upload = pin!(transfer(&self.context.runtime, &mut source, &mut sink, pace, &moved));
            self.both_ways(upload, respond, request_timeout).await
        };
        if !sender.is_ended() {
            // The endpoint must not take what it got for the whole.
            sender.reset(Reason::CANCEL.into());
        }
        let shard = self.serving.upstreams.counts(to.cluster);
        shard.add(ClusterCounter::SentBytes, moved.get());
        result
    }

    /// Brings the endpoint's response to the client.
    pub(super) async fn respond_from_stream(
        &self,
        exchange: &upstream::Exchange,
        call: &mut Call,
        to: &Destination<'_>,
    ) -> Responded {
        let mut interim_left = limits::INTERIM_RESPONSES_MAX;
        let sent_at = self.context.runtime.now();
        let shard = self.serving.upstreams.counts(to.cluster);
        let mut answered = false;
        loop {
            let next = match self.deadline.within(exchange.slot.answered(call)).await {
                Ok(Ok(next)) => next,
                Ok(Err(StreamFault::Refused)) => return Responded::Refused,
                Ok(Err(StreamFault::Disconnected)) if exchange.slot.reused && !answered => {
                    return Responded::Unanswered;
                }
                Ok(Err(_)) => return Responded::Failed(UNANSWERED),
                Err(TimedOut) => return Responded::Failed(TIMED_OUT),
            };
            if !answered {
                answered = true;
                let waited = self.context.runtime.now().since(sent_at);
                self.context.shard.observe(Histogram::UpstreamFirstByte, waited);
            }
            let (head, mut receiver) = match next {
                Answered::Interim(head) => (head, None),
                Answered::Final(head, receiver) => (head, Some(receiver)),
            };
            let ended = receiver.as_ref().is_none_or(Receiver::is_ended);
            let opening = self.opening.borrow().clone();
            let asked = Asked { is_head: self.is_head, opening: opening.as_deref() };
            let plan = response_in_neutral_form(&self.context.runtime, &head, ended, asked, |bytes| {
                shard.add(ClusterCounter::ReceivedBytes, bytes.len() as u64);
                self.plan(bytes, to.route)
            });
            let plan = match plan {
                Ok(Parsed::Complete(plan)) => plan,
                Ok(Parsed::Partial) => {
                    return Responded::Failed(invalid(Reject::HEAD_TOO_LARGE.by_upstream()));
                }
                Err(reject) => return Responded::Failed(invalid(reject)),
            };
            if plan.opens
                && let Some(receiver) = receiver
            {
                shard.response(Some(plan.status));
                return self.tell_opened(plan, Behind::Stream(receiver));
            }
            if let (Some(receiver), false) = (&mut receiver, plan.interim) {
                self.count_response(to.cluster, Some(plan.status));
                return self.deliver(plan, Source::H2(receiver), to.cluster).await;
            }
            if interim_left == 0 || !plan.interim {
                return Responded::Failed(invalid(Reject::BAD_STATUS_LINE.by_upstream()));
            }
            interim_left -= 1;
            // 100 was answered here.
            if plan.status != 100 {
                self.send_interim(plan.response);
            }
        }
    }
}
