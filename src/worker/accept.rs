//! The door: takes connections from one listener while the worker's limits allow, and starts their sessions.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::metrics::{AcceptError, Counter, ListenerCounter, ListenerGauge, Shed};
use crate::proxy::access::Line;
use crate::proxy::context::{Context, SessionGuard};
use crate::proxy::facts::Facts;
use crate::proxy::handshake::{self, Accepted};
use crate::proxy::http1::Http1;
use crate::proxy::http2::Http2;
use crate::proxy::outcome::Termination;
use crate::proxy::passthrough;
use crate::proxy::snapshot::Protocol;
use crate::proxy::stream::Stream;
use crate::proxy::tcp;
use crate::runtime::{Incoming, Listener, Socket};

/// Pause after an error that will not go away at once (EMFILE and its kind).
const PAUSE: Duration = Duration::from_millis(50);
/// Connections taken in a row before the sessions get a turn.
const ACCEPTS_A_TURN: u32 = 64;

/// Accepts until the worker drains; then takes what was connected before, and closes the listener.
pub(super) async fn run(context: Rc<Context>, index: u16, listener: TcpListener) {
    if let Some(spec) = context.serving().listener(index) {
        // Proven at start; a connection without an option is better than none.
        let _ = spec.socket.apply(&listener);
    }
    let listener = match Listener::new(&context.runtime, listener) {
        Ok(listener) => listener,
        Err(error) => panic!("a listener cannot be watched: {error}"),
    };
    let mut in_a_row = 0;
    while !context.is_draining() {
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

/// Which limit a new connection would exceed. Refusing it at once lets its client go elsewhere; left in the kernel's
/// queue it would wait for nothing.
fn exceeded(context: &Context, index: u16) -> Option<Shed> {
    let serving = context.serving();
    let limits = &serving.snapshot.limits;
    let active = context.shard.listener(usize::from(index)).gauge(ListenerGauge::ConnectionsActive);
    let listener_max = serving.listener(index).and_then(|listener| listener.connections_max);
    if context.sessions() >= limits.connections_max as usize
        || listener_max.is_some_and(|connections_max| active >= u64::from(connections_max))
    {
        return Some(Shed::Connections);
    }
    (super::memory_bytes(context) >= limits.memory_bytes_max).then_some(Shed::Memory)
}

fn admit(context: &Rc<Context>, index: u16, incoming: Incoming) {
    let shard = context.shard.listener(usize::from(index));
    shard.add(ListenerCounter::ConnectionsAccepted, 1);
    context.shard.add(Counter::ConnectionsAccepted, 1);
    if let Some(cause) = exceeded(context, index) {
        context.shard.shed(cause);
        shard.session_ended(Termination::Shed as usize);
        Line::of_refused(context, index, Termination::Shed);
        incoming.refuse();
        return;
    }
    match incoming.open(&context.runtime) {
        Ok(socket) => start(context, index, socket),
        Err(_) => {
            context.shard.shed(Shed::Descriptors);
            shard.session_ended(Termination::Shed as usize);
            Line::of_refused(context, index, Termination::Shed);
        }
    }
}

fn start(context: &Rc<Context>, index: u16, socket: Socket) {
    let serving = context.serving();
    let Some(listener) = serving.listener(index) else { return };
    // Asked once for a connection: rules, endpoints and the log need it, and a reset socket does not know it any more.
    let client = socket.peer_address().ok().map(|address| address.ip());
    let guard = context.enter_session(index, client);
    let (protocol, runtime) = (listener.protocol, &context.runtime);
    if listener.tls.is_some() {
        runtime.spawn(over_tls(guard, socket, protocol));
        return;
    }
    let stream = Stream::Socket;
    match protocol {
        Protocol::Http => runtime.spawn(Http1::new(guard, stream(socket), Facts::of_peer(client)).serve()),
        Protocol::Tcp { cluster } => {
            let line = Line::of_relay(&guard, &Facts::default());
            runtime.spawn(tcp::relay(guard, line, stream(socket), cluster));
        }
        Protocol::TlsPassthrough => runtime.spawn(passthrough::relay(guard, socket)),
    }
}

/// A session that begins with a handshake, whose state lives in recycled memory like that of an exchange.
async fn over_tls(guard: SessionGuard, socket: Socket, protocol: Protocol) {
    let context = guard.context().clone();
    let accepted = context.exchanges.place(handshake::accept(&guard, socket)).await;
    let Some(Accepted { stream, mut facts }) = accepted else { return };
    facts.peer = guard.client();
    match protocol {
        Protocol::Http if facts.speaks_h2() => {
            Box::pin(Http2::new(guard, stream, facts).serve()).await;
        }
        Protocol::Http => Http1::new(guard, stream, facts).serve().await,
        // In blocks of their own: an idle session in HTTP/1.1 must not pay for their size.
        Protocol::Tcp { cluster } => {
            let line = Line::of_relay(&guard, &facts);
            Box::pin(tcp::relay(guard, line, stream, cluster)).await;
        }
        Protocol::TlsPassthrough => {}
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config;
    use crate::metrics::Shard;
    use crate::proxy::tls::TlsMaterials;
    use crate::runtime::{EngineChoice, RingSizes, Runtime};

    /// What an idle connection costs beside its socket's slot and its timer. An `async` block hides its size, so a
    /// line added to a session can double it unseen.
    #[test]
    fn an_idle_session_is_small() {
        const SESSION_BYTES_MAX: usize = 288;
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, RingSizes::default()).expect("epoll");
        let snapshot = Arc::new(config::embedded_default().snapshot);
        let shard = Arc::new(Shard::new(0, &["web".into()], &[], Termination::WORDS));
        let tls = TlsMaterials::plaintext(&snapshot).expect("randomness");
        let context = Context::new(runtime.clone(), shard, snapshot, &tls, 1);
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let stream = Stream::Socket(Socket::new(&runtime, near.into()).expect("a socket"));
        let session = Http1::new(context.enter_session(0, None), stream, Facts::default()).serve();
        println!("session {} http1 {}", size_of_val(&session), size_of::<Http1>());
        assert!(size_of_val(&session) <= SESSION_BYTES_MAX, "{} bytes", size_of_val(&session));
        drop(session);
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let socket = Socket::new(&runtime, near.into()).expect("a socket");
        let session = over_tls(context.enter_session(0, None), socket, Protocol::Http);
        println!("session over TLS {}", size_of_val(&session));
        assert!(size_of_val(&session) <= 2 * SESSION_BYTES_MAX, "{} bytes over TLS", size_of_val(&session));
    }
}
