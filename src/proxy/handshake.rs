//! The TLS handshake of a downstream connection: tells plaintext from TLS where both may come, waits for its turn,
//! sees it through by its deadline, and says what it settled. One that fails ends here, with the alert delivered.

use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustls::{Error, HandshakeKind, ProtocolVersion};

use crate::metrics::{HandshakeFailure, Histogram, ListenerCounter};
use crate::runtime::{Deadline, RecvBuf, Socket, TimedOut};
use crate::sys::clock;
use crate::tls::{Chosen, MtlsMode, PeerIdentity, Server, Session};

use super::context::SessionGuard;
use super::facts::{Facts, TlsFacts};
use super::outcome::Termination;
use super::stream::{Failure, Stream, TlsStream};

/// How long a connection whose handshake failed is read on, so that the alert is not overtaken by a RST.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// Content type of a handshake record, the first byte of every TLS connection (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// A connection that a session can run over.
pub struct Accepted {
    pub stream: Stream,
    pub facts: Facts,
}

/// Takes a connection to a TLS listener. `None`: it has ended, and was counted.
pub async fn accept(guard: &SessionGuard, socket: Socket) -> Option<Accepted> {
    let context = guard.context();
    // Gone from the snapshot meanwhile.
    let server = context.tls.server(guard.listener())?;
    let _active = context.handshakes.enter();
    let deadline = context.runtime.deadline();
    deadline.set(context.runtime.now() + guard.timeouts().handshake);
    match shake(guard, socket, &server, &deadline).await {
        Ok(accepted) => Some(accepted),
        Err((failure, termination)) => {
            context.shard.listener(usize::from(guard.listener())).handshake_failed(failure);
            guard.ended(termination);
            None
        }
    }
}

pub(super) type Failed = (HandshakeFailure, Termination);

async fn shake(
    guard: &SessionGuard,
    socket: Socket,
    server: &Server,
    deadline: &Deadline,
) -> Result<Accepted, Failed> {
    let context = guard.context();
    let started = context.runtime.now();
    let counted = context.shard.listener(usize::from(guard.listener()));
    let first = first_bytes(guard, &socket, deadline).await?;
    if first[0] != HANDSHAKE_RECORD {
        if server.mtls() == MtlsMode::Permissive {
            counted.add(ListenerCounter::Plaintext, 1);
            socket.unread(first);
            return Ok(Accepted { stream: Stream::Socket(socket), facts: Facts::default() });
        }
        socket.abort();
        return Err((HandshakeFailure::Plaintext, Termination::PlaintextRefused));
    }
    if deadline.within(context.handshakes.begin()).await.is_err() {
        return Err(timed_out());
    }
    let Ok(session) = server.session() else {
        return Err((HandshakeFailure::Other, Termination::TlsFailed));
    };
    let tls = TlsStream::new(&context.runtime, socket, session);
    let mut chosen = None;
    let shaken = tls.handshake(Some(first), || {
        if chosen.is_none() {
            chosen = server.take_chosen();
        }
    });
    match deadline.within(shaken).await {
        Ok(Ok(())) => {}
        Ok(Err(Failure::Closed)) => return Err((HandshakeFailure::Closed, Termination::ClientAborted)),
        Ok(Err(Failure::Protocol(error))) => {
            linger(tls.socket(), deadline, context.runtime.now() + LINGER).await;
            return Err((cause(&error), Termination::TlsFailed));
        }
        Err(TimedOut) => return Err(timed_out()),
    }
    let settled = chosen.and_then(|chosen| settled(&tls.session().borrow(), chosen));
    // A ticket outlives the certificate that it was issued to.
    let valid = |facts: &TlsFacts| facts.identity.as_ref().is_none_or(|identity| is_valid(identity));
    let Some(facts) = settled.filter(valid) else {
        tls.abort();
        return Err((HandshakeFailure::BadCertificate, Termination::TlsFailed));
    };
    counted.add(ListenerCounter::TlsHandshakes, 1);
    if facts.resumed {
        counted.add(ListenerCounter::TlsResumed, 1);
    }
    context.shard.observe(Histogram::TlsHandshakeDuration, context.runtime.now().since(started));
    Ok(Accepted { stream: Stream::Tls(tls), facts: Facts::new(Some(Rc::new(facts))) })
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
        if let Some(since) = context.drained_since() {
            deadline.set(until.min(since + context.serving().snapshot.drain.idle_grace));
        }
        deadline.poll_past(cx).map(|()| None)
    });
    let received: Option<io::Result<RecvBuf>> = received.await;
    deadline.set(until);
    match received {
        Some(Ok(buf)) if !buf.is_empty() => Ok(buf),
        Some(Ok(_)) => Err((HandshakeFailure::Closed, Termination::ClientClosed)),
        Some(Err(_)) => Err((HandshakeFailure::Closed, Termination::ClientAborted)),
        None if context.is_draining() => Err((HandshakeFailure::Closed, Termination::Drained)),
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

fn is_valid(identity: &PeerIdentity) -> bool {
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    identity.not_after.is_none_or(|not_after| now <= not_after)
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
