//! Asks an endpoint, whoever the client is: the request's head on a stream, the response's head from a connection or a
//! stream, the opening of a tunnel, and what all that says of the endpoint. Never reads from a client and never writes to
//! one: its exchange does, in its version of HTTP.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use crate::base::field_edits::FieldEdits;
use crate::base::time::Instant;
use crate::h1::{FieldSlots, Parsed, ResponseHead, parse_response};
use crate::http::{BodyFraming, Reject};
use crate::limit::retry::Failed;
use crate::limits;
use crate::metrics::{ClusterCounter, Histogram};
use crate::runtime::{Deadline, RecvBuf, TimedOut};

use super::access::Line;
use super::body::{BodyError, Pace};
use super::context::{Context, Serving};
use super::http1::failure::{
    Failure, NO_TUNNELS, TIMED_OUT, TOO_MANY_FIELDS, UNANSWERED, UNSENDABLE, cannot_acquire, invalid,
};
use super::http1::head_input::{HeadError, HeadInput};
use super::http2::{
    Answered, Asked, Call, Receiver, Sender, StreamFault, response_in_neutral_form, send_request,
};
use super::outcome::Termination;
use super::tunnel::{Behind, Handshake, Opening, Upward};
use super::upstream::{AcquireError, Acquired, Connection, Exchange, Tried};

/// CANCEL (RFC 9113 §7).
const CANCEL: u32 = 8;

/// The client's side of an exchange.
pub(super) trait Client {
    /// A response head as this client gets it.
    type Head;
    /// The client's side of an open tunnel.
    type Side;
    /// Whether a WebSocket's client brings the key of the handshake: that of HTTP/1.1 does (RFC 8441 §5).
    const BRINGS_KEY: bool;

    fn serving(&self) -> &Serving;

    /// Of the response's head.
    fn deadline(&self) -> &Deadline;

    /// Ready once the client has left.
    fn poll_gone(&self, cx: &mut TaskContext<'_>) -> Poll<()>;

    /// Makes the head that the client gets. `opens`: it opens the tunnel asked for.
    ///
    /// # Errors
    /// Where the client's version of HTTP has no such response.
    fn rewrite(
        &self,
        head: &ResponseHead<'_, '_>,
        opens: bool,
        edits: &FieldEdits,
    ) -> Result<Self::Head, Reject>;

    /// Sends an interim response, or not.
    fn inform(&self, plan: Plan<Self::Head>);

    /// Sends head and body of the final response.
    fn deliver(
        &self,
        attempt: &Attempt<'_>,
        plan: Plan<Self::Head>,
        body: ResponseBody<'_>,
    ) -> impl Future<Output = Responded<Self::Side>>;

    /// Tells the client that the tunnel is open. `None`: it is gone.
    fn tell_opened(&self, plan: Plan<Self::Head>) -> Option<Self::Side>;
}

/// A response head, judged and rewritten.
pub(super) struct Plan<H> {
    pub(super) status: u16,
    pub(super) head_len: usize,
    pub(super) interim: bool,
    pub(super) framing: BodyFraming,
    /// Whether the upstream connection may carry another exchange once this response was read.
    pub(super) reusable: bool,
    /// It opens the tunnel that was asked for.
    pub(super) opens: bool,
    pub(super) to_client: H,
}

/// Where the rest of a response comes from.
pub(super) enum ResponseBody<'a> {
    /// What came behind the head, too.
    Connection(&'a Connection, RecvBuf),
    Stream(&'a mut Receiver),
}

/// What became of the endpoint's part.
pub(super) enum Responded<S> {
    /// The whole response went down. Whether the upstream connection may carry another exchange.
    Complete { reusable: bool },
    /// A reused connection died before it answered anything: it may have died before it got the request.
    Unanswered,
    /// The endpoint says that it has not begun the request.
    Refused,
    /// Nothing of a response went down, and the request is to be sent again, which is counted already.
    Again(Failed),
    /// Nothing of a response went down.
    Failed(Failure),
    /// The response broke off, and the client must notice.
    Broken(Termination),
    /// The endpoint opened the tunnel, and the client was told. Only where one was asked for.
    Opened(Box<(S, Behind)>),
}

impl<S> Responded<S> {
    /// Whether the endpoint's deadline passed.
    const fn is_late(&self) -> bool {
        match self {
            Self::Failed(Failure { termination, .. }) | Self::Broken(termination) => {
                matches!(termination, Termination::UpstreamTimeout)
            }
            Self::Again(failed) => matches!(failed, Failed::Timeout),
            _ => false,
        }
    }

    /// Whether the endpoint broke its word.
    const fn is_endpoints_fault(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.is_endpoints_fault(),
            Self::Broken(why) => matches!(why, Termination::UpstreamFailed | Termination::UpstreamTimeout),
            // An idle connection that had died says nothing of the endpoint.
            Self::Again(failed) => matches!(failed, Failed::Reset | Failed::Timeout),
            _ => false,
        }
    }
}

/// Why a response broke off whose body failed so.
pub(super) const fn broken_by(error: BodyError) -> Termination {
    match error {
        BodyError::SinkBroken => Termination::ClientAborted,
        BodyError::SinkStalled => Termination::WriteStalled,
        BodyError::SourceTimedOut => Termination::UpstreamTimeout,
        BodyError::Truncated | BodyError::SourceBroken | BodyError::Malformed(_) => {
            Termination::UpstreamFailed
        }
    }
}

/// The client is gone.
pub(super) struct Gone;

/// Runs `future` unless the client leaves first.
pub(super) async fn unless_gone<C: Client, T>(
    client: &C,
    mut future: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Gone> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => client.poll_gone(cx).map(|()| Err(Gone)),
    })
    .await
}

/// What comes of `acquire` unless the client leaves first. `whole`: the deadline of a request that was sent before, after which
/// it is not sent again.
pub(super) async fn acquire_in_time<C: Client, T>(
    client: &C,
    whole: Option<Instant>,
    acquire: Pin<&mut impl Future<Output = Result<T, AcquireError>>>,
) -> Result<Result<T, Failure>, Gone> {
    let acquire = unless_gone(client, acquire);
    let Some(whole) = whole else { return Ok(acquire.await?.map_err(cannot_acquire)) };
    let deadline = client.deadline();
    deadline.set(whole);
    match deadline.within(acquire).await {
        Ok(Ok(Ok(_))) if deadline.is_past() => Ok(Err(TIMED_OUT)),
        Ok(acquired) => Ok(acquired?.map_err(cannot_acquire)),
        Err(TimedOut) => Ok(Err(TIMED_OUT)),
    }
}

/// A request that goes to an endpoint, once. Counts its response; or, when it is dropped, that it got none.
pub(super) struct Attempt<'a> {
    context: &'a Context,
    serving: &'a Serving,
    line: &'a Line,
    pub(super) cluster: u16,
    route: u16,
    is_head: bool,
    opening: Option<&'a Opening>,
    /// Sent, and its response not counted.
    unanswered: Cell<bool>,
    /// The endpoint answered 5xx.
    is_error: Cell<bool>,
    /// The tries before left it less time than a try has.
    is_cut_short: bool,
    /// The request may be sent again, where the cluster wants it after what came.
    again: Option<Again>,
}

/// A request that can be sent again: it has no body, and repeating it does no harm or is wanted all the same.
struct Again {
    /// How often it was.
    retries: u32,
    /// Of the whole.
    deadline: Instant,
    /// A status that does not go down, as the request is sent again.
    status: Cell<Option<u16>>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.count(None);
    }
}

/// Bytes that moved; counted when it is dropped, also where a deadline cuts the exchange off.
pub(super) struct Counting<'a> {
    attempt: &'a Attempt<'a>,
    counter: ClusterCounter,
    pub(super) moved: Cell<u64>,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.attempt.add(self.counter, self.moved.get());
        match self.counter {
            ClusterCounter::SentBytes => self.attempt.line.received(self.moved.get()),
            _ => self.attempt.line.sent(self.moved.get()),
        }
    }
}

impl<'a> Attempt<'a> {
    /// `serving`: what the request began with; cluster and route are positions in it.
    pub(super) const fn new(
        context: &'a Context,
        serving: &'a Serving,
        line: &'a Line,
        (cluster, route): (u16, u16),
        is_head: bool,
    ) -> Self {
        Self {
            context,
            serving,
            line,
            cluster,
            route,
            is_head,
            opening: None,
            unanswered: Cell::new(false),
            is_error: Cell::new(false),
            is_cut_short: false,
            again: None,
        }
    }

    /// Sets the deadline of a request without a body, which is sent now. `may`: it may be sent again.
    pub(super) fn wait_for(&mut self, deadline: &Deadline, tried: &mut Tried, may: bool) {
        let Some(spec) = self.serving.upstreams.spec(self.cluster) else { return };
        let now = self.context.runtime.now();
        let (this_try, whole) = tried.deadlines(spec, now);
        deadline.set(this_try);
        // The time that a connection took to turn out dead is no reason to spare who is mute then.
        self.is_cut_short = this_try < now + spec.try_timeout() * 9 / 10;
        let may = may || spec.retry.non_idempotent;
        let (retries, status) = (tried.retries(), Cell::new(None));
        self.again = may.then_some(Again { retries, deadline: whole, status });
    }

    /// `failure`, unless the request is sent again instead.
    fn failed_or_again<S>(&self, failed: Failed, failure: Failure) -> Responded<S> {
        if self.goes_again(failed) { Responded::Again(failed) } else { Responded::Failed(failure) }
    }

    /// Whether the request is sent again after this; counts that it is.
    fn goes_again(&self, failed: Failed) -> bool {
        let Some(again) = &self.again else { return false };
        self.context.runtime.now() < again.deadline
            && self.serving.upstreams.goes_again(self.cluster, again.retries, failed)
    }

    fn to_open(context: &'a Context, serving: &'a Serving, opening: &'a Opening) -> Self {
        let mut attempt = Self::new(context, serving, &opening.line, (opening.cluster, opening.route), false);
        attempt.opening = Some(opening);
        attempt
    }

    /// Counts the head of the request, which goes up.
    pub(super) fn sent(&self, head: &[u8]) {
        self.unanswered.set(true);
        self.add(ClusterCounter::SentBytes, head.len() as u64);
    }

    fn count(&self, status: Option<u16>) {
        if self.unanswered.replace(false) {
            self.is_error.set(status.is_some_and(|status| status >= 500));
            self.serving.upstreams.counts(self.cluster).response(status);
        }
    }

    pub(super) fn add(&self, counter: ClusterCounter, count: u64) {
        self.serving.upstreams.counts(self.cluster).add(counter, count);
    }

    /// How fast the response's body has to come, and to go.
    pub(super) fn response_pace(&self, sink_stall: Duration) -> Pace {
        let timeout = self.serving.upstreams.spec(self.cluster).map(|spec| spec.request_timeout);
        Pace { source_idle: timeout.unwrap_or_default(), source_bytes_per_s_min: 0, sink_stall }
    }

    /// Counts bytes of a body, however its transfer ends.
    pub(super) const fn counting(&'a self, counter: ClusterCounter) -> Counting<'a> {
        Counting { attempt: self, counter, moved: Cell::new(0) }
    }

    /// Whether it says nothing of the endpoint that it was late.
    fn excuses<S>(&self, responded: &Responded<S>) -> bool {
        // A body that stands still has a deadline of its own.
        let is_cut_short = self.is_cut_short && !matches!(responded, Responded::Broken(_));
        responded.is_late() && (is_cut_short || self.serving.upstreams.excuses(self.cluster))
    }

    /// Reports what the endpoint made of the request.
    pub(super) fn judge_connection<S>(&self, connection: &Connection, responded: &Responded<S>) {
        let upstreams = &self.serving.upstreams;
        match responded {
            Responded::Complete { .. } | Responded::Opened(_) | Responded::Again(Failed::Status(_)) => {
                upstreams.on_answer(connection, self.is_error.get());
            }
            _ if self.excuses(responded) => {}
            _ if responded.is_endpoints_fault() => upstreams.on_failure(connection),
            // An idle connection that had died says nothing of the endpoint, nor does what the client did.
            _ => {}
        }
    }

    /// As `judge_connection`, for a stream.
    pub(super) fn judge_stream<S>(&self, exchange: &Exchange, responded: &Responded<S>, tried: &mut Tried) {
        let upstreams = &self.serving.upstreams;
        if matches!(responded, Responded::Again(failed) if *failed != Failed::ResetBeforeRequest) {
            tried.spare(exchange.endpoint());
        }
        match responded {
            Responded::Complete { .. } | Responded::Opened(_) | Responded::Again(Failed::Status(_)) => {
                upstreams.on_stream_answer(exchange, self.is_error.get());
            }
            Responded::Refused | Responded::Unanswered | Responded::Again(Failed::ResetBeforeRequest) => {
                upstreams.on_stream_refusal(exchange, tried);
            }
            _ if self.excuses(responded) => {}
            _ if responded.is_endpoints_fault() => upstreams.on_stream_failure(exchange),
            _ => {}
        }
    }

    /// Sends the request's head on a stream.
    ///
    /// # Errors
    /// What became of it instead.
    pub(super) fn send<S>(
        &self,
        exchange: &mut Exchange,
        head: &[u8],
        te_trailers: bool,
        ended: bool,
    ) -> Result<(Call, Sender), Responded<S>> {
        let tls = self.serving.upstreams.spec(self.cluster).is_some_and(|spec| spec.tls.is_some());
        let scheme = if tls { "https" } else { "http" };
        let endpoint = exchange.endpoint();
        let sent = send_request(
            &mut exchange.slot,
            head,
            endpoint,
            scheme,
            te_trailers,
            ended,
            &self.context.usual_fields,
        );
        if sent.is_ok() {
            self.sent(head);
        }
        sent.map_err(|fault| match fault {
            StreamFault::Refused => Responded::Refused,
            StreamFault::Unsendable => Responded::Failed(UNSENDABLE),
            StreamFault::TooManyFields => Responded::Failed(TOO_MANY_FIELDS),
            _ => Responded::Failed(UNANSWERED),
        })
    }

    /// Brings the response that comes on a connection to the client.
    pub(super) async fn respond<C: Client>(&self, client: &C, connection: &Connection) -> Responded<C::Side> {
        self.line.asked(connection.endpoint());
        match self.head_from_connection(client, connection).await {
            Ok((plan, rest)) if plan.opens => opened(client, plan, Behind::Connection(rest)),
            Ok((plan, rest)) => client.deliver(self, plan, ResponseBody::Connection(connection, rest)).await,
            Err(responded) => responded,
        }
    }

    /// As `respond`, for one that comes on a stream.
    pub(super) async fn respond_from_stream<C: Client>(
        &self,
        client: &C,
        exchange: &Exchange,
        call: &mut Call,
    ) -> Responded<C::Side> {
        self.line.asked(exchange.endpoint());
        match self.head_from_stream(client, exchange, call).await {
            Ok((plan, receiver)) if plan.opens => opened(client, plan, Behind::Stream(receiver)),
            Ok((plan, mut receiver)) => client.deliver(self, plan, ResponseBody::Stream(&mut receiver)).await,
            Err(responded) => responded,
        }
    }

    /// The final response's head, and what came behind it.
    async fn head_from_connection<C: Client>(
        &self,
        client: &C,
        connection: &Connection,
    ) -> Result<(Plan<C::Head>, RecvBuf), Responded<C::Side>> {
        let runtime = &self.context.runtime;
        let receive = || client.deadline().within(connection.stream.recv());
        let mut interim_left = limits::INTERIM_RESPONSES_MAX;
        let sent_at = runtime.now();
        let mut first = match receive().await {
            Ok(Ok(buf)) if !buf.is_empty() => buf,
            Ok(_) if connection.reused && self.goes_again(Failed::ResetBeforeRequest) => {
                return Err(Responded::Again(Failed::ResetBeforeRequest));
            }
            Ok(_) if connection.reused => return Err(Responded::Unanswered),
            Ok(_) => return Err(self.failed_or_again(Failed::Reset, UNANSWERED)),
            Err(TimedOut) => return Err(self.failed_or_again(Failed::Timeout, TIMED_OUT)),
        };
        self.context.shard.observe(Histogram::UpstreamFirstByte, runtime.now().since(sent_at));
        self.line.first_byte(runtime.now().since(sent_at));
        loop {
            let mut input = HeadInput::new(runtime, first);
            let plan = loop {
                match self.plan(client, input.bytes()) {
                    Ok(Parsed::Complete(plan)) => break plan,
                    Ok(Parsed::Partial) => {}
                    Err(reject) => return Err(self.unplanned(reject)),
                }
                let bytes_max = client.serving().head_limits.head_bytes_max;
                match input.more(&connection.stream, client.deadline(), bytes_max).await {
                    Ok(()) => {}
                    Err(HeadError::TimedOut) => {
                        return Err(self.failed_or_again(Failed::Timeout, TIMED_OUT));
                    }
                    Err(HeadError::Ended | HeadError::Broken) => return Err(Responded::Failed(UNANSWERED)),
                }
            };
            let rest = input.rest(plan.head_len);
            self.add(ClusterCounter::ReceivedBytes, plan.head_len as u64);
            if !plan.interim {
                self.count(Some(plan.status));
                return Ok((plan, rest));
            }
            another(&mut interim_left)?;
            client.inform(plan);
            first = rest;
            if first.is_empty() {
                first = match receive().await {
                    Ok(Ok(buf)) if !buf.is_empty() => buf,
                    Ok(_) => return Err(Responded::Failed(UNANSWERED)),
                    Err(TimedOut) => return Err(Responded::Failed(TIMED_OUT)),
                };
            }
        }
    }

    /// As `head_from_connection`, from a stream.
    async fn head_from_stream<C: Client>(
        &self,
        client: &C,
        exchange: &Exchange,
        call: &mut Call,
    ) -> Result<(Plan<C::Head>, Receiver), Responded<C::Side>> {
        let runtime = &self.context.runtime;
        let mut interim_left = limits::INTERIM_RESPONSES_MAX;
        let sent_at = runtime.now();
        let mut answered = false;
        loop {
            let next = match client.deadline().within(exchange.slot.answered(call)).await {
                Ok(Ok(next)) => next,
                Ok(Err(StreamFault::Refused)) => return Err(Responded::Refused),
                Ok(Err(StreamFault::Disconnected)) if exchange.slot.reused && !answered => {
                    let failed = Failed::ResetBeforeRequest;
                    let again = self.goes_again(failed);
                    return Err(if again { Responded::Again(failed) } else { Responded::Unanswered });
                }
                Ok(Err(_)) if !answered => return Err(self.failed_or_again(Failed::Reset, UNANSWERED)),
                Ok(Err(_)) => return Err(Responded::Failed(UNANSWERED)),
                Err(TimedOut) => return Err(self.failed_or_again(Failed::Timeout, TIMED_OUT)),
            };
            if !std::mem::replace(&mut answered, true) {
                self.context.shard.observe(Histogram::UpstreamFirstByte, runtime.now().since(sent_at));
                self.line.first_byte(runtime.now().since(sent_at));
            }
            let (head, receiver) = match next {
                Answered::Interim(head) => (head, None),
                Answered::Final(head, receiver) => (head, Some(receiver)),
            };
            let ended = receiver.as_ref().is_none_or(Receiver::is_ended);
            let asked = Asked { is_head: self.is_head, opening: self.opening };
            let plan = response_in_neutral_form(runtime, &head, ended, asked, |bytes| {
                self.add(ClusterCounter::ReceivedBytes, bytes.len() as u64);
                self.plan(client, bytes)
            });
            let plan = match plan {
                Ok(Parsed::Complete(plan)) => plan,
                Ok(Parsed::Partial) => {
                    return Err(Responded::Failed(invalid(Reject::HEAD_TOO_LARGE.by_upstream())));
                }
                Err(reject) => return Err(self.unplanned(reject)),
            };
            match receiver {
                Some(receiver) if !plan.interim => {
                    self.count(Some(plan.status));
                    return Ok((plan, receiver));
                }
                None if plan.interim => {
                    another(&mut interim_left)?;
                    client.inform(plan);
                }
                _ => return Err(Responded::Failed(invalid(Reject::BAD_STATUS_LINE.by_upstream()))),
            }
        }
    }

    /// Parses a response head in the neutral form and makes the one that the client gets.
    fn plan<C: Client>(&self, client: &C, bytes: &[u8]) -> Result<Parsed<Plan<C::Head>>, Reject> {
        let mut slots = FieldSlots::new();
        let serving = client.serving();
        let bodyless = self.is_head || self.opening.is_some_and(|opening| opening.is_bodyless(bytes));
        let mut head = match parse_response(bytes, &mut slots, &serving.head_limits, bodyless)? {
            Parsed::Complete(head) => head,
            Parsed::Partial => return Ok(Parsed::Partial),
        };
        if !head.interim && self.goes_again_after(head.status) {
            return Err(Reject::BAD_STATUS_LINE.by_upstream());
        }
        let opens = match self.opening {
            Some(opening) => opening.is_opened_by(&head)?,
            // Nobody asked for it: what follows is not HTTP.
            None if head.upgrade => return Err(Reject::BAD_STATUS_LINE.by_upstream()),
            None => false,
        };
        if opens {
            // RFC 9110 §9.3.6: a tunnel has no length.
            head.content_length = None;
        }
        let route = serving.snapshot.routes.routes().get(usize::from(self.route));
        let to_client = match route {
            Some(route) => client.rewrite(&head, opens, &route.response_edits),
            None => client.rewrite(&head, opens, &FieldEdits::default()),
        }?;
        Ok(Parsed::Complete(Plan {
            status: head.status,
            head_len: head.head_len,
            interim: head.interim,
            framing: head.framing,
            reusable: head.keep_alive,
            opens,
            to_client,
        }))
    }
}

impl Attempt<'_> {
    /// Whether a status does not go down, as the request is sent again.
    fn goes_again_after(&self, status: u16) -> bool {
        let Some(again) = &self.again else { return false };
        if !self.goes_again(Failed::Status(status)) {
            return false;
        }
        again.status.set(Some(status));
        self.count(Some(status));
        true
    }

    /// What comes of a response that does not go down.
    fn unplanned<S>(&self, reject: Reject) -> Responded<S> {
        match self.again.as_ref().and_then(|again| again.status.take()) {
            Some(status) => Responded::Again(Failed::Status(status)),
            None => Responded::Failed(invalid(reject)),
        }
    }
}

/// Takes one from the interim responses that an endpoint may send.
fn another<S>(left: &mut u32) -> Result<(), Responded<S>> {
    match left.checked_sub(1) {
        Some(fewer) => *left = fewer,
        None => return Err(Responded::Failed(invalid(Reject::BAD_STATUS_LINE.by_upstream()))),
    }
    Ok(())
}

fn opened<C: Client>(client: &C, plan: Plan<C::Head>, behind: Behind) -> Responded<C::Side> {
    match client.tell_opened(plan) {
        Some(side) => Responded::Opened(Box::new((side, behind))),
        None => Responded::Broken(Termination::ClientAborted),
    }
}

/// A tunnel that an endpoint opened, of which the client knows.
pub(super) struct Opened<S> {
    pub(super) side: S,
    pub(super) upward: Upward,
    pub(super) first_down: Option<RecvBuf>,
}

/// What came instead of a tunnel.
pub(super) enum NotOpened {
    Gone,
    /// The client's handshake is not one that we can answer.
    Unanswerable(Handshake),
    /// Another response, which went down whole.
    Answered,
    Broken(Termination),
    Failed(Failure),
    /// As `Responded::Refused`.
    Refused,
}

impl From<Gone> for NotOpened {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl<S> From<Responded<S>> for NotOpened {
    fn from(responded: Responded<S>) -> Self {
        match responded {
            Responded::Complete { .. } => Self::Answered,
            Responded::Broken(why) => Self::Broken(why),
            Responded::Failed(failure) => Self::Failed(failure),
            Responded::Refused => Self::Refused,
            Responded::Unanswered | Responded::Again(_) | Responded::Opened(_) => Self::Failed(UNANSWERED),
        }
    }
}

/// Has an endpoint open a tunnel: asked on a connection or a stream of its own, and another one while they say that
/// they have not begun.
///
/// # Errors
/// What came instead.
pub(super) async fn open<C: Client>(
    client: &C,
    context: &Rc<Context>,
    opening: &Opening,
    mut tried: Tried,
) -> Result<Opened<C::Side>, NotOpened> {
    let serving = client.serving();
    let upstreams = &serving.upstreams;
    loop {
        let acquired = {
            let acquire = pin!(opening.acquire(upstreams, &mut tried));
            unless_gone(client, acquire).await?
        };
        let attempt = Attempt::to_open(context, serving, opening);
        let asked = match acquired {
            Err(error) => return Err(NotOpened::Failed(cannot_acquire(error))),
            Ok(Acquired::Connection(connection)) => {
                attempt.open_on_connection(client, opening, connection).await
            }
            Ok(Acquired::Stream(exchange)) => {
                attempt.open_on_stream(client, opening, exchange, &mut tried).await
            }
        };
        match asked {
            Err(NotOpened::Refused)
                if upstreams.goes_again(opening.cluster, tried.retries(), Failed::Refused) =>
            {
                tried.again();
            }
            Err(NotOpened::Refused) => return Err(NotOpened::Failed(UNANSWERED)),
            asked => return asked,
        }
    }
}

impl Attempt<'_> {
    /// Sets the deadline of the response's head.
    fn set_deadline<C: Client>(&self, client: &C) {
        let runtime = &self.context.runtime;
        let timeout = self.serving.upstreams.spec(self.cluster).map(|spec| spec.request_timeout);
        client.deadline().set(runtime.now() + timeout.unwrap_or_default());
    }

    /// Asks for a tunnel on a connection, which is closed unless it becomes the tunnel: nothing else ever goes over it.
    async fn open_on_connection<C: Client>(
        &self,
        client: &C,
        opening: &Opening,
        connection: Connection,
    ) -> Result<Opened<C::Side>, NotOpened> {
        let with_key = (!C::BRINGS_KEY).then(|| opening.head_with_key(self.context));
        let head = with_key.as_ref().unwrap_or(&opening.head);
        self.sent(head);
        connection.stream.send(head, false);
        with_key.into_iter().for_each(|head| self.context.runtime.put_block(head));
        self.set_deadline(client);
        let responded = {
            let respond = pin!(self.respond(client, &connection));
            unless_gone(client, respond).await
        };
        if let Ok(responded) = &responded {
            self.judge_connection(&connection, responded);
        }
        match responded {
            Ok(Responded::Opened(opened)) => match *opened {
                (side, Behind::Connection(first)) => {
                    Ok(Opened { side, upward: Upward::Connection(connection), first_down: Some(first) })
                }
                (_, Behind::Stream(_)) => Err(NotOpened::Failed(UNANSWERED)),
            },
            Ok(responded) => {
                connection.abort();
                Err(responded.into())
            }
            Err(Gone) => {
                connection.abort();
                Err(NotOpened::Gone)
            }
        }
    }

    /// As `open_on_connection`, on a stream.
    async fn open_on_stream<C: Client>(
        &self,
        client: &C,
        opening: &Opening,
        mut exchange: Exchange,
        tried: &mut Tried,
    ) -> Result<Opened<C::Side>, NotOpened> {
        if C::BRINGS_KEY {
            opening.take_key().map_err(NotOpened::Unanswerable)?;
        }
        self.set_deadline(client);
        if !opening.is_connect() {
            let asking = pin!(client.deadline().within(exchange.slot.takes_extended_connect()));
            match unless_gone(client, asking).await? {
                Ok(true) => {}
                Ok(false) => return Err(NotOpened::Failed(NO_TUNNELS)),
                Err(TimedOut) => return Err(NotOpened::Failed(TIMED_OUT)),
            }
        }
        let sent = self.send(&mut exchange, &opening.head, false, false);
        let (responded, sender) = match sent {
            Ok((mut call, sender)) => {
                let respond = pin!(self.respond_from_stream(client, &exchange, &mut call));
                (unless_gone(client, respond).await, Some(sender))
            }
            Err(responded) => (Ok(responded), None),
        };
        if let Ok(responded) = &responded {
            self.judge_stream(&exchange, responded, tried);
        }
        match (responded, sender) {
            (Ok(Responded::Opened(opened)), Some(sender)) => match *opened {
                (side, Behind::Stream(receiver)) => {
                    let upward = Upward::Stream { exchange, receiver, sender };
                    Ok(Opened { side, upward, first_down: None })
                }
                (_, Behind::Connection(_)) => Err(NotOpened::Failed(UNANSWERED)),
            },
            (responded, sender) => {
                if let Some(mut sender) = sender {
                    sender.reset(CANCEL);
                }
                Err(responded?.into())
            }
        }
    }
}
