//! One measurement: load on one running proxy, its cost, and what else the machine did meanwhile. Never
//! compares.

use std::io;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::load::{Load, Measured, Plan};
use crate::procfs::{self, Memory, Ticks, Usage};
use crate::rig::{Rig, Running};
use crate::{h2, h2load};

/// Connections that are there before idle memory is counted, so that what the first ones bring about is not.
const IDLE_BASE: usize = 64;
/// What a proxy gives back late (timers, deferred frees) is back by then.
const IDLE_SETTLE: Duration = Duration::from_millis(200);

/// How long to put load on.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub warm_up: Duration,
    pub span: Duration,
}

/// What one run of one proxy gave.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub round: usize,
    pub connections: usize,
    /// In the unit of the workload: CPU µs a request, or bytes a connection.
    pub cost: f64,
    /// The cost by clock ticks, to check the precise counter against; 0 for memory.
    pub cost_by_ticks: f64,
    /// The part of the CPU time that was spent outside the kernel.
    pub user_ratio: f64,
    /// How much of its CPU the proxy used; 1 means that it was the bottleneck.
    pub proxy_cpu_ratio: f64,
    /// How much of the proxy's CPU others used: more than a few hundredths spoil a sample.
    pub foreign_cpu_ratio: f64,
    /// How much of its CPU the load generator used.
    pub generator_cpu_ratio: f64,
    /// How much of that CPU was used at all, by generator, origin and others: near 1, the rig limits the rate.
    pub load_cpu_ratio: f64,
    /// How much of the machine the hypervisor took.
    pub steal_ratio: f64,
    pub memory: Memory,
    pub load: Measured,
}

/// CPU time a request under `plan`.
pub fn requests(
    rig: &Rig,
    proxy: &mut Running,
    plan: Plan,
    timing: Timing,
    round: usize,
) -> io::Result<Sample> {
    let connections = plan.connections;
    put_load_on(rig, proxy, plan, timing).map_err(|error| proxy.explain(error)).map(|phase| {
        let responses = phase.load.responses.max(1) as f64;
        let span_us = phase.load.seconds * 1e6;
        // Without schedstat in the kernel the precise counter stands still.
        let used_us = if phase.used.running_ns > 0 { phase.used.running_us() } else { phase.used.ticks_us() };
        Sample {
            round,
            connections,
            cost: used_us / responses,
            cost_by_ticks: phase.used.ticks_us() / responses,
            user_ratio: phase.used.user_ratio(),
            proxy_cpu_ratio: used_us / span_us,
            foreign_cpu_ratio: ((phase.proxy_cpu.busy_us() - used_us) / span_us).max(0.0),
            generator_cpu_ratio: phase.generator.running_us() / span_us,
            load_cpu_ratio: phase.load_cpu.busy_us() / span_us,
            steal_ratio: phase.machine.steal_ratio(),
            memory: phase.memory,
            load: phase.load,
        }
    })
}

/// CPU time a request under load by h2load. Its connections are made within the time that counts: a few of them, for
/// very many requests.
pub fn streams(
    rig: &Rig,
    proxy: &mut Running,
    plan: &h2load::Plan,
    timing: Timing,
    round: usize,
) -> io::Result<Sample> {
    let program = &rig.programs.h2load;
    h2load::run(program, plan, timing.warm_up).map_err(|error| proxy.explain(error))?;
    let (machine, proxy_cpu) = (procfs::ticks(None)?, procfs::ticks(Some(rig.cpus.proxy))?);
    let load_cpu = procfs::ticks(Some(rig.cpus.load))?;
    let usage = proxy.usage()?;
    let load = h2load::run(program, plan, timing.span).map_err(|error| proxy.explain(error))?;
    let used = proxy.usage()?.since(usage);
    let load_cpu = procfs::ticks(Some(rig.cpus.load))?.since(load_cpu);
    let proxy_cpu = procfs::ticks(Some(rig.cpus.proxy))?.since(proxy_cpu);
    let (responses, span_us) = (load.responses as f64, load.seconds * 1e6);
    let used_us = if used.running_ns > 0 { used.running_us() } else { used.ticks_us() };
    Ok(Sample {
        round,
        connections: plan.connections,
        cost: used_us / responses,
        cost_by_ticks: used.ticks_us() / responses,
        user_ratio: used.user_ratio(),
        proxy_cpu_ratio: used_us / span_us,
        foreign_cpu_ratio: ((proxy_cpu.busy_us() - used_us) / span_us).max(0.0),
        generator_cpu_ratio: 0.0,
        load_cpu_ratio: load_cpu.busy_us() / span_us,
        steal_ratio: procfs::ticks(None)?.since(machine).steal_ratio(),
        memory: proxy.memory()?,
        load,
    })
}

/// User memory of each of `count` connections of HTTP/2, after one request each.
pub fn idle_http2(
    proxy: &mut Running,
    target: &'static str,
    count: usize,
    round: usize,
) -> io::Result<Sample> {
    let steal = procfs::ticks(None)?;
    let address = proxy.address;
    let open = |count: usize| (0..count).map(|_| h2::Connection::open(address, target)).collect();
    let base: Vec<_> = Result::map_err(open(IDLE_BASE), |error| proxy.explain(error))?;
    thread::sleep(IDLE_SETTLE);
    let before = proxy.memory()?;
    let idle: Vec<_> = Result::map_err(open(count), |error| proxy.explain(error))?;
    thread::sleep(IDLE_SETTLE);
    let memory = proxy.memory()?;
    base.iter().chain(&idle).try_for_each(h2::Connection::check)?;
    let steal = procfs::ticks(None)?.since(steal);
    Ok(Sample::of_memory(round, count, before, memory, steal, Measured::default()))
}

/// User memory of each of `plan.connections` connections, after one request each.
pub fn idle(proxy: &mut Running, plan: Plan, round: usize) -> io::Result<Sample> {
    let count = plan.connections;
    let steal = procfs::ticks(None)?;
    // One at a time: what requests under way need comes and goes between the connections' own memory, and the
    // holes that several at once leave in the heap, or fill, would be counted too (nginx: 390–700 B instead
    // of a steady 528 B).
    let mut load = Load::open(Plan { connections: 1, ..plan }).map_err(|error| proxy.explain(error))?;
    load.add(IDLE_BASE - 1, 1).map_err(|error| proxy.explain(error))?;
    thread::sleep(IDLE_SETTLE);
    let before = proxy.memory()?;
    load.add(count, 1).map_err(|error| proxy.explain(error))?;
    thread::sleep(IDLE_SETTLE);
    let memory = proxy.memory()?;
    load.check()?;
    let steal = procfs::ticks(None)?.since(steal);
    Ok(Sample::of_memory(round, count, before, memory, steal, load.measured()))
}

impl Sample {
    /// What `count` connections added to the proxy's memory.
    fn of_memory(
        round: usize,
        count: usize,
        before: Memory,
        memory: Memory,
        steal: Ticks,
        load: Measured,
    ) -> Self {
        Self {
            round,
            connections: count,
            cost: memory.anonymous.saturating_sub(before.anonymous) as f64 / count as f64,
            cost_by_ticks: 0.0,
            user_ratio: 0.0,
            proxy_cpu_ratio: 0.0,
            foreign_cpu_ratio: 0.0,
            generator_cpu_ratio: 0.0,
            load_cpu_ratio: 0.0,
            steal_ratio: steal.steal_ratio(),
            memory,
            load,
        }
    }
}

struct Phase {
    load: Measured,
    used: Usage,
    generator: Usage,
    proxy_cpu: Ticks,
    load_cpu: Ticks,
    machine: Ticks,
    memory: Memory,
}

fn put_load_on(rig: &Rig, proxy: &mut Running, plan: Plan, timing: Timing) -> io::Result<Phase> {
    let mut load = Load::open(plan)?;
    load.run(timing.warm_up)?;
    load.reset()?;
    let own = [std::process::id()];
    let (machine, proxy_cpu) = (procfs::ticks(None)?, procfs::ticks(Some(rig.cpus.proxy))?);
    let (load_cpu, generator) = (procfs::ticks(Some(rig.cpus.load))?, procfs::usage(&own)?);
    let usage = proxy.usage()?;
    load.run(timing.span)?;
    let used = proxy.usage()?.since(usage);
    let generator = procfs::usage(&own)?.since(generator);
    let load_cpu = procfs::ticks(Some(rig.cpus.load))?.since(load_cpu);
    let proxy_cpu = procfs::ticks(Some(rig.cpus.proxy))?.since(proxy_cpu);
    let machine = procfs::ticks(None)?.since(machine);
    let memory = proxy.memory()?;
    // The cost is that of the span; open loop waits on, so that late responses show in the latencies.
    let responses = load.measured().responses;
    load.settle()?;
    load.check()?;
    let load = Measured { responses, ..load.measured() };
    if load.unanswered > 0 {
        return Err(io::Error::other(format!("{} requests had no response in the end", load.unanswered)));
    }
    Ok(Phase { load, used, generator, proxy_cpu, load_cpu, machine, memory })
}
