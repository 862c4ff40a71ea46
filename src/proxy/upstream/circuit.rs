//! What a cluster lets be under way at once: its requests over all workers, its connections and those who wait for one. Who is
//! refused is counted by the limit that was reached.

use crate::limit::retry::Failed;
use crate::metrics::{ClusterCounter, ClusterGauge, Overflow};
use crate::runtime::Deadline;

use super::pending::Place;
use super::{AcquireError, Cluster, Tried, Upstreams};

/// A request under way, until it is dropped or kept.
pub(super) struct Admitted<'a> {
    upstreams: &'a Upstreams,
    cluster: Option<&'a Cluster>,
}

impl Admitted<'_> {
    /// Whoever carries the request releases it.
    pub(super) fn keep(mut self) {
        self.cluster = None;
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some(cluster) = self.cluster {
            self.upstreams.leave(cluster);
        }
    }
}

/// A request's place among those who wait for a connection, if it has to; kept until it has one or makes one.
pub(super) struct Queue<'a> {
    upstreams: &'a Upstreams,
    cluster: &'a Cluster,
    /// In a block of its own: hardly ever does anybody wait.
    place: Option<Box<(Place<'a>, Deadline)>>,
}

impl<'a> Queue<'a> {
    pub(super) const fn new(upstreams: &'a Upstreams, cluster: &'a Cluster) -> Self {
        Self { upstreams, cluster, place: None }
    }

    /// Waits until a connection may be free or made.
    pub(super) async fn wait(&mut self) -> Result<(), AcquireError> {
        let (upstreams, cluster) = (self.upstreams, self.cluster);
        let counts = &cluster.counts;
        let pending_max = cluster.spec.pending_max as usize;
        if self.place.is_none() {
            if cluster.pending.len() >= pending_max {
                let limit = if pending_max == 0 { Overflow::Connections } else { Overflow::Pending };
                counts.overflowed(limit);
                return Err(AcquireError::Busy);
            }
            let deadline = upstreams.runtime.deadline();
            deadline.set(upstreams.runtime.now() + cluster.spec.connect_timeout);
            counts.gauge_add(ClusterGauge::RequestsPending, 1);
            self.place = Some(Box::new((cluster.pending.join(), deadline)));
        }
        let Some((place, deadline)) = self.place.as_deref() else { return Ok(()) };
        if deadline.within(std::pin::pin!(place.called())).await.is_err() {
            counts.overflowed(Overflow::Connections);
            return Err(AcquireError::Busy);
        }
        Ok(())
    }

    /// Whether others wait behind it.
    pub(super) const fn is_in_line(&self) -> bool {
        self.place.is_some()
    }

    /// Gives its place up, as there is room to make a connection, which may take long: the next is to look.
    pub(super) fn leave(&mut self) {
        if self.place.take().is_some() {
            self.cluster.counts.gauge_add(ClusterGauge::RequestsPending, -1);
        }
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Cluster {
    /// Takes connections off the count: who waits may make others.
    pub(super) fn freed(&self, connections: u32) {
        self.connections.set(self.connections.get() - connections);
        (0..connections).for_each(|_| self.pending.call_one());
    }
}

impl Upstreams {
    /// Takes another request, unless too many are under way.
    pub(super) fn admit<'a>(
        &'a self,
        cluster: &'a Cluster,
        tried: &Tried,
    ) -> Result<Admitted<'a>, AcquireError> {
        let counts = &cluster.counts;
        if !cluster.requests.take() {
            counts.overflowed(Overflow::Requests);
            return Err(AcquireError::TooMany);
        }
        counts.gauge_add(ClusterGauge::RequestsActive, 1);
        if tried.retries == 0 && tried.addresses.is_empty() {
            cluster.budget.borrow_mut().on_request(self.runtime.now());
        }
        Ok(Admitted { upstreams: self, cluster: Some(cluster) })
    }

    /// The reverse of `admit`.
    fn leave(&self, cluster: &Cluster) {
        cluster.requests.release();
        cluster.counts.gauge_add(ClusterGauge::RequestsActive, -1);
    }

    /// Whether a request that was sent again so often is to be sent once more after this; counts that it is.
    pub fn goes_again(&self, cluster: u16, retries: u32, failed: Failed) -> bool {
        let cluster = self.clusters.get(usize::from(cluster));
        cluster.is_some_and(|cluster| retries < cluster.spec.retries_max && self.try_again(cluster, failed))
    }

    /// The same where the endpoint that was tried last could not be connected to.
    pub(super) fn connects_again(&self, cluster: &Cluster, tried: &Tried) -> bool {
        tried.addresses.len() <= cluster.spec.retries_max as usize && self.try_again(cluster, Failed::Connect)
    }

    fn try_again(&self, cluster: &Cluster, failed: Failed) -> bool {
        let spec = &cluster.spec.retry;
        if !spec.on.includes(failed) {
            return false;
        }
        let counts = &cluster.counts;
        let allowed = cluster.budget.borrow_mut().take(spec, self.runtime.now());
        if allowed {
            counts.add(ClusterCounter::Retries, 1);
        } else {
            counts.overflowed(Overflow::Retries);
        }
        allowed
    }
}
