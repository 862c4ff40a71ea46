//! One stream of a downstream HTTP/2 connection: a request and its response. The order of things is that of
//! `http1::exchange`; what ends a connection there resets a stream here, and the connection lives on.

mod over_connection;
mod over_stream;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use ::http::{Method, Request as H2Request, Response as H2Response};
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};

use crate::base::field_edits::FieldEdits;
use crate::base::time::Instant;
use crate::h1::{FieldSlots, HeadLimits, Parsed, ResponseHead, parse_response};
use crate::http::answer::{standard_text, write_answer};
use crate::http::{Reject, grpc, trim_ows};
use crate::limit::retry::Failed;
use crate::metrics::{ClusterCounter, Histogram};
use crate::runtime::Deadline;

use super::super::access::Line;
use super::super::ask::{self, Attempt, Client, Gone, Plan, ResponseBody, acquire_in_time, broken_by};
use super::super::body::{BodyError, Pace};
use super::super::caller::Caller;
use super::super::context::{Context, Serving};
use super::super::http1::failure::{Failure, UNANSWERED, is_clients_fault};
use super::super::http1::judge::{Answer, Asker, Request, judge};
use super::super::outcome::Termination;
use super::super::snapshot::Timeouts;
use super::super::transfer::{Sink, Source, transfer};
use super::super::tunnel::Tunnel;
use super::super::upstream::{Acquired, Tried};
use super::piece::Piece;
use super::server::{Live, Session};
use super::stream::{Receiver, Sender, StreamFault};
use super::translate;
use super::usual_fields::GRPC_TIMEOUT;

/// As a line of a trailer section begins.
const GRPC_STATUS: &[u8] = b"grpc-status:";

/// Serves one stream. `live` counts it until all that it held is free.
// Not an `async fn`, and what awaits nothing is in `Exchange::begin`: a future keeps what it is given twice, and there are as
// many of this one as there are streams.
#[expect(clippy::manual_async_fn)]
pub(super) fn run(
    live: Live,
    request: H2Request<RecvStream>,
    respond: SendResponse<Piece>,
) -> impl Future<Output = ()> {
    async move {
        let session = &*live.session;
        let context = session.guard.context();
        let serving = session.guard.serving();
        let started = context.runtime.now();
        let Some((exchange, judged, mut body, timeout)) =
            Exchange::begin(session, &serving, started, request, respond)
        else {
            return;
        };
        match timeout {
            None => exchange.serve(judged, &mut body).await,
            Some(timeout) => {
                let deadline = context.runtime.deadline();
                deadline.set(started + timeout);
                if deadline.within(pin!(exchange.serve(judged, &mut body))).await.is_err() {
                    exchange.deadline_exceeded().await;
                }
            }
        }
        exchange.account(started);
        let opened = exchange.opened.take();
        drop(exchange);
        drop(serving);
        if let Some(opened) = opened {
            let (sender, tunnel) = *opened;
            // In a block of its own: other streams must not pay for its size.
            Box::pin(super::super::tunnel::over_stream(&session.guard, body, sender, tunnel)).await;
        }
    }
}

fn wants_trailers(head: &::http::request::Parts) -> bool {
    let te = head.headers.get(::http::header::TE);
    te.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"))
}

struct Exchange<'a> {
    session: &'a Session,
    context: &'a Rc<Context>,
    serving: &'a Rc<Serving>,
    line: Line,
    client: RefCell<Answering>,
    timeouts: Timeouts,
    /// Of the response's head.
    deadline: Deadline,
    is_grpc: bool,
    /// A call as gRPC makes it, whose messages may rest.
    is_call: bool,
    is_head: bool,
    /// It is an extended CONNECT (RFC 8441): only a tunnel may answer it with success.
    is_extended: bool,
    /// The cluster whose status of gRPC is not counted yet.
    ungraded: Cell<Option<u16>>,
    /// Sent to the client; a response has begun once there is one.
    status: Cell<Option<u16>>,
    /// The tunnel asked for, once it is open.
    opened: RefCell<Option<Box<(Sender, Tunnel)>>>,
}

/// The client's side of the stream, as far as the response goes.
enum Answering {
    Waiting(SendResponse<Piece>),
    /// The response has begun: whoever sends it has the stream.
    Begun,
}

/// A response head as a client of HTTP/2 gets it.
struct Head {
    response: H2Response<()>,
    grpc_status: Option<u8>,
}

type Responded = ask::Responded<Sender>;

/// Where a request goes, and the head that goes there.
struct Destination<'a> {
    cluster: u16,
    route: u16,
    head: &'a [u8],
    caller: &'a Caller,
}

/// What a stream begins with: its exchange, what was judged of its request, the request's content, and how long a call has.
type Begun<'a> = (Exchange<'a>, Result<Request, Reject>, Receiver, Option<Duration>);

impl<'a> Exchange<'a> {
    /// `None` when the request is malformed, and its stream reset.
    fn begin(
        session: &'a Session,
        serving: &'a Rc<Serving>,
        started: Instant,
        request: H2Request<RecvStream>,
        mut respond: SendResponse<Piece>,
    ) -> Option<Begun<'a>> {
        let context = session.guard.context();
        let line = Line::of_request(&session.guard, serving, started);
        let (head, body) = request.into_parts();
        let mut neutral = context.runtime.take_block();
        if translate::write_request(&mut neutral, &head, body.is_end_stream()).is_err() {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            session.guard.counts().request(None);
            line.ended(Termination::BadRequest);
            return None;
        }
        let content_type = head.headers.get(::http::header::CONTENT_TYPE);
        let is_grpc = content_type.is_some_and(|value| grpc::is_grpc(value.as_bytes()));
        let timeout = if is_grpc { head.headers.get(&GRPC_TIMEOUT) } else { None };
        let timeout = timeout.and_then(|value| grpc::parse_timeout(value.as_bytes()));
        let exchange = Self {
            session,
            context,
            serving,
            line,
            client: RefCell::new(Answering::Waiting(respond)),
            timeouts: session.guard.timeouts(),
            deadline: context.runtime.deadline(),
            is_grpc,
            is_call: is_grpc && head.method == Method::POST && wants_trailers(&head),
            ungraded: Cell::new(None),
            is_head: head.method == Method::HEAD,
            is_extended: head.extensions.get::<Protocol>().is_some(),
            status: Cell::new(None),
            opened: RefCell::default(),
        };
        let judged = exchange.judge(&neutral, head.headers.len());
        context.runtime.put_block(neutral);
        Some((exchange, judged, Receiver::new(body), timeout))
    }

    /// Counts an exchange that has ended.
    fn account(&self, started: Instant) {
        self.session.guard.counts().request(self.status.get());
        self.line.status(self.status.get());
        let took = self.context.runtime.now().since(started);
        self.context.shard.observe(Histogram::RequestDuration, took);
        self.context.door.answered(took, self.status.get());
        if self.opened.borrow().is_none() {
            self.line.complete();
        }
    }

    fn judge(&self, neutral: &[u8], fields: usize) -> Result<Request, Reject> {
        // Each crumb and each duplicate counts, also those that went into one field or none (CVE-2026-47774).
        if fields > self.serving.head_limits.fields_max {
            self.session.note_offence();
            return Err(Reject::TOO_MANY_FIELDS);
        }
        let mut facts = self.session.facts.borrow_mut();
        let guard = &self.session.guard;
        let (listener, counts) = (guard.listener(), guard.counts());
        let mut asker = Asker { listener, counts, facts: &mut facts, stream: None, line: &self.line };
        match judge(self.context, self.serving, &mut asker, neutral)? {
            Parsed::Complete(request) => Ok(request),
            Parsed::Partial => Err(Reject::HEAD_TOO_LARGE),
        }
    }

    async fn serve(&self, judged: Result<Request, Reject>, body: &mut Receiver) {
        let request = match judged {
            Ok(request) => request,
            Err(reject) => {
                self.line.ended(Termination::BadRequest);
                return self.answer_own(reject.status, reject.text, &[]).await;
            }
        };
        if self.is_extended && !may_answer_extended(self.serving, &request.answer) {
            return self.answer_own(501, "", &[]).await;
        }
        match &request.answer {
            Answer::Tunnel(opening) => self.open(opening).await,
            Answer::Forward { cluster, route, head, caller } => {
                let to = Destination { cluster: *cluster, route: *route, head, caller };
                self.forward(&request, to, body).await;
            }
            Answer::Gone => {
                self.line.ended(Termination::ClientAborted);
                self.reset(Reason::CANCEL);
            }
            Answer::Own { status, text, fields, .. } => self.answer_own(*status, text, fields).await,
            Answer::Limited { after_s, .. } => {
                let after_s = after_s.to_string();
                self.answer_own(429, "", &[("Retry-After", &after_s)]).await;
            }
            // A stream passed the door before it began.
            Answer::Shed { .. } => self.reset(Reason::REFUSED_STREAM),
            Answer::Prepared { route } => self.answer_prepared(*route).await,
            Answer::Redirect { status, location, route } => self.redirect(*status, location, *route).await,
        }
        if let Answer::Forward { head, .. } = request.answer {
            self.context.runtime.put_block(head);
        }
    }

    /// Ends the stream with this code.
    fn reset(&self, reason: Reason) {
        if let Answering::Waiting(respond) = &mut *self.client.borrow_mut() {
            respond.send_reset(reason);
        }
    }

    /// The fixed answer of a route.
    async fn answer_prepared(&self, route: u16) {
        let Some(prepared) = self.serving.prepared(route) else { return self.reset(Reason::INTERNAL_ERROR) };
        let mut out = self.context.runtime.take_block();
        // Without the body: as many as ask for it share one.
        self.context.with_date(|date| prepared.write(&mut out, None, true, Some(date)));
        let read = self.read_head(&out, true).map(|(response, _)| response);
        self.context.runtime.put_block(out);
        let body = if self.is_head { Piece::empty() } else { Piece::shared(prepared.body().clone()) };
        self.send_with_body(read, body).await;
    }

    async fn redirect(&self, status: u16, location: &str, route: u16) {
        let mut out = self.context.runtime.take_block();
        let route = self.serving.snapshot.routes.routes().get(usize::from(route));
        let edits = route.into_iter().flat_map(|route| route.response_edits.appended());
        let fields: Vec<_> = [("Location", location)].into_iter().chain(edits).collect();
        self.context.with_date(|date| {
            write_answer(&mut out, status, "", None, self.is_head, &fields, Some(date));
        });
        self.send_whole(out).await;
    }

    /// An answer of our own; to gRPC one that it understands.
    async fn answer_own(&self, status: u16, text: &str, fields: &[(&str, &str)]) {
        if self.is_grpc && status >= 400 {
            return self.answer_grpc(grpc::code_for_status(status), text, status);
        }
        let mut out = self.context.runtime.take_block();
        self.context.with_date(|date| {
            write_answer(&mut out, status, text, None, self.is_head, fields, Some(date));
        });
        self.send_whole(out).await;
    }

    /// Tells gRPC of a failure in the one way that it reads: trailers only, in a response that is 200.
    fn answer_grpc(&self, code: u8, text: &str, status: u16) {
        let text = if text.is_empty() { standard_text(status) } else { text };
        let mut message = Vec::new();
        grpc::write_message(&mut message, text);
        let response = H2Response::builder()
            .status(200)
            .header("content-type", "application/grpc")
            .header("grpc-status", u16::from(code))
            .header("grpc-message", message);
        if let Ok(response) = response.body(()) {
            self.send_head(response, true);
        }
    }

    /// Sends a whole response that was written in the neutral form.
    async fn send_whole(&self, neutral: Vec<u8>) {
        let read = self.read_head(&neutral, self.is_head);
        let body = read.as_ref().map_or(Piece::empty(), |(_, head_len)| Piece::copied(&neutral[*head_len..]));
        self.context.runtime.put_block(neutral);
        self.send_with_body(read.map(|(response, _)| response), body).await;
    }

    /// Sends a response of our own, as long as the client takes some of it.
    async fn send_with_body(&self, response: Option<H2Response<()>>, mut body: Piece) {
        let Some(response) = response else { return self.reset(Reason::INTERNAL_ERROR) };
        let Some(mut sender) = self.send_head(response, body.is_empty()) else { return };
        if body.is_empty() {
            return;
        }
        let whole = body.len();
        loop {
            let waiting = body.len();
            let sending = std::future::poll_fn(|cx| sender.poll_send(cx, &mut body, true));
            self.deadline.set(self.context.runtime.now() + self.timeouts.write_stall);
            let sent = self.deadline.within(sending).await;
            if sent.is_ok() {
                return self.line.sent(whole as u64);
            }
            if body.len() == waiting {
                self.session.note_offence();
                self.line.ended(Termination::WriteStalled);
                return sender.reset(Reason::CANCEL.into());
            }
        }
    }

    /// Not a part of `send_whole`, whose future would keep the room for the fields.
    fn read_head(&self, neutral: &[u8], is_head: bool) -> Option<(H2Response<()>, usize)> {
        let mut slots = FieldSlots::new();
        let parsed = parse_response(neutral, &mut slots, &HeadLimits::OURS, is_head);
        let Ok(Parsed::Complete(head)) = parsed else {
            return None;
        };
        let response = translate::response(&head, &FieldEdits::default(), None, &self.context.usual_fields)?;
        Some((response, head.head_len))
    }

    /// Begins the response.
    fn send_head(&self, response: H2Response<()>, ended: bool) -> Option<Sender> {
        let client = std::mem::replace(&mut *self.client.borrow_mut(), Answering::Begun);
        let Answering::Waiting(mut respond) = client else { return None };
        self.status.set(Some(response.status().as_u16()));
        let sent = respond.send_response(response, ended);
        sent.ok().map(|stream| Sender::new(stream, ended))
    }

    /// What the client set as its deadline has come.
    async fn deadline_exceeded(&self) {
        self.line.ended(Termination::UpstreamTimeout);
        self.grade(Some(grpc::DEADLINE_EXCEEDED));
        if self.status.get().is_none() {
            self.answer_grpc(grpc::DEADLINE_EXCEEDED, "The deadline of the request has passed.", 504);
        }
    }

    async fn fail(&self, failure: &Failure) {
        self.line.ended(failure.termination);
        if self.is_grpc {
            let code = match failure.termination {
                Termination::UpstreamTimeout => grpc::DEADLINE_EXCEEDED,
                Termination::UpstreamConnect => grpc::UNAVAILABLE,
                _ => grpc::code_for_status(failure.status),
            };
            self.grade(Some(code));
            return self.answer_grpc(code, failure.text, failure.status);
        }
        self.answer_own(failure.status, failure.text, &[]).await;
    }

    /// Has an endpoint answer.
    async fn forward(&self, request: &Request, to: Destination<'_>, body: &mut Receiver) {
        let upstreams = &self.serving.upstreams;
        let mut tried = Tried::paced(&self.session.pace, to.caller.clone());
        self.ungraded.set(self.is_grpc.then_some(to.cluster));
        loop {
            let acquired = {
                let whole = tried.deadline();
                let acquire = pin!(upstreams.acquire_any(to.cluster, tried.is_again(), &mut tried));
                let mut acquired = pin!(acquire_in_time(self, whole, acquire));
                std::future::poll_fn(|cx| body.poll_beside(cx, acquired.as_mut())).await
            };
            let acquired = match acquired {
                Err(Gone) => return self.line.ended(Termination::ClientAborted),
                Ok(Err(failure)) => return self.fail(&failure).await,
                Ok(Ok(acquired)) => acquired,
            };
            let mut attempt =
                Attempt::new(self.context, self.serving, &self.line, (to.cluster, to.route), self.is_head);
            if !request.framing.has_body() {
                attempt.wait_for(&self.deadline, &mut tried, request.idempotent);
            }
            let responded = match acquired {
                Acquired::Connection(connection) => {
                    let endpoint = connection.endpoint();
                    let responded = self.over_connection(&attempt, request, connection, &to, body).await;
                    if matches!(responded, Ok(Responded::Again(failed)) if failed != Failed::ResetBeforeRequest)
                    {
                        tried.spare(endpoint);
                    }
                    responded
                }
                Acquired::Stream(exchange) => {
                    self.over_stream(&attempt, request, exchange, &to, body, &mut tried).await
                }
            };
            let goes_again = match responded {
                Ok(Responded::Complete { .. } | Responded::Opened(_)) => return,
                Ok(Responded::Broken(termination)) => return self.line.ended(termination),
                Err(Gone) => return self.line.ended(Termination::ClientAborted),
                Ok(Responded::Failed(failure)) => return self.fail(&failure).await,
                Ok(Responded::Again(_)) => true,
                Ok(Responded::Refused) => {
                    !body.is_touched() && upstreams.goes_again(to.cluster, tried.retries(), Failed::Refused)
                }
                Ok(Responded::Unanswered) => false,
            };
            if !goes_again {
                return self.fail(&UNANSWERED).await;
            }
            tried.again();
        }
    }

    /// How fast the request's body has to come and go.
    fn upload_pace(&self, sink_stall: Duration) -> Pace {
        // A stream of messages may rest between two of them, as a relay may.
        let (source_idle, source_bytes_per_s_min) = match self.is_call {
            true => (self.timeouts.tcp_idle, 0),
            false => (self.timeouts.body_idle, self.timeouts.body_rate_min_bytes_per_s),
        };
        Pace { source_idle, source_bytes_per_s_min, sink_stall }
    }

    /// Runs both directions until the response is over, or the client fails to bring its body.
    async fn both_ways(
        &self,
        mut upload: Pin<&mut impl Future<Output = Result<(), BodyError>>>,
        mut respond: Pin<&mut impl Future<Output = Responded>>,
        request_timeout: Duration,
    ) -> Result<Responded, Gone> {
        let mut uploaded: Option<Result<(), BodyError>> = None;
        // The response's deadline counts from the end of the request.
        self.deadline.off();
        let outcome = std::future::poll_fn(|cx| {
            if uploaded.is_none()
                && let Poll::Ready(result) = upload.as_mut().poll(cx)
            {
                uploaded = Some(result);
                match result {
                    Err(error) if is_clients_fault(error) => return Poll::Ready(Err(error)),
                    _ => self.deadline.set(self.context.runtime.now() + request_timeout),
                }
            }
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(BodyError::SourceBroken));
            }
            respond.as_mut().poll(cx).map(Ok)
        })
        .await;
        match outcome {
            Ok(Responded::Complete { reusable }) => {
                // An endpoint that answered before it had the whole request did not read it: its connection is spent.
                Ok(Responded::Complete { reusable: reusable && matches!(uploaded, Some(Ok(()))) })
            }
            Ok(responded) => Ok(responded),
            Err(error) => {
                self.fail_body(error).await;
                Err(Gone)
            }
        }
    }

    /// The request's body broke off or is invalid.
    async fn fail_body(&self, error: BodyError) {
        self.line.ended(match error {
            BodyError::SourceTimedOut => Termination::BodyTimeout,
            BodyError::Malformed(_) | BodyError::Truncated => Termination::BadRequest,
            _ => Termination::ClientAborted,
        });
        match error {
            BodyError::SourceTimedOut if self.status.get().is_none() => self.answer_own(408, "", &[]).await,
            BodyError::Malformed(_) | BodyError::Truncated => self.reset(Reason::PROTOCOL_ERROR),
            _ => self.reset(Reason::CANCEL),
        }
    }

    /// An interim response without fields.
    fn inform(&self, status: u16) {
        if let Ok(response) = H2Response::builder().status(status).body(()) {
            self.send_interim(response);
        }
    }

    fn send_interim(&self, response: H2Response<()>) {
        if let Answering::Waiting(respond) = &mut *self.client.borrow_mut() {
            // Fails only where the client is gone, which shows elsewhere.
            let _ = respond.send_informational(response);
        }
    }

    /// Counts the status that ended a response of gRPC: of its trailers, or of its head where that is all.
    fn count_grpc(&self, trailers: &[u8], in_head: Option<u8>) {
        let lines = trailers.split(|&byte| byte == b'\n');
        let value = lines.filter_map(|line| {
            let (name, value) = line.split_at_checked(GRPC_STATUS.len())?;
            name.eq_ignore_ascii_case(GRPC_STATUS)
                .then(|| trim_ows(value.strip_suffix(b"\r").unwrap_or(value)))
        });
        let code = value.map(grpc::parse_code).next().unwrap_or(in_head);
        self.grade(code);
    }

    /// Counts the status of gRPC that ended the call, once, if a cluster was to answer it.
    fn grade(&self, code: Option<u8>) {
        if let Some(cluster) = self.ungraded.take() {
            self.serving.upstreams.counts(cluster).grpc_status(code);
            self.line.grpc_status(code);
        }
    }
}

impl Client for Exchange<'_> {
    type Head = Head;
    type Side = Sender;
    const BRINGS_KEY: bool = false;

    fn serving(&self) -> &Serving {
        self.serving
    }

    fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    /// Once the response has begun, whoever sends it sees the client leave.
    fn poll_gone(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        match &mut *self.client.borrow_mut() {
            Answering::Waiting(respond) => respond.poll_reset(cx).map(|_| ()),
            Answering::Begun => Poll::Pending,
        }
    }

    fn rewrite(&self, head: &ResponseHead<'_, '_>, opens: bool, edits: &FieldEdits) -> Result<Head, Reject> {
        if self.is_extended && !opens && matches!(head.status, 200..=299) {
            // The client would take it for a tunnel (CVE-2024-23326 is the reverse).
            return Err(Reject::NOT_SWITCHED);
        }
        let usual = &self.context.usual_fields;
        let response = if head.has_date {
            translate::response(head, edits, None, usual)
        } else {
            self.context.with_date(|date| translate::response(head, edits, Some(date), usual))
        };
        let mut response = response.ok_or(Reject::BAD_FIELD_VALUE.by_upstream())?;
        if head.upgrade {
            *response.status_mut() = ::http::StatusCode::OK;
            response.headers_mut().remove(::http::header::SEC_WEBSOCKET_ACCEPT);
        }
        Ok(Head { response, grpc_status: head.field("grpc-status").and_then(grpc::parse_code) })
    }

    fn inform(&self, plan: Plan<Head>) {
        // 100 was answered here.
        if plan.status != 100 {
            self.send_interim(plan.to_client.response);
        }
    }

    async fn deliver(&self, attempt: &Attempt<'_>, plan: Plan<Head>, body: ResponseBody<'_>) -> Responded {
        let has_body = plan.framing.has_body();
        let Head { response, grpc_status } = plan.to_client;
        let Some(mut sender) = self.send_head(response, !has_body) else {
            return Responded::Broken(Termination::ClientAborted);
        };
        let mut source = match body {
            ResponseBody::Connection(connection, rest) => Source::h1(&connection.stream, plan.framing, rest),
            ResponseBody::Stream(receiver) => Source::H2(receiver),
        };
        if !has_body {
            if self.is_grpc {
                self.count_grpc(&[], grpc_status);
            }
            return Responded::Complete { reusable: plan.reusable && source.into_rest().is_none() };
        }
        let mut pace = attempt.response_pace(self.timeouts.write_stall);
        if self.is_grpc {
            // A stream of messages may rest between two of them, as a relay may.
            pace.source_idle = self.timeouts.tcp_idle;
        }
        let counting = attempt.counting(ClusterCounter::ReceivedBytes);
        let mut sink = Sink::H2(&mut sender);
        let result = transfer(&self.context.runtime, &mut source, &mut sink, pace, &counting.moved).await;
        if self.is_grpc {
            self.count_grpc(source.trailers(), None);
        }
        let Err(error) = result else {
            return Responded::Complete { reusable: plan.reusable && source.into_rest().is_none() };
        };
        match error {
            BodyError::SinkBroken => {}
            BodyError::SinkStalled => {
                self.session.note_offence();
                sender.reset(Reason::CANCEL.into());
            }
            // RFC 9113 §8.1: what was cut off must not look whole.
            _ => sender.reset(towards_client(source.fault())),
        }
        Responded::Broken(broken_by(error))
    }

    fn tell_opened(&self, plan: Plan<Head>) -> Option<Sender> {
        self.send_head(plan.to_client.response, false)
    }
}

/// Whether this is an answer that a client does not take for an open tunnel unless it is one.
fn may_answer_extended(serving: &Serving, answer: &Answer) -> bool {
    match answer {
        Answer::Tunnel(_)
        | Answer::Redirect { .. }
        | Answer::Shed { .. }
        | Answer::Limited { .. }
        | Answer::Gone => true,
        Answer::Prepared { route } => {
            serving.prepared(*route).is_some_and(|prepared| prepared.status() >= 300)
        }
        Answer::Own { status, .. } => *status >= 300,
        Answer::Forward { .. } => false,
    }
}

/// The code with which a client's stream ends when the endpoint's did.
fn towards_client(fault: Option<StreamFault>) -> u32 {
    const PASSED_ON: [Reason; 3] = [Reason::CANCEL, Reason::ENHANCE_YOUR_CALM, Reason::HTTP_1_1_REQUIRED];
    match fault {
        Some(StreamFault::Reset(code)) if PASSED_ON.map(u32::from).contains(&code) => code,
        _ => Reason::INTERNAL_ERROR.into(),
    }
}
