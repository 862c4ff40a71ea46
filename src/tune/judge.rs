//! What each setting is here, and what it should be. Pure but for `read`, which reads through a `Root`.

use std::collections::HashMap;
use std::io;

use super::facts::Facts;
use super::root::Root;
use super::settings::{Kind, Setting, Tier};
use super::sysctl_files::{self, Line};
use super::unit;
use super::value::{self, Value};

/// What was read of a machine.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// By key: what the kernel, or the unit, has now.
    now: HashMap<String, Result<String, io::ErrorKind>>,
    /// Assignments of the sysctl files, in the order in which they count at boot.
    pub lines: Vec<Line>,
}

impl Readings {
    /// Reads what the settings name, and the files that set sysctls at boot.
    pub(super) fn read(root: &dyn Root, settings: &[Setting]) -> Self {
        let mut now = HashMap::new();
        for setting in settings {
            let text = match setting.path() {
                Some(path) => root.read(&path).map_err(|error| error.kind()),
                None => unit::limit(root, &setting.key)
                    .map(|limit| limit.to_string())
                    .ok_or(io::ErrorKind::InvalidData),
            };
            now.insert(setting.key.clone(), text.map(|text| text.trim().to_owned()));
        }
        Self { now, lines: boot_lines(root) }
    }

    /// The last assignment at boot to a sysctl.
    pub(super) fn at_boot(&self, key: &str) -> Option<&Line> {
        sysctl_files::of_key(&self.lines, key).last().copied()
    }
}

fn boot_lines(root: &dyn Root) -> Vec<Line> {
    let folders: Vec<(&str, Vec<String>)> =
        sysctl_files::FOLDERS.iter().map(|folder| (*folder, root.list(folder).unwrap_or_default())).collect();
    let mut paths = sysctl_files::in_order(&folders);
    paths.push(sysctl_files::LAST.to_owned());
    let parse = |path: &String| sysctl_files::parse(path, &root.read(path).unwrap_or_default());
    paths.iter().flat_map(parse).collect()
}

/// How a setting stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Status {
    Good,
    Differs,
    /// Good now, but a file sets something else at the next boot.
    Overridden,
    /// This kernel does not have it, or this container does not see it.
    Missing,
    /// Not for this machine, for the reason.
    NotApplicable(String),
    /// Differs, and is for the administrator to decide.
    Advice,
    /// What is there cannot be read, or not understood.
    Unreadable(String),
}

impl Status {
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Differs => "differs",
            Self::Overridden => "overridden",
            Self::Missing => "missing",
            Self::NotApplicable(_) => "not_applicable",
            Self::Advice => "advice",
            Self::Unreadable(_) => "unreadable",
        }
    }

    /// What matters most comes first.
    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::Unreadable(_) => 0,
            Self::Overridden => 1,
            Self::Differs => 2,
            Self::Advice => 3,
            Self::Missing => 4,
            Self::NotApplicable(_) => 5,
            Self::Good => 6,
        }
    }

    /// Whether `check` ends with 1 for it.
    pub(super) const fn is_problem(&self) -> bool {
        matches!(self, Self::Differs | Self::Overridden | Self::Unreadable(_))
    }
}

/// A setting, judged.
#[derive(Clone, Debug)]
pub(super) struct Finding<'s> {
    pub setting: &'s Setting,
    pub status: Status,
    /// As the kernel spells it, in one line with single spaces.
    pub now: Option<String>,
    /// What it should become; what it is where it is good.
    pub target: Option<String>,
    /// What sets it at boot, last of all.
    pub at_boot: Option<Line>,
}

/// Judges every setting up to the tier, one for each id, and those that are never written. `widened`: the range of
/// outgoing ports is about to be.
pub(super) fn judge<'s>(
    settings: &'s [Setting],
    facts: &Facts,
    readings: &Readings,
    tier: Tier,
    widened: bool,
) -> Vec<Finding<'s>> {
    let mut ids: Vec<&str> = Vec::new();
    for setting in settings.iter().filter(|setting| setting.tier <= tier || setting.tier == Tier::Never) {
        if !ids.contains(&&*setting.id) {
            ids.push(&setting.id);
        }
    }
    let chosen = ids.into_iter().filter_map(|id| {
        let mut variants = settings.iter().filter(|setting| setting.id == id);
        let first = variants.clone().next();
        variants.find(|setting| setting.not_for(facts).is_none()).or(first)
    });
    chosen.map(|setting| finding(setting, facts, readings, widened)).collect()
}

fn finding<'s>(setting: &'s Setting, facts: &Facts, readings: &Readings, widened: bool) -> Finding<'s> {
    let of = |status| Finding { setting, status, now: None, target: None, at_boot: None };
    if let Some(reason) = setting.not_for(facts) {
        return of(Status::NotApplicable(reason));
    }
    let now = match readings.now.get(&setting.key) {
        Some(Ok(now)) => now,
        Some(Err(io::ErrorKind::NotFound)) | None => return of(Status::Missing),
        Some(Err(kind)) => return of(Status::Unreadable(kind.to_string())),
    };
    let shown = now.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let parsed = Value::parse(setting.format, now).zip(setting.wanted(facts, widened));
    let target = parsed.and_then(|(value, wanted)| {
        let reached = value::target(setting.operator, &value, &wanted)?;
        Some(if is_accepted(setting, &value) { value } else { reached })
    });
    let Some(target) = target.map(|target| target.to_string()) else {
        let reason = "another form than expected".to_owned();
        return Finding { now: Some(shown), ..of(Status::Unreadable(reason)) };
    };
    let at_boot = if setting.kind == Kind::Sysctl { readings.at_boot(&setting.key) } else { None };
    let good = Value::same(setting.format, now, &target);
    let status = match (good, setting.tier) {
        (false, Tier::Never) => Status::Advice,
        (false, _) => Status::Differs,
        (true, Tier::Never) => Status::Good,
        (true, _) if at_boot.is_some_and(|line| spoils(setting, facts, line, widened)) => Status::Overridden,
        (true, _) => Status::Good,
    };
    Finding { setting, status, now: Some(shown), target: Some(target), at_boot: at_boot.cloned() }
}

fn is_accepted(setting: &Setting, value: &Value) -> bool {
    setting.accept.iter().any(|accepted| Value::parse(setting.format, accepted).as_ref() == Some(value))
}

/// Whether what a file sets at boot is not good.
fn spoils(setting: &Setting, facts: &Facts, line: &Line, widened: bool) -> bool {
    let value = line.value.as_deref().and_then(|text| Value::parse(setting.format, text));
    let Some((value, wanted)) = value.zip(setting.wanted(facts, widened)) else { return true };
    !is_accepted(setting, &value) && value::target(setting.operator, &value, &wanted) != Some(value)
}

/// Keys that several files set to different values: the assignments in order, the last one counts.
pub(super) fn conflicts<'r>(settings: &[Setting], readings: &'r Readings) -> Vec<(String, Vec<&'r Line>)> {
    let mut found: Vec<(String, Vec<&Line>)> = Vec::new();
    for setting in settings.iter().filter(|setting| setting.kind == Kind::Sysctl) {
        let lines = sysctl_files::of_key(&readings.lines, &setting.key);
        let differ = lines.windows(2).any(|pair| match (&pair[0].value, &pair[1].value) {
            (Some(one), Some(other)) => !Value::same(setting.format, one, other),
            _ => false,
        });
        if differ && !found.iter().any(|(key, _)| *key == setting.key) {
            found.push((setting.key.clone(), lines));
        }
    }
    found
}
