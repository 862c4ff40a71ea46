//! Rate limits at the door of a route: what of a request is the key of which limit, and what a client is told that has used
//! its share up. Counts nothing of its own: `limit::rate` does.

use std::cell::RefCell;
use std::net::IpAddr;

use crate::base::time::Instant;
use crate::h1::RequestHead;
use crate::limit::rate::{Leases, Store, Verdict};

use super::snapshot::{LimitKey, RateLimit, Snapshot};

/// A request that is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Until the client may come again, in seconds, rounded up (RFC 9110 §10.2.3).
    pub after_s: u64,
    /// It shares its budget with others for which the limit's table has no room.
    pub shares: bool,
}

/// The limits of one configuration as one worker keeps them.
#[derive(Debug)]
pub struct RateLimits(RefCell<Vec<Leases>>);

impl RateLimits {
    pub fn new(snapshot: &Snapshot) -> Self {
        Self(RefCell::new(
            snapshot.rate_limits.iter().map(|limit| Leases::new(limit.store.clone())).collect(),
        ))
    }

    /// Takes a token of each of the limits `of` a route, in their order. A request that one of them refuses takes none: it
    /// must not use up what others share.
    ///
    /// # Errors
    /// What that one tells the client.
    pub fn admit(
        &self,
        snapshot: &Snapshot,
        of: &[u16],
        client: IpAddr,
        head: &RequestHead<'_, '_>,
        now: Instant,
    ) -> Result<(), Refused> {
        let mut all = self.0.borrow_mut();
        let key = |at: u16, store: &Store| {
            let limit = snapshot.rate_limits.get(usize::from(at));
            limit.map(|limit| limit.key(store, client, head))
        };
        for (position, &at) in of.iter().enumerate() {
            let Some(leases) = all.get_mut(usize::from(at)) else { continue };
            let Some(taken) = key(at, leases.store()) else { continue };
            let Verdict::Refused { wait, shares } = leases.admit(taken, now) else { continue };
            for &before in &of[..position] {
                if let Some(leases) = all.get_mut(usize::from(before))
                    && let Some(taken) = key(before, leases.store())
                {
                    leases.put_back(taken);
                }
            }
            let after_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            return Err(Refused { after_s: after_s.max(1), shares });
        }
        Ok(())
    }

    /// Gives back all that was taken, as another configuration follows.
    pub fn give_back(&self, now: Instant) {
        self.0.borrow_mut().iter_mut().for_each(|leases| leases.give_back(now));
    }

    /// Gives back what was taken for requests that did not come.
    pub fn expire(&self, now: Instant) {
        self.0.borrow_mut().iter_mut().for_each(|leases| leases.expire(now));
    }
}

impl RateLimit {
    fn key(&self, store: &Store, client: IpAddr, head: &RequestHead<'_, '_>) -> u64 {
        match &self.by {
            LimitKey::Everybody => store.key(0, &[]),
            LimitKey::ClientAddress => self.address(store, client),
            // One who leaves the field out is not to be free of the limit.
            LimitKey::Field(name) => {
                head.field(name).map_or_else(|| self.address(store, client), |value| store.key(2, value))
            }
        }
    }

    fn address(&self, store: &Store, client: IpAddr) -> u64 {
        match client.to_canonical() {
            IpAddr::V4(v4) => store.key(1, &v4.octets()),
            IpAddr::V6(v6) => {
                let host_bits = 128 - u32::from(self.ipv6_prefix_len.min(128));
                let network = v6.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0);
                store.key(1, &network.to_be_bytes())
            }
        }
    }
}
