//! The HTTP/1.1 engine: heads parsed, bodies framed, heads written. Sans-IO: bytes come in, appended bytes go out.
//! Never reads a clock or a socket, never logs, allocates nothing but room in the caller's buffer.
//!
//! A session receives until [`parse_request`] says `Complete`, routes on the head (which borrows the received
//! bytes), calls [`write_request`] into its output, and relays the body by `head.framing`, through a [`Decoder`]
//! where it is chunked. When a head is partial, wait for [`find_head_end`] before parsing again.

pub mod chunked;
mod head;
pub mod request;
pub mod response;
mod rewritten;
mod target;
#[cfg(test)]
mod tests;
pub mod write;

pub use chunked::{CHUNK_END, CHUNK_HEADER_BYTES_MAX, Decoded, Decoder, LAST_CHUNK, write_chunk_header};
pub use head::{FieldSlots, HeadLimits, Parsed, find_head_end};
pub use request::{RequestHead, parse_request};
pub use response::{ResponseHead, framing_to_client, parse_response};
pub use target::Target;
pub use write::{response_fields, write_last_chunk, write_request, write_response};
