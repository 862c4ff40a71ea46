//! HTTP/2. The one place that names the `h2` crate: the rest of the proxy speaks of heads, pieces of bodies and streams.
//! The crate reads the clock to forget streams that were reset; nothing else here does.
//!
//! A head crosses between versions in one neutral form, that of an HTTP/1.1 head: what a peer sent in HTTP/2 is written
//! down as one and parsed and judged by the very code that judges HTTP/1.1 (`translate`). So there is one strict reader
//! of fields and lengths, and nothing passes that HTTP/1.1 would refuse.

mod client;
mod exchange;
mod io;
mod piece;
mod rules;
pub mod server;
mod stream;
mod tap;
mod translate;
mod usual_fields;

use std::net::SocketAddr;

use ::http::response;

use crate::h1::{FieldSlots, HeadLimits, Parsed, parse_request};
use crate::http::Reject;
use crate::runtime::Runtime;

use super::tunnel::Opening;

pub use client::{Answered, Call, Connecting, Multiplexed, Slot};
pub use piece::Piece;
pub use server::Http2;
pub use stream::{Receiver, Sender, StreamFault};
pub use usual_fields::UsualFields;

/// Sends the head that would go up in HTTP/1.1 on a stream to `endpoint`; one with `Upgrade` as an extended CONNECT
/// (RFC 8441). `ended`: there is no body.
///
/// # Errors
/// `Refused` where nothing of it went out; `Unsendable` or `TooManyFields` where it has no place in HTTP/2.
pub fn send_request(
    slot: &mut Slot,
    head: &[u8],
    endpoint: SocketAddr,
    scheme: &str,
    te_trailers: bool,
    ended: bool,
    usual: &UsualFields,
) -> Result<(Call, Sender), StreamFault> {
    let mut slots = FieldSlots::new();
    // HTTP/2 names an authority always; where the client named none, the endpoint's own.
    let named = translate::with_host(head, endpoint);
    let named = named.as_deref().unwrap_or(head);
    let head = match parse_request(named, &mut slots, &HeadLimits::OURS) {
        Ok(Parsed::Complete(head)) => head,
        Err(Reject::TOO_MANY_FIELDS) => return Err(StreamFault::TooManyFields),
        _ => return Err(StreamFault::Unsendable),
    };
    let request = translate::request(&head, scheme, te_trailers, usual).ok_or(StreamFault::Unsendable)?;
    slot.send(request, ended)
}

/// What of a request its response is to be read by.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub is_head: bool,
    pub opening: Option<&'a Opening>,
}

/// Calls `read` with a response head in its neutral form.
///
/// # Errors
/// Those of `read`, and where HTTP/2 calls the response malformed.
pub fn response_in_neutral_form<T>(
    runtime: &Runtime,
    head: &response::Parts,
    ended: bool,
    asked: Asked<'_>,
    read: impl FnOnce(&[u8]) -> Result<T, Reject>,
) -> Result<T, Reject> {
    let mut neutral = runtime.take_block();
    let status = head.status.as_u16();
    let opening = asked.opening.filter(|_| head.status.is_success());
    let bodyless = asked.is_head || opening.is_some() || matches!(status, 100..=199 | 204 | 304);
    let written = translate::write_response(&mut neutral, head, ended, bodyless, opening);
    let read = written.map_err(|_| Reject::BAD_FIELD_VALUE.by_upstream()).and_then(|()| read(&neutral));
    runtime.put_block(neutral);
    read
}
