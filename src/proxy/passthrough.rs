//! A TLS connection passed on undecrypted: routed by the server name and the protocols of its ClientHello, which the
//! endpoint gets as it came. Never answers a hello; one that cannot be passed on is refused with the alert that says
//! why, in the clear, as nothing else can be sent before keys are agreed.

use rustls::AlertDescription;

use crate::metrics::{HandshakeFailure, ListenerCounter};
use crate::runtime::Socket;
use crate::tls::client_hello::{ClientHello, Hello, Reader, fatal_alert};

use super::access::Line;
use super::context::{Serving, SessionGuard};
use super::facts::Facts;
use super::handshake::{LINGER, first_bytes, linger};
use super::hello_input::HelloInput;
use super::outcome::Termination;
use super::stream::Stream;
use super::tcp;
use super::upstream::Connection;

/// Reads the hello, finds its endpoint, and relays until both directions have ended.
pub async fn relay(guard: SessionGuard, socket: Socket, mut facts: Facts) {
    // What is needed until the endpoint has the hello lives in recycled memory: a relay may last for days.
    let context = guard.context().clone();
    let line = Line::of_relay(&guard, &facts);
    match context.exchanges.place(begin(&guard, &line, &socket, &mut facts)).await {
        Ok(connection) => {
            let termination = tcp::join(&guard, &line, Stream::Socket(socket), connection).await;
            line.ended(termination);
            guard.ended(termination);
        }
        Err(refusal) => refuse(&guard, &line, socket, refusal).await,
    }
}

/// How a connection ends that is not passed on.
struct Refusal {
    /// `None` where the client's hello was good, but no endpoint could be had.
    failure: Option<HandshakeFailure>,
    termination: Termination,
    leave: Leave,
}

enum Leave {
    /// The client is gone, or said too little to be answered.
    Silently,
    /// It speaks something else: an alert would be noise to it.
    Reset,
    Alert(AlertDescription),
}

impl Refusal {
    const fn silent(failure: HandshakeFailure, termination: Termination) -> Self {
        Self { failure: Some(failure), termination, leave: Leave::Silently }
    }

    const fn alert(failure: HandshakeFailure, termination: Termination, alert: AlertDescription) -> Self {
        Self { failure: Some(failure), termination, leave: Leave::Alert(alert) }
    }

    const fn unknown_name() -> Self {
        let (failure, termination) = (HandshakeFailure::UnknownName, Termination::NameUnknown);
        Self::alert(failure, termination, AlertDescription::UnrecognisedName)
    }
}

/// Up to the connection that has been sent the hello.
async fn begin(
    guard: &SessionGuard,
    line: &Line,
    socket: &Socket,
    facts: &mut Facts,
) -> Result<Connection, Refusal> {
    let (hello, kept) = read_hello(guard, socket).await?;
    line.hello(hello.server_name.as_deref(), hello.alpn.iter().next());
    let serving = guard.serving();
    let cluster = route(guard, &serving, line, &hello)?;
    let acquired = tcp::connect(&serving, line, facts, socket, cluster).await;
    let connection = acquired.map_err(|termination| Refusal {
        failure: None,
        termination,
        leave: Leave::Alert(AlertDescription::InternalError),
    })?;
    guard.counts().add(ListenerCounter::TlsPassedOn, 1);
    tcp::send_first(guard, line, &connection, kept.bytes());
    Ok(connection)
}

async fn read_hello<'g>(
    guard: &'g SessionGuard,
    socket: &Socket,
) -> Result<(ClientHello, HelloInput<'g>), Refusal> {
    let runtime = &guard.context().runtime;
    let deadline = runtime.deadline();
    deadline.set(runtime.now() + guard.timeouts().handshake);
    let first = first_bytes(guard, socket, &deadline)
        .await
        .map_err(|(failure, termination)| Refusal::silent(failure, termination))?;
    let mut kept = HelloInput::new(runtime, first);
    let mut reader = Reader::default();
    loop {
        match reader.read(kept.bytes()) {
            Hello::Complete(hello) => return Ok((hello, kept)),
            Hello::Partial => kept
                .receive(socket, &deadline)
                .await
                .map_err(|(failure, termination)| Refusal::silent(failure, termination))?,
            Hello::NotTls => {
                let (failure, termination) = (HandshakeFailure::Plaintext, Termination::PlaintextRefused);
                return Err(Refusal { failure: Some(failure), termination, leave: Leave::Reset });
            }
            Hello::Malformed(AlertDescription::UnrecognisedName) => return Err(Refusal::unknown_name()),
            Hello::Malformed(alert) => {
                return Err(Refusal::alert(HandshakeFailure::Malformed, Termination::TlsFailed, alert));
            }
        }
    }
}

/// The cluster for a hello.
fn route(guard: &SessionGuard, serving: &Serving, line: &Line, hello: &ClientHello) -> Result<u16, Refusal> {
    let context = guard.context();
    let routes = &serving.snapshot.routes;
    let name = hello.server_name.as_deref().unwrap_or_default();
    let find = |offers: &dyn Fn(&[u8]) -> bool| routes.find_passthrough(guard.listener(), name, offers);
    if let Some((position, route)) = find(&|protocol| hello.alpn.contains(protocol)) {
        line.route(position);
        // Every route of such a listener names a cluster.
        return route.action.cluster(context.random_u32()).ok_or_else(Refusal::unknown_name);
    }
    if find(&|_| true).is_none() {
        return Err(Refusal::unknown_name());
    }
    // RFC 7301 §3.2: the name is served, but in none of the protocols that the client offers.
    let (failure, termination) = (HandshakeFailure::NothingShared, Termination::TlsFailed);
    Err(Refusal::alert(failure, termination, AlertDescription::NoApplicationProtocol))
}

async fn refuse(guard: &SessionGuard, line: &Line, socket: Socket, refusal: Refusal) {
    let Refusal { failure, termination, leave } = refusal;
    let context = guard.context();
    line.ended(termination);
    if let Some(failure) = failure {
        line.tls_failed(failure);
        guard.counts().handshake_failed(failure);
    }
    guard.ended(termination);
    match leave {
        Leave::Silently => {}
        Leave::Reset => socket.abort(),
        Leave::Alert(alert) => {
            socket.send(&fatal_alert(alert), false);
            linger(&socket, &context.runtime.deadline(), context.runtime.now() + LINGER).await;
        }
    }
}
