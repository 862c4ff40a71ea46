//! Entry point. Only turns the outcome of a command into an exit code.

use std::process::ExitCode;

use clap::Parser;
use ringfort::cli::Cli;

fn main() -> ExitCode {
    ExitCode::from(Cli::parse().run())
}
