//! The certificates, keys and authorities of a configuration: read at the start, and again when a file changes or
//! somebody asks. Keeps the last good ones where new ones cannot be used. Never speaks TLS, never writes a file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::metrics::{CertificateEnd, CertificateFacts};
use crate::proxy::snapshot::Snapshot;
use crate::tls::{
    Authorities, Certificate, ClientMaterial, ClientSpec, ClientTrust, MtlsMode, ServerMaterial, ServerSpec,
};

mod files;
mod inspect;
mod source;
mod succession;

pub use files::Failure;
pub use inspect::inspect;

use source::{Content, Expiry, Looked, Source};

/// How often the end of what is in use is looked at, in seconds.
const EXPIRY_LOOK_S: i64 = 3_600;

/// What somebody's TLS is done with from now on.
#[derive(Clone, Debug)]
pub enum TlsChange {
    Listener(u16, Arc<ServerMaterial>),
    Cluster(u16, Arc<ClientMaterial>),
}

/// All files of one snapshot, each set read once however many use it.
pub struct Certificates {
    sources: Sources,
    listeners: Vec<Served>,
    clusters: Vec<Used>,
    /// Times that other files were taken into use, and times that they could not be, since the start.
    reloads: u64,
    failures: u64,
    expiry_looked_unix_s: i64,
}

#[derive(Default)]
struct Sources {
    pairs: Vec<Source<Certificate>>,
    trusts: Vec<Source<ClientTrust>>,
    authorities: Vec<Source<Authorities>>,
}

/// A listener with TLS. Positions are those in [`Sources`].
struct Served {
    listener: u16,
    name: Box<str>,
    spec: ServerSpec,
    pairs: Vec<usize>,
    trust: Option<usize>,
    /// Made last.
    material: Option<Arc<ServerMaterial>>,
}

/// A cluster with TLS.
struct Used {
    cluster: u16,
    name: Box<str>,
    spec: ClientSpec,
    authorities: usize,
    pair: Option<usize>,
    /// Made last.
    material: Option<Arc<ClientMaterial>>,
}

impl Certificates {
    /// Reads everything. With what every listener and cluster begins with.
    ///
    /// # Errors
    /// What cannot be used, all of it. A certificate or authority that has expired, or a certificate that is not valid
    /// yet, is no such: it is used, and told as an error.
    pub fn open(snapshot: &Snapshot, now_unix_s: i64) -> Result<(Self, Vec<TlsChange>), Vec<Failure>> {
        let mut certificates = Self::read(snapshot, now_unix_s)?;
        certificates.tell_begun();
        certificates.tell_expiry(now_unix_s, true);
        let materials = certificates.materials();
        Ok((certificates, materials))
    }

    /// Reads everything and tells nothing: whether it comes into use is not known yet.
    ///
    /// # Errors
    /// As `open`.
    pub fn read(snapshot: &Snapshot, now_unix_s: i64) -> Result<Self, Vec<Failure>> {
        let mut certificates = Self::of(snapshot);
        let sources = &mut certificates.sources;
        let mut failures = Vec::new();
        open(&mut sources.pairs, now_unix_s, &mut failures);
        open(&mut sources.trusts, now_unix_s, &mut failures);
        open(&mut sources.authorities, now_unix_s, &mut failures);
        if !failures.is_empty() {
            return Err(failures);
        }
        let everything = Changed::everything(&certificates.sources);
        let (_, failures) = certificates.changes(&everything);
        if failures.is_empty() { Ok(certificates) } else { Err(failures) }
    }

    /// What every listener and cluster with TLS is to be served or used with.
    pub fn materials(&self) -> Vec<TlsChange> {
        let listeners = self
            .listeners
            .iter()
            .filter_map(|served| Some(TlsChange::Listener(served.listener, served.material.clone()?)));
        let clusters = self
            .clusters
            .iter()
            .filter_map(|used| Some(TlsChange::Cluster(used.cluster, used.material.clone()?)));
        listeners.chain(clusters).collect()
    }

    fn tell_begun(&self) {
        let Sources { pairs, trusts, authorities } = &self.sources;
        pairs.iter().filter_map(Source::failure).for_each(tell_used::<Certificate>);
        trusts.iter().filter_map(Source::failure).for_each(tell_used::<ClientTrust>);
        authorities.iter().filter_map(Source::failure).for_each(tell_used::<Authorities>);
    }

    /// Nothing read yet.
    fn of(snapshot: &Snapshot) -> Self {
        let mut sources = Sources::default();
        let listeners = (0..).zip(&snapshot.listeners).filter_map(|(listener, of)| {
            let spec = of.tls.clone()?;
            let pair = |files: &crate::tls::CertificateFiles| vec![files.cert.clone(), files.key.clone()];
            let pairs = spec.certificates.iter().map(|files| position(&mut sources.pairs, pair(files)));
            let pairs = pairs.collect();
            let trust = spec.client_ca.iter().filter(|_| spec.mtls != MtlsMode::Disable);
            let trust = trust.map(|ca| std::iter::once(ca).chain(&spec.client_crl).cloned().collect());
            let trust = trust.map(|paths| position(&mut sources.trusts, paths)).next();
            Some(Served { listener, name: of.name.clone(), spec, pairs, trust, material: None })
        });
        let listeners = listeners.collect();
        let clusters = (0..).zip(&snapshot.clusters).filter_map(|(cluster, of)| {
            let spec = of.tls.clone()?;
            let authorities = position(&mut sources.authorities, spec.ca.iter().cloned().collect());
            let pair = spec.certificate.as_ref();
            let pair =
                pair.map(|files| position(&mut sources.pairs, vec![files.cert.clone(), files.key.clone()]));
            Some(Used { cluster, name: of.name.clone(), spec, authorities, pair, material: None })
        });
        let clusters = clusters.collect();
        Self { sources, listeners, clusters, reloads: 0, failures: 0, expiry_looked_unix_s: 0 }
    }

    /// Looks whether files have changed, and reads those that have, or all if told to. Tells in the log what was taken
    /// into use and what could not be. To be called about once a second.
    pub fn look(&mut self, now_unix_s: i64, always: bool) -> Vec<TlsChange> {
        let (sources, counts) = (&mut self.sources, &mut (0, 0));
        let changed = Changed {
            pairs: look(&mut sources.pairs, now_unix_s, always, counts),
            trusts: look(&mut sources.trusts, now_unix_s, always, counts),
            authorities: look(&mut sources.authorities, now_unix_s, always, counts),
        };
        self.reloads += counts.0;
        self.failures += counts.1;
        let (changes, failures) = self.changes(&changed);
        self.failures += failures.len() as u64;
        failures.iter().for_each(tell_kept);
        self.tell_expiry(now_unix_s, !changes.is_empty());
        changes
    }

    /// The materials of all that uses something of what has changed, and what could not be made.
    fn changes(&mut self, changed: &Changed) -> (Vec<TlsChange>, Vec<Failure>) {
        let (mut changes, mut failures) = (Vec::new(), Vec::new());
        for served in &mut self.listeners {
            let uses = served.pairs.iter().any(|pair| changed.pairs.contains(pair))
                || served.trust.is_some_and(|trust| changed.trusts.contains(&trust));
            if uses {
                match served.make(&self.sources) {
                    Ok(material) => {
                        let material = served.material.insert(Arc::new(material));
                        changes.push(TlsChange::Listener(served.listener, material.clone()));
                    }
                    Err(failure) => failures.push(failure),
                }
            }
        }
        for used in &mut self.clusters {
            let uses = changed.authorities.contains(&used.authorities)
                || used.pair.is_some_and(|pair| changed.pairs.contains(&pair));
            if uses && let Some(material) = used.make(&self.sources) {
                let material = used.material.insert(Arc::new(material));
                changes.push(TlsChange::Cluster(used.cluster, material.clone()));
            }
        }
        (changes, failures)
    }

    /// Warns of what ends soon, once at each step, every hour or when told to.
    fn tell_expiry(&mut self, now_unix_s: i64, at_once: bool) {
        // A clock that was set back makes the next look due as well.
        let since = now_unix_s.saturating_sub(self.expiry_looked_unix_s);
        if !at_once && (0..EXPIRY_LOOK_S).contains(&since) {
            return;
        }
        self.expiry_looked_unix_s = now_unix_s;
        tell_expiry(&mut self.sources.pairs, now_unix_s);
        tell_expiry(&mut self.sources.trusts, now_unix_s);
        tell_expiry(&mut self.sources.authorities, now_unix_s);
    }

    /// For the metrics.
    pub fn facts(&self) -> CertificateFacts {
        let mut ends = BTreeSet::new();
        for served in &self.listeners {
            let pairs = served.pairs.iter().filter_map(|pair| end(&self.sources.pairs[*pair]));
            let trust = served.trust.and_then(|trust| end(&self.sources.trusts[trust]));
            for (file, unix_s) in pairs.chain(trust) {
                ends.insert(CertificateEnd { kind: "listener", name: served.name.to_string(), file, unix_s });
            }
        }
        for used in &self.clusters {
            let pair = used.pair.and_then(|pair| end(&self.sources.pairs[pair]));
            let authorities = end(&self.sources.authorities[used.authorities]);
            for (file, unix_s) in pair.into_iter().chain(authorities) {
                ends.insert(CertificateEnd { kind: "cluster", name: used.name.to_string(), file, unix_s });
            }
        }
        CertificateFacts { reloads: self.reloads, failures: self.failures, ends: ends.into_iter().collect() }
    }

    /// What is wrong with the files as they are now, one text each.
    pub fn problems(&self) -> Vec<String> {
        let Sources { pairs, trusts, authorities } = &self.sources;
        let pairs = pairs.iter().filter_map(Source::failure);
        let trusts = trusts.iter().filter_map(Source::failure);
        let authorities = authorities.iter().filter_map(Source::failure);
        pairs.chain(trusts).chain(authorities).map(ToString::to_string).collect()
    }
}

impl Served {
    fn make(&self, sources: &Sources) -> Result<ServerMaterial, Failure> {
        let pairs = self.pairs.iter().filter_map(|pair| sources.pairs[*pair].good().cloned()).collect();
        let trust = self.trust.and_then(|trust| sources.trusts[trust].good());
        ServerMaterial::new(self.spec.clone(), pairs, trust.map(AsRef::as_ref)).map_err(|fault| Failure {
            path: self.spec.client_crl.clone().or_else(|| self.spec.client_ca.clone()).unwrap_or_default(),
            what: fault.what(),
            cure: fault.cure().to_owned(),
        })
    }
}

impl Used {
    fn make(&self, sources: &Sources) -> Option<ClientMaterial> {
        let pair = self.pair.and_then(|pair| sources.pairs[pair].good());
        let authorities = sources.authorities[self.authorities].good()?;
        Some(ClientMaterial::new(self.spec.clone(), authorities, pair.map(AsRef::as_ref)))
    }
}

/// Positions of the sources that have changed.
#[derive(Default)]
struct Changed {
    pairs: Vec<usize>,
    trusts: Vec<usize>,
    authorities: Vec<usize>,
}

impl Changed {
    fn everything(sources: &Sources) -> Self {
        Self {
            pairs: (0..sources.pairs.len()).collect(),
            trusts: (0..sources.trusts.len()).collect(),
            authorities: (0..sources.authorities.len()).collect(),
        }
    }
}

/// The position of the source of these files; a new one where there is none yet.
fn position<T: Content>(sources: &mut Vec<Source<T>>, paths: Vec<PathBuf>) -> usize {
    sources.iter().position(|source| source.paths() == paths).unwrap_or_else(|| {
        sources.push(Source::new(paths));
        sources.len() - 1
    })
}

fn open<T: Content>(sources: &mut [Source<T>], now_unix_s: i64, failures: &mut Vec<Failure>) {
    for source in sources {
        source.look(now_unix_s, true);
        if let (None, Some(failure)) = (source.good(), source.failure()) {
            failures.push(failure.clone());
        }
    }
}

/// The positions of those that have changed. `counts`: reloads, failures.
fn look<T: Content>(
    sources: &mut [Source<T>],
    now_unix_s: i64,
    always: bool,
    counts: &mut (u64, u64),
) -> Vec<usize> {
    let mut changed = Vec::new();
    for (position, source) in sources.iter_mut().enumerate() {
        let file = source.path().unwrap_or_else(|| Path::new("trust store of this machine"));
        let file = file.display().to_string();
        match source.look(now_unix_s, always) {
            Looked::Same => {}
            Looked::Changed => {
                counts.0 += 1;
                tracing::info!(file, "certificates were read anew and are in use");
                source.failure().into_iter().for_each(tell_used::<T>);
                changed.push(position);
            }
            Looked::Mended => tracing::info!(file, "certificates can be used as they are again"),
            Looked::Failed => {
                counts.1 += 1;
                source.failure().into_iter().for_each(tell_kept);
            }
        }
    }
    changed
}

fn tell_kept(failure: &Failure) {
    let (file, problem, cure) = (failure.path.display(), &failure.what, &failure.cure);
    tracing::error!(%file, problem, cure, "certificates were changed and cannot be used; the last good ones stay in use");
}

/// Of what is in use although it may not be.
fn tell_used<T: Content>(failure: &Failure) {
    let (file, problem, cure) = (failure.path.display(), &failure.what, &failure.cure);
    tracing::error!(%file, problem, cure, "{}", T::USED_ANYWAY);
}

fn tell_expiry<T: Content>(sources: &mut [Source<T>], now_unix_s: i64) {
    for source in sources {
        let expiry = source.expiry(now_unix_s);
        let file = source.path().unwrap_or_else(|| Path::new("")).display();
        match (expiry, source.failure()) {
            (Expiry::Due { days_left }, _) => {
                tracing::warn!(%file, days_left, "a certificate expires soon; renew it");
            }
            (Expiry::Ended, Some(failure)) => tell_used::<T>(failure),
            _ => {}
        }
    }
}

/// The file, and when what is in use of it ends.
fn end<T: Content>(source: &Source<T>) -> Option<(String, i64)> {
    let not_after = source.good()?.not_after();
    Some((source.path()?.display().to_string(), not_after))
}

#[cfg(test)]
mod tests;
