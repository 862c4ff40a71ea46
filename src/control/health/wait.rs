//! A deadline that is not held against an endpoint where this thread stood still meanwhile: its CPU may be stolen, or the
//! whole machine paused.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use crate::base::time::Instant;
use crate::steal::stall::Stalls;
use crate::sys::clock;

/// Whose fault it is that nothing came in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Late {
    Endpoint,
    /// This thread stood still.
    Prober,
}

/// Looks at the clock within one wait. Each is a wake-up of a thread that shares a CPU.
const LOOKS: u32 = 20;
const LOOK_MIN: Duration = Duration::from_millis(10);
/// A sleep may end so late: tokio's timers count whole milliseconds, and the kernel adds its slack.
const SLACK: Duration = Duration::from_millis(5);

/// What `future` comes to within `timeout`. An outcome that is there wins over the deadline.
pub(super) async fn within<T>(timeout: Duration, future: impl Future<Output = T>) -> Result<T, Late> {
    let mut future = pin!(future);
    let mut stalls = Stalls::default();
    let started = clock::now();
    let deadline = started + timeout;
    let step = (timeout / LOOKS).max(LOOK_MIN);
    loop {
        let before = clock::now();
        let pause = step.min(deadline.since(before));
        tokio::select! {
            biased;
            output = &mut future => return Ok(output),
            () = tokio::time::sleep(pause) => {}
        }
        let now = clock::now();
        note(&mut stalls, now, now.since(before + pause));
        if now >= deadline {
            // What arrived while the thread stood still is in the sockets by now.
            tokio::task::yield_now().await;
            return tokio::select! {
                biased;
                output = &mut future => Ok(output),
                () = std::future::ready(()) => Err(judge(&stalls, now, now.since(started))),
            };
        }
    }
}

fn note(stalls: &mut Stalls, now: Instant, late: Duration) {
    if late > SLACK {
        stalls.note(now, late);
    }
}

fn judge(stalls: &Stalls, now: Instant, waited: Duration) -> Late {
    if stalls.excuses(now, waited) { Late::Prober } else { Late::Endpoint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_in_time_counts_and_what_does_not_is_the_endpoints_fault() {
        assert_eq!(within(Duration::from_secs(5), async { 7 }).await, Ok(7));
        let mut stalls = Stalls::default();
        note(&mut stalls, Instant::from_millis(2_000), SLACK);
        assert_eq!(judge(&stalls, Instant::from_millis(2_000), Duration::from_secs(1)), Late::Endpoint);
    }

    #[tokio::test]
    async fn a_thread_that_stood_still_blames_itself() {
        let stand = async {
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_millis(300));
            std::future::pending::<()>().await;
        };
        assert_eq!(within(Duration::from_millis(200), stand).await, Err(Late::Prober));
    }
}
