//! The same small relay and responder on several runtimes, compared as the proxies are. Never shipped: it
//! keeps the decision for a runtime of our own honest.

mod compare;
mod on_glommio;
mod on_ringfort;
mod on_tokio;
mod on_tokio_uring;
mod work;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringfort::runtime::EngineChoice;
use ringfort_bench::origin::Origin;
use ringfort_bench::pin;

use work::{Job, Work};

/// The same relay and responder on rival runtimes.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compare(compare::Options),
    Serve(ServeOptions),
    /// The origin behind the relays
    Origin {
        #[arg(long)]
        listen: SocketAddr,
    },
}

/// Run one server on one runtime
#[derive(Args)]
struct ServeOptions {
    #[arg(long, value_enum)]
    runtime: RuntimeName,
    #[arg(long, value_enum)]
    work: Work,
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where a relay connects to
    #[arg(long, default_value = "127.0.0.1:9000")]
    upstream: SocketAddr,
    #[arg(long)]
    cpu: Option<usize>,
}

/// The rivals, and ours on both engines.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum RuntimeName {
    RingfortUring,
    RingfortEpoll,
    Tokio,
    TokioUring,
    Glommio,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Compare(options) => compare::run(&options),
        Command::Serve(options) => serve(&options),
        Command::Origin { listen } => Origin::bind(listen).and_then(Origin::serve),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfort-runtimes: {error}");
            ExitCode::from(2)
        }
    }
}

fn serve(options: &ServeOptions) -> io::Result<()> {
    pin::raise_descriptor_limit();
    if let Some(cpu) = options.cpu {
        pin::current_thread_to(cpu)?;
    }
    let job = Job { work: options.work, listen: options.listen, upstream: options.upstream };
    match options.runtime {
        RuntimeName::RingfortUring => on_ringfort::serve(job, EngineChoice::IoUring),
        RuntimeName::RingfortEpoll => on_ringfort::serve(job, EngineChoice::Epoll),
        RuntimeName::Tokio => on_tokio::serve(job),
        RuntimeName::TokioUring => on_tokio_uring::serve(job),
        RuntimeName::Glommio => on_glommio::serve(job),
    }
}
