//! One set of files that belong together, such as a chain and its key: what was last read of them that can be used,
//! and what is wrong with them now. A set that cannot be used never replaces one that can.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{self, Failure, Stamp};
use crate::tls::{Authorities, Cause, Certificate, ClientTrust, Fault, Part};

/// Days before the end at which it is warned of.
const WARN_DAYS: [i64; 3] = [1, 7, 30];
const DAY_S: i64 = 86_400;
/// Looks between two tries of files that could not be used and do not seem to have changed.
const RETRY_LOOKS: u32 = 10;

/// What files are made into.
pub(super) trait Content: Sized {
    /// From the bytes of the files, in the order of [`Source::new`].
    fn parse(files: &[Vec<u8>]) -> Result<Self, Fault>;
    /// From the certificates of the machine's own store of authorities, in DER.
    fn parse_store(_: Vec<Vec<u8>>) -> Result<Self, Fault> {
        Err(Fault { part: Part::Authorities, cause: Cause::Missing })
    }
    /// In Unix seconds; `i64::MAX` where it has no end.
    fn not_after(&self) -> i64;
    /// Whether it may be used at that time.
    fn check_dates(&self, now_unix_s: i64) -> Result<(), Fault>;
    /// What it means that it is used although it may not be.
    const USED_ANYWAY: &'static str;
}

const AUTHORITIES_ENDED: &str =
    "no authority of a bundle in use is valid any more: what they signed ends with them";

impl Content for Certificate {
    const USED_ANYWAY: &'static str = "a certificate that its peers will refuse is in use";

    fn parse(files: &[Vec<u8>]) -> Result<Self, Fault> {
        Self::from_pem(file(files, 0), file(files, 1))
    }

    fn not_after(&self) -> i64 {
        self.not_after
    }

    fn check_dates(&self, now_unix_s: i64) -> Result<(), Fault> {
        Self::check_dates(self, now_unix_s)
    }
}

impl Content for ClientTrust {
    const USED_ANYWAY: &'static str = AUTHORITIES_ENDED;

    fn parse(files: &[Vec<u8>]) -> Result<Self, Fault> {
        Self::from_pem(file(files, 0), files.get(1).map(Vec::as_slice))
    }

    fn not_after(&self) -> i64 {
        self.authorities.not_after
    }

    fn check_dates(&self, now_unix_s: i64) -> Result<(), Fault> {
        self.authorities.check_dates(now_unix_s)
    }
}

impl Content for Authorities {
    const USED_ANYWAY: &'static str = AUTHORITIES_ENDED;

    fn parse(files: &[Vec<u8>]) -> Result<Self, Fault> {
        Self::from_pem(file(files, 0))
    }

    fn parse_store(store: Vec<Vec<u8>>) -> Result<Self, Fault> {
        let authorities = Self::of_machine(store.into_iter().map(Into::into).collect());
        let none = || Fault { part: Part::Authorities, cause: Cause::Missing };
        if authorities.store.is_empty() { Err(none()) } else { Ok(authorities) }
    }

    fn not_after(&self) -> i64 {
        self.not_after
    }

    fn check_dates(&self, now_unix_s: i64) -> Result<(), Fault> {
        Self::check_dates(self, now_unix_s)
    }
}

fn file(files: &[Vec<u8>], index: usize) -> &[u8] {
    files.get(index).map_or(&[], Vec::as_slice)
}

/// What a look at the files has found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Looked {
    /// Nothing that changes what is in use.
    Same,
    /// Something else is in use now.
    Changed,
    /// What could not be used is again what is in use.
    Mended,
    /// They have changed and cannot be used.
    Failed,
}

pub(super) struct Source<T> {
    /// Empty: the machine's own store of authorities.
    paths: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
    good: Option<(Arc<T>, u64)>,
    failure: Option<Failure>,
    looks: u32,
    /// Of [`WARN_DAYS`], the last that was told.
    warned_days: Option<i64>,
}

impl<T: Content> Source<T> {
    pub(super) const fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, stamps: Vec::new(), good: None, failure: None, looks: 0, warned_days: None }
    }

    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// What is in use.
    pub(super) fn good(&self) -> Option<&Arc<T>> {
        self.good.as_ref().map(|(good, _)| good)
    }

    /// Stays with what `old`, the same files a while ago, has in use: where nothing else stands in them, or what may not
    /// be used, while the old may. `false`: goes on with what was read.
    pub(super) fn keep(&mut self, old: &Self, now_unix_s: i64) -> bool {
        let (Some((new, hash)), Some((good, old_hash))) = (&self.good, &old.good) else { return false };
        if hash == old_hash {
            self.good = Some((good.clone(), *old_hash));
            self.warned_days = old.warned_days;
            return true;
        }
        if new.check_dates(now_unix_s).is_ok() || good.check_dates(now_unix_s).is_err() {
            return false;
        }
        self.good = Some((good.clone(), *old_hash));
        self.warned_days = old.warned_days;
        true
    }

    /// What is wrong with the files as they are, or with what is in use.
    pub(super) const fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Reads the files where they seem to have changed; where they could not be used, now and then anyway, as a file
    /// may change within one tick of its clock; and always where told to.
    pub(super) fn look(&mut self, now_unix_s: i64, always: bool) -> Looked {
        // Taken before reading: what is written meanwhile is seen by the next look.
        let stamps: Vec<Option<Stamp>> = self.paths.iter().map(|path| files::stamp(path)).collect();
        self.looks = self.looks.wrapping_add(1);
        let retry = self.failure.is_some() && self.looks.is_multiple_of(RETRY_LOOKS);
        if !(always || retry || stamps != self.stamps) {
            return Looked::Same;
        }
        self.stamps = stamps;
        let before = self.failure.take();
        match self.read(now_unix_s) {
            Ok(true) => {
                self.warned_days = None;
                let dates = self.good.as_ref().map_or(Ok(()), |(good, _)| good.check_dates(now_unix_s));
                self.failure = dates.err().map(|fault| self.failure_of(&fault));
                Looked::Changed
            }
            Ok(false) if before.is_some() => Looked::Mended,
            Ok(false) => Looked::Same,
            Err(failure) => {
                let told = before.as_ref() == Some(&failure);
                self.failure = Some(failure);
                if told && !always { Looked::Same } else { Looked::Failed }
            }
        }
    }

    /// Whether something else is in use now.
    fn read(&mut self, now_unix_s: i64) -> Result<bool, Failure> {
        let bytes = self.bytes()?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some((good, _)) = self.good.as_ref().filter(|(_, of)| *of == hash) {
            return good.check_dates(now_unix_s).map(|()| false).map_err(|fault| self.failure_of(&fault));
        }
        let new = if self.paths.is_empty() { T::parse_store(bytes) } else { T::parse(&bytes) };
        let new = new.map_err(|fault| self.failure_of(&fault))?;
        // To start without the certificate would take more away from clients than to start with one that they may
        // refuse: a crash, or a clock that is wrong, is no reason to serve nobody. Nor is what has ended a reason to
        // keep out what is no worse, such as a newer revocation list of the same authorities.
        if self.good.as_ref().is_none_or(|(good, _)| good.check_dates(now_unix_s).is_err()) {
            self.good = Some((Arc::new(new), hash));
            return Ok(true);
        }
        new.check_dates(now_unix_s).map_err(|fault| self.failure_of(&fault))?;
        self.good = Some((Arc::new(new), hash));
        Ok(true)
    }

    fn bytes(&self) -> Result<Vec<Vec<u8>>, Failure> {
        if self.paths.is_empty() {
            let store = rustls_native_certs::load_native_certs();
            return Ok(store.certs.iter().map(|der| der.to_vec()).collect());
        }
        self.paths.iter().map(|path| files::read(path)).collect()
    }

    fn failure_of(&self, fault: &Fault) -> Failure {
        let index = match fault.part {
            Part::Chain | Part::Authorities => 0,
            Part::Key | Part::RevocationLists => 1,
        };
        match self.paths.get(index) {
            Some(path) => Failure { path: path.clone(), what: fault.what(), cure: fault.cure().to_owned() },
            None => Failure {
                path: "trust store of this machine".into(),
                what: fault.what(),
                cure: "install the package ca-certificates, or set ca in [cluster.tls]".to_owned(),
            },
        }
    }

    /// The file whose end is told of.
    pub(super) fn path(&self) -> Option<&Path> {
        self.paths.first().map(PathBuf::as_path)
    }

    /// Days left, where that is to be warned of and was not yet. What has ended is a failure from now on.
    pub(super) fn expiry(&mut self, now_unix_s: i64) -> Expiry {
        let Some((good, _)) = &self.good else { return Expiry::Told };
        let left_s = good.not_after().saturating_sub(now_unix_s);
        let due = WARN_DAYS.into_iter().find(|days| left_s <= days * DAY_S);
        let new = match (due, self.warned_days) {
            (Some(due), Some(warned)) => due < warned,
            (due, _) => due.is_some(),
        };
        self.warned_days = due;
        if let (None, Err(fault)) = (&self.failure, good.check_dates(now_unix_s)) {
            let failure = self.failure_of(&fault);
            self.failure = Some(failure);
            return Expiry::Ended;
        }
        if new && left_s >= 0 { Expiry::Due { days_left: left_s / DAY_S } } else { Expiry::Told }
    }
}

/// What is to be said of the end of what is in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expiry {
    /// Nothing, or nothing new.
    Told,
    Due {
        days_left: i64,
    },
    /// It may not be used any more, and nothing else is there.
    Ended,
}
