//! When requests are due in open loop. Never waits for a response: that is the point of it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// The timer never fires more often than this; requests that fall due between two ticks go out together.
const TICK_MIN: Duration = Duration::from_micros(20);

/// A constant rate, and a timer finer than the millisecond of epoll_wait(2).
pub(super) struct Arrivals {
    timer: OwnedFd,
    interval: Duration,
    next: Instant,
    stopped: Option<Instant>,
}

impl Arrivals {
    pub(super) fn start(rate: f64, now: Instant, registry: &Registry, token: Token) -> io::Result<Self> {
        if !(1.0..=1e6).contains(&rate) {
            return Err(io::Error::other(format!("rate {rate}/s: choose between 1 and 1,000,000")));
        }
        let interval = Duration::from_secs_f64(1.0 / rate);
        let tick = interval.max(TICK_MIN);
        let tick = Timespec { tv_sec: tick.as_secs().cast_signed(), tv_nsec: i64::from(tick.subsec_nanos()) };
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let every = Itimerspec { it_interval: tick, it_value: tick };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { timer, interval, next: now + interval, stopped: None })
    }

    /// When the oldest request not yet sent was due, if one is due by `now`.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next;
        if due > now.min(self.stopped.unwrap_or(now)) {
            return None;
        }
        self.next = due + self.interval;
        Some(due)
    }

    /// No request falls due after `now`.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopped = Some(now);
    }

    /// Requests that are due and not yet sent.
    pub(super) fn owed(&self, now: Instant) -> u64 {
        let late = now.min(self.stopped.unwrap_or(now)).saturating_duration_since(self.next);
        if late.is_zero() { 0 } else { (late.as_nanos() / self.interval.as_nanos()) as u64 + 1 }
    }

    /// Re-arms the timer: the kernel restarts a periodic one when its count is read.
    pub(super) fn acknowledge(&mut self) {
        let mut count = [0; 8];
        // Nothing to read means that the tick was taken by an earlier event.
        let _ = rustix::io::read(&self.timer, &mut count);
    }
}
