//! Passive health of a cluster's endpoints as one worker sees it: consecutive failures eject an endpoint for a while.
//! Pure: time comes in, verdicts go out. Never connects, never probes on its own.
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

/// When endpoints are ejected and for how long. Part of a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EjectionSpec {
    /// Failures in a row that eject; 0 turns ejection off.
    pub consecutive_failures: u32,
    /// First ejection; each further one without a success between is twice as long.
    pub base: Duration,
    /// Longest ejection.
    pub max: Duration,
    /// Share of the cluster that may be ejected at once, 0 to 100. One endpoint may always be, where there are two or
    /// more and this is not 0; the only endpoint of a cluster never is.
    pub max_ejected_percent: u8,
}

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
    state: State,
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
}

impl ClusterHealth {
    pub fn new(spec: EjectionSpec, endpoints: usize) -> Self {
        Self { spec, endpoints: vec![Endpoint::default(); endpoints] }
    }

    /// The state for another set of endpoints: `old[i]` is where the new endpoint `i` stood before, if it did.
    #[must_use]
    pub fn rearranged(&self, old: &[Option<usize>]) -> Self {
        let state = |position: &Option<usize>| position.and_then(|at| self.endpoints.get(at).copied());
        Self { spec: self.spec, endpoints: old.iter().map(|at| state(at).unwrap_or_default()).collect() }
    }

    /// Whether requests should go elsewhere. An index that does not exist is not available.
    pub fn is_available(&self, endpoint: usize, now: Instant) -> bool {
        match self.endpoints.get(endpoint).map(|endpoint| endpoint.state) {
            Some(State::Serving) => true,
            Some(State::Ejected { until: at } | State::Trial { next: at }) => now >= at,
            None => false,
        }
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

    /// The endpoint answered. Resets its count and its back-off.
    pub fn on_success(&mut self, endpoint: usize) {
        if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
            // A late answer to a request from before the ejection is no proof that new ones are answered.
            if !matches!(endpoint.state, State::Ejected { .. }) {
                *endpoint = Endpoint::default();
            }
        }
    }

    /// The endpoint failed: refused, reset, timed out or broke the protocol. What a client caused is no failure.
    pub fn on_failure(&mut self, endpoint: usize, now: Instant) -> Verdict {
        let may_eject = self.may_eject(endpoint, now);
        let spec = self.spec;
        let Some(endpoint) = self.endpoints.get_mut(endpoint) else { return Verdict::Kept };
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
        let length = spec.base.saturating_mul(1 << endpoint.ejections.min(16)).min(spec.max);
        let until = now + length;
        endpoint.ejections = endpoint.ejections.saturating_add(1);
        endpoint.failures = 0;
        endpoint.state = State::Ejected { until };
        Verdict::Ejected { until }
    }

    /// Endpoints that get no request now.
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

#[cfg(test)]
mod tests;
