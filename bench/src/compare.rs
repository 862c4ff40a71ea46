//! The one command: every proxy under every workload, in interleaved rounds, as a table and as data. Never
//! judges a single round: the machine drifts, so only ratios within a round are compared.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::h2load;
use crate::load::Plan;
use crate::machine::Machine;
use crate::measure::{self, Sample, Timing};
use crate::proxies::{OPENSSL_CONFIG, Programs, Proxy};
use crate::report::{self, Entry, Group, Verdict};
use crate::rig::{Cpus, Rig};
use crate::workload::{Method, Protocol, WORKLOADS, Workload};
use crate::{pin, procfs};

/// Above this part of the proxy's CPU used by others, or taken by the hypervisor, the report warns.
const DISTURBED_RATIO: f64 = 0.05;

/// Start nginx, HAProxy and Ringfort in turn, put the same load on each, and print what a request costs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds; in each, every proxy runs once, in rotated order
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds measured in each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Workloads, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_parser = parse_workload)]
    workload: Vec<Workload>,
    /// Proxies, separated by commas: nginx, haproxy, haproxy-splice, ringfort-uring, ringfort-epoll
    /// [default: all but haproxy-splice]
    #[arg(long, value_delimiter = ',', value_parser = parse_proxy)]
    only: Vec<Proxy>,
    /// Hold the results against the promises; exit code 1 if one is missed
    #[arg(long)]
    check: bool,
    /// The entry whose missed promises count for the exit code
    #[arg(long, default_value = "ringfort-uring")]
    check_entry: String,
    /// One short round of every plaintext workload and one of TLS, or of those named: whether responses are right, not what they cost
    #[arg(long, conflicts_with_all = ["check", "rounds", "seconds", "warm_up"])]
    smoke: bool,
    /// Folder for result.json, table.txt and the configurations, e.g. bench/runs/2026-11-23-host
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, default_value = "target/release/ringfort")]
    ringfort: PathBuf,
    #[arg(long, default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    #[arg(long, default_value = "/usr/sbin/haproxy")]
    haproxy: PathBuf,
    #[arg(long, default_value = "/usr/bin/h2load")]
    h2load: PathBuf,
    #[arg(long, default_value = "/usr/sbin/nghttpd")]
    nghttpd: PathBuf,
    /// The CPU of the proxy
    #[arg(long, default_value_t = 0)]
    proxy_cpu: usize,
    /// The CPU of the load generator and the origin
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
}

/// Everything about a run; what `result.json` holds.
#[derive(Serialize)]
struct Outcome {
    machine: Machine,
    versions: BTreeMap<&'static str, String>,
    rounds: u16,
    seconds: f64,
    warm_up_seconds: f64,
    proxy_cpu: usize,
    load_cpu: usize,
    /// Of the whole machine, from the first run to the last.
    steal_ratio: f64,
    summary: BTreeMap<String, Vec<report::Row>>,
    groups: Vec<Group>,
    verdicts: Vec<Verdict>,
    failures: Vec<String>,
}

/// Runs the comparison; whether it found everything good.
pub fn run(options: &Options) -> io::Result<bool> {
    let options = options.resolved();
    let descriptors = pin::raise_descriptor_limit();
    pin::current_thread_to(options.load_cpu)?;
    let machine = Machine::read();
    let programs = Programs {
        nginx: options.nginx.clone(),
        haproxy: options.haproxy.clone(),
        ringfort: options.ringfort.clone(),
        h2load: options.h2load.clone(),
        nghttpd: options.nghttpd.clone(),
    };
    let mut versions = BTreeMap::new();
    for proxy in &options.only {
        versions.insert(proxy.name(), proxy.version(&programs)?);
    }
    let cpus = Cpus { proxy: options.proxy_cpu, load: options.load_cpu };
    let rig = Rig::start(&std::env::current_exe()?, programs, cpus)?;
    let steal = procfs::ticks(None)?;
    print!("{}", heading(&machine, &versions, descriptors));

    let mut outcome = Outcome {
        machine,
        versions,
        rounds: options.rounds,
        seconds: options.seconds,
        warm_up_seconds: options.warm_up,
        proxy_cpu: options.proxy_cpu,
        load_cpu: options.load_cpu,
        steal_ratio: 0.0,
        summary: BTreeMap::new(),
        groups: Vec::new(),
        verdicts: Vec::new(),
        failures: Vec::new(),
    };
    for workload in &options.workload {
        let groups = rounds(&rig, &options, *workload, &mut outcome.failures);
        groups.iter().for_each(|group| print!("{}", report::table(group)));
        outcome.verdicts.extend(judge(workload, &groups));
        outcome.groups.extend(groups);
    }
    outcome.steal_ratio = procfs::ticks(None)?.since(steal).steal_ratio();
    let named = outcome.groups.iter().map(|group| (group.name.clone(), group.rows()));
    outcome.summary = named.collect();
    print!("{}", closing(&outcome, options.check));
    if let Some(folder) = &options.out {
        keep(folder, &outcome, &rig, &options)?;
    }
    Ok(outcome.failures.is_empty() && !(options.check && options.missed(&outcome.verdicts)))
}

impl Options {
    /// The options with what they leave open filled in.
    fn resolved(&self) -> Self {
        let mut options = self.clone();
        if options.workload.is_empty() {
            options.workload = WORKLOADS.to_vec();
            options.workload.retain(|workload| workload.in_smoke || !options.smoke);
        }
        if options.only.is_empty() {
            options.only = Proxy::DEFAULT.to_vec();
        }
        if options.smoke {
            options.workload = options.workload.into_iter().map(Workload::smoke).collect();
            (options.rounds, options.seconds, options.warm_up) = (1, 0.3, 0.1);
        }
        options
    }

    fn timing(&self, workload: &Workload) -> Timing {
        // Scale has seven sizes: a third of the time each keeps a round bearable.
        let share = if matches!(workload.method, Method::Scale(_)) { 3.0 } else { 1.0 };
        Timing {
            warm_up: Duration::from_secs_f64(self.warm_up),
            span: Duration::from_secs_f64((self.seconds / share).max(0.1)),
        }
    }

    fn missed(&self, verdicts: &[Verdict]) -> bool {
        let mut counted = verdicts.iter().filter(|verdict| verdict.entry == self.check_entry).peekable();
        // A check that had nothing to check is not a check that was passed.
        counted.peek().is_none() || counted.any(|verdict| !verdict.met)
    }
}

/// All rounds of one workload: one group, or one for each size of `scale`.
fn rounds(rig: &Rig, options: &Options, workload: Workload, failures: &mut Vec<String>) -> Vec<Group> {
    let mut groups = groups_of(&workload, &options.only);
    let mut failed: Vec<Proxy> = Vec::new();
    for round in 0..usize::from(options.rounds) {
        let mut order = options.only.clone();
        order.rotate_left(round % options.only.len());
        for proxy in order {
            if failed.contains(&proxy) {
                continue;
            }
            match measure_one(rig, options, &workload, proxy, round) {
                Ok(samples) => {
                    for (group, sample) in groups.iter_mut().zip(samples) {
                        announce(group, proxy, round, &sample);
                        if let Some(entry) = group.entries.iter_mut().find(|entry| entry.name == proxy.name())
                        {
                            entry.samples.push(sample);
                        }
                    }
                }
                Err(error) => {
                    let failure = format!("{}: {}: {error}", workload.name, proxy.name());
                    eprintln!("FAILED {failure}");
                    failures.push(failure);
                    failed.push(proxy);
                }
            }
        }
    }
    groups
}

fn measure_one(
    rig: &Rig,
    options: &Options,
    workload: &Workload,
    proxy: Proxy,
    round: usize,
) -> io::Result<Vec<Sample>> {
    let mut running = rig.proxy(proxy, workload.protocol)?;
    let plan = Plan {
        address: running.address,
        target: workload.target,
        body_bytes: workload.body_bytes,
        connections: workload.connections,
        reuse: workload.reuse,
        pace: workload.pace,
        verify_all: options.smoke,
        tls: rig.tls(workload.protocol),
        websocket: workload.protocol == Protocol::WebSocket,
    };
    let timing = options.timing(workload);
    match workload.method {
        Method::Requests => Ok(vec![measure::requests(rig, &mut running, plan, timing, round)?]),
        Method::Streams(streams) => {
            let plan = h2load::Plan {
                address: running.address,
                tls: workload.protocol.terms().is_some(),
                target: workload.target,
                connections: workload.connections,
                streams,
                message: (workload.protocol == Protocol::Grpc).then(|| rig.grpc_message()),
                body_bytes: workload.body_bytes,
            };
            Ok(vec![measure::streams(rig, &mut running, &plan, timing, round)?])
        }
        Method::Idle if workload.protocol.needs_prior_knowledge() => {
            Ok(vec![measure::idle_http2(&mut running, workload.target, workload.connections, round)?])
        }
        Method::Idle => Ok(vec![measure::idle(&mut running, plan, round)?]),
        Method::Scale(sizes) => {
            let mut samples = Vec::with_capacity(sizes.len());
            for &connections in sizes {
                let plan = Plan { connections, ..plan.clone() };
                samples.push(measure::requests(rig, &mut running, plan, timing, round)?);
            }
            Ok(samples)
        }
    }
}

fn groups_of(workload: &Workload, proxies: &[Proxy]) -> Vec<Group> {
    let entry =
        |proxy: &Proxy| Entry { name: proxy.name().to_owned(), peer: proxy.is_peer(), samples: Vec::new() };
    let group = |name: String, about: String| Group {
        name,
        about,
        unit: workload.unit(),
        entries: proxies.iter().map(entry).collect(),
    };
    match workload.method {
        Method::Scale(sizes) => {
            let named =
                |size: &usize| group(format!("scale-{size}"), format!("h1-small, {size} connections"));
            sizes.iter().map(named).collect()
        }
        Method::Requests | Method::Streams(_) | Method::Idle => {
            vec![group(workload.name.to_owned(), workload.about.to_owned())]
        }
    }
}

fn judge(workload: &Workload, groups: &[Group]) -> Vec<Verdict> {
    let base = groups.iter().find(|group| group.name == "scale-64");
    groups
        .last()
        .map_or_else(Vec::new, |last| report::verdicts(workload.promise, workload.stretch, last, base))
}

fn announce(group: &Group, proxy: Proxy, round: usize, sample: &Sample) {
    let mut line = format!(
        "{:<10} round {} {:<15}{:>8.1} {}",
        group.name,
        round + 1,
        proxy.name(),
        sample.cost,
        group.unit
    );
    if sample.load.seconds > 0.0 {
        line.push_str(&format!(
            ", {:.0}/s, proxy's CPU {:.0} % used by it and {:.0} % by others, load's CPU {:.0} %",
            sample.load.rate_per_second,
            sample.proxy_cpu_ratio * 100.0,
            sample.foreign_cpu_ratio * 100.0,
            sample.load_cpu_ratio * 100.0
        ));
    }
    eprintln!("{line}");
}

fn heading(machine: &Machine, versions: &BTreeMap<&str, String>, descriptors: u64) -> String {
    let mut out = format!(
        "{} on {}: {} × {}, kernel {}, {} MiB, {} open files\nmitigations: {}\n",
        machine.date,
        machine.host,
        machine.cpus,
        machine.cpu_model,
        machine.kernel,
        machine.memory_bytes >> 20,
        descriptors,
        machine.mitigations_in_brief()
    );
    for (name, version) in versions {
        out.push_str(&format!("{name}: {version}\n"));
    }
    out
}

fn closing(outcome: &Outcome, check: bool) -> String {
    let mut out = format!("\nsteal during the run: {:.1} %\n", outcome.steal_ratio * 100.0);
    let samples: Vec<&Sample> =
        outcome.groups.iter().flat_map(|group| &group.entries).flat_map(|entry| &entry.samples).collect();
    let disturbed = samples.iter().filter(|sample| sample.foreign_cpu_ratio > DISTURBED_RATIO).count();
    if disturbed > 0 || outcome.steal_ratio > DISTURBED_RATIO {
        out.push_str(&format!(
            "warning: in {disturbed} of {} runs others used more than {:.0} % of the proxy's CPU; \
             repeat on a quiet machine\n",
            samples.len(),
            DISTURBED_RATIO * 100.0
        ));
    }
    if check {
        outcome
            .verdicts
            .iter()
            .for_each(|verdict| out.push_str(&format!("{}\n", report::verdict_line(verdict))));
    }
    outcome.failures.iter().for_each(|failure| out.push_str(&format!("FAILED {failure}\n")));
    out
}

fn keep(folder: &Path, outcome: &Outcome, rig: &Rig, options: &Options) -> io::Result<()> {
    let config = folder.join("config");
    fs::create_dir_all(&config)?;
    fs::write(folder.join("result.json"), serde_json::to_string_pretty(outcome).map_err(io::Error::other)?)?;
    let mut text = heading(&outcome.machine, &outcome.versions, pin::raise_descriptor_limit());
    outcome.groups.iter().for_each(|group| text.push_str(&report::table(group)));
    text.push_str(&closing(outcome, true));
    fs::write(folder.join("table.txt"), text)?;
    let mut protocols: Vec<Protocol> = Vec::new();
    for workload in &options.workload {
        if !protocols.contains(&workload.protocol) {
            protocols.push(workload.protocol);
        }
    }
    for protocol in protocols {
        for proxy in &options.only {
            let name = format!("{}-{}", protocol.name(), proxy.config_name());
            fs::write(config.join(name), proxy.config(&rig.site(protocol)?))?;
            if !proxy.environment(protocol, PathBuf::new()).is_empty() {
                let name = format!("{}-{}-openssl.cnf", protocol.name(), proxy.name());
                fs::write(config.join(name), OPENSSL_CONFIG)?;
            }
        }
    }
    Ok(())
}

fn parse_workload(name: &str) -> Result<Workload, String> {
    let names = || WORKLOADS.map(|workload| workload.name).join(", ");
    Workload::named(name).ok_or_else(|| format!("no such workload; there are: {}", names()))
}

fn parse_proxy(name: &str) -> Result<Proxy, String> {
    let names = || Proxy::ALL.map(Proxy::name).join(", ");
    Proxy::named(name).ok_or_else(|| format!("no such proxy; there are: {}", names()))
}
