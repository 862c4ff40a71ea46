//! HTTP/2. The one place that names the `h2` crate: the rest of the proxy speaks of heads, pieces of bodies and streams.
//! The crate reads the clock to forget streams that were reset; nothing else here does.
//!
//! A head crosses between versions in one neutral form, that of an HTTP/1.1 head: what a peer sent in HTTP/2 is written
//! down as one and parsed and judged by the very code that judges HTTP/1.1 (`translate`). So there is one strict reader
//! of fields and lengths, and nothing passes that HTTP/1.1 would refuse.

mod exchange;
mod io;
mod piece;
pub mod server;
mod stream;
mod tap;
mod translate;

pub use piece::Piece;
pub use server::{Http2, PREFACE};
pub use stream::{Receiver, Sender, StreamFault};
