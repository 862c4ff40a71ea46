#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::h1::response::fuzz_response_head(bytes));
