//! The door: takes connections from one listener while the worker's limits allow, and starts their sessions.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::{self, Arc};
use std::task::Poll;
use std::time::Duration;

use super::queues::Queues;
use crate::metrics::{AcceptError, Counter, ListenerCounter, ListenerGauge, Shed};
use crate::proxy::access::Line;
use crate::proxy::context::{Context, Served, SessionGuard};
use crate::proxy::facts::Facts;
use crate::proxy::handshake::{self, Accepted};
use crate::proxy::http1::Http1;
use crate::proxy::http2::Http2;
use crate::proxy::outcome::Termination;
use crate::proxy::passthrough;
use crate::proxy::proxied;
use crate::proxy::serving::User;
use crate::proxy::snapshot::Protocol;
use crate::proxy::snapshot::change::Change;
use crate::proxy::stream::Stream;
use crate::proxy::tcp;
use crate::runtime::{Deadline, Incoming, Listener, Socket};
use crate::sys::reuseport;

/// Pause after an error that will not go away at once (EMFILE and its kind).
const PAUSE: Duration = Duration::from_millis(50);
/// Connections taken in a row before the sessions get a turn.
const ACCEPTS_A_TURN: u32 = 64;

/// How long new connections are left to workers with more time, while they are steered.
const LEISURE_MAX: Duration = Duration::from_millis(2);

/// What a worker accepts from, by listener of the present configuration.
pub(super) struct Ports(Vec<Rc<Port>>);

/// The sockets of one address, and the listener that has them at present.
pub(super) struct Port {
    served: RefCell<User>,
    /// Each is gone with the task that accepts from it.
    sockets: Vec<Weak<Listener>>,
    /// Those that other workers have for the same address.
    others: Vec<sync::Weak<TcpListener>>,
    is_closing: Cell<bool>,
}

impl Port {
    fn open(context: &Rc<Context>, served: &Rc<Served>, queues: Queues) -> Rc<Self> {
        let listener = |socket| Rc::new(Listener::new(&context.runtime, socket));
        let listeners: Vec<Rc<Listener>> = queues.own.into_iter().map(listener).collect();
        let port = Rc::new(Self {
            served: RefCell::new(User::new(served)),
            sockets: listeners.iter().map(Rc::downgrade).collect(),
            others: queues.others,
            is_closing: Cell::new(false),
        });
        port.set_options(context);
        let lent: Rc<[Arc<TcpListener>]> = queues.lent.into();
        for listener in listeners {
            context.runtime.spawn(run(context.clone(), port.clone(), listener, lent.clone()));
        }
        port
    }

    fn sockets(&self) -> impl Iterator<Item = Rc<Listener>> {
        self.sockets.iter().filter_map(Weak::upgrade)
    }

    /// Has new connections get what the listener that has the socket asks for.
    fn set_options(&self, context: &Context) {
        let (serving, served) = (context.serving(), self.served());
        let Some(spec) = serving.listener(served.position()) else { return };
        for socket in self.sockets() {
            // Proven before; a connection without an option is better than none.
            socket.with_socket(|socket| spec.socket.renew(&socket));
        }
    }

    pub(super) fn others(&self) -> &[sync::Weak<TcpListener>] {
        &self.others
    }

    pub(super) fn served(&self) -> Rc<Served> {
        self.served.borrow().clone()
    }

    fn stops(&self, context: &Context) -> bool {
        self.is_closing.get() || context.is_draining()
    }
}

impl Ports {
    /// Begins to accept; `listeners` in the order of the configuration.
    pub(super) fn open(context: &Rc<Context>, listeners: Vec<Queues>) -> Self {
        let serving = context.serving();
        let ports = serving.served().iter().zip(listeners);
        Self(ports.map(|(served, sockets)| Port::open(context, served, sockets)).collect())
    }

    /// Goes on with the configuration that `context` has just come to. `sockets`: by listener, those that are new.
    pub(super) fn change(&mut self, context: &Rc<Context>, change: &Change, sockets: Vec<Option<Queues>>) {
        let serving = context.serving();
        let listeners = serving.served().iter().zip(sockets).zip(&change.sockets);
        let ports = listeners.filter_map(|((served, socket), stands)| match (socket, stands) {
            (Some(queues), _) => Some(Port::open(context, served, queues)),
            (None, Some(at)) => {
                let port = self.0.get(usize::from(*at))?;
                port.served.replace(User::new(served));
                port.set_options(context);
                Some(port.clone())
            }
            (None, None) => None,
        });
        let ports: Vec<Rc<Port>> = ports.collect();
        for port in &self.0 {
            port.is_closing.set(!ports.iter().any(|kept| Rc::ptr_eq(kept, port)));
        }
        self.0 = ports;
        context.runtime.wake_tasks();
    }

    /// Has each worker take no more at once than it begins with, or goes back to what is cheaper.
    pub(super) fn set_singly(&self, singly: bool) {
        self.0.iter().flat_map(|port| port.sockets()).for_each(|socket| socket.set_singly(singly));
    }

    /// Those that other workers have sockets of.
    pub(super) fn shared(&self) -> Vec<Rc<Port>> {
        self.0.iter().filter(|port| !port.others.is_empty()).cloned().collect()
    }

    /// Has the kernel choose evenly who gets new connections, for the whole group of each socket.
    pub(super) fn unsteer(&self) {
        for socket in self.0.iter().flat_map(|port| port.sockets()) {
            let _ = socket.with_socket(|socket| reuseport::unsteer(&socket));
        }
    }
}

/// Accepts until the worker drains or the socket is given up; then takes what was connected before, and closes it.
async fn run(context: Rc<Context>, port: Rc<Port>, listener: Rc<Listener>, lent: Rc<[Arc<TcpListener>]>) {
    let mut in_a_row = 0_u32;
    let mut leisurely = Leisurely::new(&context);
    while !port.stops(&context) {
        if listener.is_singly() {
            leisurely.wait(&context).await;
        }
        let before = context.runtime.turns();
        match unless_stopping(&context, &port, listener.accept()).await {
            None => break,
            Some(Ok(incoming)) => admit(&context, &port.served(), incoming),
            Some(Err(error)) => {
                if let Some(pause) = on_error(&context, &error) {
                    context.runtime.sleep_until(context.runtime.now() + pause).await;
                }
            }
        }
        leisurely.hurries &= context.runtime.turns() == before;
        in_a_row = in_a_row.wrapping_add(1);
        if in_a_row.is_multiple_of(ACCEPTS_A_TURN) || leisurely.hurries {
            context.runtime.yield_now().await;
        }
    }
    listener.stop();
    while let Some(incoming) = listener.accept_rest().await {
        admit(&context, &port.served(), incoming);
    }
    // Nobody takes from it any more.
    drop(lent);
}

/// How a worker takes connections that are steered: at leisure, for others may have the time already; one with each turn once it
/// had none for long, until nothing waits.
struct Leisurely {
    at_most: Deadline,
    hurries: bool,
}

impl Leisurely {
    fn new(context: &Context) -> Self {
        Self { at_most: context.runtime.deadline(), hurries: false }
    }

    async fn wait(&mut self, context: &Context) {
        if !self.hurries {
            self.at_most.set(context.runtime.now() + LEISURE_MAX);
            self.hurries = self.at_most.within(context.runtime.leisure()).await.is_err();
        }
    }
}

/// Which limit a new connection would exceed. Refusing it at once lets its client go elsewhere; left in the kernel's
/// queue it would wait for nothing.
pub(super) fn exceeded(context: &Context, served: &Served) -> Option<Shed> {
    let serving = context.serving();
    let limits = &serving.snapshot.limits;
    let active = served.counts.gauge(ListenerGauge::ConnectionsActive);
    if context.sessions() >= limits.connections_max as usize
        || served.connections_max().is_some_and(|connections_max| active >= u64::from(connections_max))
    {
        return Some(Shed::Connections);
    }
    (super::memory_bytes(context) >= limits.memory_bytes_max).then_some(Shed::Memory)
}

pub(super) fn admit(context: &Rc<Context>, served: &Rc<Served>, incoming: Incoming) {
    let shard = &served.counts;
    shard.add(ListenerCounter::ConnectionsAccepted, 1);
    context.shard.add(Counter::ConnectionsAccepted, 1);
    if let Some(cause) = exceeded(context, served) {
        context.shard.shed(cause);
        shard.session_ended(Termination::Shed as usize);
        Line::of_refused(context, served, Termination::Shed);
        incoming.refuse();
        return;
    }
    match incoming.open(&context.runtime) {
        Ok(socket) => start(context, served, socket),
        Err(_) => {
            context.shard.shed(Shed::Descriptors);
            shard.session_ended(Termination::Shed as usize);
            Line::of_refused(context, served, Termination::Shed);
        }
    }
}

fn start(context: &Rc<Context>, served: &Rc<Served>, socket: Socket) {
    // Asked once for a connection: rules, endpoints and the log need it, and a reset socket does not know it any more.
    let client = socket.peer_address().ok().map(|address| address.ip());
    let guard = context.enter_session(served, client);
    let serving = guard.serving();
    let Some(listener) = serving.listener(guard.listener()) else { return };
    if listener.proxy_protocol.is_some() {
        context.runtime.spawn(behind_proxy(guard, socket));
    } else {
        begin(guard, socket, Facts::of_peer(client));
    }
}

/// Learns who the client is. The session is a task of its own, which does not pay for the size of this one.
async fn behind_proxy(guard: SessionGuard, socket: Socket) {
    let context = guard.context().clone();
    if let Some((socket, mut facts)) = context.exchanges.place(proxied::accept(&guard, socket)).await {
        match facts.peer {
            Some(named) => guard.is_of(named),
            None => facts.peer = guard.client(),
        }
        begin(guard, socket, facts);
    }
}

fn begin(guard: SessionGuard, socket: Socket, facts: Facts) {
    let context = guard.context().clone();
    let serving = guard.serving();
    let Some(listener) = serving.listener(guard.listener()) else { return };
    let (protocol, runtime) = (listener.protocol, &context.runtime);
    if listener.tls.is_some() {
        runtime.spawn(over_tls(guard, socket, facts, protocol));
        return;
    }
    let stream = Stream::Socket;
    match protocol {
        Protocol::Http => runtime.spawn(Http1::new(guard, stream(socket), facts).serve()),
        Protocol::Tcp { .. } => runtime.spawn(tcp::relay(guard, stream(socket), facts)),
        Protocol::TlsPassthrough => runtime.spawn(passthrough::relay(guard, socket, facts)),
    }
}

/// A session that begins with a handshake, whose state lives in recycled memory like that of an exchange.
async fn over_tls(guard: SessionGuard, socket: Socket, facts: Facts, protocol: Protocol) {
    let context = guard.context().clone();
    let accepted = context.exchanges.place(handshake::accept(&guard, socket, facts)).await;
    let Some(Accepted { stream, facts }) = accepted else { return };
    match protocol {
        Protocol::Http if facts.speaks_h2() => {
            Box::pin(Http2::new(guard, stream, facts).serve()).await;
        }
        Protocol::Http => Http1::new(guard, stream, facts).serve().await,
        // In blocks of their own: an idle session in HTTP/1.1 must not pay for their size.
        Protocol::Tcp { .. } => Box::pin(tcp::relay(guard, stream, facts)).await,
        Protocol::TlsPassthrough => {}
    }
}

/// Counts an error of accept. How long to wait before the next try, if it would only fail again.
fn on_error(context: &Context, error: &io::Error) -> Option<Duration> {
    let (cause, pause) = match error.raw_os_error() {
        Some(libc::EMFILE) => (AcceptError::ProcessFiles, Some(PAUSE)),
        Some(libc::ENFILE) => (AcceptError::SystemFiles, Some(PAUSE)),
        Some(libc::ENOMEM | libc::ENOBUFS) => (AcceptError::Memory, Some(PAUSE)),
        Some(libc::ENOSPC) => (AcceptError::Watches, Some(PAUSE)),
        Some(libc::ECONNABORTED) => (AcceptError::Aborted, None),
        _ => (AcceptError::Other, Some(PAUSE)),
    };
    context.shard.accept_error(cause);
    pause
}

async fn unless_stopping<T>(context: &Context, port: &Port, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if port.stops(context) {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::context::tests::embedded;

    /// What an idle connection costs beside its socket's slot and its timer. An `async` block hides its size, so a
    /// line added to a session can double it unseen.
    #[test]
    fn an_idle_session_is_small() {
        const SESSION_BYTES_MAX: usize = 288;
        let context = embedded();
        let runtime = context.runtime.clone();
        let served = context.serving().served()[0].clone();
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let stream = Stream::Socket(Socket::new(&runtime, near.into()).expect("a socket"));
        let session = Http1::new(context.enter_session(&served, None), stream, Facts::default()).serve();
        println!("session {} http1 {}", size_of_val(&session), size_of::<Http1>());
        assert!(size_of_val(&session) <= SESSION_BYTES_MAX, "{} bytes", size_of_val(&session));
        drop(session);
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let socket = Socket::new(&runtime, near.into()).expect("a socket");
        let session =
            over_tls(context.enter_session(&served, None), socket, Facts::default(), Protocol::Http);
        println!("session over TLS {}", size_of_val(&session));
        assert!(size_of_val(&session) <= 2 * SESSION_BYTES_MAX, "{} bytes over TLS", size_of_val(&session));
    }
}
