#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::proxy_protocol::fuzz_proxy_header(bytes));
