//! Bytes passed on between two transports, both directions at once, unread: for relays and tunnels. Each direction ends
//! by itself; what breaks ends both. Holds one buffer a direction. Knows no protocol; what becomes of the transports
//! is the caller's to say.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use crate::base::time::Instant;
use crate::limits;
use crate::metrics::shard::ClusterShard;
use crate::metrics::{ClusterCounter, ListenerCounter};
use crate::runtime::RecvBuf;

use super::access::Line;
use super::context::SessionGuard;
use super::http2::{Piece, Receiver, Sender};
use super::outcome::Termination;
use super::stream::Stream;

/// Receives in a row after which others get a turn.
const RECEIVES_A_TURN: u32 = 8;

/// Where bytes come from.
pub enum Inlet<'a> {
    Stream(&'a Stream),
    H2(&'a mut Receiver),
}

/// Where they go.
pub enum Outlet<'a> {
    Stream(&'a Stream),
    H2(&'a mut Sender),
}

/// One direction.
pub struct Way<'a> {
    from: Inlet<'a>,
    to: Outlet<'a>,
    /// Received before the relay began.
    first: Option<RecvBuf>,
}

impl<'a> Way<'a> {
    pub fn new(from: Inlet<'a>, to: Outlet<'a>, first: Option<RecvBuf>) -> Self {
        Self { from, to, first: first.filter(|first| !first.is_empty()) }
    }
}

pub struct Ways<'a> {
    pub up: Way<'a>,
    pub down: Way<'a>,
}

#[derive(Clone, Copy)]
pub enum Direction {
    Up,
    Down,
}

/// Which side broke.
enum Broken {
    Source,
    Sink,
}

/// Some bytes on their way.
enum Bytes {
    Buf(RecvBuf),
    Piece(Piece),
}

/// Counts bytes as they go, so that a relay of days shows while it lives.
pub struct Meter<'a> {
    guard: &'a SessionGuard,
    line: &'a Line,
    cluster: &'a ClusterShard,
    /// Whether the client's bytes are counted here, and not by the connection that carries them.
    counts_client: bool,
    active_at: Cell<Instant>,
}

impl<'a> Meter<'a> {
    /// `cluster`: where its bytes count.
    pub fn new(guard: &'a SessionGuard, line: &'a Line, cluster: &'a ClusterShard) -> Self {
        let active_at = Cell::new(guard.context().runtime.now());
        Self { guard, line, cluster, counts_client: true, active_at }
    }

    /// For a client on a connection that counts what it carries.
    pub fn on_stream(guard: &'a SessionGuard, line: &'a Line, cluster: &'a ClusterShard) -> Self {
        Self { counts_client: false, ..Self::new(guard, line, cluster) }
    }

    pub fn moved(&self, direction: Direction, bytes: u64) {
        let (to_endpoint, to_client) = match direction {
            Direction::Up => (ClusterCounter::SentBytes, ListenerCounter::ReceivedBytes),
            Direction::Down => (ClusterCounter::ReceivedBytes, ListenerCounter::SentBytes),
        };
        self.cluster.add(to_endpoint, bytes);
        match direction {
            Direction::Up => self.line.received(bytes),
            Direction::Down => self.line.sent(bytes),
        }
        if self.counts_client {
            self.guard.counts().add(to_client, bytes);
        }
        self.active();
    }

    fn active(&self) {
        self.active_at.set(self.guard.context().runtime.now());
    }
}

/// Relays until both directions have ended. `idle`: the longest time without a byte in either.
///
/// # Errors
/// Why it was cut off.
pub async fn run(meter: &Meter<'_>, ways: Ways<'_>, idle: Duration) -> Result<(), Termination> {
    let mut down = pin!(one_way(meter, ways.down, Direction::Down));
    let mut up = pin!(one_way(meter, ways.up, Direction::Up));
    let (mut up_done, mut down_done) = (false, false);
    let deadline = meter.guard.context().runtime.deadline();
    // Past from the start: the first poll sets it.
    deadline.set(meter.active_at.get());
    std::future::poll_fn(|cx| {
        if let Poll::Ready(ended) = poll_both(&mut down, &mut up, &mut down_done, &mut up_done, cx) {
            return Poll::Ready(ended);
        }
        // Also while the worker drains: a relay has no moment at which its client could be told to leave. The timer
        // is looked at when it fires, not with every byte.
        if deadline.is_past() {
            deadline.set(meter.active_at.get() + idle);
            return deadline.poll_past(cx).map(|()| Err(Termination::IdleTimeout));
        }
        Poll::Pending
    })
    .await
}

fn poll_both(
    down: &mut Pin<&mut impl Future<Output = Result<(), Broken>>>,
    up: &mut Pin<&mut impl Future<Output = Result<(), Broken>>>,
    down_done: &mut bool,
    up_done: &mut bool,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<(), Termination>> {
    // Down first: an endpoint that answered and reset has its answer passed on before its reset.
    if !*down_done && let Poll::Ready(result) = down.as_mut().poll(cx) {
        match result {
            Ok(()) => *down_done = true,
            Err(Broken::Source) => return Poll::Ready(Err(Termination::UpstreamReset)),
            Err(Broken::Sink) => return Poll::Ready(Err(Termination::ClientAborted)),
        }
    }
    if !*up_done && let Poll::Ready(result) = up.as_mut().poll(cx) {
        match result {
            Ok(()) => *up_done = true,
            Err(Broken::Source) => return Poll::Ready(Err(Termination::ClientAborted)),
            // What the endpoint sent before it broke is still to come down; its reset ends that.
            Err(Broken::Sink) if !*down_done => *up_done = true,
            Err(Broken::Sink) => return Poll::Ready(Err(Termination::UpstreamReset)),
        }
    }
    if *up_done && *down_done { Poll::Ready(Ok(())) } else { Poll::Pending }
}

async fn one_way(meter: &Meter<'_>, way: Way<'_>, direction: Direction) -> Result<(), Broken> {
    let Way { mut from, mut to, mut first } = way;
    let mut receives = 0u32;
    let mut in_a_row = 0u64;
    loop {
        let received = match first.take() {
            Some(first) => Some(Bytes::Buf(first)),
            None => std::future::poll_fn(|cx| poll_next(&mut from, &mut to, cx)).await?,
        };
        let Some(bytes) = received else { return to.end() };
        let count = bytes.len();
        let full = count >= limits::RECV_BUF_BYTES;
        in_a_row = if full { in_a_row + count as u64 } else { 0 };
        meter.moved(direction, count as u64);
        // One buffer at most waits: the sender is held back by what the receiver takes.
        {
            let mut taken = pin!(to.send(bytes));
            std::future::poll_fn(|cx| from.poll_beside(cx, taken.as_mut())).await?;
        }
        meter.active();
        from.taken(count, in_a_row >= limits::BULK_FROM_BYTES);
        receives += 1;
        if receives.is_multiple_of(RECEIVES_A_TURN) {
            meter.guard.context().runtime.yield_now().await;
        }
    }
}

/// The next bytes; `None` at the end.
fn poll_next(
    from: &mut Inlet<'_>,
    to: &mut Outlet<'_>,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<Option<Bytes>, Broken>> {
    let received = match from {
        Inlet::Stream(stream) => stream.poll_recv(cx).map(|received| match received {
            Ok(buf) => Ok(Some(Bytes::Buf(buf)).filter(|bytes| bytes.len() > 0)),
            Err(_) => Err(Broken::Source),
        }),
        Inlet::H2(receiver) => receiver.poll_piece(cx).map(|received| match received {
            Ok(piece) => Ok(piece.map(Bytes::Piece)),
            Err(_) => Err(Broken::Source),
        }),
    };
    // The reset of a stream is noticed also while there is nothing for it; that of a connection by whoever receives.
    if received.is_pending()
        && let Outlet::H2(sender) = to
        && sender.poll_fault(cx).is_ready()
    {
        return Poll::Ready(Err(Broken::Sink));
    }
    received
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Buf(buf) => buf.len(),
            Self::Piece(piece) => piece.len(),
        }
    }
}

impl Inlet<'_> {
    /// Polls the receiver that is to take what came.
    fn poll_beside<F: Future>(&mut self, cx: &mut TaskContext<'_>, taken: Pin<&mut F>) -> Poll<F::Output> {
        match self {
            Self::Stream(_) => taken.poll(cx),
            Self::H2(receiver) => receiver.poll_beside(cx, taken),
        }
    }

    /// `count` bytes were taken by the receiver; `bulk`: many came in a row.
    fn taken(&mut self, count: usize, bulk: bool) {
        match self {
            Self::Stream(stream) => stream.set_bulk(bulk),
            Self::H2(receiver) => receiver.release(count),
        }
    }
}

impl Outlet<'_> {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Broken> {
        match (self, bytes) {
            (Self::Stream(stream), bytes) => {
                match bytes {
                    Bytes::Buf(buf) => stream.send_buf(buf, false),
                    Bytes::Piece(piece) => stream.send(piece.bytes(), false),
                }
                std::future::poll_fn(|cx| stream.poll_sent(0, cx)).await.map_err(|_| Broken::Sink)
            }
            (Self::H2(sender), bytes) => {
                let mut piece = match bytes {
                    Bytes::Buf(buf) => Piece::new(buf),
                    Bytes::Piece(piece) => piece,
                };
                let sent = std::future::poll_fn(|cx| sender.poll_send(cx, &mut piece, false)).await;
                sent.map_err(|_| Broken::Sink)
            }
        }
    }

    /// Ends this direction; the other goes on.
    fn end(&mut self) -> Result<(), Broken> {
        match self {
            Self::Stream(stream) => stream.shutdown_write(),
            Self::H2(sender) => sender.finish(&[]).map_err(|_| Broken::Sink)?,
        }
        Ok(())
    }
}
