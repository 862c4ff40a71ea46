//! A downstream connection relayed byte for byte to an endpoint. Each direction ends by itself; a reset on one side
//! becomes a reset on the other.

use std::cell::Cell;
use std::pin::pin;
use std::task::Poll;

use crate::base::time::Instant;
use crate::limits;
use crate::metrics::{ClusterCounter, ListenerCounter};

use super::context::SessionGuard;
use super::outcome::Termination;
use super::stream::Stream;
use super::upstream::{AcquireError, Connection};

/// Receives in a row after which others get a turn.
const RECEIVES_A_TURN: u32 = 8;

/// Which side broke.
enum Broken {
    Source,
    Sink,
}

/// Relays until both directions have ended.
pub async fn relay(guard: SessionGuard, downstream: Stream, cluster: u16) {
    let termination = match connect(&guard, cluster).await {
        Ok(connection) => join(&guard, downstream, connection, cluster).await,
        Err(termination) => {
            downstream.abort();
            termination
        }
    };
    guard.ended(termination);
}

/// A connection to an endpoint of the cluster; else why the session ends.
pub(super) async fn connect(guard: &SessionGuard, cluster: u16) -> Result<Connection, Termination> {
    let upstreams = &guard.context().upstreams;
    let acquired = upstreams.acquire_for_relay(cluster).await;
    let connection = acquired.map_err(|error| match error {
        AcquireError::TimedOut => Termination::UpstreamTimeout,
        AcquireError::Untrusted => Termination::UpstreamTls,
        _ => Termination::UpstreamConnect,
    })?;
    upstreams.on_answer(&connection);
    Ok(connection)
}

/// Sends what was received from the client before there was a connection to the endpoint.
pub(super) fn send_first(guard: &SessionGuard, connection: &Connection, cluster: u16, bytes: &[u8]) {
    let activity = Cell::new(Instant::ZERO);
    let meter = Meter { guard, cluster: usize::from(cluster), activity: &activity };
    meter.moved(Direction::Up, bytes.len() as u64);
    connection.stream.send(bytes, false);
}

/// Relays between the two until both directions have ended.
pub(super) async fn join(
    guard: &SessionGuard,
    downstream: Stream,
    connection: Connection,
    cluster: u16,
) -> Termination {
    let (context, timeouts) = (guard.context(), guard.timeouts());
    let activity = Cell::new(context.runtime.now());
    let termination = {
        let upstream = &connection.stream;
        let meter = Meter { guard, cluster: usize::from(cluster), activity: &activity };
        let mut down = pin!(one_way(&meter, upstream, &downstream, Direction::Down));
        let mut up = pin!(one_way(&meter, &downstream, upstream, Direction::Up));
        let (mut up_done, mut down_done) = (false, false);
        let deadline = context.runtime.deadline();
        // Past from the start: the first poll sets it.
        deadline.set(activity.get());
        std::future::poll_fn(|cx| {
            // Down first: an endpoint that answered and reset has its answer passed on before its reset.
            if !down_done && let Poll::Ready(result) = down.as_mut().poll(cx) {
                match result {
                    Ok(()) => down_done = true,
                    Err(Broken::Source) => return Poll::Ready(Some(Termination::UpstreamReset)),
                    Err(Broken::Sink) => return Poll::Ready(Some(Termination::ClientAborted)),
                }
            }
            if !up_done && let Poll::Ready(result) = up.as_mut().poll(cx) {
                match result {
                    Ok(()) => up_done = true,
                    Err(Broken::Source) => return Poll::Ready(Some(Termination::ClientAborted)),
                    // What the endpoint sent before it broke is still to come down; its reset ends that.
                    Err(Broken::Sink) if !down_done => up_done = true,
                    Err(Broken::Sink) => return Poll::Ready(Some(Termination::UpstreamReset)),
                }
            }
            if up_done && down_done {
                return Poll::Ready(None);
            }
            // Also while the worker drains: a relay has no moment at which its client could be told to leave. The
            // timer is looked at when it fires, not with every byte.
            if deadline.is_past() {
                deadline.set(activity.get() + timeouts.tcp_idle);
                return deadline.poll_past(cx).map(|()| Some(Termination::IdleTimeout));
            }
            Poll::Pending
        })
        .await
    };
    match termination {
        None => Termination::ClientClosed,
        Some(termination) => {
            downstream.abort();
            connection.abort();
            termination
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// Counts bytes as they go, so that a relay of days shows while it lives.
struct Meter<'a> {
    guard: &'a SessionGuard,
    cluster: usize,
    activity: &'a Cell<Instant>,
}

impl Meter<'_> {
    fn moved(&self, direction: Direction, bytes: u64) {
        let shard = &self.guard.context().shard;
        let listener = shard.listener(usize::from(self.guard.listener()));
        let cluster = shard.cluster(self.cluster);
        match direction {
            Direction::Up => {
                listener.add(ListenerCounter::ReceivedBytes, bytes);
                cluster.add(ClusterCounter::SentBytes, bytes);
            }
            Direction::Down => {
                cluster.add(ClusterCounter::ReceivedBytes, bytes);
                listener.add(ListenerCounter::SentBytes, bytes);
            }
        }
        self.active();
    }

    fn active(&self) {
        self.activity.set(self.guard.context().runtime.now());
    }
}

async fn one_way(
    meter: &Meter<'_>,
    source: &Stream,
    sink: &Stream,
    direction: Direction,
) -> Result<(), Broken> {
    let mut receives = 0u32;
    let mut in_a_row = 0u64;
    loop {
        let buf = source.recv().await.map_err(|_| Broken::Source)?;
        if buf.is_empty() {
            sink.shutdown_write();
            return Ok(());
        }
        let full = buf.len() >= limits::RECV_BUF_BYTES;
        in_a_row = if full { in_a_row + buf.len() as u64 } else { 0 };
        meter.moved(direction, buf.len() as u64);
        sink.send_buf(buf, false);
        // One buffer at most waits: the sender is held back by what the receiver takes.
        std::future::poll_fn(|cx| sink.poll_sent(0, cx)).await.map_err(|_| Broken::Sink)?;
        meter.active();
        source.set_bulk(in_a_row >= limits::BULK_FROM_BYTES);
        receives += 1;
        if receives.is_multiple_of(RECEIVES_A_TURN) {
            meter.guard.context().runtime.yield_now().await;
        }
    }
}
