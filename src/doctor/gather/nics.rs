//! Network cards: their queues, and the CPUs that their interrupts go to.

use std::fs;

use super::{Host, words};
use crate::doctor::facts::Nic;
use crate::doctor::parse::{self, Interrupt};
use crate::steal::counters::cpu_list;

/// Cards that are looked at, at most; queues of one likewise.
const CARDS_MAX: usize = 64;
const QUEUES_MAX: usize = 1_024;

/// Every card that is up. What has no device behind it (loopback, bridges, pairs of containers) is none.
pub(super) fn all(host: &Host<'_>) -> Vec<Nic> {
    let interrupts = parse::interrupts(&host.proc("interrupts").unwrap_or_default());
    let names = entries(host, "class/net");
    let is_card = |name: &String| {
        let state = host.sys(&format!("class/net/{name}/operstate")).unwrap_or_default();
        // Some drivers never tell.
        let is_up = matches!(state.trim(), "up" | "unknown" | "");
        is_up && host.0.sysfs.join(format!("class/net/{name}/device")).exists()
    };
    let cards = names.into_iter().filter(is_card).take(CARDS_MAX);
    cards.map(|name| card(host, name, &interrupts)).collect()
}

fn card(host: &Host<'_>, name: String, interrupts: &[Interrupt]) -> Nic {
    let queues = entries(host, &format!("class/net/{name}/queues"));
    let queues: Vec<String> = queues.into_iter().filter(|queue| queue.starts_with("rx-")).collect();
    let mask =
        |queue: &String| parse::cpu_mask(&host.sys(&format!("class/net/{name}/queues/{queue}/rps_cpus"))?);
    let mut rps: Vec<u16> = queues.iter().take(QUEUES_MAX).filter_map(mask).flatten().collect();
    rps.sort_unstable();
    rps.dedup();
    let own = own_interrupts(host, &name, interrupts);
    let interrupts =
        own.into_iter().filter_map(|interrupt| Some((interrupt.number, goes_to(host, interrupt)?)));
    Nic { queues: queues.len(), rps, interrupts: interrupts.collect(), name }
}

/// The interrupts by which a card says that it received something.
fn own_interrupts<'i>(host: &Host<'_>, card: &str, interrupts: &'i [Interrupt]) -> Vec<&'i Interrupt> {
    let device = format!("class/net/{card}/device");
    // A virtio device has those of the PCI device that carries it.
    let numbers =
        [format!("{device}/msi_irqs"), format!("{device}/../msi_irqs")].map(|path| entries(host, &path));
    let numbers: Vec<u32> = numbers.iter().flatten().filter_map(|name| name.parse().ok()).collect();
    let target = fs::read_link(host.0.sysfs.join(&device)).unwrap_or_default();
    let target = target.file_name().unwrap_or_default().to_string_lossy();
    let named = |interrupt: &Interrupt| {
        // `eth0-rx-0`, `virtio2-input.0`, `mlx5_comp0@pci:0000:00:05.0`
        let is =
            |word: &str| !word.is_empty() && interrupt.name.split(['-', '@', '.']).any(|part| part == word);
        is(card) || is(&target) || (target.contains(':') && interrupt.name.ends_with(&*target))
    };
    let own = interrupts.iter().filter(|interrupt| {
        if numbers.is_empty() { named(interrupt) } else { numbers.contains(&interrupt.number) }
    });
    let own: Vec<&Interrupt> =
        own.filter(|interrupt| !is_about_the_card(&interrupt.name)).take(QUEUES_MAX).collect();
    let receives = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.contains("input") || name.contains("rx")
    };
    if own.iter().any(|interrupt| receives(&interrupt.name)) {
        return own.into_iter().filter(|interrupt| receives(&interrupt.name)).collect();
    }
    own
}

/// Interrupts that tell of the card and not of packets.
fn is_about_the_card(name: &str) -> bool {
    ["config", "control", "async", "mgmnt", "misc", "event"].iter().any(|word| name.contains(word))
}

/// The CPU that an interrupt goes to: as the kernel says, else where most of them came so far.
fn goes_to(host: &Host<'_>, interrupt: &Interrupt) -> Option<u16> {
    let list = |name: &str| {
        let list = cpu_list(host.proc(&format!("irq/{}/{name}", interrupt.number))?.as_bytes())?;
        if let [cpu] = list[..] { Some(cpu) } else { None }
    };
    let most = || interrupt.counts.iter().max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 0);
    list("effective_affinity_list")
        .or_else(|| list("smp_affinity_list"))
        .or_else(|| most().map(|(cpu, _)| *cpu))
}

/// Names in a folder of sysfs, in order.
fn entries(host: &Host<'_>, path: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(host.0.sysfs.join(path)) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.flat_map(|name| words(&name)).collect();
    // rx-2 before rx-10.
    names.sort_unstable_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    names
}
