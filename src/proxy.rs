//! Sessions: what happens between a downstream connection and its upstreams. Protocols and policies meet here.

pub mod snapshot;
