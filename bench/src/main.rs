//! The commands of the benchmark. Only reads arguments and prints outcomes.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringfort_bench::load::{Load, Measured, Pace, Plan, Reuse};
use ringfort_bench::origin::Origin;
use ringfort_bench::tls::{Negotiated, Offer, Tls};
use ringfort_bench::{certificate, compare, pin, steal, tls_api, wire};

/// Load generator, origin, and comparison of Ringfort with nginx and HAProxy. Loopback only.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compare(compare::Options),
    Steal(steal::Options),
    Antagonist(steal::AntagonistOptions),
    Load(LoadOptions),
    Origin(OriginOptions),
    /// Compare rustls' two APIs as a server, in memory
    TlsApi,
}

/// Put load on one address, and check every response
#[derive(Args)]
struct LoadOptions {
    /// Where the proxy listens
    address: SocketAddr,
    /// Which body to ask the origin for
    #[arg(long, value_enum, default_value = "small")]
    body: Body,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Open loop: requests a second, with latencies from when each was due [default: closed loop]
    #[arg(long)]
    rate: Option<f64>,
    /// A connection a request
    #[arg(long)]
    churn: bool,
    /// One request on each connection, then hold them for the given seconds
    #[arg(long, conflicts_with_all = ["rate", "churn"])]
    idle: bool,
    /// Speak TLS 1.3, with any certificate; a connection negotiated otherwise than asked for is an error
    #[arg(long)]
    tls: bool,
    /// What to offer
    #[arg(long, value_enum, default_value = "aes128", requires = "tls")]
    tls_offer: Offer,
    /// Name to send and to put in Host [default: bench.test]
    #[arg(long, requires = "tls")]
    tls_name: Option<String>,
    /// Resume each connection's session from the connection before it [default: full handshakes only]
    #[arg(long, requires_all = ["tls", "churn"])]
    tls_resume: bool,
    /// Take a session ticket for an error
    #[arg(long, requires = "tls", conflicts_with = "tls_resume")]
    tls_no_tickets: bool,
    /// Compare every octet of every body, and verify every server's signature
    #[arg(long)]
    verify: bool,
    /// Run on this CPU
    #[arg(long)]
    cpu: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Answer /small (100 bytes) and /100k (102,400 bytes), echo messages of WebSockets at /echo
#[derive(Args)]
struct OriginOptions {
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Run on this CPU
    #[arg(long)]
    cpu: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Body {
    Small,
    #[value(name = "100k")]
    Large,
}

impl LoadOptions {
    fn terms(&self) -> Tls {
        Tls {
            server_name: self.tls_name.clone().unwrap_or_else(|| certificate::NAME.to_owned()),
            offer: self.tls_offer,
            resume: self.tls_resume,
            tickets: !self.tls_no_tickets,
            certificate: None,
        }
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Compare(options) => compare::run(&options),
        Command::Steal(options) => steal::run(&options),
        Command::Antagonist(options) => steal::take(&options).map(|()| true),
        Command::Load(options) => load(&options),
        Command::Origin(options) => origin(&options).map(|()| true),
        Command::TlsApi => tls_api::run().map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("ringfort-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn origin(options: &OriginOptions) -> io::Result<()> {
    loopback(options.listen)?;
    prepare(options.cpu)?;
    let origin = Origin::bind(options.listen)?;
    println!("listening on {}", origin.address()?);
    origin.serve()
}

fn load(options: &LoadOptions) -> io::Result<bool> {
    loopback(options.address)?;
    prepare(options.cpu)?;
    let (target, body_bytes) = match options.body {
        Body::Small => ("/small", wire::SMALL_BYTES),
        Body::Large => ("/100k", wire::LARGE_BYTES),
    };
    let mut load = Load::open(Plan {
        address: options.address,
        target,
        body_bytes,
        connections: options.connections,
        reuse: if options.churn { Reuse::Churn } else { Reuse::KeepAlive },
        pace: options.rate.map_or(Pace::Closed, Pace::Open),
        verify_all: options.verify,
        tls: options.tls.then(|| options.terms()),
        websocket: false,
    })?;
    let span = Duration::from_secs_f64(options.seconds);
    if options.idle {
        load.check()?;
        println!("{} connections open, one response each", options.connections);
        std::thread::sleep(span);
        return Ok(true);
    }
    load.run(Duration::from_secs_f64(options.warm_up))?;
    load.reset()?;
    load.run(span)?;
    load.settle()?;
    let measured = load.measured();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&measured).map_err(io::Error::other)?);
    } else {
        print(&measured);
    }
    Ok(measured.errors == 0 && measured.unanswered == 0)
}

fn print(measured: &Measured) {
    let Measured { seconds, responses, rate_per_second, latency_us, errors, unanswered, .. } = measured;
    println!("{responses} responses in {seconds:.2} s: {rate_per_second:.0}/s");
    println!(
        "latency µs: p50 {:.0}, p90 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0}",
        latency_us.p50, latency_us.p90, latency_us.p99, latency_us.p999, latency_us.max
    );
    println!("errors {errors}, unanswered {unanswered}");
    if let Some(Negotiated { suite, group, resumed, handshakes, tickets }) = &measured.tls {
        let kind = if *resumed { "resumed" } else { "full" };
        println!("TLS: {suite}, {group}, {kind}; while measured {handshakes} handshakes, {tickets} tickets");
    }
    if let Some(first) = &measured.first_error {
        println!("first error: {first}");
    }
}

fn prepare(cpu: Option<usize>) -> io::Result<()> {
    pin::raise_descriptor_limit();
    cpu.map_or(Ok(()), pin::current_thread_to)
}

/// A load generator pointed at someone else's machine is an attack.
fn loopback(address: SocketAddr) -> io::Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(io::Error::other(format!("{address} is not a loopback address; this benchmark stays on its machine")))
}
