//! A connection that comes by way of another proxy: the header in which that proxy names the client is read before
//! anything else. Only a peer that the configuration trusts is believed: anybody can write such a header.

use crate::metrics::{HandshakeFailure, ProxyHeader};
use crate::proxy_protocol::{Read, Version, read};
use crate::runtime::Socket;

use super::context::SessionGuard;
use super::facts::Facts;
use super::handshake::first_bytes;
use super::hello_input::HelloInput;
use super::outcome::Termination;
use super::snapshot::Untrusted;

/// Reads the header of a new connection to a listener that expects one; what follows it is the session's. `None`: the
/// connection has ended, and was counted.
pub async fn accept(guard: &SessionGuard, socket: Socket) -> Option<(Socket, Facts)> {
    let (outcome, result) = match learn(guard, &socket).await {
        Ok((outcome, facts)) => (outcome, Ok(facts)),
        Err((outcome, termination)) => (outcome, Err(termination)),
    };
    if let Some(outcome) = outcome {
        guard.counts().proxy_header(outcome);
    }
    match result {
        Ok(facts) => Some((socket, facts)),
        Err(termination) => {
            guard.ended(termination);
            // Whoever sent something else gets no answer in a protocol that it may not speak.
            if matches!(termination, Termination::ProxyUntrusted | Termination::ProxyHeader) {
                socket.abort();
            }
            None
        }
    }
}

type Outcome = Option<ProxyHeader>;

async fn learn(guard: &SessionGuard, socket: &Socket) -> Result<(Outcome, Facts), (Outcome, Termination)> {
    let context = guard.context();
    let serving = guard.serving();
    let Some(spec) = serving.listener(guard.listener()).and_then(|listener| listener.proxy_protocol.as_ref())
    else {
        return Ok((None, Facts::default()));
    };
    let Some(peer) = guard.client() else { return Err((None, Termination::ClientAborted)) };
    if !spec.trusts(peer) {
        return match spec.untrusted {
            Untrusted::Plain => Ok((None, Facts::default())),
            Untrusted::Refuse => Err((Some(ProxyHeader::Untrusted), Termination::ProxyUntrusted)),
        };
    }
    let deadline = context.runtime.deadline();
    deadline.set(context.runtime.now() + guard.timeouts().handshake);
    let silent = |(failure, termination)| match failure {
        HandshakeFailure::TimedOut => (Some(ProxyHeader::TimedOut), termination),
        // A peer that looks whether the port is open.
        _ => (None, termination),
    };
    let first = first_bytes(guard, socket, &deadline).await.map_err(silent)?;
    let mut input = HelloInput::new(&context.runtime, first);
    loop {
        match read(input.bytes()) {
            Read::Partial => input.receive(socket, &deadline).await.map_err(silent)?,
            Read::Malformed(_) => return Err((Some(ProxyHeader::Malformed), Termination::ProxyHeader)),
            Read::Complete { version, addresses, len } => {
                input.unread_from(len, socket);
                let outcome = match (version, addresses) {
                    (_, None) => ProxyHeader::Unnamed,
                    (Version::V1, _) => ProxyHeader::V1,
                    (Version::V2, _) => ProxyHeader::V2,
                };
                return Ok((Some(outcome), addresses.map_or_else(Facts::default, Facts::proxied)));
            }
        }
    }
}
