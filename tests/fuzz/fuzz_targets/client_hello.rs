#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::tls::client_hello::fuzz_client_hello(bytes));
