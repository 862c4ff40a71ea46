//! Who takes CPU time: the hypervisor (steal), and other tasks of this machine (wait).

use serde_json::{Value, json};

use super::{percent, rounded, time};
use crate::doctor::facts::{Facts, Steal};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::sample::{Sample, mean};
use crate::steal::source::Hypervisor;

/// A CPU of one's own loses nothing: from here on, for long, the provider has sold it to others too.
const OVERSOLD_RATIO: f64 = 0.005;
/// An average since boot speaks from here on.
const SUSTAINED_SECONDS: u64 = 600;
/// A sample shorter than this may have met a burst, or the quiet between two.
const LONG_SAMPLE_SECONDS: f64 = 30.0;
/// CPUs that work less than this have little to lose.
const BUSY_ENOUGH_RATIO: f64 = 0.2;
/// Share of the time with a task that waits, from which others are in the way.
const WAIT_RATIO: f64 = 0.1;

pub(super) fn hypervisor(steal: &Steal) -> Finding {
    let (word, shown) = match steal.machine.hypervisor {
        Hypervisor::None => ("none", "none: this machine owns its CPUs"),
        Hypervisor::Kvm => ("kvm", "KVM"),
        Hypervisor::Xen => ("xen", "Xen"),
        Hypervisor::VMware => ("vmware", "VMware"),
        Hypervisor::HyperV => ("hyperv", "Hyper-V"),
        Hypervisor::Unknown => {
            let why = "its signature is none that is known, or this architecture does not let a process ask";
            let cure = "nothing to do: whether steal is reported is judged by the counter alone";
            return Finding::unknown("hypervisor", "KVM, Xen, VMware or none", why, cure);
        }
    };
    Finding::ok("hypervisor", shown, "any", "it decides when this machine's CPUs run (CPUID)").value(word)
}

pub(super) fn dedicated(steal: &Steal) -> Finding {
    const WANT: &str = "promised";
    if steal.machine.hypervisor == Hypervisor::None {
        return Finding::ok("dedicated", "yes, there is no hypervisor", WANT, "nobody else is on these CPUs")
            .value(true);
    }
    if steal.machine.hypervisor != Hypervisor::Kvm {
        return Finding::unknown(
            "dedicated",
            WANT,
            "only KVM can tell its guests that their CPUs are their own",
            "read the plan's description, and watch steal",
        );
    }
    if steal.machine.is_dedicated() {
        let why = "KVM_HINTS_REALTIME: the host says that its virtual CPUs are never preempted for long";
        return Finding::ok("dedicated", "promised by the host", WANT, why).value(true);
    }
    let why = "KVM_HINTS_REALTIME is not set: few hosts set it, also for dedicated plans; what is stolen tells more";
    Finding::ok("dedicated", "no promise by the host, as is usual", WANT, why).value(false)
}

/// What was stolen in the sample and since boot.
pub(super) fn steal(facts: &Facts) -> Finding {
    let steal = &facts.steal;
    let sample = steal.sample.as_ref();
    let spec = facts.wanted.steal;
    if !steal.source.is_reported() {
        return hidden(steal);
    }
    let value = value(steal, sample);
    let want = format!("{} or less", percent(OVERSOLD_RATIO));
    if sample.is_some_and(|sample| sample.is_suspect) {
        let why = "the counter went back or grew faster than time, as after a migration: it is not believed";
        let cure = "repeat with --seconds 60; where it stays so, gaps of the workers' loops are watched in its place";
        return Finding::unknown("steal", want, why, cure).value(value);
    }
    if steal.boot.is_empty() {
        let cure = "name the machine's procfs in [host] procfs";
        return Finding::unknown("steal", want, "/proc/stat tells of no CPU", cure).value(value);
    }
    let boot = Some(boot_mean(steal));
    let boot = boot.filter(|_| boot_seconds(steal) >= SUSTAINED_SECONDS || sample.is_none());
    let mean = sample.map_or(0.0, Sample::steal_mean).max(boot.unwrap_or(0.0));
    let worst = sample.and_then(|sample| sample.cpus.iter().map(|cpu| cpu.steal).max_by(f64::total_cmp));
    let worst = worst.unwrap_or(0.0).max(mean);
    let finding = Finding::ok("steal", shown(steal, sample), want, meaning(sample)).value(value);
    let reaching = |share: f64| format!("from {} on", percent(share));
    let (status, what) = match worst {
        _ if worst >= spec.stolen_ratio => {
            (Status::Fail, format!("{} users notice", reaching(spec.stolen_ratio)))
        }
        _ if worst >= spec.elevated_ratio => {
            let what = format!("{} slow answers get slower", reaching(spec.elevated_ratio));
            (Status::Warn, what + "; Linux' own steal governor acts here too")
        }
        _ if mean > OVERSOLD_RATIO && worst >= spec.calm_ratio => {
            (Status::Warn, format!("{} it is more than noise", reaching(spec.calm_ratio)))
        }
        _ if mean > OVERSOLD_RATIO => (Status::Warn, "so little is seen in the slowest answers alone".into()),
        _ => return finding,
    };
    let promise = if steal.machine.is_dedicated() { ", against its own promise (dedicated)" } else { "" };
    let why = format!("above 0.5 % for long the provider has sold these CPUs twice{promise}; {what}");
    finding.judged(status, why, cure(sample))
}

fn cure(sample: Option<&Sample>) -> String {
    let again = match sample {
        Some(sample) if sample.seconds >= LONG_SAMPLE_SECONDS => "",
        _ => "steal comes in bursts: repeat with --seconds 60; ",
    };
    format!(
        "{again}show the provider these figures and ask for another host or dedicated CPUs; steal.mode = \"act\" has \
         ringfort move work off the CPU that loses most"
    )
}

fn meaning(sample: Option<&Sample>) -> String {
    let rule = "what the hypervisor took from CPUs that had work; a CPU of one's own loses nothing";
    match sample {
        Some(sample) if sample.busy_mean() < BUSY_ENOUGH_RATIO => format!(
            "{rule}. These were {} busy, and idle ones have nothing to lose: repeat under load",
            percent(sample.busy_mean())
        ),
        _ => rule.to_owned(),
    }
}

fn shown(steal: &Steal, sample: Option<&Sample>) -> String {
    let mut text = String::new();
    if let Some(sample) = sample {
        let (steal, seconds) = (percent(sample.steal_mean()), sample.seconds.round());
        let busy = sample.busy_mean();
        text = format!("{steal} in {seconds} s with CPUs {} busy", percent(busy));
        if busy < BUSY_ENOUGH_RATIO && sample.steal_mean() <= OVERSOLD_RATIO {
            text += " (too idle to lose much: repeat under load)";
        }
        let worst = sample.cpus.iter().max_by(|a, b| a.worst.total_cmp(&b.worst));
        if let Some(worst) = worst.filter(|cpu| cpu.worst > OVERSOLD_RATIO) {
            text += &format!(
                " (CPU {}: {}, at worst {} of a second)",
                worst.cpu,
                percent(worst.steal),
                percent(worst.worst)
            );
        }
        text += "; ";
    }
    let of_work = percent(mean(steal.boot.iter().map(|cpu| cpu.steal_of_work)));
    let (boot, since) = (percent(boot_mean(steal)), time(boot_seconds(steal)));
    text + &format!("{boot} since boot ({since}), {of_work} of the time with work")
}

fn boot_mean(steal: &Steal) -> f64 {
    mean(steal.boot.iter().map(|cpu| cpu.steal))
}

fn boot_seconds(steal: &Steal) -> u64 {
    steal.boot.iter().map(|cpu| cpu.seconds).max().unwrap_or(0)
}

fn value(steal: &Steal, sample: Option<&Sample>) -> Value {
    let cpus = steal.boot.iter().map(|boot| {
        let sample = sample.and_then(|sample| sample.cpus.iter().find(|sample| sample.cpu == boot.cpu));
        json!({
            "cpu": boot.cpu,
            "steal_ratio": sample.map(|cpu| rounded(cpu.steal)),
            "steal_ratio_second_max": sample.map(|cpu| rounded(cpu.worst)),
            "busy_ratio": sample.map(|cpu| rounded(cpu.busy)),
            "since_boot_ratio": rounded(boot.steal),
            "since_boot_ratio_of_work": rounded(boot.steal_of_work),
        })
    });
    let since_boot = (!steal.boot.is_empty()).then(|| rounded(boot_mean(steal)));
    json!({
        "reported": steal.source.is_reported(),
        "source": steal.source.word(),
        "seconds": sample.map_or(0.0, |sample| rounded(sample.seconds)),
        "steal_ratio": sample.map(|sample| rounded(sample.steal_mean())),
        "since_boot_ratio": since_boot,
        "cpus": cpus.collect::<Vec<_>>(),
    })
}

/// A state of its own: nobody knows whether nothing is stolen.
fn hidden(steal: &Steal) -> Finding {
    let watched = "ringfort watches gaps of its loops in its place";
    let (why, cure) = match steal.machine.hypervisor {
        _ if steal.is_accounting_off => (
            "the kernel was started with no-steal-acc and does not count",
            "remove no-steal-acc from the kernel's command line",
        ),
        _ if !steal.has_column => (
            "/proc/stat has no column of steal: a container's own, or cannot be read",
            "run the doctor on the host, or name the host's procfs in [host] procfs",
        ),
        Hypervisor::Kvm => (
            "the host hides it (KVM, CPUID leaf 0x40000001, bit 5): the counter stays 0 whatever is stolen",
            "ask the provider to offer kvm-steal-time to the guest",
        ),
        Hypervisor::VMware => (
            "VMware reports it only where the machine is set to: the counter has stayed 0",
            "ask for stealclock.enable = TRUE in the machine's settings",
        ),
        Hypervisor::HyperV => (
            "Hyper-V tells its Linux guests nothing of steal: the counter has stayed 0",
            "judge the host by its answers' times under load",
        ),
        _ => (
            "this hypervisor is not known to report it, and the counter has stayed 0",
            "judge the host by its answers' times under load",
        ),
    };
    let finding =
        Finding::ok("steal", "hidden: it cannot be measured here, which is not 0 %", "reported", "");
    let value = json!({
        "reported": false, "source": steal.source.word(), "seconds": 0.0, "steal_ratio": null,
        "since_boot_ratio": null, "cpus": [],
    });
    finding.value(value).judged(Status::Unknown, why, format!("{cure}; {watched}"))
}

/// What tasks of this machine take from each other.
pub(super) fn wait(facts: &Facts) -> Finding {
    let want = format!("below {}", percent(WAIT_RATIO));
    let sampled = facts.steal.sample.as_ref().and_then(|sample| Some((sample.pressure?, sample.seconds)));
    let (share, shown) = match (sampled, facts.pressure_minute) {
        (Some((share, seconds)), _) => (share, format!("{} of {} s", percent(share), seconds.round())),
        (None, Some(share)) => (share, format!("{} of the last minute", percent(share))),
        (None, None) => {
            let why = "/proc/pressure/cpu is not there: the kernel was built or started without it";
            return Finding::unknown("wait", want, why, "start the kernel with psi=1 to have it");
        }
    };
    let shown = format!("{shown} some task was ready and had no CPU");
    let why = "workers are pinned: a task that shares their CPU makes their clients wait";
    let finding = Finding::ok("wait", shown, want, why).value(rounded(share));
    if share < WAIT_RATIO {
        return finding;
    }
    let why =
        "other programs, or an overloaded ringfort, compete for these CPUs; pinned workers cannot step aside";
    let cure = "find them with top; move backups, builds and databases to another machine, or give them low priority \
                (nice, CPUWeight=)";
    finding.judged(Status::Warn, why, cure)
}
