//! What the doctor says: findings, and the verdict over all of them. Pure.

use serde_json::{Value, json};

/// How good it is, from the best to the worst.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Status {
    Ok,
    /// It cannot be known here: never held for good or bad.
    Unknown,
    /// It serves, and worse than it could.
    Warn,
    /// Users will notice, or it does not start.
    Fail,
}

impl Status {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Stable: scripts rely on it.
    pub id: &'static str,
    pub status: Status,
    /// For machines.
    pub value: Value,
    /// The same for people.
    pub shown: String,
    pub want: Value,
    pub why: String,
    /// What to do; nothing where all is well.
    pub cure: Option<String>,
}

impl Finding {
    /// A good one. `want` is what it should be, `why` what it means.
    pub fn ok(
        id: &'static str,
        shown: impl Into<String>,
        want: impl Into<Value>,
        why: impl Into<String>,
    ) -> Self {
        let shown = shown.into();
        let value = Value::String(shown.clone());
        Self { id, status: Status::Ok, value, shown, want: want.into(), why: why.into(), cure: None }
    }

    /// What machines read in place of the text.
    pub fn value(self, value: impl Into<Value>) -> Self {
        Self { value: value.into(), ..self }
    }

    /// Worse than good, for this reason, and with this cure.
    pub fn judged(self, status: Status, why: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { status, why: why.into(), cure: Some(cure.into()), ..self }
    }

    /// It cannot be known.
    pub fn unknown(
        id: &'static str,
        want: impl Into<Value>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        let found = Self::ok(id, "unknown", want, "").value(Value::Null);
        found.judged(Status::Unknown, why, cure)
    }

    fn to_json(&self) -> Value {
        let Self { id, status, value, want, why, cure, .. } = self;
        json!({ "id": id, "status": status.word(), "value": value, "want": want, "why": why, "cure": cure })
    }
}

/// The verdict over all: what cannot be known does not make it worse.
pub fn verdict(findings: &[Finding]) -> Status {
    let known = findings.iter().map(|finding| finding.status).filter(|status| *status != Status::Unknown);
    known.max().unwrap_or(Status::Ok)
}

/// The report for machines, with a newline at its end.
pub fn to_json(findings: &[Finding]) -> String {
    let list: Vec<Value> = findings.iter().map(Finding::to_json).collect();
    format!("{:#}\n", json!({ "verdict": verdict(findings).word(), "findings": list }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_that_is_known_is_the_verdict() {
        let good = Finding::ok("a", "1", 1, "because");
        let unknown = Finding::unknown("b", "x", "hidden", "ask");
        let warn = good.clone().judged(Status::Warn, "less", "more");
        let fail = good.clone().judged(Status::Fail, "none", "some");
        assert_eq!(verdict(&[]), Status::Ok);
        assert_eq!(verdict(&[good.clone(), unknown.clone()]), Status::Ok);
        assert_eq!(verdict(&[warn.clone(), unknown.clone(), good.clone()]), Status::Warn);
        assert_eq!(verdict(&[warn, fail, unknown, good]), Status::Fail);
    }

    #[test]
    fn machines_read_six_keys_of_each_finding() {
        let findings = [Finding::ok("nofile", "1,024", 4_096, "few").value(1_024).judged(
            Status::Warn,
            "few",
            "raise it",
        )];
        let report: Value = serde_json::from_str(&to_json(&findings)).unwrap();
        let expected = json!({ "verdict": "warn", "findings": [
            { "id": "nofile", "status": "warn", "value": 1_024, "want": 4_096, "why": "few", "cure": "raise it" }
        ] });
        assert_eq!(report, expected);
        let unknown = Finding::unknown("steal", "0.5 %", "hidden", "ask").to_json();
        assert_eq!((&unknown["value"], &unknown["status"]), (&Value::Null, &"unknown".into()));
    }
}
