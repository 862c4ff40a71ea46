#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::h1::request::fuzz_request_head(bytes));
