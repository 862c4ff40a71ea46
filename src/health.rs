//! Health of a cluster's endpoints as one worker sees it: consecutive failures eject an endpoint for a while, and what
//! active checks found (`check`) is taken over. Pure: time comes in, verdicts go out. Never connects, never probes.
//!
//! ```text
//!            failures reach the threshold                 time is up
//!   Serving ------------------------------> Ejected ---------------------> Trial
//!      ^   (unless too many are ejected)       ^  twice as long              |
//!      |                                       +-------- failure ------------+
//!      +--------------------------------------------- success ---------------+
//! ```
//!
//! In `Trial` one request at a time is let through: least-request balancing would otherwise send every new request
//! to an endpoint that answers none, because it has none in flight.

use std::time::Duration;

use crate::base::time::Instant;

pub mod check;
pub mod success_rate;

use success_rate::{Compared, SuccessRateSpec, Tally, compare};

/// When endpoints are ejected and for how long. Part of a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EjectionSpec {
    /// Failures in a row that eject; 0 turns ejection off.
    pub consecutive_failures: u32,
    /// First ejection, each further one without a success between is twice as long; for a rate of success it is the interval
    /// of that at least, and each further one without an interval as good as the others' is twice as long.
    pub base: Duration,
    /// Longest ejection.
    pub max: Duration,
    /// Share of the cluster that may be ejected at once, 0 to 100. One endpoint may always be, where there are two or
    /// more and this is not 0; the only endpoint of a cluster never is.
    pub max_ejected_percent: u8,
    /// Whether endpoints are ejected for their rate of success, too.
    pub success_rate: Option<SuccessRateSpec>,
}

/// How an endpoint that comes back, or is new, gets its share.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SlowStart {
    /// Until it has all of it.
    pub window: Duration,
    /// What it begins with, 1 to 100.
    pub floor_percent: u8,
}

impl EjectionSpec {
    /// Of an ejection that so many preceded.
    fn length(&self, first: Duration, before: u32) -> Duration {
        first.saturating_mul(1 << before.min(16)).min(self.max)
    }
}

impl SlowStart {
    /// The part of its share that an endpoint gets so long after it began, in thousandths.
    fn part(&self, elapsed: Duration) -> u32 {
        let floor = u128::from(self.floor_percent.min(100)) * 10;
        let grown = (1_000 - floor) * elapsed.as_nanos() / self.window.as_nanos().max(1);
        u32::try_from(floor + grown).unwrap_or(WHOLE).min(WHOLE)
    }
}

/// All of an endpoint's share, in thousandths.
pub const WHOLE: u32 = 1_000;

/// What a failure led to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Kept,
    Ejected {
        until: Instant,
    },
    /// Due for ejection, but the share ejected would exceed `max_ejected_percent`.
    Spared,
}

#[derive(Clone, Copy, Debug, Default)]
struct Endpoint {
    /// In a row; never above the threshold.
    failures: u32,
    /// In a row without a success between; sets the length of the next one.
    ejections: u32,
    /// Those for its rate of success, in a row without a good interval between. Single answers say nothing of a rate.
    rate_ejections: u32,
    state: State,
    /// Active checks took it out.
    is_unhealthy: bool,
    /// What became of its requests within this interval.
    tally: Tally,
    /// When it came, or came back; `None`: it was there from the beginning.
    began: Option<Instant>,
}

/// Whether an endpoint is given requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    Ready,
    /// Only where no other is ready.
    Ejected,
    /// Not at all: active checks took it out, or there is no such endpoint.
    Unhealthy,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Serving,
    Ejected {
        until: Instant,
    },
    /// One request was let through; the next may follow at `next`, should that one never report.
    Trial {
        next: Instant,
    },
}

/// The endpoints of one cluster, by index.
#[derive(Clone, Debug)]
pub struct ClusterHealth {
    spec: EjectionSpec,
    endpoints: Vec<Endpoint>,
    panic_percent: u8,
    /// Too few are healthy for the checks to be believed.
    is_panicking: bool,
    /// When this interval of rates of success began.
    tallied: Instant,
}

impl ClusterHealth {
    pub fn new(spec: EjectionSpec, endpoints: usize) -> Self {
        let endpoints = vec![Endpoint::default(); endpoints];
        Self { spec, endpoints, panic_percent: 0, is_panicking: false, tallied: Instant::ZERO }
    }

    /// The state for another set of endpoints: `old[i]` is where the new endpoint `i` stood before, if it did.
    #[must_use]
    pub fn rearranged(&self, old: &[Option<usize>], now: Instant) -> Self {
        self.rearranged_under(self.spec, old, now)
    }

    /// As `rearranged`, under another specification. One that turns ejection off lets everything serve.
    #[must_use]
    pub fn rearranged_under(&self, spec: EjectionSpec, old: &[Option<usize>], now: Instant) -> Self {
        let ejects = spec.consecutive_failures > 0 || spec.success_rate.is_some();
        let new = Endpoint { began: Some(now), ..Endpoint::default() };
        let state = |position: &Option<usize>| {
            let mut endpoint = position.and_then(|at| self.endpoints.get(at).copied()).unwrap_or(new);
            if !ejects {
                endpoint = Endpoint {
                    failures: 0,
                    ejections: 0,
                    rate_ejections: 0,
                    state: State::Serving,
                    ..endpoint
                };
            }
            endpoint
        };
        let mut rearranged = Self { spec, endpoints: old.iter().map(state).collect(), ..*self };
        rearranged.judge_panic();
        rearranged
    }

    /// Takes over what active checks found. An endpoint that they bring back starts anew: what it was ejected for is
    /// over. `panic_percent` as in [`check::CheckSpec`].
    pub fn set_unhealthy(&mut self, panic_percent: u8, now: Instant, is_unhealthy: impl Fn(usize) -> bool) {
        for (position, endpoint) in self.endpoints.iter_mut().enumerate() {
            let was = std::mem::replace(&mut endpoint.is_unhealthy, is_unhealthy(position));
            if was && !endpoint.is_unhealthy {
                *endpoint = Endpoint { began: Some(now), ..Endpoint::default() };
            }
        }
        self.panic_percent = panic_percent;
        self.judge_panic();
    }

    fn judge_panic(&mut self) {
        let healthy = self.endpoints.iter().filter(|endpoint| !endpoint.is_unhealthy).count();
        self.is_panicking = healthy * 100 < usize::from(self.panic_percent) * self.endpoints.len();
    }

    /// Whether every endpoint is used whatever active checks found, as too few are healthy.
    pub const fn is_panicking(&self) -> bool {
        self.is_panicking
    }

    /// An endpoint that active checks took out, where they are believed, gets nothing; one that was ejected what no
    /// other can take.
    pub fn standing(&self, endpoint: usize, now: Instant) -> Standing {
        match self.endpoints.get(endpoint) {
            None => Standing::Unhealthy,
            Some(endpoint) if endpoint.is_unhealthy && !self.is_panicking => Standing::Unhealthy,
            Some(endpoint) if endpoint.takes_requests(now) => Standing::Ready,
            Some(_) => Standing::Ejected,
        }
    }

    /// The part of its share that an endpoint is to get now, in thousandths.
    pub fn share(&self, endpoint: usize, slow_start: &SlowStart, now: Instant) -> u32 {
        let began = self.endpoints.get(endpoint).and_then(|endpoint| endpoint.began);
        began.map_or(WHOLE, |began| slow_start.part(now.since(began)))
    }

    /// Whether requests go to the endpoint first of all. An index that does not exist is not available.
    pub fn is_available(&self, endpoint: usize, now: Instant) -> bool {
        self.standing(endpoint, now) == Standing::Ready
    }

    /// For how long the endpoint gets no requests; `None` where it gets them.
    pub fn ejected_for(&self, endpoint: usize, now: Instant) -> Option<Duration> {
        match self.endpoints.get(endpoint)?.state {
            State::Ejected { until } if until > now => Some(until.since(now)),
            _ => None,
        }
    }

    /// To be called when a request is given to an endpoint: it may be its trial.
    pub fn on_request(&mut self, endpoint: usize, now: Instant) {
        let base = self.spec.base;
        if let Some(endpoint) = self.endpoints.get_mut(endpoint)
            && let State::Ejected { until: at } | State::Trial { next: at } = endpoint.state
            && now >= at
        {
            endpoint.state = State::Trial { next: now + base };
        }
    }

    /// The endpoint answered. Resets its count; and its back-off, unless `is_error`: with a status of 5xx, which is an answer,
    /// but no success.
    pub fn on_answer(&mut self, endpoint: usize, is_error: bool) {
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            endpoint.tally.count(!is_error);
            // A late answer to a request from before the ejection is no proof that new ones are answered.
            if !matches!(endpoint.state, State::Ejected { .. }) {
                (endpoint.failures, endpoint.state) = (0, State::Serving);
                if !is_error {
                    endpoint.ejections = 0;
                }
            }
        }
    }

    /// The endpoint failed: refused, reset, timed out or broke the protocol. What a client caused is no failure.
    pub fn on_failure(&mut self, endpoint: usize, now: Instant) -> Verdict {
        let may_eject = self.may_eject(endpoint, now);
        let spec = self.spec;
        let Some(endpoint) = self.endpoints.get_mut(endpoint) else { return Verdict::Kept };
        endpoint.tally.count(false);
        match endpoint.state {
            // Requests from before the ejection keep failing; they do not prolong it.
            State::Ejected { .. } => return Verdict::Kept,
            State::Trial { .. } => {}
            State::Serving => {
                if spec.consecutive_failures == 0 {
                    return Verdict::Kept;
                }
                endpoint.failures = (endpoint.failures + 1).min(spec.consecutive_failures);
                if endpoint.failures < spec.consecutive_failures {
                    return Verdict::Kept;
                }
            }
        }
        if !may_eject {
            endpoint.state = State::Serving;
            return Verdict::Spared;
        }
        endpoint.eject(&spec, now)
    }

    /// Judges rates of success where an interval is over. To be called now and then.
    pub fn judge_rates(&mut self, now: Instant) -> Vec<(usize, Verdict)> {
        let Some(spec) = self.spec.success_rate else { return Vec::new() };
        if now.since(self.tallied) < spec.interval {
            return Vec::new();
        }
        self.tallied = now;
        let tallies: Vec<Tally> =
            self.endpoints.iter_mut().map(|endpoint| std::mem::take(&mut endpoint.tally)).collect();
        let mut verdicts = Vec::new();
        let Compared { outliers, others } = compare(&spec, &tallies);
        others.into_iter().for_each(|position| self.endpoints[position].rate_ejections = 0);
        for position in outliers {
            let may_eject = self.may_eject(position, now);
            let endpoint = &mut self.endpoints[position];
            match endpoint.state {
                State::Ejected { .. } => {}
                _ if may_eject => {
                    verdicts.push((position, endpoint.eject_for_rate(&self.spec, spec.interval, now)));
                }
                _ => verdicts.push((position, Verdict::Spared)),
            }
        }
        verdicts
    }

    /// Endpoints that are not given requests first of all now.
    pub fn ejected(&self, now: Instant) -> usize {
        (0..self.endpoints.len()).filter(|&endpoint| !self.is_available(endpoint, now)).count()
    }

    fn may_eject(&self, endpoint: usize, now: Instant) -> bool {
        let count = self.endpoints.len();
        let percent = usize::from(self.spec.max_ejected_percent);
        if count < 2 || percent == 0 {
            return false;
        }
        let others = (0..count).filter(|&other| other != endpoint && !self.is_available(other, now)).count();
        others == 0 || (others + 1) * 100 <= percent * count
    }
}

impl Endpoint {
    fn eject(&mut self, spec: &EjectionSpec, now: Instant) -> Verdict {
        let until = now + spec.length(spec.base, self.ejections);
        self.ejections = self.ejections.saturating_add(1);
        self.eject_until(until)
    }

    /// One that is back long before it is judged again would be out for a small part of the time only.
    fn eject_for_rate(&mut self, spec: &EjectionSpec, interval: Duration, now: Instant) -> Verdict {
        let until = now + spec.length(spec.base.max(interval), self.rate_ejections);
        self.rate_ejections = self.rate_ejections.saturating_add(1);
        self.eject_until(until)
    }

    const fn eject_until(&mut self, until: Instant) -> Verdict {
        self.failures = 0;
        self.state = State::Ejected { until };
        Verdict::Ejected { until }
    }

    fn takes_requests(&self, now: Instant) -> bool {
        match self.state {
            State::Serving => true,
            State::Ejected { until: at } | State::Trial { next: at } => now >= at,
        }
    }
}

#[cfg(test)]
mod tests;
