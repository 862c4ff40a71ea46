//! From what was found to what would be changed, in which order. Pure: changes nothing itself.

use std::collections::BTreeMap;

use super::judge::{Finding, Readings, Status};
use super::settings::{Kind, Setting, Tier};
use super::state::{FileChange, ValueChange};
use super::value::Value;

/// Where sysctls are kept for the next boot; sysctl.d(5) gives 60 to 90 to files in `/etc`.
pub(super) const SYSCTL_FILE: &str = "/etc/sysctl.d/60-ringfort.conf";
pub(super) const TMPFILES_FILE: &str = "/etc/tmpfiles.d/60-ringfort-tune.conf";
pub(super) const MODULES_FILE: &str = "/etc/modules-load.d/60-ringfort.conf";
pub(super) const UNIT_FILE: &str = "/etc/systemd/system/ringfort.service.d/60-tune.conf";
/// Every file that is ever written, beside the state.
pub(super) const FILES: [&str; 4] = [SYSCTL_FILE, TMPFILES_FILE, MODULES_FILE, UNIT_FILE];

const HEADER: &str = "# Written by \"ringfort tune apply\"; \"ringfort tune revert\" takes it away.";

/// What is to be changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Selection {
    pub tier: Tier,
    /// Ids or keys; where there are some, the tier does not count.
    pub only: Vec<String>,
}

impl Selection {
    /// How far `judge` has to look.
    pub(super) fn reach(&self) -> Tier {
        if self.only.is_empty() { self.tier } else { Tier::Aggressive }
    }

    /// Whether the range of outgoing ports is widened by it.
    pub(super) fn widens(&self, settings: &[Setting]) -> bool {
        const RANGE: &str = "ip_local_port_range";
        if self.only.is_empty() {
            return self.tier >= Tier::Recommended;
        }
        settings.iter().any(|setting| setting.id == RANGE && self.names(setting))
    }

    fn names(&self, setting: &Setting) -> bool {
        self.only.iter().any(|name| *name == setting.id || *name == setting.key)
    }
}

/// What would be done, in this order: values, then files.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Plan {
    /// Modules to load.
    pub modules: Vec<String>,
    pub values: Vec<ValueChange>,
    pub files: Vec<FileChange>,
    /// What the operator has to know beside it.
    pub notes: Vec<String>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.modules.is_empty() && self.values.is_empty() && self.files.is_empty()
    }
}

/// Plans. `files` gives what is in the files of `FILES` now.
///
/// # Errors
/// A name that no setting has, or one that is never written.
pub(super) fn plan(
    findings: &[Finding<'_>],
    selection: &Selection,
    readings: &Readings,
    files: &dyn Fn(&str) -> Option<String>,
) -> Result<Plan, String> {
    let mut plan = Plan::default();
    let mut kept: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
    for finding in chosen(findings, selection)? {
        let setting = finding.setting;
        match &finding.status {
            Status::Differs | Status::Overridden => {}
            Status::NotApplicable(reason) if selection.names(setting) => {
                plan.notes.push(format!("{} is left alone, it is {reason}", setting.key));
                continue;
            }
            Status::Missing if selection.names(setting) => {
                plan.notes.push(format!("{} is not there: this kernel has none, or hides it", setting.key));
                continue;
            }
            _ => continue,
        }
        let (Some(now), Some(target)) = (&finding.now, &finding.target) else { continue };
        let (file, key, line) = kept_as(setting, target);
        kept.entry(file).or_default().push((key, line));
        if finding.status == Status::Differs {
            change(setting, now, target, &mut plan);
        }
        if let Some(note) = overrider(setting, target, readings) {
            plan.notes.push(note);
        }
    }
    for (path, lines) in kept {
        let before = files(path);
        let after = merged(path, before.as_deref(), &lines);
        if before.as_deref() != Some(&*after) {
            plan.files.push(FileChange { path: path.to_owned(), before, after });
        }
    }
    if plan.files.iter().any(|file| file.path == UNIT_FILE) {
        plan.notes.push(
            "limits of the unit count after: systemctl daemon-reload && systemctl restart ringfort".into(),
        );
    }
    Ok(plan)
}

fn change(setting: &Setting, now: &str, target: &str, plan: &mut Plan) {
    match (setting.kind, setting.path(), &setting.module) {
        (Kind::Sysctl | Kind::File, Some(path), _) => plan.values.push(ValueChange {
            key: setting.key.clone(),
            path,
            format: setting.format,
            // What brackets mark is what can be written back.
            before: Value::parse(setting.format, now)
                .map_or_else(|| now.to_owned(), |value| value.to_string()),
            after: target.to_owned(),
        }),
        (Kind::Module, _, Some(module)) => plan.modules.push(module.clone()),
        _ => {}
    }
}

/// The findings that are asked for, each behind those that it requires.
fn chosen<'f, 's>(
    findings: &'f [Finding<'s>],
    selection: &Selection,
) -> Result<Vec<&'f Finding<'s>>, String> {
    for name in &selection.only {
        let Some(finding) =
            findings.iter().find(|finding| *name == finding.setting.id || *name == finding.setting.key)
        else {
            let ids: Vec<&str> = findings.iter().map(|finding| &*finding.setting.id).collect();
            return Err(format!("no setting \"{name}\"; known: {}", ids.join(", ")));
        };
        if finding.setting.tier == Tier::Never {
            return Err(format!("{} is never written: {}", finding.setting.key, finding.setting.why));
        }
    }
    let mut ordered: Vec<&Finding<'_>> = Vec::new();
    let asked = |finding: &&Finding<'_>| {
        let setting = finding.setting;
        if selection.only.is_empty() { setting.tier <= selection.tier } else { selection.names(setting) }
    };
    for finding in findings.iter().filter(asked) {
        for required in &finding.setting.requires {
            let required = findings.iter().find(|other| other.setting.id == *required);
            ordered.extend(required);
        }
        ordered.push(finding);
    }
    let mut once: Vec<&Finding<'_>> = Vec::new();
    for finding in ordered {
        if !once.iter().any(|other| other.setting.id == finding.setting.id) {
            once.push(finding);
        }
    }
    Ok(once)
}

/// The file that keeps a setting, the key of its line there, and the line.
fn kept_as(setting: &Setting, target: &str) -> (&'static str, String, String) {
    let key = setting.key.clone();
    match setting.kind {
        Kind::Sysctl => (SYSCTL_FILE, key, format!("{} = {target}", setting.key)),
        Kind::File => (TMPFILES_FILE, key, format!("w {} - - - - {target}", setting.key)),
        Kind::Module => {
            let module = setting.module.clone().unwrap_or_default();
            (MODULES_FILE, module.clone(), module)
        }
        Kind::UnitLimit => (UNIT_FILE, key, format!("{}={target}", setting.key)),
    }
}

/// The text of one of our files with these lines in place of those of the same keys.
fn merged(path: &str, before: Option<&str>, lines: &[(String, String)]) -> String {
    let mut kept: Vec<(String, String)> = Vec::new();
    let old = before.unwrap_or_default().lines().map(str::trim);
    for line in old.filter(|line| !line.is_empty() && !line.starts_with(['#', ';', '['])) {
        kept.push((line_key(path, line).to_owned(), line.to_owned()));
    }
    for (key, line) in lines {
        match kept.iter_mut().find(|(other, _)| other == key) {
            Some(there) => there.1.clone_from(line),
            None => kept.push((key.clone(), line.clone())),
        }
    }
    let section = if path == UNIT_FILE { "[Service]\n" } else { "" };
    let lines: String = kept.into_iter().map(|(_, line)| line + "\n").collect();
    format!("{HEADER}\n{section}{lines}")
}

fn line_key<'l>(path: &str, line: &'l str) -> &'l str {
    match path {
        TMPFILES_FILE => line.split_ascii_whitespace().nth(1).unwrap_or(line),
        MODULES_FILE => line,
        _ => line.split_once('=').map_or(line, |(key, _)| key.trim()),
    }
}

/// What to say where a file that counts after ours sets another value.
fn overrider(setting: &Setting, target: &str, readings: &Readings) -> Option<String> {
    if setting.kind != Kind::Sysctl {
        return None;
    }
    let ours = SYSCTL_FILE.rsplit('/').next().unwrap_or_default();
    let later = |path: &str| {
        path == super::sysctl_files::LAST || path.rsplit('/').next().is_some_and(|name| name > ours)
    };
    let mut lines = readings.lines.iter().rev();
    let line = lines.find(|line| line.key == setting.key && line.value.is_some() && later(&line.path))?;
    let value = line.value.as_deref()?;
    (!Value::same(setting.format, value, target)).then(|| {
        format!(
            "{} will be {value} again at the next boot: {}:{} counts after {SYSCTL_FILE}; remove that line",
            setting.key, line.path, line.number
        )
    })
}

#[cfg(test)]
mod tests;
