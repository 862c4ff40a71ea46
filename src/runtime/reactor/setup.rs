//! Which engine a worker gets, and why. Probes what the kernel allows, then proves it on a socket pair: a
//! refusal by sysctl, seccomp or limits, and a ring that does not work, show at the start and not in traffic.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{IoUring, opcode};

use super::epoll::Epoll;
use super::uring::Uring;
use super::{Backend, Buffers, Reactor, ReactorStats};

/// What the configuration asks for (`workers.engine`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EngineChoice {
    /// io_uring where it is allowed and works, else epoll.
    #[default]
    Auto,
    IoUring,
    Epoll,
}

/// What a worker runs on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    IoUring,
    Epoll,
}

impl Engine {
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// The engine a worker got and the reason, for the log and the operator.
#[derive(Clone, Debug)]
pub struct EngineReport {
    pub engine: Engine,
    pub why: String,
}

/// Sizes of one worker's ring. The defaults serve every load; small ones exist to provoke trouble in tests.
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    /// Submission queue entries; 1 to 4,096.
    pub entries: u32,
    /// Completion queue entries. The kernel keeps what overflows, at a cost.
    pub completions: u32,
    /// Receive buffers lent to the kernel at a time; rounded up to a power of two.
    pub recv_buffers: u16,
}

impl RingSizes {
    /// The completion queue holds sixteen times the submission queue: multishot operations complete many times.
    pub const fn new(entries: u32, recv_buffers: u16) -> Self {
        Self { entries, completions: entries * 16, recv_buffers }
    }
}

impl Default for RingSizes {
    fn default() -> Self {
        Self::new(256, 128)
    }
}

/// What the ring can do on this kernel.
pub(super) struct Setup {
    pub(super) recv_buffers: u16,
    pub(super) multishot_receive: bool,
}

/// Kernel release in numbers, such as (6, 1, 0).
pub type Release = (u32, u32, u32);

/// Why io_uring cannot be had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The kernel's error, where it was one.
    pub code: Option<i32>,
    /// Cause and cure in words for the operator.
    pub text: String,
}

const SELF_TEST_TURNS_MAX: u32 = 100;

pub(super) fn choose(choice: EngineChoice, sizes: RingSizes) -> io::Result<(Reactor, EngineReport)> {
    if choice == EngineChoice::Epoll {
        let why = "asked for by workers.engine".to_owned();
        return Ok((on_epoll(sizes)?, EngineReport { engine: Engine::Epoll, why }));
    }
    match on_uring(sizes, &LADDER) {
        Ok((reactor, why)) => Ok((reactor, EngineReport { engine: Engine::IoUring, why })),
        Err(error) if choice == EngineChoice::Auto => {
            Ok((on_epoll(sizes)?, EngineReport { engine: Engine::Epoll, why: explain(&error) }))
        }
        Err(error) => Err(io::Error::new(error.kind(), explain(&error))),
    }
}

/// Whether io_uring can be had here, and why (not). Leaves nothing behind.
///
/// # Errors
/// The cause and the cure.
pub fn probe(sizes: RingSizes) -> Result<String, Refusal> {
    let refused = |error: io::Error| Refusal { code: error.raw_os_error(), text: explain(&error) };
    on_uring(sizes, &LADDER).map(|(_, why)| why).map_err(refused)
}

fn on_epoll(sizes: RingSizes) -> io::Result<Reactor> {
    let buffers = Buffers::new(usize::from(sizes.recv_buffers));
    Ok(Reactor::with_backend(Backend::Epoll(Epoll::new()?), buffers))
}

pub(super) fn on_uring(sizes: RingSizes, ladder: &[Rung]) -> io::Result<(Reactor, String)> {
    let (ring, flags) = build(sizes, ladder)?;
    let mut probed = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probed)?;
    let needed = [
        ("accept", opcode::AcceptMulti::CODE),
        ("recv", opcode::RecvMulti::CODE),
        ("send", opcode::Send::CODE),
        ("poll", opcode::PollAdd::CODE),
        ("cancel", opcode::AsyncCancel::CODE),
    ];
    if let Some((name, _)) = needed.iter().find(|(_, code)| !probed.is_supported(*code)) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel has no {name} operation"),
        ));
    }
    let release = kernel_release();
    let setup =
        Setup { recv_buffers: sizes.recv_buffers, multishot_receive: multishot_receive_is_fair(release) };
    let buffers = Buffers::new(2 * usize::from(sizes.recv_buffers));
    let uring = Uring::new(ring, &setup, &buffers)?;
    uring.restrict_and_enable()?;
    let mut reactor = Reactor::with_backend(Backend::Uring(Box::new(uring)), buffers);
    self_test(&mut reactor)?;
    reactor.stats = ReactorStats::default();
    let receive = if setup.multishot_receive { "multishot" } else { "single-shot" };
    let (major, minor, patch) = release;
    Ok((reactor, format!("self-test passed on Linux {major}.{minor}.{patch}: {flags}, {receive} receive")))
}

/// One set-up of a ring.
pub(super) struct Rung {
    flags: &'static str,
    sqarray: bool,
    deferred: bool,
}

/// The set-ups from the best to the plainest that still serves: Linux 6.6, 6.1 and 5.19.
pub(super) const LADDER: [Rung; 3] = [
    Rung { flags: "single issuer, deferred work, no SQ array", sqarray: false, deferred: true },
    Rung { flags: "single issuer, deferred work", sqarray: true, deferred: true },
    Rung { flags: "cooperative work", sqarray: true, deferred: false },
];

/// Tries the set-ups in their order.
fn build(sizes: RingSizes, ladder: &[Rung]) -> io::Result<(IoUring, &'static str)> {
    let mut last = None;
    for &Rung { flags, sqarray, deferred } in ladder {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_r_disabled().setup_submit_all().setup_clamp();
        builder.setup_cqsize(sizes.completions.max(sizes.entries));
        if !sqarray {
            builder.setup_no_sqarray();
        }
        if deferred {
            builder.setup_single_issuer().setup_defer_taskrun();
        } else {
            builder.setup_coop_taskrun();
        }
        match builder.build(sizes.entries) {
            Ok(ring) => return Ok((ring, flags)),
            // EINVAL: an older kernel that does not know a flag. Anything else would meet every set-up.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)))
}

/// Receives a few bytes through the ring, ends the stream and closes, as every session will.
fn self_test(reactor: &mut Reactor) -> io::Result<()> {
    let failed = |what: &str| io::Error::other(format!("self-test over a socket pair failed: {what}"));
    let (mut near, far) = UnixStream::pair()?;
    far.set_nonblocking(true)?;
    let key = reactor.register(far.into(), false)?;
    let cx = Context::from_waker(Waker::noop());
    for expected in [&b"ping"[..], b"pong"] {
        near.write_all(expected)?;
        let mut turns = 0;
        let received = loop {
            match reactor.poll_recv(key, &cx) {
                Poll::Ready(received) => break received?,
                Poll::Pending if turns == SELF_TEST_TURNS_MAX => return Err(failed("no completion came")),
                Poll::Pending => {
                    reactor.turn(Duration::from_millis(10))?;
                }
            }
            turns += 1;
        };
        if &*received != expected {
            return Err(failed("other bytes came than were sent"));
        }
    }
    // Armed again, then closed with the receive pending.
    let _: Poll<_> = reactor.poll_recv(key, &cx);
    reactor.close(key);
    let mut turns = 0;
    while !reactor.slots.is_empty() {
        if turns == SELF_TEST_TURNS_MAX {
            return Err(failed("a cancelled receive was not given back"));
        }
        reactor.turn(Duration::from_millis(10))?;
        turns += 1;
    }
    near.set_read_timeout(Some(Duration::from_secs(1)))?;
    if !matches!(near.read(&mut [0; 1]), Ok(0)) {
        return Err(failed("the end of the stream did not arrive"));
    }
    Ok(())
}

/// Multishot receive let the first sockets starve the others until the retry cap of 6.8, 6.7.5 and 6.6.17
/// (liburing issue 1043).
pub fn multishot_receive_is_fair(release: Release) -> bool {
    match release {
        (6, 6, patch) => patch >= 17,
        (6, 7, patch) => patch >= 5,
        other => other >= (6, 8, 0),
    }
}

fn kernel_release() -> Release {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or((0, 0, 0), |text| parse_release(&text))
}

/// The numbers that a release such as `6.1.0-13-amd64` begins with; zeros for those it does not have.
pub fn parse_release(text: &str) -> Release {
    let mut numbers =
        text.split(|character: char| !character.is_ascii_digit()).map_while(|part| part.parse().ok());
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

/// Cause and cure of a refusal.
fn explain(error: &io::Error) -> String {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let disabled = sysctl.ok().and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0);
    match error.raw_os_error() {
        Some(libc::EPERM) if disabled > 0 => format!(
            "io_uring_setup: EPERM; kernel.io_uring_disabled is {disabled}: run \"ringfort tune apply --only io_uring\", \
             or set workers.engine = \"epoll\""
        ),
        Some(code @ (libc::EPERM | libc::EACCES | libc::ENOSYS)) => format!(
            "io_uring_setup: {}; a seccomp profile (container) or a kernel without io_uring refuses it: \
             allow io_uring_setup, io_uring_enter and io_uring_register, or set workers.engine = \"epoll\"",
            errno_name(code)
        ),
        Some(libc::ENOMEM) => {
            "io_uring_setup: ENOMEM; the locked-memory limit is too low: raise LimitMEMLOCK \
                               (ulimit -l unlimited), or set workers.engine = \"epoll\""
                .to_owned()
        }
        Some(libc::EINVAL) => {
            "io_uring_setup: EINVAL; this kernel is older than 5.19: upgrade it (6.1 or newer \
                               is best), or set workers.engine = \"epoll\""
                .to_owned()
        }
        _ => format!("io_uring: {error}; set workers.engine = \"epoll\" to do without it"),
    }
}

const fn errno_name(code: i32) -> &'static str {
    match code {
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        _ => "ENOSYS",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_parse_whatever_the_distribution_appends() {
        assert_eq!(parse_release("6.1.0-13-amd64\n"), (6, 1, 0));
        assert_eq!(parse_release("6.18.44-fc-v595"), (6, 18, 44));
        assert_eq!(parse_release("5.10"), (5, 10, 0));
        assert_eq!(parse_release(""), (0, 0, 0));
    }

    #[test]
    fn multishot_receive_is_left_alone_where_it_starves_others() {
        for (release, fair) in [
            ((6, 1, 150), false),
            ((6, 6, 16), false),
            ((6, 6, 17), true),
            ((6, 7, 4), false),
            ((6, 7, 5), true),
            ((6, 8, 0), true),
            ((7, 0, 0), true),
        ] {
            assert_eq!(multishot_receive_is_fair(release), fair, "{release:?}");
        }
    }

    #[test]
    fn a_refusal_names_cause_and_cure() {
        let text = explain(&io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(text.contains("LimitMEMLOCK") && text.contains("workers.engine"), "{text}");
    }
}
