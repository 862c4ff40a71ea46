//! What `ringfort check` says of the files that a configuration names. Reads them as the gateway would; uses nothing.

use std::path::Path;

use super::files;
use super::source::{Content, Source};
use super::{Certificates, Failure, Sources};
use crate::config::{Config, Problem, Severity};
use crate::tls::{Certificate, Remark, date};

/// The step at which a certificate is called due.
const SOON_S: i64 = 30 * 86_400;

/// Every problem of the files, at the place where the configuration names the file. `name` is that of the
/// configuration.
pub fn inspect(name: &str, config: &Config, now_unix_s: i64) -> Vec<Problem> {
    let Sources { pairs, trusts, authorities } = Certificates::of(&config.snapshot).sources;
    let mut report = Report { name, config, now_unix_s, problems: Vec::new() };
    for mut pair in pairs {
        if let Some(certificate) = report.source(&mut pair) {
            report.certificate(&pair, &certificate);
        }
        if let Some(key) = pair.paths().get(1).filter(|key| files::is_readable_by_all(key)) {
            let what = "the private key can be read by everybody".to_owned();
            report.warn(
                key,
                what,
                "give it to the user that runs the gateway and chmod 600, or to his group and chmod 640",
            );
        }
    }
    for mut trust in trusts {
        let read = report.source(&mut trust);
        let due = read.and_then(|read| read.next_update).filter(|due| *due < now_unix_s);
        if let (Some(due), Some(list)) = (due, trust.paths().get(1)) {
            let what = format!("a revocation list was due to be replaced on {}", date(due));
            report.warn(list, what, "fetch the list anew; until then this one counts");
        }
    }
    for mut authorities in authorities {
        report.source(&mut authorities);
    }
    report.problems.sort_by_key(|problem| (problem.line, problem.column, problem.severity));
    report.problems
}

struct Report<'c> {
    name: &'c str,
    config: &'c Config,
    now_unix_s: i64,
    problems: Vec<Problem>,
}

impl Report<'_> {
    /// Reads the files of one source, and tells what keeps them from being used and that they end soon.
    fn source<T: Content>(&mut self, source: &mut Source<T>) -> Option<std::sync::Arc<T>> {
        source.look(self.now_unix_s, true);
        if let Some(Failure { path, what, cure }) = source.failure() {
            self.tell(Severity::Error, path, what.clone(), cure);
        }
        let good = source.good().cloned()?;
        let end = good.not_after();
        if let (None, Some(path)) = (source.failure(), source.path())
            && end.saturating_sub(self.now_unix_s) <= SOON_S
        {
            self.warn(path, format!("expires on {}", date(end)), "renew it");
        }
        Some(good)
    }

    fn certificate(&mut self, pair: &Source<Certificate>, certificate: &Certificate) {
        let Some(path) = pair.path() else { return };
        // What is only presented to endpoints need not fit a host.
        let served = self.config.snapshot.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let is_served = served.flat_map(|tls| &tls.certificates).any(|files| files.cert == path);
        for remark in certificate.remarks().iter().filter(|remark| is_served || **remark != Remark::NoNames) {
            let text = remark.to_string();
            let (what, cure) = text.split_once("; ").unwrap_or((&text, ""));
            self.warn(path, what.to_owned(), cure);
        }
        if let Some(end) = certificate.chain_not_after.filter(|end| *end < self.now_unix_s) {
            let what = format!("a certificate of the chain behind the first expired on {}", date(end));
            self.warn(path, what, "get the chain anew from who issued it");
        }
    }

    fn warn(&mut self, path: &Path, what: String, cure: &str) {
        self.tell(Severity::Warning, path, what, cure);
    }

    fn tell(&mut self, severity: Severity, path: &Path, what: String, cure: &str) {
        let named = self.config.files.iter().find(|file| file.path == path);
        let (line, column) = named.map_or((1, 1), |file| (file.line, file.column));
        self.problems.push(Problem {
            file: self.name.to_owned(),
            line,
            column,
            severity,
            what: format!("{}: {what}", path.display()),
            nearest: None,
            cure: Some(cure.to_owned()),
        });
    }
}
