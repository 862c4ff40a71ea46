//! The TLS handshake of a downstream connection: tells plaintext from TLS where both may come, waits for its turn,
//! sees it through by its deadline, and says what it settled. One that fails ends here, with the alert delivered.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustls::{Error, HandshakeKind, ProtocolVersion};

use crate::metrics::{HandshakeFailure, Histogram, ListenerCounter, Shed};
use crate::runtime::{Deadline, RecvBuf, Socket, TimedOut};
use crate::sys::clock;
use crate::tls::client_hello::{Hello, Reader};
use crate::tls::{Chosen, Known, MtlsMode, PeerIdentity, Server, Session};

use super::context::SessionGuard;
use super::facts::{Facts, TlsFacts};
use super::handshakes::Refused;
use super::hello_input::HelloInput;
use super::outcome::Termination;
use super::stream::{Failure, Step, Stream, TlsStream};

/// How long a connection whose handshake failed is read on, so that the alert is not overtaken by a RST.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// Longest wait for a turn where late work is refused: a client that waited longer has likely given up, and would only
/// take its share of the time from those who have not.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Content type of a handshake record, the first byte of every TLS connection (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// A connection that a session can run over.
pub struct Accepted {
    pub stream: Stream,
    pub facts: Facts,
}

pub(super) type Failed = (HandshakeFailure, Termination);

/// Takes a connection to a TLS listener. `None`: it has ended, and was counted.
pub async fn accept(guard: &SessionGuard, socket: Socket, facts: Facts) -> Option<Accepted> {
    let context = guard.context();
    let _active = context.handshakes.enter();
    match shake(guard, socket, facts).await {
        Ok(accepted) => Some(accepted),
        Err((failure, termination)) => {
            guard.handshake_failed(failure, termination);
            None
        }
    }
}

async fn shake(guard: &SessionGuard, socket: Socket, mut facts: Facts) -> Result<Accepted, Failed> {
    let context = guard.context();
    let started = context.runtime.now();
    let deadline = &context.runtime.deadline();
    deadline.set(started + guard.timeouts().handshake);
    let counted = guard.counts();
    let first = first_bytes(guard, &socket, deadline).await?;
    if first[0] != HANDSHAKE_RECORD {
        if guard.server().is_some_and(|server| server.mtls() == MtlsMode::Permissive) {
            counted.add(ListenerCounter::Plaintext, 1);
            socket.unread(first);
            return Ok(Accepted { stream: Stream::Socket(socket), facts });
        }
        socket.abort();
        return Err((HandshakeFailure::Plaintext, Termination::PlaintextRefused));
    }
    wait_for_turn(guard, &socket, first, deadline).await?;
    // Only now: what certificates and clients are good may have changed while the client took its time.
    let server = guard.server();
    let opened = server.and_then(|server| server.session().ok().map(|session| (server, session)));
    let Some((server, session)) = opened else {
        return Err((HandshakeFailure::Other, Termination::TlsFailed));
    };
    let tls = TlsStream::new(&context.runtime, socket, session);
    let settled = settle(guard, &facts, &tls, &server, deadline).await?;
    counted.add(ListenerCounter::TlsHandshakes, 1);
    if settled.resumed {
        counted.add(ListenerCounter::TlsResumed, 1);
    }
    facts.tls = Some(Rc::new(settled));
    context.shard.observe(Histogram::TlsHandshakeDuration, context.runtime.now().since(started));
    Ok(Accepted { stream: Stream::Tls(tls), facts })
}

/// Waits until the hello is whole, and then for the handshake's turn: only a whole hello costs what a turn is for.
async fn wait_for_turn(
    guard: &SessionGuard,
    socket: &Socket,
    first: RecvBuf,
    deadline: &Deadline,
) -> Result<(), Failed> {
    let context = guard.context();
    let mut hello = HelloInput::new(&context.runtime, first);
    let mut reader = Reader::default();
    // One that is malformed goes on to rustls, which tells its sender so.
    while matches!(reader.read(hello.bytes()), Hello::Partial) {
        hello.receive(socket, deadline).await?;
    }
    let due = deadline.due();
    if context.door.sheds() {
        deadline.set(due.min(context.runtime.now() + WAIT_MAX));
    }
    let turn = deadline.within(context.handshakes.begin()).await;
    let sheds = deadline.due() < due;
    deadline.set(due);
    hello.unread(socket);
    turn.map_err(|_| {
        if sheds {
            context.shard.shed(Shed::Handshake);
            return (HandshakeFailure::Shed, Termination::Shed);
        }
        timed_out()
    })
}

/// Sees the handshake through.
async fn settle(
    guard: &SessionGuard,
    facts: &Facts,
    tls: &TlsStream,
    server: &Server,
    deadline: &Deadline,
) -> Result<TlsFacts, Failed> {
    let context = guard.context();
    let known = RefCell::new(Known::new(unix_s()));
    let shaken = tls.handshake(|step| match step {
        // Sessions of one worker take turns: what this one is known by is with the server while it has its own.
        Step::Begins => server.put(known.take()),
        Step::Ends => drop(known.replace(server.take())),
    });
    match deadline.within(shaken).await {
        Ok(Ok(())) => {
            let settled = known.take().chosen.and_then(|chosen| settled(&tls.session().borrow(), chosen));
            settled.ok_or((HandshakeFailure::Other, Termination::TlsFailed))
        }
        Ok(Err(Failure::Closed)) => Err((HandshakeFailure::Closed, Termination::ClientAborted)),
        Ok(Err(Failure::Protocol(error))) => {
            let cause = cause(&error);
            if matches!(cause, HandshakeFailure::NoCertificate | HandshakeFailure::BadCertificate) {
                let peer = facts.client(tls.socket());
                context.handshakes.note(Refused { listener: guard.counts().clone(), peer, error });
            }
            linger(tls.socket(), deadline, context.runtime.now() + LINGER).await;
            Err((cause, Termination::TlsFailed))
        }
        Err(TimedOut) => Err(timed_out()),
    }
}

const fn timed_out() -> Failed {
    (HandshakeFailure::TimedOut, Termination::HandshakeTimeout)
}

/// Waits for the first bytes. A worker that drains does not wait as long.
pub(super) async fn first_bytes(
    guard: &SessionGuard,
    socket: &Socket,
    deadline: &Deadline,
) -> Result<RecvBuf, Failed> {
    let context = guard.context();
    let until = context.runtime.now() + guard.timeouts().handshake;
    let received = std::future::poll_fn(|cx| {
        if let Poll::Ready(received) = socket.poll_recv(cx) {
            return Poll::Ready(Some(received));
        }
        if let Some(since) = guard.drained_since() {
            deadline.set(until.min(guard.leaves_at(since, until)));
        }
        deadline.poll_past(cx).map(|()| None)
    });
    let received: Option<io::Result<RecvBuf>> = received.await;
    deadline.set(until);
    match received {
        Some(Ok(buf)) if !buf.is_empty() => Ok(buf),
        Some(Ok(_)) => Err((HandshakeFailure::Closed, Termination::ClientClosed)),
        Some(Err(_)) => Err((HandshakeFailure::Closed, Termination::ClientAborted)),
        None if guard.is_draining() => Err((HandshakeFailure::Closed, Termination::Drained)),
        None => Err((HandshakeFailure::TimedOut, Termination::FirstByteTimeout)),
    }
}

/// Ends our direction and reads until the peer ends its own, for a while.
pub(super) async fn linger(socket: &Socket, deadline: &Deadline, until: crate::base::time::Instant) {
    socket.shutdown_write();
    deadline.set(until);
    while matches!(deadline.within(socket.recv()).await, Ok(Ok(buf)) if !buf.is_empty()) {}
}

/// What the handshake settled. `None` where it settled nothing, which a handshake that is done cannot.
fn settled(session: &Session, chosen: Chosen) -> Option<TlsFacts> {
    let agreed = session.agreed();
    let names = chosen.certificate.names.clone();
    let peer = agreed.peer_certificates().and_then(|chain| chain.first());
    let identity = peer.map(|leaf| Rc::new(PeerIdentity::of_leaf(leaf, names.uri())));
    Some(TlsFacts {
        server_name: chosen.server_name,
        certificate_names: names,
        version: match agreed.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLSv1.2",
        },
        cipher: agreed.negotiated_cipher_suite()?.suite().as_str().unwrap_or("unknown"),
        resumed: agreed.handshake_kind() == Some(HandshakeKind::Resumed),
        alpn: agreed.alpn_protocol().map(Into::into),
        identity,
    })
}

fn unix_s() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

/// The word for what went wrong.
const fn cause(error: &Error) -> HandshakeFailure {
    match error {
        Error::NoCertificatesPresented => HandshakeFailure::NoCertificate,
        Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => {
            HandshakeFailure::BadCertificate
        }
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::NothingShared,
        Error::AlertReceived(_) => HandshakeFailure::Closed,
        Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::DecryptError => HandshakeFailure::Malformed,
        _ => HandshakeFailure::Other,
    }
}
