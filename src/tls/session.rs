//! One TLS session: records in, plaintext and records out. Owns no socket and no buffer of a connection: what is not
//! yet a whole message stays with the caller and comes again.

use std::ops::Deref;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{CommonState, Error};

/// Plaintext of one record at most.
pub const RECORD_PLAINTEXT_BYTES_MAX: usize = 16_384;
/// What encryption adds to a record at most: header, TLS 1.2's explicit nonce, TLS 1.3's content type, tag.
const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 8 + 1 + 16;

/// The fatal alert decode_error as a plaintext record (RFC 8446 §6.2).
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];
/// Room for a KeyUpdate that goes before other records.
const KEY_UPDATE_BYTES_MAX: usize = 64;

/// Bytes that `bytes` of plaintext become at most.
pub const fn sealed_bytes_max(bytes: usize) -> usize {
    bytes + bytes.div_ceil(RECORD_PLAINTEXT_BYTES_MAX) * RECORD_OVERHEAD_BYTES_MAX + KEY_UPDATE_BYTES_MAX
}

/// Where the session stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Waits for the peer's part of the handshake.
    Handshake,
    /// Bytes can be sent and received.
    Open,
    /// The peer ended its stream with close_notify. Bytes can still be sent.
    PeerClosed,
}

/// What came of the bytes put in.
#[derive(Debug)]
pub struct Processed {
    /// Of the input, from its front. The rest is to come again, with more behind it.
    pub consumed: usize,
    /// Fatal where it is an error: the alert that tells the peer was put out.
    pub phase: Result<Phase, Error>,
}

/// A session of either side.
pub struct Session(Side);

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl Session {
    pub(super) const fn server(connection: UnbufferedServerConnection) -> Self {
        Self(Side::Server(connection))
    }

    pub(super) const fn client(connection: UnbufferedClientConnection) -> Self {
        Self(Side::Client(connection))
    }

    /// Takes what was received. Records to be sent are appended to `out`, also where the phase is an error; plaintext
    /// is handed to `plain` in order.
    pub fn process(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
        mut plain: impl FnMut(&[u8]),
    ) -> Processed {
        match &mut self.0 {
            Side::Server(connection) => drive(&mut **connection, input, out, &mut plain),
            Side::Client(connection) => drive(&mut **connection, input, out, &mut plain),
        }
    }

    /// Encrypts `plain` into `out`, which has room for `sealed_bytes_max` of it. Returns the bytes written. `pending` is
    /// what `process` did not consume: rustls keeps positions in it.
    ///
    /// # Errors
    /// Before the handshake is done, after close_notify, and when the keys are used up and the protocol version has
    /// no way to renew them.
    pub fn encrypt(&mut self, pending: &mut [u8], plain: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        match &mut self.0 {
            Side::Server(connection) => encrypt(&mut **connection, pending, plain, out),
            Side::Client(connection) => encrypt(&mut **connection, pending, plain, out),
        }
    }

    /// Appends close_notify, once, where the session is open. `pending` as for `encrypt`.
    pub fn close(&mut self, pending: &mut [u8], out: &mut Vec<u8>) {
        match &mut self.0 {
            Side::Server(connection) => close(&mut **connection, pending, out),
            Side::Client(connection) => close(&mut **connection, pending, out),
        }
    }

    /// What both sides agreed on.
    pub fn agreed(&self) -> &CommonState {
        match &self.0 {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }
}

/// The one difference between the sides that matters here.
trait Records: Deref<Target = CommonState> {
    type Data;
    fn records<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedConnectionCommon<ServerConnectionData> {
    type Data = ServerConnectionData;
    fn records<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
}

impl Records for UnbufferedConnectionCommon<ClientConnectionData> {
    type Data = ClientConnectionData;
    fn records<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
}

fn drive<R: Records>(
    connection: &mut R,
    input: &mut [u8],
    out: &mut Vec<u8>,
    plain: &mut impl FnMut(&[u8]),
) -> Processed {
    let mut consumed = 0;
    loop {
        let UnbufferedStatus { mut discard, state, .. } = connection.records(&mut input[consumed..]);
        let phase = match state {
            Err(error) => Some(Err(error)),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut broken = None;
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            plain(record.payload);
                        }
                        Err(error) => broken = Some(Err(error)),
                    }
                }
                broken
            }
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out).err().map(Err),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                // The caller sends `out` before anything else.
                data.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Ok(Phase::Handshake)),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(Phase::Open)),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Ok(Phase::PeerClosed)),
            // Early data is off: it cannot come.
            Ok(_) => Some(Err(Error::General("a state that was never asked for".into()))),
        };
        consumed += discard;
        let Some(phase) = phase else { continue };
        if phase.is_err() {
            tell(connection, &mut input[consumed..], out);
            if out.is_empty() && connection.protocol_version().is_none() {
                // rustls tells nothing of a record that cannot be taken apart. No keys yet: the alert goes in plaintext.
                out.extend_from_slice(&DECODE_ERROR);
            }
        }
        return Processed { consumed, phase };
    }
}

/// After an error: appends what tells the peer. Goes no further, or the same error would come again.
fn tell<R: Records>(connection: &mut R, input: &mut [u8], out: &mut Vec<u8>) {
    while connection.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(data)) = connection.records(input).state else { return };
        if encode(data, out).is_err() {
            return;
        }
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Result<(), Error> {
    let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) else { return Ok(()) };
    let start = out.len();
    out.resize(start + size.required_size, 0);
    data.encode(&mut out[start..])
        .map(drop)
        .map_err(|_| Error::General("a record outgrew the room it asked for".into()))
}

fn encrypt<R: Records>(
    connection: &mut R,
    pending: &mut [u8],
    plain: &[u8],
    out: &mut [u8],
) -> Result<usize, Error> {
    let no_room = || Error::General("no room for a record".into());
    let mut written = 0;
    loop {
        let out = &mut out[written..];
        match connection.records(pending).state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                return match traffic.encrypt(plain, out) {
                    Ok(bytes) => Ok(written + bytes),
                    Err(EncryptError::EncryptExhausted) => Err(Error::EncryptError),
                    Err(EncryptError::InsufficientSize(_)) => Err(no_room()),
                };
            }
            // A message of the protocol that is to go first, such as a KeyUpdate.
            ConnectionState::EncodeTlsData(mut data) => {
                written += data.encode(out).map_err(|_| no_room())?;
            }
            other => pass(other)?,
        }
    }
}

fn close<R: Records>(connection: &mut R, pending: &mut [u8], out: &mut Vec<u8>) {
    loop {
        let Ok(state) = connection.records(pending).state else { return };
        let passed = match state {
            ConnectionState::WriteTraffic(mut traffic) => {
                let mut alert = [0; 64];
                if let Ok(bytes) = traffic.queue_close_notify(&mut alert) {
                    out.extend_from_slice(&alert[..bytes]);
                }
                return;
            }
            ConnectionState::EncodeTlsData(data) => encode(data, out),
            other => pass(other),
        };
        if passed.is_err() {
            return;
        }
    }
}

/// Goes past a state on the way to the one in which bytes can be sent.
fn pass<D>(state: ConnectionState<'_, '_, D>) -> Result<(), Error> {
    match state {
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(())
        }
        ConnectionState::PeerClosed => Ok(()),
        ConnectionState::BlockedHandshake => Err(Error::HandshakeNotComplete),
        _ => Err(Error::General("nothing can be sent any more".into())),
    }
}

#[cfg(test)]
mod tests;
