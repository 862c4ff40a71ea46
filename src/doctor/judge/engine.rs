//! What the workers will do their input and output with, and the kernel beneath.

use crate::doctor::facts::{Facts, Ring};
use crate::doctor::finding::{Finding, Status};
use crate::runtime::{EngineChoice, Refusal, multishot_receive_is_fair, parse_release};

const OR_EPOLL: &str = "or set workers.engine = \"epoll\"";
const BY_GROUP: &str = "ringfort tune apply --yes --only io_uring --only io_uring_group (to the group ringfort, where there is one)";

/// What start-up would choose, by the same set-up and self-test.
pub(super) fn io_uring(facts: &Facts) -> Finding {
    let why = "socket I/O of the workers; the same set-up and self-test as at start-up";
    let finding = |engine: &str, shown: String| {
        Finding::ok("io_uring", shown, "allowed, and its self-test passes", why).value(engine)
    };
    let refusal = refusal(facts);
    match (facts.wanted.engine, refusal, &facts.ring.probe) {
        (EngineChoice::Epoll, ..) => finding("epoll", "not used: workers.engine is \"epoll\"".into()),
        (_, None, Ok(how)) if facts.ring.disabled == Some(1) && facts.ring.is_privileged => {
            let cure = match facts.ring.group {
                Some(group) if group >= 0 => {
                    format!("see that the user ringfort runs as is in group {group}")
                }
                _ => BY_GROUP.into(),
            };
            let why = "kernel.io_uring_disabled is 1: root may use io_uring, other users only in \
                       kernel.io_uring_group; the service is not root";
            finding("io_uring", format!("start-up will choose it; {how}")).judged(Status::Warn, why, cure)
        }
        (_, None, Ok(how)) => finding("io_uring", format!("start-up will choose it; {how}")),
        (EngineChoice::IoUring, Some((why, cure)), _) => {
            let shown = "refused; workers.engine = \"io_uring\" insists on it: ringfort will not start";
            finding("none", shown.into()).judged(Status::Fail, why, cure)
        }
        (_, refusal, _) => {
            let (why, cure) = refusal.unwrap_or_default();
            let why = format!("{why}. Epoll serves in its place, at about the same cost");
            finding("epoll", "refused: start-up will choose epoll".into()).judged(Status::Warn, why, cure)
        }
    }
}

/// Why it is refused, and what helps; `None` where it is not.
fn refusal(facts: &Facts) -> Option<(String, String)> {
    let ring = &facts.ring;
    if ring.disabled == Some(2) {
        let why = "kernel.io_uring_disabled is 2: the kernel refuses io_uring to everyone, as RHEL 9 and its relatives \
                   are shipped";
        return Some((why.into(), format!("{BY_GROUP}, {OR_EPOLL}")));
    }
    let refused = ring.probe.as_ref().err()?;
    Some(match refused.code {
        Some(libc::EPERM) if ring.disabled == Some(1) => by_group(ring),
        Some(code @ (libc::EPERM | libc::EACCES | libc::ENOSYS)) => by_filter(facts, code),
        Some(libc::ENOMEM) => (
            "io_uring_setup: ENOMEM: this user's locked memory is used up".into(),
            format!("LimitMEMLOCK=infinity in the unit (ulimit -l unlimited in a shell), {OR_EPOLL}"),
        ),
        Some(libc::EINVAL) => (
            "io_uring_setup: EINVAL: this kernel is older than 5.19 and lacks what ringfort needs".into(),
            format!("upgrade the kernel, to 6.1 at least, {OR_EPOLL}"),
        ),
        _ => in_words(refused),
    })
}

fn by_group(ring: &Ring) -> (String, String) {
    let (who, join) = match ring.group {
        Some(group) if group >= 0 => (
            format!("root and group {group}"),
            format!("add the user to group {group} (SupplementaryGroups={group} in the unit)"),
        ),
        _ => ("root".to_owned(), BY_GROUP.to_owned()),
    };
    let why =
        format!("io_uring_setup: EPERM: kernel.io_uring_disabled is 1, which leaves io_uring to {who} alone");
    (why, format!("{join}, {OR_EPOLL}"))
}

/// EPERM and ENOSYS have other causes than the setting of the kernel.
fn by_filter(facts: &Facts, code: i32) -> (String, String) {
    let name = match code {
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        _ => "ENOSYS",
    };
    let release = facts.release.as_deref().map(parse_release);
    let has_it = facts.ring.disabled.is_some() || release.is_some_and(|release| release >= (5, 1, 0));
    if code == libc::ENOSYS && !facts.ring.is_filtered && !has_it {
        let why = "io_uring_setup: ENOSYS: this kernel is too old, it has no io_uring";
        return (why.into(), format!("upgrade the kernel, to 6.1 at least, {OR_EPOLL}"));
    }
    if code == libc::ENOSYS && !facts.ring.is_filtered {
        let why = "io_uring_setup: ENOSYS: this kernel was built without io_uring, or a sandbox (gVisor) stands before it";
        return (why.into(), format!("use a distribution's own kernel, {OR_EPOLL}"));
    }
    let (by, cure) = if facts.ring.is_filtered {
        (
            "a seccomp filter refuses it, as Docker's and containerd's do by default and a unit's SystemCallFilter= may",
            "allow io_uring_setup, io_uring_enter and io_uring_register in that filter, run outside the container",
        )
    } else {
        (
            "a security module (SELinux, AppArmor) or a sandbox refuses it",
            "allow io_uring in its policy (ausearch -m avc tells SELinux' reason)",
        )
    };
    (format!("io_uring_setup: {name}: {by}"), format!("{cure}, {OR_EPOLL}"))
}

/// The runtime says `what happened; what to do`.
fn in_words(refused: &Refusal) -> (String, String) {
    let (why, cure) =
        refused.text.split_once("; ").unwrap_or((&refused.text, "set workers.engine = \"epoll\""));
    (why.to_owned(), cure.to_owned())
}

/// What is known of this kernel.
pub(super) fn kernel(facts: &Facts) -> Finding {
    const WANT: &str = "6.1 or newer";
    let Some(text) = &facts.release else {
        return Finding::unknown(
            "kernel",
            WANT,
            "/proc/sys/kernel/osrelease cannot be read",
            "name the machine's procfs in [host] procfs",
        );
    };
    let release = parse_release(text);
    let finding = |note: &str| {
        let why = "features and known faults of io_uring follow the kernel's version";
        Finding::ok("kernel", format!("{text}{note}"), WANT, why).value(text.as_str())
    };
    let bad = |why: &str, cure: &str| finding("").judged(Status::Warn, why, cure);
    if release == (0, 0, 0) {
        let cure = "look at uname -r, and at [host] procfs in the configuration";
        return Finding::unknown("kernel", WANT, "sys/kernel/osrelease holds no version", cure);
    }
    if facts.wanted.engine == EngineChoice::Epoll {
        return finding("");
    }
    match release {
        _ if release < (5, 19, 0) => bad(
            "io_uring lacks what ringfort needs before 5.19: epoll serves",
            "upgrade the kernel: Debian 12 has 6.1, Debian 13 has 6.12, Ubuntu 24.04 has 6.8",
        ),
        _ if release < (6, 1, 0) => bad(
            "before 6.1 the kernel interrupts workers for each completion (no deferred work): more CPU time a request",
            "upgrade the kernel to 6.1 or newer",
        ),
        (6, 6, 1..=17) => bad(
            "from 6.6.1 to 6.6.17 accepting could name a descriptor that is none (liburing issue 1062)",
            "upgrade to 6.6.18 or newer, or set workers.engine = \"epoll\"",
        ),
        _ if text.starts_with("6.1.0-27-") => bad(
            "workers can hang for ever (state D) in io_uring on 6.1.115 (liburing issue 1289)",
            "upgrade to a newer 6.1, or set workers.engine = \"epoll\"",
        ),
        (6, 8, _) if text.ends_with("-aws") => bad(
            "hangs in io_uring were reported on 6.8 for AWS (liburing issue 1387)",
            "upgrade to the newest kernel of the series; where a worker stands in state D, set workers.engine = \"epoll\"",
        ),
        _ if multishot_receive_is_fair(release) => finding(""),
        _ => finding("; each receive is asked for anew (multishot receive is unfair before 6.6.17)"),
    }
}
