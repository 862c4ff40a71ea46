//! A connection to an endpoint that carries many requests at once. One task drives it; each request holds a stream of
//! it. Never chooses endpoints and never retries: it says what is safe to send again.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use h2::client::{Builder, ResponseFuture, SendRequest};
use http::{Request, response};

use crate::base::time::Instant;
use crate::base::units::KIB;
use crate::limits;
use crate::runtime::Runtime;

use super::super::snapshot::{Cluster, HttpSpec};
use super::super::stream::Stream;
use super::io::{BYTES_WITH_RESPONSES_A_TURN, Io, Link, Stall};
use super::piece::Piece;
use super::server::PREFACE;
use super::stream::{Receiver, Sender, StreamFault};
use super::tap::Tap;

/// What a connection is taken to cost beside its streams.
const CONNECTION_BYTES: usize = 32 * KIB;

/// Requests that one connection carries before another takes its place: far below the 2^30 streams that it has numbers
/// for (RFC 9113 §5.1.1), and enough that making another costs nothing.
const REQUESTS_MAX: u64 = 1 << 20;

/// Empty DATA frames that the crate takes on a connection, ever (`MAX_RECV_EMPTY_DATA_FRAMES` of h2 0.4.20): it ends that which
/// brings another. Some servers send one before each trailer section.
const EMPTY_DATA_TAKEN: u64 = 100;
/// Those after which another connection takes its place.
const EMPTY_DATA_MAX: u64 = EMPTY_DATA_TAKEN / 2;

/// Whether so many responses on their way, and one more, may each bring one, where such came before.
const fn spares_empty_data(came: u64, streams: u64) -> bool {
    came == 0 || came + streams < EMPTY_DATA_TAKEN
}

/// As much as the windows of all streams together: however many clients read nothing, each further stream moves.
const fn connection_window_bytes(streams_max: u32) -> u32 {
    let bytes = streams_max.saturating_mul(limits::HTTP2_STREAM_WINDOW_BYTES);
    // RFC 9113 §6.9.1: no window is larger.
    if bytes > i32::MAX as u32 { i32::MAX as u32 } else { bytes }
}

/// Frames of streams that were reset count against it for ever, so it grows with the streams.
fn small_frames_bytes_max(streams_max: u32) -> usize {
    (connection_window_bytes(streams_max) as usize / 2).max(limits::HTTP2_SMALL_FRAMES_BYTES_MAX)
}

/// A connection shared by requests. Dropping it lets those that are on their way finish, and no others begin.
pub struct Multiplexed {
    send: SendRequest<Piece>,
    state: Rc<State>,
    streams_max: usize,
}

struct State {
    link: Rc<Link>,
    /// Requests that hold a stream.
    streams: Cell<u32>,
    /// Requests ever begun.
    begun: Cell<u64>,
    idle_since: Cell<Instant>,
    /// Carries no more requests.
    closed: Cell<bool>,
    /// Done once the endpoint's SETTINGS are known.
    greeted: Connecting<()>,
    /// A request that took this long and heard nothing shows that nobody is there.
    silence_max: Duration,
}

impl State {
    /// Whether it may carry another request, once there is room.
    fn is_alive(&self) -> bool {
        let tap = self.link.tap.borrow();
        !self.closed.get()
            && !is_spent(self.begun.get())
            && tap.goaway().is_none()
            && tap.empty_data() < EMPTY_DATA_MAX
    }
}

/// Whether a connection that `begun` requests went over is to be replaced.
const fn is_spent(begun: u64) -> bool {
    begun >= REQUESTS_MAX
}

// RFC 9113 §5.1.1: streams of a client have odd numbers of 31 bits.
const _: () = assert!(!is_spent(REQUESTS_MAX - 1) && is_spent(REQUESTS_MAX) && REQUESTS_MAX < 1 << 30);

impl Multiplexed {
    /// Begins HTTP/2 on a connection, and starts the task that drives it. `on_end` runs when it has ended,
    /// and learns whether it was left because the endpoint flooded it.
    ///
    /// # Errors
    /// When the connection breaks at once.
    pub async fn start(
        runtime: &Runtime,
        stream: Stream,
        spec: &Cluster,
        http: &HttpSpec,
        on_end: impl FnOnce(bool) + 'static,
    ) -> Result<Self, StreamFault> {
        let tap = Tap::new(0, PREFACE.len(), http.http2_glitches_max, runtime.now());
        let link = Link::new(runtime, stream, tap, BYTES_WITH_RESPONSES_A_TURN);
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .max_header_list_size(u32::try_from(http.head_bytes_max).unwrap_or(u32::MAX))
            .initial_window_size(limits::HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(connection_window_bytes(spec.http2_streams_max))
            .data_frame_budget(small_frames_bytes_max(spec.http2_streams_max))
            .max_send_buffer_size(limits::HTTP2_STREAM_SEND_BYTES_MAX)
            .max_concurrent_reset_streams(limits::HTTP2_RESET_STREAMS_REMEMBERED_MAX);
        let (send, connection) = {
            let mut handshake = pin!(builder.handshake::<Io, Piece>(Io(link.clone())));
            let shaken = std::future::poll_fn(|cx| {
                link.begin_turn();
                let shaken = handshake.as_mut().poll(cx);
                link.push();
                shaken
            });
            shaken.await.map_err(|error| StreamFault::from_error(&error))?
        };
        let state = Rc::new(State {
            link,
            streams: Cell::new(0),
            begun: Cell::new(0),
            idle_since: Cell::new(runtime.now()),
            closed: Cell::new(false),
            greeted: Connecting::default(),
            silence_max: spec.connect_timeout,
        });
        runtime.charge(CONNECTION_BYTES);
        let (driven, stall) = (state.clone(), spec.request_timeout);
        let own = runtime.clone();
        runtime.spawn(async move {
            let flooded = drive(&own, &driven, connection, stall).await;
            driven.closed.set(true);
            driven.greeted.finish(None);
            own.discharge(CONNECTION_BYTES);
            on_end(flooded);
        });
        Ok(Self { send, state, streams_max: spec.http2_streams_max as usize })
    }

    /// Whether another request may begin: it was not closed, nor told to go away, and has a stream left.
    pub fn has_room(&self) -> bool {
        let streams = self.state.streams.get() as usize;
        self.is_alive()
            && streams < self.streams_max.min(self.send.current_max_send_streams())
            && spares_empty_data(self.state.link.tap.borrow().empty_data(), streams as u64)
    }

    pub fn is_alive(&self) -> bool {
        self.state.is_alive()
    }

    /// Requests on their way.
    pub fn streams(&self) -> u32 {
        self.state.streams.get()
    }

    /// Since when there has been no request; `None` while there is one.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.streams() == 0).then(|| self.state.idle_since.get())
    }

    /// Room for one request.
    pub fn slot(&self, runtime: &Runtime) -> Slot {
        self.state.streams.set(self.state.streams.get() + 1);
        self.state.begun.set(self.state.begun.get() + 1);
        Slot {
            send: self.send.clone(),
            state: self.state.clone(),
            runtime: runtime.clone(),
            reused: self.state.begun.get() > 1,
            began: runtime.now(),
            heard_before: self.state.link.received_bytes.get(),
        }
    }
}

/// Drives the crate's connection until it ends. Whether that was for a flood.
async fn drive(
    runtime: &Runtime,
    state: &State,
    connection: h2::client::Connection<Io, Piece>,
    stall: Duration,
) -> bool {
    let link = &state.link;
    let deadline = runtime.deadline();
    let mut unsent = Stall::new(runtime.now());
    {
        let mut connection = pin!(connection);
        std::future::poll_fn(|cx| {
            let now = runtime.now();
            link.begin_turn();
            let ended = connection.as_mut().poll(cx).is_ready();
            link.push();
            if link.tap.borrow().has_settings() {
                state.greeted.finish(Some(()));
            }
            // An endpoint that floods is left like one that breaks.
            if ended || link.tap.borrow().violation().is_some() || link.tap.borrow_mut().is_excessive(now) {
                return Poll::Ready(());
            }
            if state.streams.get() == 0 {
                link.rest();
            }
            deadline.set(unsent.since(link, now).map_or(Instant::FAR, |since| since + stall));
            deadline.poll_past(cx)
        })
        .await;
    }
    link.close();
    link.tap.borrow().is_spent()
}

/// Room for one request on a connection. Counts until it is dropped, with all that the request holds.
pub struct Slot {
    send: SendRequest<Piece>,
    state: Rc<State>,
    runtime: Runtime,
    /// Whether the connection carried a request before.
    pub reused: bool,
    began: Instant,
    heard_before: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.state.streams.set(self.state.streams.get() - 1);
        let now = self.runtime.now();
        self.state.idle_since.set(now);
        if self.state.streams.get() == 0 {
            self.state.link.rest();
        }
        // A peer that vanished without a word would swallow one request after another until the kernel gives up.
        let heard_nothing = self.state.link.received_bytes.get() == self.heard_before;
        if heard_nothing && now.since(self.began) >= self.state.silence_max {
            self.state.closed.set(true);
        }
    }
}

/// A request on its way and its response.
pub struct Call {
    response: ResponseFuture,
    /// Of the stream; told apart from those that the endpoint processes once it goes away.
    id: u32,
}

/// What the endpoint sent next.
pub enum Answered {
    Interim(response::Parts),
    Final(response::Parts, Receiver),
}

impl Slot {
    /// Sends a request's head. `ended`: there is no body.
    ///
    /// # Errors
    /// `Refused` where the connection is ending, `Unsendable` where the request is at fault. Nothing of it went out.
    pub(super) fn send(&mut self, request: Request<()>, ended: bool) -> Result<(Call, Sender), StreamFault> {
        let sent = self.send.send_request(request, ended);
        let (response, stream) = sent.map_err(|error| {
            // Whatever it was, it would be the same for the next request.
            self.state.closed.set(true);
            let is_ending = error.is_io() || error.is_go_away() || error.is_reset();
            if is_ending { StreamFault::Refused } else { StreamFault::Unsendable }
        })?;
        let id = response.stream_id().as_u32();
        let tap = self.state.link.tap.borrow();
        // What did not fit into a window that the endpoint opens no more would stay behind a stream that has ended.
        let window = if tap.has_settings() { tap.stream_window() as usize } else { 0 };
        Ok((Call { response, id }, Sender::with_room(stream, ended, window)))
    }

    /// Whether the endpoint takes extended CONNECT (RFC 8441 §3); waits until it has said so.
    pub async fn takes_extended_connect(&self) -> bool {
        self.state.greeted.outcome().await.is_some() && self.send.is_extended_connect_protocol_enabled()
    }

    /// Whether its connection may carry another request.
    pub fn is_alive(&self) -> bool {
        self.state.is_alive()
    }

    /// The next head of the response.
    ///
    /// # Errors
    /// When the endpoint reset the stream, went away or broke the connection.
    pub async fn answered(&self, call: &mut Call) -> Result<Answered, StreamFault> {
        std::future::poll_fn(|cx| self.poll_answered(call, cx)).await
    }

    fn poll_answered(
        &self,
        call: &mut Call,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<Answered, StreamFault>> {
        if let Poll::Ready(Some(Ok(interim))) = call.response.poll_informational(cx) {
            return Poll::Ready(Ok(Answered::Interim(interim.into_parts().0)));
        }
        Pin::new(&mut call.response).poll(cx).map(|response| match response {
            Ok(response) => {
                let (head, body) = response.into_parts();
                Ok(Answered::Final(head, Receiver::charged(body, &self.runtime)))
            }
            Err(error) => Err(self.judge_fault(StreamFault::from_error(&error), call.id)),
        })
    }

    /// RFC 9113 §6.8: a stream above the last one that a GOAWAY names was not processed, nor will be.
    fn judge_fault(&self, fault: StreamFault, id: u32) -> StreamFault {
        match (fault, self.state.link.tap.borrow().goaway()) {
            (StreamFault::Disconnected, Some(last)) if id > last => StreamFault::Refused,
            _ => fault,
        }
    }
}

/// The connection of a cluster's endpoint, one a worker, that is being made: requests that come meanwhile wait for it.
pub struct Connecting<E> {
    outcome: RefCell<Option<E>>,
    done: Cell<bool>,
    waiting: RefCell<Vec<std::task::Waker>>,
}

impl<E> Default for Connecting<E> {
    fn default() -> Self {
        Self { outcome: RefCell::new(None), done: Cell::new(false), waiting: RefCell::default() }
    }
}

impl<E: Clone> Connecting<E> {
    /// Tells all who wait. `None`: nobody makes it any more.
    pub fn finish(&self, outcome: Option<E>) {
        if !self.done.replace(true) {
            self.outcome.replace(outcome);
            self.waiting.borrow_mut().drain(..).for_each(std::task::Waker::wake);
        }
    }

    /// What came of it.
    pub async fn outcome(&self) -> Option<E> {
        std::future::poll_fn(|cx| {
            if self.done.get() {
                return Poll::Ready(self.outcome.borrow().clone());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
