//! A downstream stream whose request goes up on a connection in HTTP/1.1.

use std::pin::pin;

use crate::metrics::ClusterCounter;

use super::super::super::ask::{Attempt, Gone, unless_gone};
use super::super::super::http1::judge::Request;
use super::super::super::transfer::{Sink, Source, transfer};
use super::super::super::upstream::Connection;
use super::super::stream::Receiver;
use super::{Destination, Exchange, Responded};

impl Exchange<'_> {
    /// Sends the request on a connection in HTTP/1.1 and brings the response. `Err` where the client's side ended it.
    pub(super) async fn over_connection(
        &self,
        attempt: &Attempt<'_>,
        request: &Request,
        connection: Connection,
        to: &Destination<'_>,
        body: &mut Receiver,
    ) -> Result<Responded, Gone> {
        let responded = self.on_connection(attempt, request, &connection, to, body).await;
        if let Ok(responded) = &responded {
            attempt.judge_connection(&connection, responded);
        }
        match responded {
            Ok(Responded::Complete { reusable: true }) if !self.session.guard.is_draining() => {
                self.serving.upstreams.release(connection);
            }
            // Where the client is gone the endpoint must not take what it got for the whole.
            _ => connection.abort(),
        }
        responded
    }

    async fn on_connection(
        &self,
        attempt: &Attempt<'_>,
        request: &Request,
        connection: &Connection,
        to: &Destination<'_>,
        body: &mut Receiver,
    ) -> Result<Responded, Gone> {
        let &Destination { cluster, head, .. } = to;
        let Some(spec) = self.serving.upstreams.spec(cluster) else { return Ok(Responded::Unanswered) };
        let request_timeout = spec.request_timeout;
        let has_body = request.framing.has_body();
        // Many streams share what the client's connection may hold: none receives ahead of it.
        connection.stream.set_bulk(false);
        connection.stream.set_on_demand(true);
        attempt.sent(head);
        connection.stream.send(head, has_body);
        let respond = pin!(attempt.respond(self, connection));
        if !has_body {
            return unless_gone(self, respond).await;
        }
        if request.expect_continue {
            self.inform(100);
        }
        let pace = self.upload_pace(request_timeout);
        let counting = attempt.counting(ClusterCounter::SentBytes);
        let mut source = Source::H2(body);
        let mut sink = Sink::h1(&connection.stream, request.framing);
        let upload = pin!(transfer(&self.context.runtime, &mut source, &mut sink, pace, &counting.moved));
        self.both_ways(upload, respond, request_timeout).await
    }
}
