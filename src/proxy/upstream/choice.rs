//! Which endpoint a request is given to, by what policies know of each; and what they are told.

use std::net::SocketAddr;
use std::rc::Rc;

use crate::balance::Candidate;
use crate::base::random::Random;
use crate::health::{Standing, Verdict, WHOLE};
use crate::metrics::ClusterCounter;

use super::{AcquireError, Cluster, Ejected, Endpoint, NOTES_KEPT_MAX, Spared, Tried, Upstreams};

impl Upstreams {
    /// Takes over which endpoints of a cluster active checks found unhealthy.
    pub fn set_unhealthy(&self, cluster: u16, addresses: &[SocketAddr]) {
        let Some(cluster) = self.clusters.get(usize::from(cluster)) else { return };
        let endpoints = cluster.endpoints.borrow();
        let panic_percent = cluster.spec.health_check.as_ref().map_or(0, |check| check.panic_percent);
        let is_unhealthy = |position: usize| addresses.contains(&endpoints[position].address);
        cluster.health.borrow_mut().set_unhealthy(panic_percent, self.runtime.now(), is_unhealthy);
    }

    /// Why there is no endpoint for a request that has not been tried yet.
    pub(super) fn nobody(cluster: &Cluster) -> AcquireError {
        match cluster.endpoints.borrow().iter().all(|endpoint| cluster.drains(endpoint.address)) {
            true => AcquireError::NoEndpoint,
            false => AcquireError::Unhealthy,
        }
    }

    /// An endpoint for a request, among those that it may be given to.
    pub(super) fn pick(&self, cluster: &Cluster, tried: &Tried) -> Option<Rc<Endpoint>> {
        let endpoints = cluster.endpoints.borrow();
        let health = cluster.health.borrow();
        let now = self.runtime.now();
        let all_refused = || {
            let is_left = |(position, endpoint): (usize, &Rc<Endpoint>)| {
                let address = &endpoint.address;
                !cluster.drains(*address)
                    && !tried.addresses.contains(address)
                    && !tried.spared.iter().any(|(spared, _)| spared == address)
                    && health.standing(position, now) != Standing::Unhealthy
            };
            !endpoints.iter().enumerate().any(is_left)
        };
        let any_refused = tried.spared.iter().any(|(_, why)| *why == Spared::Refused);
        let spare_refused = any_refused && !all_refused();
        let candidate = |position: usize| {
            let load = endpoints[position].in_flight.get();
            let address = &endpoints[position].address;
            let is_spared = |&(spared, why): &(SocketAddr, Spared)| {
                spared == *address && (why == Spared::Full || spare_refused)
            };
            if cluster.drains(*address)
                || tried.addresses.contains(address)
                || tried.spared.iter().any(is_spared)
            {
                Candidate::Excluded
            } else {
                match health.standing(position, now) {
                    Standing::Ready => Candidate::Ready { load },
                    Standing::Ejected => Candidate::Ejected { load },
                    Standing::Unhealthy => Candidate::Excluded,
                }
            }
        };
        let mut random = self.random.borrow_mut();
        let (balancer, key) = (cluster.balancer.borrow(), tried.caller.key);
        let picked = match &cluster.spec.slow_start {
            None => None,
            Some(slow_start) => {
                // A key is thrown once: it changes over when the share has grown to it, and stays there.
                let dice = key.unwrap_or_else(|| random.next_u64());
                let stands = |position| match candidate(position) {
                    Candidate::Ready { load }
                        if stands(dice, position, health.share(position, slow_start, now)) =>
                    {
                        Candidate::Ready { load }
                    }
                    _ => Candidate::Excluded,
                };
                balancer.pick(&mut random, key, stands)
            }
        };
        // Where nobody else stands for choice, who starts slowly is taken all the same.
        let picked = picked.or_else(|| balancer.pick(&mut random, key, candidate))?;
        Some(endpoints[picked].clone())
    }

    /// Ejects who succeeds markedly less often than the others, where it is time to judge.
    pub(super) fn judge_rates(&self, cluster: &Cluster) {
        let verdicts = cluster.health.borrow_mut().judge_rates(self.runtime.now());
        for (position, verdict) in verdicts {
            let address = cluster.endpoints.borrow().get(position).map(|endpoint| endpoint.address);
            if let Some(address) = address {
                self.note_ejection(cluster, address, verdict, "its rate of success");
            }
        }
    }

    /// Counts an ejection, and keeps it for the log.
    pub(super) fn note_ejection(
        &self,
        cluster: &Cluster,
        endpoint: SocketAddr,
        verdict: Verdict,
        cause: &'static str,
    ) {
        let Verdict::Ejected { until } = verdict else { return };
        cluster.counts.add(ClusterCounter::Ejections, 1);
        let mut ejected = self.notes.ejected.borrow_mut();
        if ejected.len() < NOTES_KEPT_MAX {
            let (cluster, duration) = (cluster.spec.name.clone(), until.since(self.runtime.now()));
            ejected.push(Ejected { cluster, endpoint, duration, cause });
        }
    }
}

/// Whether an endpoint that gets so many thousandths of its share stands for this choice: the same answer for one throw,
/// however often it is asked.
fn stands(dice: u64, position: usize, share: u32) -> bool {
    share >= WHOLE || Random::new(dice ^ (position as u64 + 1)).below(WHOLE) < share
}
