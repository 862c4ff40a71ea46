//! The door: takes connections from one listener while the worker's limits allow, and starts their sessions.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::metrics::{AcceptError, ListenerCounter, ListenerGauge, Shed};
use crate::proxy::context::{Context, SessionGuard};
use crate::proxy::facts::Facts;
use crate::proxy::http1::Http1;
use crate::proxy::outcome::Termination;
use crate::proxy::snapshot::Protocol;
use crate::proxy::stream::Stream;
use crate::proxy::tcp;
use crate::runtime::{Incoming, Listener};

/// Pause after an error that will not go away at once (EMFILE and its kind), and between looks at a full house.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections taken in a row before the sessions get a turn.
const ACCEPTS_A_TURN: u32 = 64;

/// Accepts until the worker drains; then takes what was connected before, and closes the listener.
pub(super) async fn run(context: Rc<Context>, index: u16, listener: TcpListener) {
    let listener = match Listener::new(&context.runtime, listener) {
        Ok(listener) => listener,
        Err(error) => panic!("a listener cannot be watched: {error}"),
    };
    let mut in_a_row = 0;
    while !context.is_draining() {
        if is_full(&context, index) {
            listener.stop();
            context.runtime.sleep_until(context.runtime.now() + PAUSE).await;
            continue;
        }
        match unless_draining(&context, listener.accept()).await {
            None => break,
            Some(Ok(incoming)) => admit(&context, index, incoming),
            Some(Err(error)) => {
                if let Some(pause) = on_error(&context, &error) {
                    context.runtime.sleep_until(context.runtime.now() + pause).await;
                }
            }
        }
        in_a_row += 1;
        if in_a_row % ACCEPTS_A_TURN == 0 {
            context.runtime.yield_now().await;
        }
    }
    listener.stop();
    while let Some(incoming) = listener.accept_rest().await {
        admit(&context, index, incoming);
    }
}

/// Whether the count of connections is at its limit: then the others wait in the kernel's queue.
fn is_full(context: &Context, index: u16) -> bool {
    let serving = context.serving();
    let active = context.shard.listener(usize::from(index)).gauge(ListenerGauge::ConnectionsActive);
    let listener_max = serving.listener(index).and_then(|listener| listener.connections_max);
    context.sessions() >= serving.snapshot.limits.connections_max as usize
        || listener_max.is_some_and(|connections_max| active >= u64::from(connections_max))
}

fn admit(context: &Rc<Context>, index: u16, incoming: Incoming) {
    let shard = context.shard.listener(usize::from(index));
    shard.add(ListenerCounter::ConnectionsAccepted, 1);
    if super::memory_bytes(context) >= context.serving().snapshot.limits.memory_bytes_max {
        context.shard.shed(Shed::Memory);
        shard.session_ended(Termination::Shed as usize);
        incoming.refuse();
        return;
    }
    match incoming.open(&context.runtime) {
        Ok(socket) => {
            shard.gauge_add(ListenerGauge::ConnectionsActive, 1);
            let active = Active { guard: context.enter_session(), context: context.clone(), index };
            context.runtime.spawn(session(active, Stream::Socket(socket)));
        }
        Err(_) => {
            context.shard.shed(Shed::Descriptors);
            shard.session_ended(Termination::Shed as usize);
        }
    }
}

/// Counts one session as active until it is dropped, however it ends.
struct Active {
    guard: SessionGuard,
    context: Rc<Context>,
    index: u16,
}

impl Drop for Active {
    fn drop(&mut self) {
        let shard = self.context.shard.listener(usize::from(self.index));
        shard.gauge_add(ListenerGauge::ConnectionsActive, -1);
        let _ = &self.guard;
    }
}

async fn session(active: Active, stream: Stream) {
    let (context, index) = (active.context.clone(), active.index);
    let serving = context.serving();
    let Some(listener) = serving.listener(index) else { return };
    let (facts, timeouts, protocol) = (Facts::new(index), listener.timeouts, listener.protocol);
    drop(serving);
    let termination = match protocol {
        Protocol::Http => Http1::new(context.clone(), stream, facts, timeouts).serve().await,
        Protocol::Tcp { cluster } => {
            // A relay's state is large; an idle HTTP connection shares this future and must not pay for it.
            Box::pin(tcp::relay(context.clone(), stream, facts, cluster, timeouts)).await
        }
    };
    context.shard.listener(usize::from(index)).session_ended(termination as usize);
}

/// Counts an error of accept. How long to wait before the next try, if it would only fail again.
fn on_error(context: &Context, error: &io::Error) -> Option<Duration> {
    let (cause, pause) = match error.raw_os_error() {
        Some(libc::EMFILE) => (AcceptError::ProcessFiles, Some(PAUSE)),
        Some(libc::ENFILE) => (AcceptError::SystemFiles, Some(PAUSE)),
        Some(libc::ENOMEM | libc::ENOBUFS) => (AcceptError::Memory, Some(PAUSE)),
        Some(libc::ECONNABORTED) => (AcceptError::Aborted, None),
        _ => (AcceptError::Other, Some(PAUSE)),
    };
    context.shard.accept_error(cause);
    pause
}

async fn unless_draining<T>(context: &Context, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if context.is_draining() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
