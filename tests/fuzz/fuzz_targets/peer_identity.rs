//! Any bytes are read as a client's certificate, or are none; what is told of them upstream stays one field value.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::tls::fuzz_peer_identity(bytes));
