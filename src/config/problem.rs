//! What is wrong with a configuration, where, and what to do about it. Collects; never stops at the first.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// Bytes of the text.
pub(super) type Span = Range<usize>;

/// One finding, printed as `FILE:LINE:COLUMN: error: what; nearest known key is "x"; cure`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Problem {
    pub file: String,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    pub severity: Severity,
    pub what: String,
    /// A known word close to the one found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The configuration is not used.
    Error,
    /// It is used, but part of it does not do what it seems to.
    Warning,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}:{}:{}: {severity}: {}", self.file, self.line, self.column, self.what)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean \"{nearest}\"?")?;
        }
        if let Some(cure) = &self.cure {
            write!(f, "; {cure}")?;
        }
        Ok(())
    }
}

/// A finding before its place is turned into line and column.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    at: usize,
    severity: Severity,
    what: String,
    nearest: Option<String>,
    cure: Option<String>,
    absence: bool,
    syntax: bool,
}

impl Finding {
    pub(super) fn error(span: &Span, what: impl Into<String>) -> Self {
        Self {
            at: span.start,
            severity: Severity::Error,
            what: what.into(),
            nearest: None,
            cure: None,
            absence: false,
            syntax: false,
        }
    }

    pub(super) fn warning(span: &Span, what: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, what) }
    }

    pub(super) fn nearest(self, nearest: Option<&str>) -> Self {
        Self { nearest: nearest.map(str::to_owned), ..self }
    }

    pub(super) fn cure(self, cure: impl Into<String>) -> Self {
        Self { cure: Some(cure.into()), ..self }
    }

    /// Says that something is not there. Left out where the text has syntax errors: it may stand in the part that
    /// could not be read.
    pub(super) fn absence(self) -> Self {
        Self { absence: true, ..self }
    }
}

/// All findings of one text.
#[derive(Debug, Default)]
pub(super) struct Findings {
    list: Vec<Finding>,
    /// Where the text is not TOML.
    syntax_errors: HashSet<usize>,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        self.list.push(finding);
    }

    pub(super) fn push_syntax(&mut self, finding: Finding) {
        let finding = Finding { syntax: true, ..finding };
        self.syntax_errors.insert(finding.at);
        self.list.push(finding);
    }

    /// So many that nearest words, whose search costs most, help nobody any more.
    pub(super) fn are_many(&self) -> bool {
        const MANY: usize = 200;
        self.list.len() > MANY
    }

    /// With line and column, in the order of the text; each said once.
    pub(super) fn into_problems(self, file: &str, text: &str) -> Vec<Problem> {
        let Self { mut list, syntax_errors } = self;
        // What the parser put in place of text that it could not read is no finding of its own.
        list.retain(|finding| {
            finding.syntax
                || !(syntax_errors.contains(&finding.at) || finding.absence && !syntax_errors.is_empty())
        });
        list.sort_by(|a, b| (a.at, a.severity, &a.what).cmp(&(b.at, b.severity, &b.what)));
        list.dedup_by(|a, b| a.at == b.at && a.what == b.what);
        let mut place = Place { text, at: 0, line: 1, line_start: 0 };
        list.into_iter()
            .map(|finding| {
                let (line, column) = place.advance_to(finding.at);
                let Finding { severity, what, nearest, cure, .. } = finding;
                Problem { file: file.to_owned(), line, column, severity, what, nearest, cure }
            })
            .collect()
    }
}

/// Line and column of each offset, in their order.
pub(super) fn places(text: &str, offsets: &[usize]) -> Vec<(u32, u32)> {
    let mut order: Vec<usize> = (0..offsets.len()).collect();
    order.sort_by_key(|index| offsets[*index]);
    let mut place = Place { text, at: 0, line: 1, line_start: 0 };
    let mut places = vec![(1, 1); offsets.len()];
    for index in order {
        places[index] = place.advance_to(offsets[index]);
    }
    places
}

/// Walks a text forward, counting lines.
struct Place<'t> {
    text: &'t str,
    at: usize,
    line: u32,
    line_start: usize,
}

impl Place<'_> {
    fn advance_to(&mut self, at: usize) -> (u32, u32) {
        let at = at.min(self.text.len());
        for newline in memchr::memchr_iter(b'\n', &self.text.as_bytes()[self.at..at]) {
            self.line = self.line.saturating_add(1);
            self.line_start = self.at + newline + 1;
        }
        self.at = at;
        // Characters begun before `at`; it may fall within one.
        let before = &self.text.as_bytes()[self.line_start..at];
        let characters = before.iter().filter(|byte| (**byte & 0xc0) != 0x80).count();
        (self.line, u32::try_from(characters + 1).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_come_in_the_order_of_the_text_with_columns_in_characters() {
        let text = "é = 1\n\nab";
        let mut findings = Findings::default();
        findings.push(Finding::error(&(9..9), "third").nearest(Some("x")).cure("cure"));
        findings.push(Finding::warning(&(3..4), "first"));
        findings.push(Finding::error(&(8..9), "second"));
        findings.push(Finding::error(&(8..9), "second"));
        findings.push(Finding::error(&(99..99), "beyond the end"));
        let problems: Vec<String> =
            findings.into_problems("f", text).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "f:1:3: warning: first",
                "f:3:1: error: second",
                "f:3:2: error: third; did you mean \"x\"?; cure",
                "f:3:3: error: beyond the end",
            ]
        );
    }

    #[test]
    fn what_is_absent_is_not_told_beside_a_syntax_error() {
        let mut findings = Findings::default();
        findings.push(Finding::error(&(0..0), "no listener").absence());
        findings.push_syntax(Finding::error(&(1..1), "unclosed"));
        assert_eq!(findings.into_problems("f", "[[").len(), 1);
    }
}
