#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::http::traceparent::fuzz_traceparent(bytes));
