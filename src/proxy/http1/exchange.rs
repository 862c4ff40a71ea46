//! One request and its response. The order of things:
//!
//! ```text
//!   head ── refused ──────────────────────────────> answer, close
//!     └──── answered here ────────────────────────> answer, body dropped
//!     └──── forwarded: endpoint ── none ──────────> 502/503/504
//!                        └── head up, body up ┐
//!                            head down, body down ┘ at the same time; the response decides when it is over
//!     └──── a tunnel: head up, head down ── opened > no more HTTP on either connection
//! ```
//!
//! Nothing of a head that was refused goes up. Once the head went up, a fault in the request's body aborts the
//! upstream connection; once the response's head went down, a fault in its body aborts the downstream one.

mod closing;
mod over_stream;
mod tunnel;

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use crate::base::field_edits::FieldEdits;
use crate::base::time::Instant;
use crate::h1::{Parsed, ResponseHead, framing_to_client, write_response};
use crate::http::answer::{connection_option, write_answer};
use crate::http::{BodyFraming, Reject, Version};
use crate::limit::retry::Failed;
use crate::limits;
use crate::metrics::{ClusterCounter, Histogram, ListenerCounter};
use crate::runtime::{Deadline, RecvBuf};

use super::super::access::Line;
use super::super::ask::{
    self, Attempt, Client, Gone, Plan, ResponseBody, acquire_in_time, broken_by, unless_gone,
};
use super::super::body::{Body, BodyError, Pace, drained};
use super::super::caller::Caller;
use super::super::context::{Context, Serving, SessionGuard};
use super::super::outcome::{Ending, Termination};
use super::super::snapshot::Timeouts;
use super::super::stream::Stream;
use super::super::upstream::{Connection, Tried};
use super::failure::{Failure, UNANSWERED, invalid, is_clients_fault};
use super::head_input::{HeadError, HeadInput};
use super::judge::{Answer, Asker, Request, judge};
use super::{Http1, Next};

/// A body of at most this many bytes goes out with its head, in one send.
const SMALL_BODY_BYTES_MAX: u64 = 4_096;

/// Reads one request, answers it, and says what follows.
pub(super) async fn run(session: &mut Http1, first: RecvBuf) -> Next {
    let context = session.guard.context().clone();
    // Together: the listener's place is that in this configuration.
    let (serving, listener) = (session.guard.serving(), session.guard.listener());
    let started = context.runtime.now();
    let timeouts = session.guard.timeouts();
    session.requests += 1;
    let line = Line::of_request(&session.guard, &serving, started);
    let mut input = HeadInput::new(&context.runtime, first);
    let request = match read_head(session, (&serving, listener), &line, &mut input, started).await {
        Ok(request) => request,
        Err(next) => return next,
    };
    let has_more = !request.framing.has_body() && input.bytes().len() > request.head_len;
    let rest = input.rest(request.head_len);
    let exchange = Exchange {
        context: &context,
        serving: &serving,
        stream: &session.stream,
        deadline: &session.deadline,
        timeouts,
        guard: &session.guard,
        request: &request,
        line: &line,
        keep_alive: Cell::new(request.keep_alive && may_stay(session, &serving)),
        status: Cell::new(None),
        unframed: Cell::new(false),
        uploading: Cell::new(false),
        has_more,
        moved: Cell::new(false),
        early: Cell::new(false),
        at_once: Cell::new(true),
    };
    exchange.guard.counts().add(ListenerCounter::ReceivedBytes, request.head_len as u64);
    let next = match &request.answer {
        Answer::Forward { cluster, route, head, .. } => exchange.forward(*cluster, *route, head, rest).await,
        Answer::Tunnel(opening) => Box::pin(exchange.open(opening, rest)).await,
        Answer::Gone => Next::End(Ending::Abort(Termination::ClientAborted)),
        _ => exchange.answer(rest).await,
    };
    exchange.guard.counts().request(exchange.status.get());
    line.status(exchange.status.get());
    match &next {
        Next::Request(_) => line.complete(),
        Next::End(ending) => line.ended(ending.termination()),
        Next::Tunnel(_) => {}
    }
    let took = context.runtime.now().since(started);
    context.shard.observe(Histogram::RequestDuration, took);
    context.door.answered(took, exchange.status.get());
    if let Answer::Forward { head, .. } = request.answer {
        context.runtime.put_block(head);
    }
    next
}

/// Whether another request may follow the present one.
fn may_stay(session: &Http1, serving: &Serving) -> bool {
    session.requests < serving.snapshot.http.requests_per_connection_max && !session.guard.is_draining()
}

/// Reads the head of a request and judges it; else says what follows.
async fn read_head(
    session: &mut Http1,
    (serving, listener): (&Rc<Serving>, u16),
    line: &Line,
    input: &mut HeadInput<'_>,
    started: Instant,
) -> Result<Request, Next> {
    let context = session.guard.context().clone();
    loop {
        let (counts, facts, stream) = (session.guard.counts(), &mut session.facts, Some(&session.stream));
        let mut asker = Asker { listener, counts, facts, stream, line };
        match judge(&context, serving, &mut asker, input.bytes()) {
            Ok(Parsed::Complete(request)) => return Ok(request),
            Ok(Parsed::Partial) => {}
            Err(reject) => {
                return Err(refuse(session, line, reject.status, reject.text, Termination::BadRequest));
            }
        }
        // The first head's deadline runs since the connection was accepted.
        if session.requests > 1 {
            session.deadline.set(started + session.guard.timeouts().header);
        }
        let bytes_max = serving.head_limits.head_bytes_max;
        match input.more(&session.stream, &session.deadline, bytes_max).await {
            Ok(()) => {}
            Err(HeadError::TimedOut) => {
                return Err(refuse(session, line, 408, "", Termination::HeaderTimeout));
            }
            Err(HeadError::Ended | HeadError::Broken) => {
                line.ended(Termination::ClientAborted);
                return Err(Next::End(Ending::Graceful(Termination::ClientAborted)));
            }
        }
    }
}

/// Answers a head that is not taken, and closes.
fn refuse(session: &Http1, line: &Line, status: u16, text: &str, termination: Termination) -> Next {
    let context = session.guard.context();
    let mut out = context.runtime.take_block();
    context.with_date(|date| write_answer(&mut out, status, text, Some("close"), false, &[], Some(date)));
    let shard = session.guard.counts();
    shard.request(Some(status));
    shard.add(ListenerCounter::SentBytes, out.len() as u64);
    line.status(Some(status));
    line.sent_message(&out);
    line.ended(termination);
    session.stream.send(&out, true);
    context.runtime.put_block(out);
    Next::End(Ending::Graceful(termination))
}

struct Exchange<'a> {
    context: &'a Rc<Context>,
    serving: &'a Serving,
    stream: &'a Stream,
    deadline: &'a Deadline,
    timeouts: Timeouts,
    guard: &'a SessionGuard,
    request: &'a Request,
    line: &'a Line,
    /// Whether the connection goes on after this exchange, as it stands.
    keep_alive: Cell<bool>,
    /// Sent to the client; a response has begun once there is one.
    status: Cell<Option<u16>>,
    /// Only closing tells the client where the response ends.
    unframed: Cell<bool>,
    /// The request's body has not gone up whole.
    uploading: Cell<bool>,
    /// Another request came with this one.
    has_more: bool,
    /// The client was asked to go elsewhere.
    moved: Cell<bool>,
    /// Bytes came behind the request for a tunnel.
    early: Cell<bool>,
    /// The response went out in one small piece.
    at_once: Cell<bool>,
}

/// A response's body on its way, whose bytes are known also where the client leaves.
struct Sending<'a> {
    body: Body,
    line: &'a Line,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.line.sent(self.body.moved);
    }
}

/// A response head as a client of HTTP/1.1 gets it.
struct Head {
    framing: BodyFraming,
    bytes: Vec<u8>,
}

type Responded = ask::Responded<()>;

impl Exchange<'_> {
    /// Answers without an endpoint.
    async fn answer(&self, rest: RecvBuf) -> Next {
        let Request { framing, is_head, ref answer, .. } = *self.request;
        let drainable = match framing {
            BodyFraming::None => true,
            BodyFraming::Length(length) => {
                length <= limits::DRAIN_BODY_BYTES_MAX && !self.request.expect_continue
            }
            BodyFraming::Chunked | BodyFraming::UntilClose => false,
        };
        let refused = matches!(
            answer,
            Answer::Own { tunnel: true, .. }
                | Answer::Shed { tunnel: true, .. }
                | Answer::Limited { tunnel: true, .. }
        );
        self.keep_alive.set(self.keep_alive.get() && drainable && !refused && !self.moves());
        let connection = connection_option(self.keep_alive.get(), self.request.version);
        let mut out = self.context.runtime.take_block();
        self.context.with_date(|date| {
            let date = Some(date);
            match answer {
                Answer::Prepared { route } => {
                    if let Some(prepared) = self.serving.prepared(*route) {
                        self.status.set(Some(prepared.status()));
                        prepared.write(&mut out, connection, is_head, date);
                    }
                }
                Answer::Redirect { status, location, route } => {
                    self.status.set(Some(*status));
                    let route = self.serving.snapshot.routes.routes().get(usize::from(*route));
                    let edits = route.into_iter().flat_map(|route| route.response_edits.appended());
                    let fields: Vec<_> = [("Location", location.as_str())].into_iter().chain(edits).collect();
                    write_answer(&mut out, *status, "", connection, is_head, &fields, date);
                }
                Answer::Shed { random, .. } => {
                    self.status.set(Some(503));
                    self.context.door.refusal(*random).write(&mut out, connection, is_head, date);
                }
                Answer::Limited { after_s, .. } => {
                    self.status.set(Some(429));
                    let after_s = after_s.to_string();
                    let fields = [("Retry-After", after_s.as_str())];
                    write_answer(&mut out, 429, "", connection, is_head, &fields, date);
                }
                Answer::Own { status, text, fields, .. } => {
                    self.status.set(Some(*status));
                    write_answer(&mut out, *status, text, connection, is_head, fields, date);
                }
                Answer::Forward { .. } | Answer::Tunnel(_) | Answer::Gone => {}
            }
        });
        self.send_block(out);
        if refused {
            return Next::End(Ending::Graceful(Termination::TunnelRefused));
        }
        self.after_answer(rest).await
    }

    /// Sends `out`, the last of this response, counts it and keeps its memory.
    fn send_block(&self, out: Vec<u8>) {
        self.guard.counts().add(ListenerCounter::SentBytes, out.len() as u64);
        self.line.sent_message(&out);
        if out.len() as u64 > 2 * SMALL_BODY_BYTES_MAX {
            self.at_once.set(false);
        }
        // Where the connection closes with it, the FIN follows at once and travels in the same segment.
        self.stream.send(&out, !self.keep_alive.get());
        self.context.runtime.put_block(out);
    }

    /// Drops the request's body, if there is one, and goes on or closes.
    async fn after_answer(&self, rest: RecvBuf) -> Next {
        if !self.keep_alive.get() {
            return self.close_after_response(rest.is_empty());
        }
        let framing = self.request.framing;
        let (first, mut rest) = if framing.has_body() { (Some(rest), None) } else { (None, Some(rest)) };
        if let Some(first) = first {
            let mut body = Body::new(framing, BodyFraming::None);
            let patience = self.timeouts.body_idle;
            let runtime = &self.context.runtime;
            match body.discard(runtime, self.stream, first, patience, limits::DRAIN_BODY_BYTES_MAX).await {
                Ok(following) => rest = following,
                Err(error) => {
                    let termination = match error {
                        BodyError::Malformed(_) => Termination::BadRequest,
                        BodyError::SourceTimedOut => Termination::BodyTimeout,
                        _ => Termination::ClientAborted,
                    };
                    return Next::End(Ending::Graceful(termination));
                }
            }
        }
        // The next request waits until the client takes this response: that bounds what pipelining costs.
        match drained(&self.context.runtime, self.stream, self.deadline, self.timeouts.write_stall).await {
            Ok(()) => Next::Request(rest.filter(|rest| !rest.is_empty())),
            Err(BodyError::SinkStalled) => Next::End(Ending::Abort(Termination::WriteStalled)),
            Err(_) => Next::End(Ending::Abort(Termination::ClientAborted)),
        }
    }

    /// Whom an endpoint is asked for.
    fn caller(&self) -> Caller {
        match &self.request.answer {
            Answer::Forward { caller, .. } => caller.clone(),
            _ => Caller::default(),
        }
    }

    /// Has an endpoint answer.
    async fn forward(&self, cluster: u16, route: u16, head: &[u8], rest: RecvBuf) -> Next {
        let upstreams = &self.serving.upstreams;
        let mut tried = Tried::new(self.caller());
        let mut rest = Some(rest);
        if upstreams.may_multiplex(cluster) {
            // In a block of its own: what goes to HTTP/1.1 must not pay for its size.
            return Box::pin(self.forward_any(cluster, route, head, rest)).await;
        }
        loop {
            let acquired = {
                let whole = tried.deadline();
                let acquire = pin!(upstreams.acquire(cluster, tried.is_again(), &mut tried));
                acquire_in_time(self, whole, acquire).await
            };
            let connection = match acquired {
                Err(Gone) => return Next::End(Ending::Abort(Termination::ClientAborted)),
                Ok(Err(failure)) => return self.fail(failure, rest).await,
                Ok(Ok(connection)) => connection,
            };
            if let Some(next) = self.attempt(connection, (cluster, route), head, &mut rest, &mut tried).await
            {
                return next;
            }
        }
    }

    /// Has this connection's endpoint answer. `None`: the request is to be sent again.
    async fn attempt(
        &self,
        connection: Connection,
        (cluster, route): (u16, u16),
        head: &[u8],
        rest: &mut Option<RecvBuf>,
        tried: &mut Tried,
    ) -> Option<Next> {
        let upstreams = &self.serving.upstreams;
        // A client that left while it waited for a connection gets nothing done.
        if self.stream.is_hung_up() {
            upstreams.release(connection);
            return Some(Next::End(Ending::Abort(Termination::ClientAborted)));
        }
        connection.stream.set_on_demand(false);
        let mut attempt =
            Attempt::new(self.context, self.serving, self.line, (cluster, route), self.request.is_head);
        if self.request.framing.has_body() {
            attempt.sent(head);
            // In a block of its own: requests without a body must not pay for its size.
            let first = rest.take().unwrap_or_else(|| self.context.runtime.empty_buffer());
            let forwarded = self.forward_with_body(attempt, connection, head, first);
            return Some(self.context.exchanges.place(forwarded).await);
        }
        attempt.wait_for(self.deadline, tried, self.request.idempotent);
        attempt.sent(head);
        connection.stream.send(head, false);
        let responded = {
            let respond = pin!(attempt.respond(self, &connection));
            unless_gone(self, respond).await
        };
        let Ok(responded) = responded else {
            return Some(Next::End(Ending::Abort(Termination::ClientAborted)));
        };
        attempt.judge_connection(&connection, &responded);
        let failure = match responded {
            Responded::Complete { reusable } => {
                self.settle(connection, reusable);
                return Some(self.after_response(rest.take()).await);
            }
            Responded::Again(failed) => {
                tried.again();
                if failed != Failed::ResetBeforeRequest {
                    tried.spare(connection.endpoint());
                }
                return None;
            }
            Responded::Unanswered | Responded::Refused | Responded::Opened(_) => UNANSWERED,
            Responded::Failed(failure) => failure,
            Responded::Broken(termination) => return Some(Next::End(Ending::Abort(termination))),
        };
        drop(connection);
        Some(self.fail(failure, rest.take()).await)
    }

    /// As `forward` once there is a connection, for a request with a body: both bodies move at the same time.
    async fn forward_with_body(
        &self,
        attempt: Attempt<'_>,
        connection: Connection,
        head: &[u8],
        first: RecvBuf,
    ) -> Next {
        let context = self.context;
        let Some(spec) = self.serving.upstreams.spec(attempt.cluster) else {
            return self.close_after_response(false);
        };
        if self.request.expect_continue && first.is_empty() {
            self.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n", false);
        }
        let pace = Pace {
            source_idle: self.timeouts.body_idle,
            source_bytes_per_s_min: self.timeouts.body_rate_min_bytes_per_s,
            sink_stall: spec.request_timeout,
        };
        let mut body = Body::new(self.request.framing, self.request.framing);
        let (uploaded, responded) = {
            let upload = body.relay(&context.runtime, self.stream, &connection.stream, head, first, pace);
            let respond = attempt.respond(self, &connection);
            self.both_ways(pin!(upload), pin!(respond), spec.request_timeout).await
        };
        self.stream.set_bulk(false);
        self.line.received(body.moved);
        self.guard.counts().add(ListenerCounter::ReceivedBytes, body.moved);
        attempt.add(ClusterCounter::SentBytes, body.moved);
        match responded {
            None => {
                // The endpoint must not take what it got for the whole.
                connection.abort();
                let error = uploaded.and_then(Result::err).unwrap_or(BodyError::SourceBroken);
                self.fail_body(error)
            }
            Some(responded) => {
                attempt.judge_connection(&connection, &responded);
                self.end_with_body(connection, responded, uploaded).await
            }
        }
    }

    /// The response to a request with a body is over, one way or another.
    async fn end_with_body(
        &self,
        connection: Connection,
        responded: Responded,
        uploaded: Option<Result<Option<RecvBuf>, BodyError>>,
    ) -> Next {
        match (responded, uploaded) {
            (Responded::Complete { reusable }, Some(Ok(following))) => {
                self.settle(connection, reusable);
                self.after_response(following).await
            }
            (Responded::Complete { .. }, _) => {
                connection.abort();
                Next::End(Ending::Graceful(Termination::EarlyResponse))
            }
            (Responded::Unanswered | Responded::Refused | Responded::Again(_) | Responded::Opened(_), _) => {
                self.fail_and_close(UNANSWERED)
            }
            (Responded::Failed(failure), _) => {
                connection.abort();
                self.fail_and_close(failure)
            }
            (Responded::Broken(termination), _) => {
                connection.abort();
                Next::End(Ending::Abort(termination))
            }
        }
    }

    /// Runs both directions until the response is over, or the client fails to bring its body. What became of the
    /// body, if it is decided, and of the response, unless the client is at fault.
    async fn both_ways(
        &self,
        mut upload: Pin<&mut impl Future<Output = Result<Option<RecvBuf>, BodyError>>>,
        mut respond: Pin<&mut impl Future<Output = Responded>>,
        request_timeout: Duration,
    ) -> (Option<Result<Option<RecvBuf>, BodyError>>, Option<Responded>) {
        let mut uploaded: Option<Result<Option<RecvBuf>, BodyError>> = None;
        // The response's deadline counts from the end of the request.
        self.deadline.off();
        self.uploading.set(true);
        let responded = std::future::poll_fn(|cx| {
            if uploaded.is_none()
                && let Poll::Ready(result) = upload.as_mut().poll(cx)
            {
                let client_at_fault = matches!(result, Err(error) if is_clients_fault(error));
                self.uploading.set(result.is_err());
                uploaded = Some(result);
                if client_at_fault {
                    return Poll::Ready(None);
                }
                self.deadline.set(self.context.runtime.now() + request_timeout);
            }
            if uploaded.is_some() && self.stream.poll_hung_up(cx).is_ready() {
                uploaded = Some(Err(BodyError::SourceBroken));
                return Poll::Ready(None);
            }
            respond.as_mut().poll(cx).map(Some)
        })
        .await;
        (uploaded, responded)
    }

    /// Keeps the connection of a complete exchange, or closes it.
    fn settle(&self, connection: Connection, reusable: bool) {
        if reusable && !self.guard.is_draining() {
            self.serving.upstreams.release(connection);
        } else {
            connection.stream.close();
        }
    }

    /// The response is with the kernel, the request was read whole; `following` is what came behind it.
    async fn after_response(&self, following: Option<RecvBuf>) -> Next {
        if !self.keep_alive.get() {
            return Next::End(self.ending(following.is_none_or(|rest| rest.is_empty())));
        }
        match drained(&self.context.runtime, self.stream, self.deadline, self.timeouts.write_stall).await {
            Ok(()) => Next::Request(following.filter(|rest| !rest.is_empty())),
            Err(BodyError::SinkStalled) => Next::End(Ending::Abort(Termination::WriteStalled)),
            Err(_) => Next::End(Ending::Abort(Termination::ClientAborted)),
        }
    }

    /// Answers in the endpoint's place.
    async fn fail(&self, failure: Failure, rest: Option<RecvBuf>) -> Next {
        if self.request.framing.has_body() {
            return self.fail_and_close(failure);
        }
        self.send_failure(&failure);
        self.after_answer(rest.unwrap_or_else(|| self.context.runtime.empty_buffer())).await
    }

    fn fail_and_close(&self, failure: Failure) -> Next {
        self.keep_alive.set(false);
        self.send_failure(&failure);
        Next::End(Ending::Graceful(failure.termination))
    }

    fn send_failure(&self, failure: &Failure) {
        let mut out = self.context.runtime.take_block();
        self.status.set(Some(failure.status));
        self.line.ended(failure.termination);
        if self.guard.is_draining() {
            self.keep_alive.set(false);
        }
        let connection = connection_option(self.keep_alive.get(), self.request.version);
        let is_head = self.request.is_head;
        self.context.with_date(|date| {
            write_answer(&mut out, failure.status, failure.text, connection, is_head, &[], Some(date));
        });
        self.send_block(out);
    }

    /// The request's body broke off or is invalid.
    fn fail_body(&self, error: BodyError) -> Next {
        let (status, text, termination) = match error {
            BodyError::Malformed(reject) => (reject.status, reject.text, Termination::BadRequest),
            BodyError::Truncated => (400, "The request body ended early.", Termination::ClientAborted),
            BodyError::SourceTimedOut => (408, "", Termination::BodyTimeout),
            BodyError::SourceBroken | BodyError::SinkBroken | BodyError::SinkStalled => {
                return Next::End(Ending::Abort(Termination::ClientAborted));
            }
        };
        if self.status.get().is_some() {
            return Next::End(Ending::Abort(termination));
        }
        self.fail_and_close(Failure { status, text, termination })
    }
}

impl Client for Exchange<'_> {
    type Head = Head;
    type Side = ();
    const BRINGS_KEY: bool = true;

    fn serving(&self) -> &Serving {
        self.serving
    }

    fn deadline(&self) -> &Deadline {
        self.deadline
    }

    fn poll_gone(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.stream.poll_hung_up(cx)
    }

    fn rewrite(&self, head: &ResponseHead<'_, '_>, opens: bool, edits: &FieldEdits) -> Result<Head, Reject> {
        if !opens && !head.interim {
            self.judge_behind();
        }
        let framing = framing_to_client(head, self.request.version);
        // A client still sending when its response begins is told that the connection ends with it: it may not finish.
        if !head.interim && (self.uploading.get() || self.guard.is_draining() || (!opens && self.moves())) {
            self.keep_alive.set(false);
        }
        let mut bytes = self.context.runtime.take_block();
        let keep_alive = self.keep_alive.get() && framing != BodyFraming::UntilClose;
        let version = self.request.version;
        if head.has_date {
            write_response(&mut bytes, head, framing, version, keep_alive, edits, None);
        } else {
            self.context.with_date(|date| {
                write_response(&mut bytes, head, framing, version, keep_alive, edits, Some(date));
            });
        }
        Ok(Head { framing, bytes })
    }

    fn inform(&self, plan: Plan<Head>) {
        let Head { bytes, .. } = plan.to_client;
        // 100 was answered here. HTTP/1.0 knows no interim responses (RFC 9110 §15.2).
        // Nor does a client that does not even take those before get another.
        let takes_interim = self.request.version == Version::Http11 && self.stream.unsent() == 0;
        if plan.status != 100 && takes_interim {
            self.stream.send(&bytes, false);
        }
        self.context.runtime.put_block(bytes);
    }

    async fn deliver(&self, attempt: &Attempt<'_>, plan: Plan<Head>, body: ResponseBody<'_>) -> Responded {
        self.status.set(Some(plan.status));
        if plan.to_client.framing == BodyFraming::UntilClose {
            self.keep_alive.set(false);
            self.unframed.set(true);
        }
        match body {
            ResponseBody::Connection(connection, rest) => {
                self.deliver_from_connection(attempt, connection, plan, rest).await
            }
            ResponseBody::Stream(receiver) => self.deliver_from_stream(attempt, plan, receiver).await,
        }
    }

    fn tell_opened(&self, plan: Plan<Head>) -> Option<()> {
        let Head { bytes, .. } = plan.to_client;
        self.status.set(Some(plan.status));
        self.guard.counts().add(ListenerCounter::SentBytes, bytes.len() as u64);
        self.stream.send(&bytes, false);
        self.context.runtime.put_block(bytes);
        Some(())
    }
}

impl Exchange<'_> {
    /// Sends head and body of the final response.
    async fn deliver_from_connection(
        &self,
        attempt: &Attempt<'_>,
        connection: &Connection,
        plan: Plan<Head>,
        rest: RecvBuf,
    ) -> Responded {
        let Plan { framing, reusable, to_client: Head { framing: framing_out, bytes: mut out }, .. } = plan;
        let whole = match framing {
            BodyFraming::None => Some(0),
            BodyFraming::Length(length) if length <= SMALL_BODY_BYTES_MAX && length <= rest.len() as u64 => {
                Some(length as usize)
            }
            _ => None,
        };
        if let Some(length) = whole {
            // Long responses leave a connection receiving in bulk, as their like often follow; this one is short.
            connection.stream.set_bulk(false);
            out.extend_from_slice(&rest[..length]);
            attempt.add(ClusterCounter::ReceivedBytes, length as u64);
            self.send_block(out);
            // Bytes behind the response: nobody asked for them (response-queue poisoning).
            return Responded::Complete { reusable: reusable && rest.len() == length };
        }
        let pace = attempt.response_pace(self.timeouts.write_stall);
        self.at_once.set(false);
        let mut sending = Sending { body: Body::new(framing, framing_out), line: self.line };
        let body = &mut sending.body;
        let runtime = &self.context.runtime;
        let moved = body.relay(runtime, &connection.stream, self.stream, &out, rest, pace).await;
        let shard = self.guard.counts();
        shard.add(ListenerCounter::SentBytes, out.len() as u64 + body.moved);
        attempt.add(ClusterCounter::ReceivedBytes, body.moved);
        runtime.put_block(out);
        if let (Err(error), false) = (&moved, body.begun) {
            // Not even the head went down: the client can still be told.
            self.status.set(None);
            return Responded::Failed(match error {
                BodyError::Malformed(reject) => invalid(reject.by_upstream()),
                _ => UNANSWERED,
            });
        }
        match moved {
            Ok(following) => Responded::Complete { reusable: reusable && following.is_none() },
            Err(error) => Responded::Broken(broken_by(error)),
        }
    }
}
