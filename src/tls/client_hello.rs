//! The ClientHello, read without answering it: for listeners that pass TLS on undecrypted and route by the name and
//! the protocols in it. Sees what stands in the clear alone: of an encrypted ClientHello (ECH) that is the outer name.
//! Decides nothing that is the endpoint's to decide (versions, suites, the order of extensions), and copies nothing
//! before the message is complete.

use std::net::{IpAddr, Ipv6Addr};

use rustls::AlertDescription;

use crate::limits::{HELLO_BYTES_MAX, HELLO_RECORDS_MAX};

/// RFC 8446 §5.1: type, legacy version, length.
const RECORD_HEADER_BYTES: usize = 5;
/// RFC 8446 §4: type, length of 24 bits.
const MESSAGE_HEADER_BYTES: usize = 4;
/// RFC 8446 §5.2. A plaintext record ends at 2^14; what is between is left for the endpoint to refuse.
const RECORD_BYTES_MAX: usize = (1 << 14) + 256;
/// `ContentType.handshake`
const HANDSHAKE: u8 = 22;
/// `HandshakeType.client_hello`
const CLIENT_HELLO: u8 = 1;
/// Extension types: RFC 6066 §3, RFC 7301 §3.1.
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
/// `NameType.host_name`
const HOST_NAME: u8 = 0;
/// RFC 1035 §2.3.4, as text without the final dot.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// What the bytes of a connection are so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    /// The connection does not begin with a TLS handshake: an alert would mean nothing to the client.
    NotTls,
    /// Whatever comes next, this is no ClientHello that can be served. The alert says why.
    Malformed(AlertDescription),
    Complete(ClientHello),
}

/// What a ClientHello tells of where its sender wants to go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientHello {
    /// Lower-case and without a final dot. `None` where the client named no host, or an IP address: that is no name
    /// (RFC 6066 §3).
    pub server_name: Option<Box<str>>,
    pub alpn: Protocols,
}

/// The protocols that a client offers (ALPN), in its order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Protocols(
    /// `ProtocolName`s as on the wire, checked: each a length of one byte, not 0, and as many bytes.
    Box<[u8]>,
);

impl Protocols {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Cursor(&self.0);
        std::iter::from_fn(move || rest.vector8().ok())
    }

    pub fn contains(&self, protocol: &[u8]) -> bool {
        self.iter().any(|offered| offered == protocol)
    }
}

/// Reads a ClientHello as its bytes come. Each call costs what is new, not what came before, and holds nothing but
/// its position; the whole message is looked at once.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// Bytes of the connection that were looked at.
    at: usize,
    /// Of the present record's bytes, those that are still to come.
    record_left: usize,
    records: usize,
    /// Bytes of the handshake message that were looked at.
    message_len: usize,
    /// The message's first bytes; they may stand in different records.
    message_header: [u8; MESSAGE_HEADER_BYTES],
}

impl Reader {
    /// `bytes` is everything that came on the connection: each call is given what the one before was given, and more.
    pub fn read(&mut self, bytes: &[u8]) -> Hello {
        match self.advance(bytes) {
            Ok(Some(message_len)) => match parse(&message(bytes, message_len)) {
                Ok(hello) => Hello::Complete(hello),
                Err(alert) => Hello::Malformed(alert),
            },
            Ok(None) => Hello::Partial,
            Err(verdict) => verdict,
        }
    }

    /// The length of the message, once all of it came.
    fn advance(&mut self, bytes: &[u8]) -> Result<Option<usize>, Hello> {
        loop {
            let new = bytes.get(self.at..).unwrap_or_default();
            if self.record_left == 0 {
                if self.records == 0 && (first_is_not(new, 0, HANDSHAKE) || first_is_not(new, 1, 3)) {
                    return Err(Hello::NotTls);
                }
                let Some(header) = new.first_chunk() else { return Ok(None) };
                self.record_left = self.record(*header).map_err(Hello::Malformed)?;
                self.at += RECORD_HEADER_BYTES;
                continue;
            }
            if new.is_empty() {
                return Ok(None);
            }
            let new = &new[..new.len().min(self.record_left)];
            let header_room = self.message_header.iter_mut().skip(self.message_len);
            header_room.zip(new).for_each(|(header, byte)| *header = *byte);
            self.at += new.len();
            self.record_left -= new.len();
            self.message_len += new.len();
            if let Some(message_len) = self.message().map_err(Hello::Malformed)?
                && self.message_len >= message_len
            {
                return Ok(Some(message_len));
            }
        }
    }

    /// The length of a record that begins, from its header. An empty one of the handshake is a sender's mistake
    /// (RFC 8446 §5.1) that the endpoint may refuse; here it only counts.
    fn record(&mut self, header: [u8; RECORD_HEADER_BYTES]) -> Result<usize, AlertDescription> {
        let [kind, major, _minor, high, low] = header;
        if major != 3 {
            return Err(AlertDescription::DecodeError);
        }
        if kind != HANDSHAKE {
            // RFC 8446 §5.1: no other record comes between those of one message.
            return Err(AlertDescription::UnexpectedMessage);
        }
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > RECORD_BYTES_MAX {
            return Err(AlertDescription::RecordOverflow);
        }
        self.records += 1;
        if self.records > HELLO_RECORDS_MAX {
            return Err(AlertDescription::DecodeError);
        }
        Ok(len)
    }

    /// The length of the message with its header, once that came.
    fn message(&self) -> Result<Option<usize>, AlertDescription> {
        let [kind, len @ ..] = self.message_header;
        if self.message_len > 0 && kind != CLIENT_HELLO {
            return Err(AlertDescription::UnexpectedMessage);
        }
        if self.message_len < MESSAGE_HEADER_BYTES {
            return Ok(None);
        }
        let len = len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)) + MESSAGE_HEADER_BYTES;
        if len > HELLO_BYTES_MAX {
            return Err(AlertDescription::DecodeError);
        }
        Ok(Some(len))
    }
}

/// A fatal alert as a record in the clear, which is all that can be sent before keys are agreed (RFC 8446 §6).
pub fn fatal_alert(alert: AlertDescription) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    // RFC 8446 §5.1: the legacy record version is that of TLS 1.2, which every client takes.
    [ALERT, 3, 3, 0, 2, FATAL, alert.into()]
}

fn first_is_not(bytes: &[u8], at: usize, wanted: u8) -> bool {
    bytes.get(at).is_some_and(|byte| *byte != wanted)
}

/// The message out of its records, which were all checked.
fn message(bytes: &[u8], len: usize) -> std::borrow::Cow<'_, [u8]> {
    let mut rest = bytes;
    let mut next = || {
        let header: [u8; RECORD_HEADER_BYTES] = *rest.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let payload = &rest[RECORD_HEADER_BYTES..];
        let payload = &payload[..len.min(payload.len())];
        rest = &rest[RECORD_HEADER_BYTES + payload.len()..];
        Some(payload)
    };
    let first = next().unwrap_or_default();
    if first.len() >= len {
        return first[..len].into();
    }
    let mut whole = Vec::with_capacity(len);
    whole.extend_from_slice(first);
    while whole.len() < len
        && let Some(payload) = next()
    {
        whole.extend_from_slice(&payload[..payload.len().min(len - whole.len())]);
    }
    whole.into()
}

/// RFC 8446 §4.1.2. Before TLS 1.3 the extensions may be absent (RFC 5246 §7.4.1.2).
fn parse(message: &[u8]) -> Result<ClientHello, AlertDescription> {
    const RANDOM_BYTES: usize = 32;
    const SESSION_ID_BYTES_MAX: usize = 32;
    let mut body = Cursor(message.get(MESSAGE_HEADER_BYTES..).unwrap_or_default());
    body.take(2)?;
    body.take(RANDOM_BYTES)?;
    let session_id = body.vector8_or_empty()?;
    let suites = body.vector16_or_empty()?;
    let compressions = body.vector8_or_empty()?;
    if session_id.len() > SESSION_ID_BYTES_MAX
        || suites.is_empty()
        || !suites.len().is_multiple_of(2)
        || compressions.is_empty()
    {
        return Err(AlertDescription::DecodeError);
    }
    let mut hello = ClientHello { server_name: None, alpn: Protocols::default() };
    if body.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Cursor(body.vector16_or_empty()?);
    if !body.is_empty() {
        return Err(AlertDescription::DecodeError);
    }
    let mut seen = Seen::default();
    while !extensions.is_empty() {
        let kind = extensions.number16()?;
        let data = Cursor(extensions.vector16_or_empty()?);
        // RFC 8446 §4.2: one of each type at most. Two readers could choose different ones.
        if !seen.insert(kind) {
            return Err(AlertDescription::IllegalParameter);
        }
        match kind {
            SERVER_NAME => hello.server_name = server_name(data)?,
            ALPN => hello.alpn = protocols(data)?,
            _ => {}
        }
    }
    Ok(hello)
}

/// RFC 6066 §3: a list with one `host_name` at most. Names of other types are left aside: all begin with a length.
fn server_name(mut data: Cursor<'_>) -> Result<Option<Box<str>>, AlertDescription> {
    let mut list = Cursor(data.vector16()?);
    if !data.is_empty() {
        return Err(AlertDescription::DecodeError);
    }
    let mut host = None;
    while !list.is_empty() {
        let kind = list.number8()?;
        let name = list.vector16()?;
        if kind == HOST_NAME && host.replace(name).is_some() {
            return Err(AlertDescription::DecodeError);
        }
    }
    host.map_or(Ok(None), host_name)
}

/// A name as it is compared. One that no host can have is known to nobody, which is what its alert says. A final dot
/// should not be there (RFC 6066 §3) but changes nothing about which host is meant.
fn host_name(name: &[u8]) -> Result<Option<Box<str>>, AlertDescription> {
    const UNRECOGNIZED: AlertDescription = AlertDescription::UnrecognisedName;
    let text = std::str::from_utf8(name).map_err(|_| UNRECOGNIZED)?;
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if text.parse::<IpAddr>().is_ok() || bracketed.is_some_and(|text| text.parse::<Ipv6Addr>().is_ok()) {
        return Ok(None);
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if text.len() > NAME_BYTES_MAX || !text.split('.').all(is_label) {
        return Err(UNRECOGNIZED);
    }
    Ok(Some(text.to_ascii_lowercase().into()))
}

/// RFC 7301 §3.1: at least one protocol, none of them empty.
fn protocols(mut data: Cursor<'_>) -> Result<Protocols, AlertDescription> {
    let list = data.vector16()?;
    let mut rest = Cursor(list);
    while !rest.is_empty() {
        rest.vector8()?;
    }
    if data.is_empty() { Ok(Protocols(list.into())) } else { Err(AlertDescription::DecodeError) }
}

/// Extension types that were met. A bit for each of the 65,536: a message of the largest size can hold 16,000 types.
struct Seen([u64; 1 << 10]);

impl Default for Seen {
    fn default() -> Self {
        Self([0; 1 << 10])
    }
}

impl Seen {
    /// `false` where it was met before.
    fn insert(&mut self, kind: u16) -> bool {
        let (word, bit) = (&mut self.0[usize::from(kind >> 6)], 1 << (kind & 63));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// Reads the presentation language of RFC 8446 §3. Whatever goes past the end is a decode error.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], AlertDescription> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(AlertDescription::DecodeError)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number8(&mut self) -> Result<u8, AlertDescription> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number16(&mut self) -> Result<u16, AlertDescription> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8_or_empty(&mut self) -> Result<&'a [u8], AlertDescription> {
        let len = self.number8()?;
        self.take(len.into())
    }

    fn vector16_or_empty(&mut self) -> Result<&'a [u8], AlertDescription> {
        let len = self.number16()?;
        self.take(len.into())
    }

    fn vector8(&mut self) -> Result<&'a [u8], AlertDescription> {
        self.vector8_or_empty().and_then(not_empty)
    }

    fn vector16(&mut self) -> Result<&'a [u8], AlertDescription> {
        self.vector16_or_empty().and_then(not_empty)
    }
}

fn not_empty(bytes: &[u8]) -> Result<&[u8], AlertDescription> {
    if bytes.is_empty() { Err(AlertDescription::DecodeError) } else { Ok(bytes) }
}

/// Holds for any input: the first verdict on growing input is the verdict on all of it, whatever the pieces; a name
/// is lower-case and never empty; protocols are never empty.
///
/// # Panics
/// Where it does not hold.
pub fn fuzz_client_hello(bytes: &[u8]) {
    let whole = Reader::default().read(bytes);
    let mut reader = Reader::default();
    let first =
        (0..=bytes.len()).map(|len| reader.read(&bytes[..len])).find(|hello| *hello != Hello::Partial);
    assert_eq!(first.unwrap_or(Hello::Partial), whole, "{bytes:?}");
    if let Hello::Complete(hello) = whole {
        let name = hello.server_name.as_deref().unwrap_or("a");
        assert!(!name.is_empty() && !name.ends_with('.'), "{name:?}");
        assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii_graphic()), "{name:?}");
        assert!(hello.alpn.iter().all(|protocol| !protocol.is_empty()), "{:?}", hello.alpn);
    }
}

#[cfg(test)]
mod tests;
