#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringfort::detect::fuzz_first(bytes));
