//! CPUs that are taken away, and what proxies make of it: an antagonist takes slices of a CPU, clients ask in open loop, and
//! the same binary answers with `mode = "off"` and with `"act"`, beside nginx and HAProxy. Measures; never explains.
//!
//! Load and proxy share the two CPUs. The clients' threads, one on each CPU, go before the antagonist, which goes before
//! the proxy: what is taken is taken from the proxy alone, for every variant alike.

pub mod antagonist;
pub mod cases;
pub mod random;
pub mod realtime;
pub mod sessions;
pub mod table;
pub mod tally;
pub mod theft;
pub mod throttle;
pub mod variants;
pub mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Args;
use serde::Serialize;

use crate::machine::Machine;
use crate::proxies::Programs;
use crate::rig::Folder;
use crate::{pin, procfs};
use antagonist::{Antagonist, Taken};
use cases::{Case, Taking};
use sessions::{Clients, Habits, Pace, Plan};
use tally::{Met, Tally};
use theft::{Theft, Trace};
use throttle::Throttle;
use variants::{Running, Variant};
use work::Work;

/// Before the next request of a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// Threads are started and set up in this time.
const SETUP: Duration = Duration::from_millis(60);
/// What was due at the end may still be answered for so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections of each thread when capacity is measured.
const CAPACITY_CONNECTIONS: usize = 100;
/// Seconds of warm-up and of measurement then.
const CAPACITY_TIMING: (f64, f64) = (0.4, 1.5);
/// Of a recorded trace a round takes no more than this.
const TRACE_PART_MAX: Duration = Duration::from_secs(12);
/// Requests of a connection then.
const CAPACITY_REQUESTS: u32 = 20;
/// A proxy is started and ended in about this time.
const START_SECONDS: f64 = 0.6;
const SEED: u64 = 0x5eed;

/// Take a CPU away and see what proxies make of it
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Cases to run [default: all; --list tells them]
    #[arg(long, value_delimiter = ',', value_parser = parse_case)]
    case: Vec<Case>,
    /// Proxies to run [default: those of the case]
    #[arg(long, value_delimiter = ',', value_parser = parse_variant)]
    only: Vec<Variant>,
    /// Runs of each proxy in each case, interleaved
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Seconds that count in each run
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds under load and theft before them
    #[arg(long, default_value_t = 1.5)]
    warm_up: f64,
    /// What an answer costs a proxy besides its own work, in microseconds of CPU
    #[arg(long, default_value_t = 200.0)]
    work_us: f64,
    /// Requests of a connection [default: the case's]
    #[arg(long)]
    requests: Option<u32>,
    /// Clients ask by the clock, not a pause after the last answer
    #[arg(long)]
    keep_pace: bool,
    /// Share of the capacity [default: the case's]
    #[arg(long)]
    load: Option<f64>,
    /// Recorded theft, as GET /steal?format=csv gives it
    #[arg(long, default_value = "tests/data/steal/trace_kvm_2vcpu_120s.csv")]
    trace: PathBuf,
    /// The two CPUs; the first one is the one that is taken
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [0, 1])]
    cpus: Vec<usize>,
    /// Take by the quota of a control group on the proxy's threads, as is done anyway where SCHED_FIFO is not allowed
    #[arg(long)]
    quota: bool,
    /// Tell the cases and how long all would take, and end
    #[arg(long)]
    list: bool,
    /// Exit code 1 if a promise is missed
    #[arg(long)]
    check: bool,
    /// One short run of two proxies: does everything work?
    #[arg(long, conflicts_with_all = ["check", "runs", "seconds", "warm_up", "case"])]
    smoke: bool,
    /// Folder for result.json, table.txt and the configurations, e.g. bench/runs/2026-11-23-host-steal
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, default_value = "target/release/ringfort")]
    ringfort: PathBuf,
    #[arg(long, default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    #[arg(long, default_value = "/usr/sbin/haproxy")]
    haproxy: PathBuf,
}

/// Take a share of a CPU for a while, and tell what was taken
#[derive(Args, Clone, Debug)]
pub struct AntagonistOptions {
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    #[arg(long, default_value_t = 3.0, conflicts_with = "trace")]
    slice_ms: f64,
    #[arg(long, default_value_t = 10.0, conflicts_with = "trace")]
    period_ms: f64,
    /// Take what this recorded trace lost, from its beginning
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Times so much
    #[arg(long, default_value_t = 1.0, requires = "trace")]
    scale: f64,
    /// Seconds; then it ends
    #[arg(long = "for")]
    seconds: f64,
}

/// One run of one proxy.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub round: usize,
    /// Requests a second that clients meant to make.
    pub rate: f64,
    pub met: Met,
    /// By CPU; none where nothing was taken.
    pub taken: Vec<Taken>,
    /// Of the proxy's whole tree, for each request answered.
    pub cpu_us_per_request: f64,
    /// Of both CPUs, what the proxy and the clients used.
    pub proxy_cpu_ratio: f64,
    pub generator_cpu_ratio: f64,
    /// And what neither they nor the antagonist used.
    pub others_cpu_ratio: f64,
    /// What the hypervisor took of the machine meanwhile.
    pub steal_ratio: f64,
    /// What the proxy knew at the end (`GET /steal`).
    pub steal: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub variant: String,
    pub samples: Vec<Sample>,
    /// What clients met in all rounds together.
    pub whole: Met,
}

#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub case: String,
    pub about: String,
    pub entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Outcome {
    machine: Machine,
    versions: BTreeMap<&'static str, String>,
    runs: u16,
    seconds: f64,
    warm_up_seconds: f64,
    /// What an answer cost besides.
    work: Work,
    keep_pace: bool,
    antagonist: &'static str,
    groups: Vec<Group>,
    verdicts: Vec<table::Verdict>,
    failures: Vec<String>,
}

/// Runs the antagonist alone.
pub fn take(options: &AntagonistOptions) -> io::Result<()> {
    let span = Duration::try_from_secs_f64(options.seconds).map_err(io::Error::other)?;
    let ms = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).map_err(io::Error::other);
    let theft = match &options.trace {
        Some(path) => read_trace(path)?.part(options.cpu, Duration::ZERO, span, options.scale),
        None => Theft::even(ms(options.slice_ms)?, ms(options.period_ms)?.max(Duration::from_micros(100))),
    };
    println!("takes {:.1} % of CPU {} for {} s", theft.ratio() * 100.0, options.cpu, options.seconds);
    let taken = Antagonist::start(options.cpu, theft, Instant::now() + SETUP, span)?.wait()?;
    println!(
        "held {:.1} %, used {:.1} %; latest slice {:.2} ms late",
        taken.held_ratio * 100.0,
        taken.used_ratio * 100.0,
        taken.late_ms_max
    );
    Ok(())
}

/// Runs the cases; whether all went well.
pub fn run(options: &Options) -> io::Result<bool> {
    let bench = Bench::new(options)?;
    print!("{}", bench.plan());
    if options.list {
        return Ok(true);
    }
    let mut versions = BTreeMap::new();
    for variant in bench.variants() {
        versions.insert(variant.proxy().name(), variant.proxy().version(&bench.programs)?);
    }
    let mut outcome = Outcome {
        machine: Machine::read(),
        versions,
        runs: bench.options.runs,
        seconds: bench.options.seconds,
        warm_up_seconds: bench.options.warm_up,
        work: bench.work,
        keep_pace: bench.options.keep_pace,
        antagonist: if bench.options.quota { "control group's quota" } else { "SCHED_FIFO" },
        groups: Vec::new(),
        verdicts: Vec::new(),
        failures: Vec::new(),
    };
    for case in &bench.options.case {
        let group = bench.rounds(case, &mut outcome.failures);
        print!("{}", table::table(&group));
        let verdicts = table::verdicts(&case.promises, &group);
        verdicts.iter().for_each(|verdict| println!("{}", table::verdict_line(verdict)));
        outcome.verdicts.extend(verdicts);
        outcome.groups.push(group);
    }
    if let Some(folder) = &options.out {
        bench.keep(folder, &outcome)?;
    }
    let missed = outcome.verdicts.is_empty() || outcome.verdicts.iter().any(|verdict| !verdict.met);
    Ok(outcome.failures.is_empty() && !(options.check && missed))
}

/// Whoever takes in a run.
enum Takers {
    Antagonists(Vec<Antagonist>),
    Throttles(Vec<Throttle>),
}

impl Takers {
    fn finish(self, span: Duration) -> io::Result<Vec<Taken>> {
        match self {
            Self::Antagonists(takers) => takers.into_iter().map(Antagonist::finish).collect(),
            Self::Throttles(throttles) => Ok(throttles.iter().map(|throttle| throttle.taken(span)).collect()),
        }
    }
}

struct Bench {
    options: Options,
    programs: Programs,
    trace: Option<Trace>,
    work: Work,
    is_realtime: bool,
    cpus: [usize; 2],
    folder: Folder,
}

impl Bench {
    fn new(options: &Options) -> io::Result<Self> {
        let mut options = options.clone();
        if options.smoke {
            options.case = Case::named("smoke").into_iter().collect();
            (options.runs, options.seconds, options.warm_up) = (1, 0.8, 0.4);
        }
        if options.case.is_empty() {
            options.case = Case::standard();
        }
        for case in &mut options.case {
            case.requests = options.requests.unwrap_or(case.requests).max(1);
            case.load = options.load.unwrap_or(case.load);
        }
        let refused = thread::spawn(|| realtime::current_thread_to(realtime::LOAD_PRIORITY)).join();
        let is_realtime = refused.is_ok_and(|refused| match refused {
            Ok(()) => true,
            Err(error) => {
                println!("{error}; takes by quota, and clients are ordinary threads");
                false
            }
        });
        options.quota |= !is_realtime;
        let [first, second] = options.cpus[..] else {
            return Err(io::Error::other("--cpus takes two CPUs"));
        };
        let needs_trace = options.case.iter().any(|case| matches!(case.taking, Taking::Trace(_)));
        if needs_trace && options.quota {
            return Err(io::Error::other("a quota cannot follow a trace: leave the cases of the trace out"));
        }
        let trace = if needs_trace { Some(read_trace(&options.trace)?) } else { None };
        let programs = Programs {
            nginx: options.nginx.clone(),
            haproxy: options.haproxy.clone(),
            ringfort: options.ringfort.clone(),
            h2load: PathBuf::new(),
            nghttpd: PathBuf::new(),
        };
        pin::raise_descriptor_limit();
        let work = Work::of_us(options.work_us)?;
        Ok(Self {
            options,
            programs,
            trace,
            work,
            is_realtime,
            cpus: [first, second],
            folder: Folder::create()?,
        })
    }

    /// Proxies of a case.
    fn entries(&self, case: &Case) -> Vec<Variant> {
        let wanted = |variant: &Variant| self.options.only.is_empty() || self.options.only.contains(variant);
        case.variants.iter().copied().filter(wanted).collect()
    }

    fn variants(&self) -> Vec<Variant> {
        let mut variants: Vec<Variant> =
            self.options.case.iter().flat_map(|case| self.entries(case)).collect();
        variants.sort_unstable();
        variants.dedup();
        variants
    }

    fn plan(&self) -> String {
        let fixed = START_SECONDS + SETUP.as_secs_f64();
        let runs: usize = self.options.case.iter().map(|case| self.entries(case).len()).sum();
        let runs = runs * usize::from(self.options.runs);
        let seconds = |case: &Case| {
            let (warm_up, seconds) = self.timing(case);
            self.entries(case).len() as f64 * f64::from(self.options.runs) * (fixed + warm_up + seconds)
        };
        let all: f64 = self.options.case.iter().map(seconds).sum();
        let capacity_run = fixed + CAPACITY_TIMING.0 + CAPACITY_TIMING.1;
        let mut text = format!("{}\n", self.work);
        for case in &self.options.case {
            let names: Vec<&str> = self.entries(case).into_iter().map(Variant::name).collect();
            text.push_str(&format!("{:<14}{} ({})\n", case.name, case.about, names.join(", ")));
        }
        let minutes = (all + runs as f64 * capacity_run) / 60.0;
        text.push_str(&format!("{runs} runs, capacity before each: about {minutes:.1} minutes\n"));
        text
    }

    /// What a proxy answers at most without theft, requests a second. Measured before each run, as the machine drifts by
    /// a tenth within seconds: a share of what it could do a minute ago is any share.
    fn capacity(&self, case: &Case, variant: Variant, round: usize) -> io::Result<f64> {
        let calm = Case { taking: Taking::Nothing, requests: CAPACITY_REQUESTS, ..*case };
        let pace = Pace::Closed(CAPACITY_CONNECTIONS);
        let (sample, _) = self.measure(&calm, variant.measured_as(), pace, CAPACITY_TIMING, round)?;
        let rate = sample.met.served as f64 / CAPACITY_TIMING.1;
        eprintln!("{:<14}{variant:<18}can {rate:.0} requests/s; {}", case.name, table::shares(&sample));
        Ok(rate)
    }

    /// All runs of one case: in each round every proxy once, started afresh, in rotated order.
    fn rounds(&self, case: &Case, failures: &mut Vec<String>) -> Group {
        let variants = self.entries(case);
        let entry = |variant: &Variant| Entry {
            variant: variant.name().to_owned(),
            samples: Vec::new(),
            whole: Met::default(),
        };
        let mut entries: Vec<Entry> = variants.iter().map(entry).collect();
        let timing = self.timing(case);
        let mut wholes: Vec<Vec<Tally>> = variants.iter().map(|_| Vec::new()).collect();
        for round in 0..usize::from(self.options.runs) {
            for index in (0..variants.len()).map(|index| (index + round) % variants.len()) {
                let (variant, entry) = (variants[index], &mut entries[index]);
                let measured = self.capacity(case, variant, round).and_then(|capacity| {
                    let pace = Pace::Open((capacity * case.load / 2.0).max(1.0));
                    self.measure(case, variant, pace, timing, round)
                });
                match measured {
                    Ok((sample, tally)) => {
                        eprintln!("{:<14}{variant:<18}{}", case.name, table::brief(&sample));
                        entry.samples.push(sample);
                        wholes[index].push(tally);
                    }
                    Err(error) => {
                        let failure = format!("{}: {variant}: {error}", case.name);
                        eprintln!("FAILED {failure}");
                        failures.push(failure);
                    }
                }
            }
        }
        for (entry, tallies) in entries.iter_mut().zip(wholes) {
            let span = Duration::from_secs_f64(timing.1 * tallies.len() as f64);
            match Tally::sum(tallies) {
                Ok(whole) => entry.whole = whole.met(span),
                Err(error) => failures.push(format!("{}: {}: {error}", case.name, entry.variant)),
            }
        }
        Group { case: case.name.to_owned(), about: case.about.to_owned(), entries }
    }

    /// What is taken from each CPU in a round.
    fn thefts(&self, case: &Case, round: usize, span: Duration) -> Vec<(usize, Theft)> {
        match (case.taking, &self.trace) {
            (Taking::Slices(slice, period), _) => vec![(self.cpus[0], Theft::even(slice, period))],
            (Taking::Trace(scale), Some(trace)) => {
                let start = trace.span() / u32::from(self.options.runs) * round as u32;
                let of = |(index, cpu): (usize, &usize)| (*cpu, trace.part(index, start, span, scale));
                self.cpus.iter().enumerate().map(of).collect()
            }
            (Taking::Nothing | Taking::Trace(_), _) => Vec::new(),
        }
    }

    /// One run: starts the proxy afresh, puts load on, takes, and counts.
    fn measure(
        &self,
        case: &Case,
        variant: Variant,
        pace: Pace,
        timing: (f64, f64),
        round: usize,
    ) -> io::Result<(Sample, Tally)> {
        let mut running = Running::start(variant, &self.programs, self.cpus, self.folder.path())?;
        let _works = self.work.on(running.address.port())?;
        let start = Instant::now() + SETUP;
        let from = start + Duration::from_secs_f64(timing.0);
        let until = from + Duration::from_secs_f64(timing.1);
        let takers = self.takers(&running, self.thefts(case, round, until - start), start, until)?;
        let plan = Plan {
            address: running.address,
            habits: Habits { requests: case.requests, pause: PAUSE, keep_pace: self.options.keep_pace },
            pace,
            seed: SEED + 2 * round as u64,
            start,
            from,
            until,
            patience: PATIENCE,
        };
        let threads = (0_u64..).zip(self.cpus);
        let threads: Vec<_> =
            threads.map(|(number, cpu)| clients(plan, number, cpu, self.is_realtime)).collect();
        thread::sleep(from.saturating_duration_since(Instant::now()));
        let (usage, ticks, began) = (running.usage()?, self.ticks()?, Instant::now());
        thread::sleep(until.saturating_duration_since(Instant::now()));
        let (usage, ticks) = (running.usage()?.since(usage), since(&self.ticks()?, &ticks));
        let cpus = self.cpus.len() as f64 * began.elapsed().as_secs_f64();
        let steal = running.ask("/steal").and_then(|text| serde_json::from_str(&text).ok());
        let broke = |_| Err(io::Error::other("a client's thread broke"));
        let tallies = threads.into_iter().map(|thread| thread?.join().unwrap_or_else(broke));
        let tally = Tally::sum(tallies.collect::<io::Result<Vec<Tally>>>()?)?;
        let taken = takers.finish(until - start)?;
        let met = tally.met(until - from);
        let proxy_cpu_ratio = usage.running_us() / 1e6 / cpus;
        let generator_cpu_ratio = met.generator_cpu_seconds / cpus;
        let busy: f64 = ticks.iter().map(|ticks| ticks.busy_us()).sum::<f64>() / 1e6 / cpus;
        let used: f64 = taken.iter().map(|taken| taken.used_ratio).sum::<f64>() / self.cpus.len() as f64;
        let sample = Sample {
            round,
            rate: if let Pace::Open(rate) = pace { 2.0 * rate } else { 0.0 },
            cpu_us_per_request: usage.running_us() / (met.served.max(1)) as f64,
            proxy_cpu_ratio,
            generator_cpu_ratio,
            others_cpu_ratio: (busy - used - proxy_cpu_ratio - generator_cpu_ratio).max(0.0),
            steal_ratio: ticks.iter().map(|ticks| ticks.steal_ratio()).sum::<f64>() / self.cpus.len() as f64,
            taken,
            steal,
            met,
        };
        Ok((sample, tally))
    }

    fn takers(
        &self,
        running: &Running,
        thefts: Vec<(usize, Theft)>,
        start: Instant,
        until: Instant,
    ) -> io::Result<Takers> {
        if !self.options.quota {
            let span = until - start + PATIENCE;
            let takers = thefts.into_iter().map(|(cpu, theft)| Antagonist::start(cpu, theft, start, span));
            return Ok(Takers::Antagonists(takers.collect::<io::Result<_>>()?));
        }
        let throttles =
            thefts.into_iter().map(|(cpu, theft)| Throttle::start(&running.threads_on(cpu), &theft));
        Ok(Takers::Throttles(throttles.collect::<io::Result<_>>()?))
    }

    fn ticks(&self) -> io::Result<Vec<procfs::Ticks>> {
        self.cpus.iter().map(|cpu| procfs::ticks(Some(*cpu))).collect()
    }

    /// Seconds of warm-up and of measurement in a case. Rounds of a trace go through it, part by part.
    fn timing(&self, case: &Case) -> (f64, f64) {
        let warm_up = self.options.warm_up;
        match (case.taking, &self.trace) {
            (Taking::Trace(_), Some(trace)) => {
                let part = (trace.span() / u32::from(self.options.runs)).min(TRACE_PART_MAX);
                (warm_up, (part.as_secs_f64() - warm_up).max(1.0))
            }
            _ => (warm_up, self.options.seconds),
        }
    }

    fn keep(&self, folder: &Path, outcome: &Outcome) -> io::Result<()> {
        let config = folder.join("config");
        fs::create_dir_all(&config)?;
        fs::write(
            folder.join("result.json"),
            serde_json::to_string_pretty(outcome).map_err(io::Error::other)?,
        )?;
        let mut text = self.plan();
        outcome.versions.iter().for_each(|(name, version)| text.push_str(&format!("{name}: {version}\n")));
        outcome.groups.iter().for_each(|group| text.push_str(&table::table(group)));
        outcome
            .verdicts
            .iter()
            .for_each(|verdict| text.push_str(&format!("{}\n", table::verdict_line(verdict))));
        outcome.failures.iter().for_each(|failure| text.push_str(&format!("FAILED {failure}\n")));
        fs::write(folder.join("table.txt"), text)?;
        for variant in self.variants() {
            let name = format!("{variant}.conf");
            fs::copy(self.folder.path().join(&name), config.join(&name))?;
        }
        Ok(())
    }
}

fn since(now: &[procfs::Ticks], then: &[procfs::Ticks]) -> Vec<procfs::Ticks> {
    now.iter().zip(then).map(|(now, then)| now.since(*then)).collect()
}

/// Half of the clients, on a thread of their own.
fn clients(
    plan: Plan,
    number: u64,
    cpu: usize,
    is_realtime: bool,
) -> io::Result<thread::JoinHandle<io::Result<Tally>>> {
    // The threads look at their sockets in turns.
    let start = plan.start + sessions::GRID / 2 * number as u32;
    let plan = Plan { seed: plan.seed + number, start, ..plan };
    thread::Builder::new().name("clients".to_owned()).spawn(move || {
        pin::current_thread_to(cpu)?;
        if is_realtime {
            realtime::current_thread_to(realtime::LOAD_PRIORITY)?;
        }
        Clients::new(plan)?.run()
    })
}

fn read_trace(path: &Path) -> io::Result<Trace> {
    let text = fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}; see --trace", path.display())))?;
    Trace::parse(&text).map_err(|why| io::Error::other(format!("{}: {why}", path.display())))
}

fn parse_case(name: &str) -> Result<Case, String> {
    let names = || cases::CASES.map(|case| case.name).join(", ");
    Case::named(name).ok_or_else(|| format!("no such case; there are: {}", names()))
}

fn parse_variant(name: &str) -> Result<Variant, String> {
    let names = || Variant::ALL.map(Variant::name).join(", ");
    Variant::ALL
        .into_iter()
        .find(|variant| variant.name() == name)
        .ok_or_else(|| format!("no such proxy; there are: {}", names()))
}
