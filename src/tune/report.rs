//! What `ringfort tune` prints: tables for people, JSON for machines. Decides nothing.

use std::fmt::Write;

use serde_json::{Value, json};

use super::execute::{Outcome, Undone};
use super::facts::Facts;
use super::judge::{Finding, Status};
use super::plan::{Plan, SYSCTL_FILE};
use super::settings::Tier;
use super::state::{Phase, State};
use super::sysctl_files::Line;

/// What `check` found.
pub(super) struct Checked<'c> {
    pub facts: &'c Facts,
    pub tier: Tier,
    pub findings: &'c [Finding<'c>],
    /// Keys that several files set, with the assignments in order.
    pub conflicts: Vec<(String, Vec<&'c Line>)>,
    pub state: &'c State,
    pub now_ms: u64,
    pub notes: &'c [String],
}

impl Checked<'_> {
    /// Whether an apply is recorded that nobody will confirm any more.
    pub(super) fn is_stale(&self) -> bool {
        self.state.open_layer().is_some_and(|layer| layer.is_stale(&self.facts.boot_id, self.now_ms))
    }

    fn applied(&self) -> &'static str {
        match self.state.open_layer() {
            _ if self.is_stale() => "interrupted",
            Some(layer) if layer.phase == Phase::Unconfirmed => "unconfirmed",
            _ if self.state.layers.is_empty() => "nothing",
            _ => "applied",
        }
    }

    fn count(&self, status: &str) -> usize {
        self.findings.iter().filter(|finding| finding.status.word() == status).count()
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "Linux {}, {} MiB, up to tier {}\n\n",
            self.facts.kernel_release,
            self.facts.memory_bytes >> 20,
            self.tier.word()
        );
        let width = |of: fn(&Finding<'_>) -> usize| self.findings.iter().map(of).max().unwrap_or(0).min(44);
        let key = width(|finding| finding.setting.key.len()).max(7);
        let now = width(|finding| shown(finding.now.as_deref()).len()).max(3);
        let want = width(|finding| shown(finding.target.as_deref()).len()).max(4);
        let _ =
            writeln!(text, "{:<14}  {:<key$}  {:<now$}  {:<want$}  tier", "status", "setting", "now", "want");
        let mut ordered: Vec<&Finding<'_>> = self.findings.iter().collect();
        ordered.sort_by_key(|finding| finding.status.rank());
        for finding in ordered {
            let line = format!(
                "{:<14}  {:<key$}  {:<now$}  {:<want$}  {}",
                finding.status.word(),
                finding.setting.key,
                shown(finding.now.as_deref()),
                shown(finding.target.as_deref()),
                finding.setting.tier.word()
            );
            let _ = writeln!(text, "{}", line.trim_end());
            for remark in remarks(finding) {
                let _ = writeln!(text, "{:14}    {remark}", "");
            }
        }
        self.files(&mut text);
        self.closing(&mut text);
        text
    }

    fn files(&self, text: &mut String) {
        for (key, lines) in &self.conflicts {
            let all: Vec<String> = lines.iter().map(|line| set_by(line)).collect();
            let _ =
                writeln!(text, "\n{key} is set by several files, the last one counts: {}", all.join(", "));
        }
    }

    fn closing(&self, text: &mut String) {
        text.push('\n');
        for note in self.notes {
            let _ = writeln!(text, "Note: {note}");
        }
        match self.applied() {
            "interrupted" => text.push_str(
                "An apply was interrupted, or not confirmed in time: \"ringfort tune revert\" takes it back.\n",
            ),
            "unconfirmed" => text.push_str("An apply waits for \"ringfort tune confirm\".\n"),
            "applied" => text.push_str("\"ringfort tune revert\" takes back what was applied.\n"),
            _ => {}
        }
        let tier = self.tier.word();
        match self.count("differs") + self.count("overridden") {
            0 => text.push_str("Nothing to do.\n"),
            count => {
                let _ = writeln!(text, "{count} to change: \"ringfort tune plan --tier {tier}\" tells how.");
            }
        }
    }

    pub(super) fn json(&self) -> String {
        let settings: Vec<Value> = self.findings.iter().map(finding_json).collect();
        let conflicts: Vec<Value> = self
            .conflicts
            .iter()
            .map(|(key, lines)| {
                json!({ "key": key, "lines": lines.iter().map(|line| line_json(line)).collect::<Vec<_>>() })
            })
            .collect();
        let statuses = ["ok", "differs", "overridden", "missing", "not_applicable", "advice", "unreadable"];
        let summary: serde_json::Map<String, Value> =
            statuses.iter().map(|status| ((*status).to_owned(), self.count(status).into())).collect();
        let report = json!({
            "schema": "ringfort-tune-report/1",
            "tool": env!("CARGO_PKG_VERSION"),
            "kernel": self.facts.kernel_release,
            "boot_id": self.facts.boot_id,
            "memory_bytes": self.facts.memory_bytes,
            "tier": self.tier.word(),
            "summary": summary,
            "settings": settings,
            "overrides": conflicts,
            "applied": self.applied(),
            "layers": self.state.layers.len(),
            "notes": self.notes,
            "state_file": super::state::FILE,
            "sysctl_file": SYSCTL_FILE,
        });
        pretty(&report)
    }
}

fn remarks(finding: &Finding<'_>) -> Vec<String> {
    let mut remarks = Vec::new();
    match &finding.status {
        Status::Differs | Status::Advice => remarks.push(finding.setting.why.clone()),
        Status::NotApplicable(reason) | Status::Unreadable(reason) => remarks.push(reason.clone()),
        Status::Overridden => remarks.push("good now, and not after the next boot".to_owned()),
        Status::Good | Status::Missing => {}
    }
    if finding.status != Status::Good
        && let Some(line) = &finding.at_boot
    {
        remarks.push(format!("set by {}", set_by(line)));
    }
    remarks
}

fn set_by(line: &Line) -> String {
    format!("{}:{} ({})", line.path, line.number, line.value.as_deref().unwrap_or_default())
}

fn shown(value: Option<&str>) -> &str {
    match value {
        None => "-",
        Some("") => "(none)",
        Some(value) => value,
    }
}

fn finding_json(finding: &Finding<'_>) -> Value {
    let setting = finding.setting;
    let reason = match &finding.status {
        Status::NotApplicable(reason) | Status::Unreadable(reason) => Some(reason),
        _ => None,
    };
    json!({
        "id": setting.id,
        "kind": setting.kind,
        "key": setting.key,
        "status": finding.status.word(),
        "reason": reason,
        "now": finding.now,
        "want": finding.target,
        "operator": setting.operator.word(),
        "tier": setting.tier.word(),
        "risk": setting.risk,
        "why": setting.why,
        "source": setting.source,
        "requires": setting.requires,
        "reverted": setting.revert.words(),
        "set_by": finding.at_boot.as_ref().map(line_json),
    })
}

fn line_json(line: &Line) -> Value {
    json!({ "path": line.path, "line": line.number, "value": line.value })
}

/// What would be changed.
pub(super) fn planned(plan: &Plan, notes: &[String], as_json: bool, closing: &str) -> String {
    if as_json {
        return pretty(&plan_json(plan, notes, "planned", None));
    }
    let mut text = String::new();
    if plan.is_empty() {
        text.push_str("Nothing to change.\n");
    }
    changes(plan, &mut text);
    for file in &plan.files {
        let _ = writeln!(text, "{}, for the next boot:", file.path);
        let old: Vec<&str> = file.before.as_deref().unwrap_or_default().lines().collect();
        for line in file.after.lines().filter(|line| !line.starts_with('#')) {
            let mark = if old.contains(&line) { ' ' } else { '+' };
            let _ = writeln!(text, "  {mark} {line}");
        }
    }
    tell(plan.notes.iter().chain(notes), &mut text);
    text + closing
}

/// What was changed.
pub(super) fn applied(plan: &Plan, notes: &[String], confirm_within: Option<u32>, as_json: bool) -> String {
    if as_json {
        let phase = if confirm_within.is_some() { "unconfirmed" } else { "applied" };
        return pretty(&plan_json(plan, notes, phase, confirm_within));
    }
    let mut text = String::new();
    changes(plan, &mut text);
    if confirm_within.is_none() {
        for file in &plan.files {
            let _ = writeln!(text, "{} is written", file.path);
        }
    }
    tell(plan.notes.iter().chain(notes), &mut text);
    match confirm_within {
        None => text.push_str("Applied, also for the next boot. \"ringfort tune revert\" takes it back.\n"),
        Some(seconds) => {
            let _ = writeln!(
                text,
                "Applied until the next boot, and taken back in {seconds} s unless you run \"ringfort tune confirm\"."
            );
        }
    }
    text
}

fn changes(plan: &Plan, text: &mut String) {
    for module in &plan.modules {
        let _ = writeln!(text, "module {module}: loaded");
    }
    for value in &plan.values {
        let _ = writeln!(text, "{}: {} -> {}", value.key, shown(Some(&value.before)), value.after);
    }
}

fn tell<'n>(notes: impl Iterator<Item = &'n String>, text: &mut String) {
    for note in notes {
        let _ = writeln!(text, "Note: {note}");
    }
}

fn plan_json(plan: &Plan, notes: &[String], phase: &str, confirm_within: Option<u32>) -> Value {
    json!({
        "schema": "ringfort-tune-plan/1",
        "phase": phase,
        "confirm_within_s": confirm_within,
        "modules": plan.modules,
        "values": plan.values,
        "files": plan.files,
        "notes": plan.notes.iter().chain(notes).collect::<Vec<_>>(),
    })
}

/// One sentence.
pub(super) fn message(text: &str, notes: &[String], phase: &str, as_json: bool) -> String {
    if as_json {
        return pretty(&json!({ "phase": phase, "message": text, "notes": notes }));
    }
    let mut out = String::new();
    tell(notes.iter(), &mut out);
    let _ = writeln!(out, "{text}");
    out
}

/// What became of each change.
pub(super) fn reverted(undone: &[Undone], as_json: bool) -> String {
    let word = |outcome: &Outcome| match outcome {
        Outcome::Restored => "restored",
        Outcome::Already => "already",
        Outcome::Drifted => "drifted",
        Outcome::Gone => "gone",
        Outcome::Stays => "stays",
    };
    if as_json {
        let list: Vec<Value> = undone
            .iter()
            .map(|undone| json!({ "what": undone.what, "outcome": word(&undone.outcome) }))
            .collect();
        return pretty(&json!({ "phase": "reverted", "changes": list }));
    }
    if undone.is_empty() {
        return "Nothing is applied, so nothing to take back.\n".to_owned();
    }
    let mut text = String::new();
    for undone in undone {
        let said = match undone.outcome {
            Outcome::Restored => "as before",
            Outcome::Already => "was as before already",
            Outcome::Drifted => "left alone: somebody has changed it since",
            Outcome::Gone => "is not there any more",
            Outcome::Stays => "stays loaded until the next boot",
        };
        let _ = writeln!(text, "{}: {said}", undone.what);
    }
    text
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
