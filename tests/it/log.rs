//! A log that nobody takes: it costs its lines, and nothing else.

use std::fs::File;
use std::process::Stdio;

use crate::harness::gateway::{Gateway, Launch};
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    a_full_disk_costs_lines_and_nothing_else,
    a_reader_that_is_gone_costs_lines_and_nothing_else,
);

fn lines_are_lost_and_nothing_else(engine: Engine, stderr: fn() -> Stdio) {
    let launch = Launch { stderr: Some(stderr), ..Launch::default() };
    let mut gateway = Gateway::launch(&Setup::answering(engine).text(), launch);
    let dropped = |gateway: &Gateway| gateway.metric("ringfort_log_lines_dropped", "");
    for _ in 0..3 {
        let before = dropped(&gateway);
        gateway.reload();
        assert_eq!(gateway.get("/").status, 200);
        eventually("the line on the reload is counted", || dropped(&gateway) > before);
    }
    gateway.upgrade();
    assert_eq!(gateway.get("/").status, 200);
    gateway.drain();
}

/// R20: every write is answered ENOSPC.
fn a_full_disk_costs_lines_and_nothing_else(engine: Engine) {
    lines_are_lost_and_nothing_else(engine, || File::options().write(true).open("/dev/full").unwrap().into());
}

/// R21: EPIPE, and no SIGPIPE that ends the process.
fn a_reader_that_is_gone_costs_lines_and_nothing_else(engine: Engine) {
    lines_are_lost_and_nothing_else(engine, || std::io::pipe().unwrap().1.into());
}
