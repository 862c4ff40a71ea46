//! Any text is parsed as a configuration or refused with a reason; nothing panics or hangs.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| ringfort::config::fuzz_parse(text));
