//! What this process may have: open files, locked memory, memory.

use super::{bytes, grouped};
use crate::control::data::{DESCRIPTORS_PER_CONNECTION, DESCRIPTORS_RESERVED, connections_ceiling};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Status};
use crate::runtime::EngineChoice;

/// Fewer connections than this are no proxy's.
const CONNECTIONS_USEFUL: u64 = 1_000;

fn workers(facts: &Facts) -> u64 {
    facts.cpus.workers.as_ref().map_or(1, |workers| workers.len().max(1) as u64)
}

pub(super) fn nofile(facts: &Facts) -> Finding {
    let workers = workers(facts);
    let wanted = u64::from(facts.wanted.connections_max);
    // The admin's address is among them; its Unix socket is not.
    let listening = facts.wanted.listeners.len() as u64 * workers + 1;
    let need = wanted * workers * DESCRIPTORS_PER_CONNECTION + DESCRIPTORS_RESERVED + listening;
    let Some(nofile) = facts.limits.nofile else {
        let why = "/proc/self/limits does not tell the limit of open files";
        return Finding::unknown("nofile", need, why, "see that ulimit -Hn is at least as much");
    };
    let ceiling = u64::from(connections_ceiling(nofile, listening, workers));
    let why = format!(
        "{} connections of each of {workers} workers (limits.connections_max), two open files each",
        grouped(wanted)
    );
    let shown = if nofile == u64::MAX { "unlimited".to_owned() } else { grouped(nofile) };
    let finding = Finding::ok("nofile", shown, need, why).value(nofile);
    if ceiling >= wanted {
        return finding;
    }
    let status = if ceiling * workers < CONNECTIONS_USEFUL { Status::Fail } else { Status::Warn };
    let why = format!(
        "this shell's hard limit (a unit has its own): each worker would take {} connections of the {} that \
         limits.connections_max asks for",
        grouped(ceiling),
        grouped(wanted)
    );
    let cure = format!(
        "LimitNOFILE={need} in the unit (ulimit -Hn in a shell, as root), or limits.connections_max = {ceiling}"
    );
    finding.judged(status, why, cure)
}

pub(super) fn memlock(facts: &Facts) -> Finding {
    let need = facts.wanted.ring_bytes * workers(facts);
    let why = "since Linux 6.14 the rings of io_uring count against it, for all processes of a user together";
    let Some(memlock) = facts.limits.memlock else {
        return Finding::unknown(
            "memlock",
            need,
            "the limit of locked memory cannot be read",
            "look at ulimit -l",
        );
    };
    let free = if facts.limits.locks_freely { ", and this user is not held to it" } else { "" };
    let finding = Finding::ok("memlock", format!("{}{free}", bytes(memlock)), need, why).value(memlock);
    if memlock >= need || facts.limits.locks_freely || facts.wanted.engine == EngineChoice::Epoll {
        return finding;
    }
    let status = if facts.wanted.engine == EngineChoice::IoUring { Status::Fail } else { Status::Warn };
    let why = format!(
        "this shell's limit (a unit has its own): the rings of io_uring need {}, and the kernel refuses them with ENOMEM",
        bytes(need)
    );
    finding.judged(status, why, "LimitMEMLOCK=infinity in the unit (ulimit -l unlimited in a shell, as root)")
}

/// The budgets of the workers against what there is.
pub(super) fn memory(facts: &Facts) -> Finding {
    let workers = workers(facts);
    let budget = facts.wanted.memory_bytes_max.saturating_mul(workers);
    let limits = &facts.limits;
    let want = format!("{} and a third more", bytes(budget));
    let group = limits.memory_group_bytes.filter(|group| limits.memory_bytes.is_none_or(|all| *group < all));
    let Some(all) = group.or(limits.memory_bytes) else {
        let why = "/proc/meminfo cannot be read";
        return Finding::unknown("memory", want, why, "see that the machine has as much");
    };
    let whose = if group.is_some() { "of this shell's control group" } else { "of this machine" };
    let why = format!(
        "{workers} workers may use {} each (limits.memory_bytes_max)",
        bytes(facts.wanted.memory_bytes_max)
    );
    let finding = Finding::ok("memory", format!("{} {whose}", bytes(all)), want, why).value(all);
    if budget.saturating_add(budget / 3) <= all {
        return finding;
    }
    let why = format!(
        "{workers} workers may use {} each (limits.memory_bytes_max), sockets come on top: under load the kernel would \
         kill ringfort before it sheds",
        bytes(facts.wanted.memory_bytes_max)
    );
    let fits = ((all / 2 / workers) >> 20).max(1) << 20;
    finding.judged(
        Status::Warn,
        why,
        format!("limits.memory_bytes_max = {fits} ({}), or more memory", bytes(fits)),
    )
}
