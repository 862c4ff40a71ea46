//! Sessions: what happens between a downstream connection and its upstreams. Protocols and policies meet here.

pub mod access;
mod ask;
pub mod body;
pub mod caller;
pub mod connections;
pub mod context;
pub mod door;
pub mod facts;
pub mod handshake;
pub mod handshakes;
mod hello_input;
pub mod http1;
pub mod http2;
pub mod outcome;
pub mod passthrough;
pub mod proxied;
pub mod rate_limits;
pub mod relay;
pub mod serving;
pub mod snapshot;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod transfer;
pub mod tunnel;
pub mod turnstile;
pub mod upstream;
