//! A downstream HTTP/2 connection: the crate's state machine driven by one task, each stream a task beside it. Watches
//! what the crate does not: floods, field blocks and writes that stall, idleness, drain.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use h2::Reason;
use h2::server::{Builder, Connection};

use crate::base::time::Instant;
use crate::base::units::KIB;
use crate::limits;
use crate::metrics::{Drained, ListenerCounter, ListenerGauge, Shed};
use crate::runtime::{Deadline, Socket, TimedOut};

use super::super::access::Line;
use super::super::body::drained;
use super::super::connections::Doing;
use super::super::context::{Context, SessionGuard};
use super::super::facts::Facts;
use super::super::outcome::Termination;
use super::super::stream::Stream;
use super::super::turnstile::Turnstile;
use super::exchange;
use super::io::{BYTES_WITH_FIELDS_A_TURN, Io, Link, Stall};
use super::piece::Piece;
use super::tap::Tap;

/// What a client begins with that speaks HTTP/2 (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection that ends stays, so that our last frames reach the client.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes read meanwhile: a flood is read no longer.
const LINGER_BYTES_MAX: usize = 256 * KIB;
/// How often it is asked from then on whether the frames have arrived.
const LINGER_LOOK: Duration = Duration::from_millis(20);
/// What a connection is taken to cost beside its streams: the crate's buffers and tables.
const CONNECTION_BYTES: usize = 32 * KIB;
/// What a stream is taken to cost beside receive buffers and its window: its task, its state in the crate.
const STREAM_BYTES: usize = 6 * KIB;

/// One downstream connection.
pub struct Http2 {
    session: Rc<Session>,
    link: Rc<Link>,
    deadline: Deadline,
}

/// What the streams of one connection share.
pub(super) struct Session {
    pub(super) guard: SessionGuard,
    pub(super) facts: RefCell<Facts>,
    /// What its streams pass that make a connection to an endpoint: as many may come at once as it has streams.
    pub(super) pace: Turnstile,
    /// Streams whose task has not ended: until then they count, whatever their peer did to them (CVE-2023-44487).
    live: Cell<u32>,
    /// Those of them whose request has a body, so that its peer may fill their window.
    with_body: Cell<u32>,
    /// Streams since the driver looked last that cost more than their frames: responses that were not taken in time,
    /// heads of too many fields.
    offences: Cell<u32>,
    /// Streams that ended since the driver looked last.
    ended: Cell<u32>,
}

impl Session {
    /// A stream cost more than its frames.
    pub(super) fn note_offence(&self) {
        self.offences.set(self.offences.get() + 1);
    }

    /// What all windows together can hold, which the crate keeps until somebody takes it.
    fn window_bytes(&self) -> usize {
        let streams = self.with_body.get() as usize * limits::HTTP2_STREAM_WINDOW_BYTES as usize;
        streams.min(limits::HTTP2_CONNECTION_WINDOW_BYTES as usize)
    }

    fn count_body(&self, count: impl Fn(u32) -> u32) {
        let runtime = &self.context().runtime;
        runtime.discharge(self.window_bytes());
        self.with_body.set(count(self.with_body.get()));
        runtime.charge(self.window_bytes());
    }

    fn context(&self) -> &Rc<Context> {
        self.guard.context()
    }
}

/// One stream's task, counted and charged until it ends.
pub(super) struct Live {
    pub(super) session: Rc<Session>,
    has_body: bool,
}

impl Live {
    fn new(session: &Rc<Session>, has_body: bool) -> Self {
        session.live.set(session.live.get() + 1);
        session.context().runtime.charge(STREAM_BYTES);
        let shard = session.guard.counts();
        shard.gauge_add(ListenerGauge::Http2StreamsActive, 1);
        if has_body {
            session.count_body(|count| count + 1);
        }
        Self { session: session.clone(), has_body }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let session = &self.session;
        if self.has_body {
            session.count_body(|count| count - 1);
        }
        session.live.set(session.live.get() - 1);
        session.ended.set(session.ended.get() + 1);
        session.context().runtime.discharge(STREAM_BYTES);
        let shard = session.guard.counts();
        shard.gauge_add(ListenerGauge::Http2StreamsActive, -1);
    }
}

/// The connection's own memory, charged until it ends.
struct Charged<'a>(&'a Context);

impl Drop for Charged<'_> {
    fn drop(&mut self) {
        self.0.runtime.discharge(CONNECTION_BYTES);
    }
}

impl Http2 {
    pub fn new(guard: SessionGuard, stream: Stream, facts: Facts) -> Self {
        let context = guard.context();
        let glitches_max = context.serving().snapshot.http.http2_glitches_max;
        let tap = Tap::new(PREFACE.len(), 0, glitches_max, context.runtime.now());
        let link = Link::new(&context.runtime, stream, tap, BYTES_WITH_FIELDS_A_TURN);
        let deadline = context.runtime.deadline();
        let pace = Turnstile::new(&context.runtime, limits::HTTP2_CONNECTS_PER_TURN_MAX);
        let facts = RefCell::new(facts);
        let (live, with_body, offences, ended) = Default::default();
        let session = Session { guard, facts, pace, live, with_body, offences, ended };
        Self { session: Rc::new(session), link, deadline }
    }

    /// Serves until the connection ends.
    pub async fn serve(self) {
        let context = self.session.context().clone();
        context.runtime.charge(CONNECTION_BYTES);
        let _charged = Charged(&context);
        let shard = self.session.guard.counts();
        shard.add(ListenerCounter::Http2Connections, 1);
        self.session.guard.does(Doing::Http2);
        let termination = match self.learn_peer() {
            true => self.run(&context).await,
            false => Termination::ClientAborted,
        };
        self.session.guard.ended(termination);
        {
            let tap = self.link.tap.borrow();
            shard.add(ListenerCounter::Http2Glitches, tap.glitches_total());
            shard.add(ListenerCounter::Http2GoawaysSent, tap.goaways_sent());
        }
        shard.add(ListenerCounter::ReceivedBytes, self.link.received_bytes.get());
        shard.add(ListenerCounter::SentBytes, self.link.sent_bytes.get());
        self.finish(&context, termination).await;
    }

    /// Asks the kernel for the client's addresses, once for all streams. `false`: the client is gone.
    fn learn_peer(&self) -> bool {
        let mut facts = self.session.facts.borrow_mut();
        let socket = self.link.stream().socket();
        facts.learn_peer(socket).is_some() && facts.learn_ends(socket).is_some()
    }

    async fn run(&self, context: &Rc<Context>) -> Termination {
        let serving = context.serving();
        let spec = &serving.snapshot.http;
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(spec.http2_streams_max)
            .max_header_list_size(u32::try_from(spec.head_bytes_max).unwrap_or(u32::MAX))
            .initial_window_size(limits::HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW_BYTES)
            .data_frame_budget(limits::HTTP2_SMALL_FRAMES_BYTES_MAX)
            .max_send_buffer_size(limits::HTTP2_STREAM_SEND_BYTES_MAX)
            .max_local_error_reset_streams(Some(spec.http2_glitches_max as usize))
            .max_concurrent_reset_streams(limits::HTTP2_RESET_STREAMS_REMEMBERED_MAX);
        if serving.changes_protocols {
            builder.enable_connect_protocol();
        }
        self.deadline.set(context.runtime.now() + self.session.guard.timeouts().header);
        let connection = {
            let mut handshake = pin!(builder.handshake::<Io, Piece>(Io(self.link.clone())));
            let shaken = std::future::poll_fn(|cx| {
                self.link.begin_turn();
                let shaken = handshake.as_mut().poll(cx);
                self.link.push();
                shaken
            });
            match self.deadline.within(shaken).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) if error.is_io() => return Termination::ClientAborted,
                Ok(Err(_)) => return Termination::ProtocolError,
                Err(TimedOut) => return Termination::FirstByteTimeout,
            }
        };
        let now = context.runtime.now();
        let mut driver = Driver {
            connection,
            session: &self.session,
            link: &self.link,
            deadline: &self.deadline,
            requests: 0,
            streams_max: spec.http2_streams_max,
            requests_max: spec.requests_per_connection_max,
            begun: now,
            idle_since: now,
            block: (0, now),
            unsent: Stall::new(now),
            left: (0, now),
            going: None,
        };
        std::future::poll_fn(|cx| driver.poll(cx)).await
    }

    /// Leaves the connection: in peace where our last frames can still arrive, else with RST.
    async fn finish(self, context: &Context, termination: Termination) {
        let Self { session, link, deadline } = self;
        let write_stall = session.guard.timeouts().write_stall;
        // Streams hold no link, and the crate's connection is gone.
        let Some(stream) = Rc::into_inner(link).map(Link::into_stream) else { return };
        match termination {
            Termination::WriteStalled | Termination::ClientAborted => return stream.abort(),
            Termination::ClientClosed => return stream.close(),
            _ => {}
        }
        let delivered = match termination {
            // Whole responses may be on their way to a client that is slow: as long as it takes some of them.
            Termination::Drained
            | Termination::Moved
            | Termination::RequestsMax
            | Termination::IdleTimeout => {
                drained(&context.runtime, &stream, &deadline, write_stall).await.is_ok()
            }
            _ => {
                deadline.set(context.runtime.now() + LINGER);
                let delivered = std::future::poll_fn(|cx| stream.poll_sent(0, cx));
                matches!(deadline.within(delivered).await, Ok(Ok(())))
            }
        };
        drop(session);
        if !delivered {
            return stream.abort();
        }
        stream.shutdown_write();
        let until = context.runtime.now() + LINGER;
        deadline.set(until);
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match deadline.within(stream.recv()).await {
                Ok(Ok(buf)) if !buf.is_empty() => left = left.saturating_sub(buf.len()),
                _ => return,
            }
        }
        // To close now is RST, and that takes along what the client's kernel had no room for yet.
        let waits = |socket: &Socket| socket.unacknowledged() > 0 && socket.peer_address().is_ok();
        while waits(stream.socket()) && context.runtime.now() < until {
            context.runtime.sleep_until(until.min(context.runtime.now() + LINGER_LOOK)).await;
        }
    }
}

/// Drives the crate's connection.
struct Driver<'a> {
    connection: Connection<Io, Piece>,
    session: &'a Rc<Session>,
    link: &'a Link,
    deadline: &'a Deadline,
    requests: u32,
    streams_max: u32,
    requests_max: u32,
    begun: Instant,
    /// Since when there has been no stream.
    idle_since: Instant,
    /// The number of the field block that is being received, and since when.
    block: (u64, Instant),
    unsent: Stall,
    /// DATA frames sent, and since when no other, or none were owed by streams whose task has ended.
    left: (u64, Instant),
    /// Why and since when the connection ends: no new streams are promised.
    going: Option<(Termination, Instant)>,
}

/// A deadline of the connection has passed.
enum Overdue {
    /// The client may begin no more.
    Idle,
    /// A field block has begun and does not end.
    Block,
    /// Our SETTINGS are not acknowledged (RFC 9113 §6.5.3).
    Settings,
    Stalled,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Termination> {
        let context = self.session.context().clone();
        let now = context.runtime.now();
        if self.going.is_none() && self.session.guard.is_draining() {
            context.shard.drained(Drained::Shutdown);
            self.go(Termination::Drained, now);
        }
        let ended = self.session.ended.take();
        if ended > 0 && self.going.is_none() && context.door.drains(&context.runtime, ended) {
            self.go(Termination::Moved, now);
        }
        self.link.begin_turn();
        let mut ended = self.advance(cx, now);
        let violation = self.link.tap.borrow().violation();
        if let (None, Some(violation)) = (ended, violation) {
            ended = self.leave(cx, Termination::ProtocolError, violation.reason());
        }
        self.link.tap.borrow_mut().offended(self.session.offences.take());
        if ended.is_none() && self.link.tap.borrow_mut().is_excessive(now) {
            ended = self.leave(cx, Termination::Flooded, Reason::ENHANCE_YOUR_CALM);
        }
        self.link.push();
        if let Some(termination) = ended {
            return Poll::Ready(termination);
        }
        loop {
            // Idle only once all has gone.
            if !self.has_streams() && self.link.unsent() > 0 {
                let _ = self.link.poll_sent(cx);
            }
            let (due, overdue) = self.due(now);
            self.deadline.set(due);
            if self.deadline.poll_past(cx).is_pending() {
                return Poll::Pending;
            }
            let left = match overdue.filter(|_| now >= due) {
                Some(Overdue::Stalled) => return Poll::Ready(Termination::WriteStalled),
                Some(Overdue::Settings) => {
                    self.leave(cx, Termination::HeaderTimeout, Reason::SETTINGS_TIMEOUT)
                }
                Some(Overdue::Block) => self.leave(cx, Termination::HeaderTimeout, Reason::ENHANCE_YOUR_CALM),
                Some(Overdue::Idle) => {
                    let termination = match self.going {
                        Some((termination, _)) => termination,
                        None if self.requests == 0 => Termination::FirstByteTimeout,
                        None => Termination::IdleTimeout,
                    };
                    self.leave(cx, termination, Reason::NO_ERROR)
                }
                None => None,
            };
            self.link.push();
            if let Some(termination) = left {
                return Poll::Ready(termination);
            }
        }
    }

    /// Lets the crate read, write and hand out streams. Why the connection ended, if it did.
    fn advance(&mut self, cx: &mut TaskContext<'_>, now: Instant) -> Option<Termination> {
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin_stream(request, respond, now),
                Poll::Ready(Some(Err(error))) => return Some(self.end_of(&error)),
                Poll::Ready(None) => {
                    return Some(
                        self.going.map_or(Termination::ClientClosed, |(termination, _)| termination),
                    );
                }
                Poll::Pending => break,
            }
        }
        if self.has_streams() {
            self.idle_since = now;
        } else {
            self.link.rest();
        }
        None
    }

    /// Whether a stream is served, or has something on its way out that the client's window holds back.
    fn has_streams(&self) -> bool {
        self.session.live.get() > 0 || self.connection.has_streams()
    }

    /// Whether nothing is on its way out either.
    fn is_idle(&self) -> bool {
        !self.has_streams() && self.link.unsent() == 0
    }

    fn begin_stream(
        &mut self,
        request: http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Piece>,
        now: Instant,
    ) {
        let context = self.session.context();
        let memory_bytes_max = context.serving().snapshot.limits.memory_bytes_max;
        let memory_bytes = context.runtime.charged() + context.runtime.buffer_stats().bytes_in_use;
        let grace = context.serving().snapshot.drain.idle_grace;
        // The client was told long ago that there is no more.
        let late = self.going.is_some_and(|(_, since)| now.since(since) > grace);
        let is_crowded = self.session.live.get() >= self.streams_max;
        let is_full = late || memory_bytes >= memory_bytes_max;
        if is_crowded || is_full || !context.door.admits(&context.runtime, Shed::Http2) {
            if !is_crowded {
                self.link.tap.borrow_mut().pardon();
            }
            Line::of_request(&self.session.guard, &context.serving(), now).ended(Termination::Shed);
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        self.session.guard.counts().add(ListenerCounter::Http2Streams, 1);
        self.requests = self.requests.saturating_add(1);
        let live = Live::new(self.session, !request.body().is_end_stream());
        context.runtime.spawn_often(move || exchange::run(live, request, respond));
        if self.going.is_none() && self.requests >= self.requests_max {
            self.go(Termination::RequestsMax, now);
        }
    }

    /// Says that no more streams are taken: first with the highest id there is, and after a round trip with that of the
    /// last one that came (RFC 9113 §6.8). Those go on.
    fn go(&mut self, termination: Termination, now: Instant) {
        self.going = Some((termination, now));
        self.connection.graceful_shutdown();
    }

    /// Ends the connection at once, with a last GOAWAY.
    fn leave(
        &mut self,
        cx: &mut TaskContext<'_>,
        termination: Termination,
        reason: Reason,
    ) -> Option<Termination> {
        self.connection.abrupt_shutdown(reason);
        // What the crate says now is that it was told to end.
        let _ = self.connection.poll_closed(cx);
        Some(termination)
    }

    fn end_of(&self, error: &h2::Error) -> Termination {
        match error.reason() {
            _ if error.is_io() => Termination::ClientAborted,
            Some(Reason::ENHANCE_YOUR_CALM) if error.is_library() => Termination::Flooded,
            _ if error.is_library() => Termination::ProtocolError,
            _ => self.going.map_or(Termination::ClientClosed, |(termination, _)| termination),
        }
    }

    /// When to look again if nothing happens, and what is to be said then.
    fn due(&mut self, now: Instant) -> (Instant, Option<Overdue>) {
        let timeouts = self.session.guard.timeouts();
        let mut due = (Instant::FAR, None);
        let mut sooner = |at, overdue| {
            if at < due.0 {
                due = (at, Some(overdue));
            }
        };
        if let Some(since) = self.unsent.since(self.link, now) {
            sooner(since + timeouts.write_stall, Overdue::Stalled);
        }
        if let Some(since) = self.left_since(now) {
            sooner(since + timeouts.write_stall, Overdue::Stalled);
        }
        let (block, owes_ack) = {
            let tap = self.link.tap.borrow();
            (tap.open_block(), tap.owes_settings_ack())
        };
        if owes_ack {
            sooner(self.begun + timeouts.header, Overdue::Settings);
        }
        if let Some(block) = block {
            if block != self.block.0 {
                self.block = (block, now);
            }
            sooner(self.block.1 + timeouts.header, Overdue::Block);
        }
        if self.is_idle() {
            let at = match self.going {
                Some((_, since)) => self.session.guard.leaves_at(since, self.begun),
                None if self.requests == 0 => self.idle_since + timeouts.header,
                None => self.idle_since + timeouts.idle,
            };
            sooner(at, Overdue::Idle);
        }
        due
    }

    /// Since when streams whose task has ended wait for the client's window, which it may have shrunk or never open
    /// (RFC 9113 §6.9.2). Only DATA shows that it takes some: any other frame may answer one that it sends.
    fn left_since(&mut self, now: Instant) -> Option<Instant> {
        let data_sent = self.link.tap.borrow().data_sent();
        let waits = self.session.live.get() == 0 && self.connection.has_streams() && !self.link.is_full();
        if !waits || data_sent != self.left.0 {
            self.left = (data_sent, now);
        }
        waits.then_some(self.left.1)
    }
}
