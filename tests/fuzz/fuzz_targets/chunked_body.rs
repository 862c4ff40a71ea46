#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::h1::chunked::fuzz_chunked_body(bytes));
