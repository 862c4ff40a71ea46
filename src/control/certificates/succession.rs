//! From the certificates of one configuration to those of the next: what is the same stays the same object, so that
//! nobody has to make anything anew of it.

use std::sync::Arc;

use super::source::{Content, Source};
use super::{Certificates, Served, Sources, Used, tell_kept, tell_used};

impl Certificates {
    /// Takes over from those of the configuration before. `self` was read just now; a set of files whose content may not
    /// be used any more, or not yet, does not replace one that may. Tells what is new.
    pub fn succeed(&mut self, old: &Self, now_unix_s: i64) {
        self.reloads = old.reloads;
        self.failures = old.failures;
        self.expiry_looked_unix_s = old.expiry_looked_unix_s;
        let counts = &mut (0, 0);
        adopt(&mut self.sources.pairs, &old.sources.pairs, now_unix_s, counts);
        adopt(&mut self.sources.trusts, &old.sources.trusts, now_unix_s, counts);
        adopt(&mut self.sources.authorities, &old.sources.authorities, now_unix_s, counts);
        self.reloads += counts.0;
        self.failures += counts.1;
        for served in &mut self.listeners {
            let same = |old_served: &&Served| served.is_made_as(&self.sources, old_served, &old.sources);
            match old.listeners.iter().find(same).and_then(|old| old.material.clone()) {
                Some(material) => served.material = Some(material),
                None => match served.make(&self.sources) {
                    Ok(material) => served.material = Some(Arc::new(material)),
                    // It was made of the very files a moment ago.
                    Err(failure) => tell_kept(&failure),
                },
            }
        }
        for used in &mut self.clusters {
            let same = |old_used: &&Used| used.is_made_as(&self.sources, old_used, &old.sources);
            used.material = match old.clusters.iter().find(same).and_then(|old| old.material.clone()) {
                Some(material) => Some(material),
                None => used.make(&self.sources).map(Arc::new),
            };
        }
        self.tell_expiry(now_unix_s, true);
    }
}

impl Served {
    fn is_made_as(&self, sources: &Sources, old: &Self, old_sources: &Sources) -> bool {
        let pairs = |served: &Self, sources: &Sources| -> Vec<_> {
            served.pairs.iter().map(|pair| sources.pairs[*pair].good().map(Arc::as_ptr)).collect()
        };
        let trust = |served: &Self, sources: &Sources| {
            served.trust.map(|trust| sources.trusts[trust].good().map(Arc::as_ptr))
        };
        self.spec == old.spec
            && pairs(self, sources) == pairs(old, old_sources)
            && trust(self, sources) == trust(old, old_sources)
    }
}

impl Used {
    fn is_made_as(&self, sources: &Sources, old: &Self, old_sources: &Sources) -> bool {
        let parts = |used: &Self, sources: &Sources| {
            let pair = used.pair.map(|pair| sources.pairs[pair].good().map(Arc::as_ptr));
            (pair, sources.authorities[used.authorities].good().map(Arc::as_ptr))
        };
        self.spec == old.spec && parts(self, sources) == parts(old, old_sources)
    }
}

/// `counts`: reloads, failures.
fn adopt<T: Content>(sources: &mut [Source<T>], old: &[Source<T>], now_unix_s: i64, counts: &mut (u64, u64)) {
    for source in sources {
        let before = old.iter().find(|old| old.paths() == source.paths());
        let kept = before.is_some_and(|before| source.keep(before, now_unix_s));
        match (kept, before, source.failure()) {
            (true, Some(before), Some(failure)) if before.failure() != Some(failure) => {
                counts.1 += 1;
                tell_kept(failure);
            }
            (true, ..) => {}
            (false, Some(_), failure) => {
                counts.0 += 1;
                let file = source.path().map(|path| path.display().to_string());
                tracing::info!(file, "certificates were read anew and are in use");
                failure.into_iter().for_each(tell_used::<T>);
            }
            (false, None, failure) => failure.into_iter().for_each(tell_used::<T>),
        }
    }
}
