//! The endpoints of one worker as its operator sees them, and taking one out of use by hand. Never connects.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::health::Standing;

use super::{Cluster, Endpoint, Upstreams};

/// A cluster in one worker.
#[derive(Clone, Debug)]
pub struct ClusterView {
    pub name: Box<str>,
    pub endpoints: Vec<EndpointView>,
}

/// An endpoint in one worker.
#[derive(Clone, Debug)]
pub struct EndpointView {
    pub address: SocketAddr,
    /// Requests and relays that it is at.
    pub in_flight: u32,
    /// Connections that wait for a request.
    pub idle: u32,
    /// Connections in HTTP/2, at work or not.
    pub multiplexed: u32,
    /// For how long it will get no requests because it failed.
    pub ejected_for: Option<Duration>,
    /// Probes found that it gives no answer, and are believed.
    pub is_unhealthy: bool,
    /// Taken out of use by hand.
    pub drains: bool,
}

impl Upstreams {
    pub fn view(&self) -> Vec<ClusterView> {
        let now = self.runtime.now();
        let view = |cluster: &Rc<Cluster>| {
            let health = cluster.health.borrow();
            let endpoint = |endpoint: &Rc<Endpoint>| EndpointView {
                address: endpoint.address,
                in_flight: endpoint.in_flight.get(),
                idle: endpoint.idle.borrow().len() as u32,
                multiplexed: endpoint.multiplexed.borrow().len() as u32,
                ejected_for: health.ejected_for(endpoint.position.get(), now),
                is_unhealthy: health.standing(endpoint.position.get(), now) == Standing::Unhealthy,
                drains: cluster.drains(endpoint.address),
            };
            let endpoints = cluster.endpoints.borrow().iter().map(endpoint).collect();
            ClusterView { name: cluster.spec.name.clone(), endpoints }
        };
        self.clusters.iter().map(view).collect()
    }

    /// Gives an endpoint no more requests, or requests again; what it is at goes on. `false`: there is no such one.
    pub fn drain_endpoint(&self, cluster: &str, address: SocketAddr, drains: bool) -> bool {
        let Some(cluster) = self.clusters.iter().find(|named| *named.spec.name == *cluster) else {
            return false;
        };
        let endpoints = cluster.endpoints.borrow();
        let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.address == address) else {
            return false;
        };
        cluster.drained.borrow_mut().retain(|drained| *drained != address);
        if drains {
            // By address, so that one which goes from a name's answer and comes again is not used by surprise.
            cluster.drained.borrow_mut().push(address);
            self.drop_idle(cluster, endpoint, |_| false);
            endpoint.multiplexed.borrow_mut().clear();
        }
        true
    }
}

impl Cluster {
    /// Whether the endpoint was taken out of use by hand.
    pub(super) fn drains(&self, address: SocketAddr) -> bool {
        self.drained.borrow().contains(&address)
    }
}
