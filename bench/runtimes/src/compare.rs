//! Every runtime under both kinds of work, in interleaved rounds: the cost of a request, against tokio's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use ringfort_bench::load::{Pace, Plan, Reuse};
use ringfort_bench::machine::Machine;
use ringfort_bench::measure::{self, Sample, Timing};
use ringfort_bench::proxies::Programs;
use ringfort_bench::report::{self, Entry, Group};
use ringfort_bench::rig::{Cpus, Rig, free_address};
use ringfort_bench::{pin, wire};
use serde::Serialize;

use crate::RuntimeName;
use crate::work::Work;

const CONNECTIONS: usize = 64;

/// Measure all runtimes in interleaved rounds and print one table
#[derive(clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds measured in each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Runtimes, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<RuntimeName>,
    /// Folder for runtimes.json and runtimes.txt
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// The CPU of the load generator and the origin
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
}

#[derive(Serialize)]
struct Outcome {
    machine: Machine,
    groups: Vec<Group>,
}

pub fn run(options: &Options) -> io::Result<()> {
    pin::raise_descriptor_limit();
    pin::current_thread_to(options.load_cpu)?;
    let program = std::env::current_exe()?;
    // Only its own servers are started here.
    let programs = Programs {
        nginx: "".into(),
        haproxy: "".into(),
        ringfort: "".into(),
        h2load: "".into(),
        nghttpd: "".into(),
    };
    let cpus = Cpus { proxy: options.server_cpu, load: options.load_cpu };
    let rig = Rig::start(&program, programs, cpus)?;
    let runtimes =
        if options.only.is_empty() { RuntimeName::value_variants().to_vec() } else { options.only.clone() };

    let mut text = String::new();
    let mut groups = Vec::new();
    for work in [Work::Relay, Work::Respond] {
        let group = rounds(&rig, &program, options, work, &runtimes)?;
        print!("{}", report::table(&group));
        text.push_str(&report::table(&group));
        groups.push(group);
    }
    if let Some(folder) = &options.out {
        fs::create_dir_all(folder)?;
        let outcome = Outcome { machine: Machine::read(), groups };
        let json = serde_json::to_string_pretty(&outcome).map_err(io::Error::other)?;
        fs::write(folder.join("runtimes.json"), json)?;
        fs::write(folder.join("runtimes.txt"), text)?;
    }
    Ok(())
}

fn rounds(
    rig: &Rig,
    program: &Path,
    options: &Options,
    work: Work,
    runtimes: &[RuntimeName],
) -> io::Result<Group> {
    let about = match work {
        Work::Relay => "a TCP relay of small HTTP requests, 64 connections; ratios against tokio",
        Work::Respond => "an HTTP/1.1 keep-alive responder, 64 connections; ratios against tokio",
    };
    let entry = |runtime: &RuntimeName| Entry {
        name: word(runtime),
        peer: *runtime == RuntimeName::Tokio,
        samples: Vec::new(),
    };
    let mut group = Group {
        name: word(&work),
        about: about.to_owned(),
        unit: "CPU µs/request",
        entries: runtimes.iter().map(entry).collect(),
    };
    for round in 0..usize::from(options.rounds) {
        for step in 0..runtimes.len() {
            let at = (round + step) % runtimes.len();
            let sample = measure_one(rig, program, options, work, runtimes[at], round)?;
            eprintln!("{} round {} {}: {:.1} µs", group.name, round + 1, word(&runtimes[at]), sample.cost);
            group.entries[at].samples.push(sample);
        }
    }
    Ok(group)
}

fn measure_one(
    rig: &Rig,
    program: &Path,
    options: &Options,
    work: Work,
    runtime: RuntimeName,
    round: usize,
) -> io::Result<Sample> {
    let listen = free_address()?;
    let name = word(&runtime);
    let arguments = [
        "serve".to_owned(),
        format!("--runtime={name}"),
        format!("--work={}", word(&work)),
        format!("--listen={listen}"),
        format!("--upstream={}", rig.origin()),
        format!("--cpu={}", options.server_cpu),
    ];
    let log = rig.folder().join(format!("{name}.log"));
    let mut server = rig.launch(&name, program, &arguments, listen, log)?;
    let plan = Plan {
        address: server.address,
        target: "/small",
        body_bytes: wire::SMALL_BYTES,
        connections: CONNECTIONS,
        reuse: Reuse::KeepAlive,
        pace: Pace::Closed,
        verify_all: true,
        tls: None,
        websocket: false,
    };
    let timing = Timing {
        warm_up: Duration::from_millis(500),
        span: Duration::from_secs_f64(options.seconds.max(0.1)),
    };
    measure::requests(rig, &mut server, plan, timing, round)
}

fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
