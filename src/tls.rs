//! TLS by rustls, without a socket: what is served and expected (specs), what was read from files (material), and the
//! session that turns records into bytes. Reads no file; rustls itself draws randomness, which is why this module is
//! exempt from the rule that layer 1 draws none.

pub mod client_hello;
mod spec;

pub use spec::{CertificateFiles, ClientSpec, MtlsMode, ServerNameSource, ServerSpec, VersionMin};
