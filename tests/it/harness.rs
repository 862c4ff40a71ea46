//! What every integration test uses: the gateway as a process, raw clients, scripted origins. Knows the
//! outward contract only (keys, ports, endpoints, exit codes), never a type of the product.

pub mod bytes;
pub mod client;
pub mod gateway;
pub mod h2;
pub mod load;
pub mod message;
pub mod origin;
pub mod process;
pub mod setup;
pub mod tls;
pub mod websocket;

use std::time::{Duration, Instant};

/// Longest a test waits for anything that should happen at once.
pub const SOON: Duration = Duration::from_secs(10);

/// The I/O engine a behavioural test runs on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    Epoll,
    IoUring,
}

impl Engine {
    /// The value of `workers.engine`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::IoUring => "io_uring",
        }
    }

    /// Whether this machine lets a process make a ring. Where it does not, the tests of that engine say so and
    /// pass, except under `CI=true`: there a check that could not be made counts as failed.
    pub fn runs_here(self) -> bool {
        if self == Self::Epoll || process::io_uring_is_permitted() {
            return true;
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "io_uring is refused on this machine");
        eprintln!("not run: io_uring is refused on this machine");
        false
    }
}

/// Declares, for each named `fn(Engine)`, one test per engine: `feature::name::io_uring`, `feature::name::epoll`.
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::harness::Engine;
            #[test]
            fn io_uring() {
                if Engine::IoUring.runs_here() {
                    super::$name(Engine::IoUring);
                }
            }
            #[test]
            fn epoll() {
                super::$name(Engine::Epoll);
            }
        }
    )+};
}
pub(crate) use on_both_engines;

/// Waits until `condition` holds, at most `bound`; true when it did.
pub fn holds_within(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + bound;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`holds_within`] with [`SOON`], and fails the test with `what` when it did not.
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(SOON, condition), "within {SOON:?}: {what}");
}
