//! A downstream stream whose request goes up on a stream of HTTP/2.

use std::pin::pin;

use h2::Reason;

use crate::metrics::ClusterCounter;

use super::super::super::ask::{Attempt, Gone, unless_gone};
use super::super::super::http1::judge::Request;
use super::super::super::transfer::{Sink, Source, transfer};
use super::super::super::upstream;
use super::super::stream::Receiver;
use super::{Destination, Exchange, Responded};

impl Exchange<'_> {
    /// Sends the request on a stream and brings the response. `Err` where the client's side ended it.
    pub(super) async fn over_stream(
        &self,
        attempt: &Attempt<'_>,
        request: &Request,
        mut exchange: upstream::Exchange,
        to: &Destination<'_>,
        body: &mut Receiver,
        tried: &mut upstream::Tried,
    ) -> Result<Responded, Gone> {
        let responded = self.on_stream(attempt, request, &mut exchange, to, body).await;
        if let Ok(responded) = &responded {
            attempt.judge_stream(&exchange, responded, tried);
        }
        responded
    }

    async fn on_stream(
        &self,
        attempt: &Attempt<'_>,
        request: &Request,
        exchange: &mut upstream::Exchange,
        to: &Destination<'_>,
        body: &mut Receiver,
    ) -> Result<Responded, Gone> {
        let Some(spec) = self.serving.upstreams.spec(to.cluster) else { return Ok(Responded::Unanswered) };
        let request_timeout = spec.request_timeout;
        let has_body = request.framing.has_body();
        let (mut call, mut sender) = match attempt.send(exchange, to.head, request.te_trailers, !has_body) {
            Ok(sent) => sent,
            Err(responded) => return Ok(responded),
        };
        let respond = pin!(attempt.respond_from_stream(self, exchange, &mut call));
        if !has_body {
            return unless_gone(self, respond).await;
        }
        if request.expect_continue {
            self.inform(100);
        }
        let counting = attempt.counting(ClusterCounter::SentBytes);
        let result = {
            let mut source = Source::H2(body);
            let mut sink = Sink::H2(&mut sender);
            let pace = self.upload_pace(request_timeout);
            let upload = pin!(transfer(&self.context.runtime, &mut source, &mut sink, pace, &counting.moved));
            self.both_ways(upload, respond, request_timeout).await
        };
        if !sender.is_ended() {
            // The endpoint must not take what it got for the whole.
            sender.reset(Reason::CANCEL.into());
        }
        result
    }
}
