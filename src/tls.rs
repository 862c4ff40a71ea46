//! TLS by rustls, without a socket: what is served and expected (specs), what was read from files (material), and the
//! session that turns records into bytes. Reads no file; rustls itself draws randomness, which is why this module is
//! exempt from the rule that layer 1 draws none.

mod certificates;
mod client;
pub mod client_hello;
mod expect;
mod fault;
#[cfg(test)]
pub(crate) mod fixture;
mod identity;
mod material;
mod names;
mod pem;
mod server;
mod session;
mod spec;
mod suites;
mod tickets;

pub use certificates::{Certificate, CertificateSet, Remark};
pub use client::{Client, Purpose};
pub use expect::{EndpointVerifier, IdentityMismatch, explain};
pub use fault::{Cause, Fault, Part, date};
pub use identity::{PeerIdentity, fuzz_peer_identity};
pub use material::{Authorities, ClientMaterial, ClientTrust, ServerMaterial};
pub use names::Names;
pub use server::{Chosen, Known, Server};
pub use session::{Phase, Processed, RECORD_PLAINTEXT_BYTES_MAX, Session, sealed_bytes_max};
pub use spec::{CertificateFiles, ClientSpec, MtlsMode, ServerNameSource, ServerSpec, VersionMin};
pub use suites::provider;
pub use tickets::{NoRandom, ROTATION_S, TicketKeys, Ticketer};
