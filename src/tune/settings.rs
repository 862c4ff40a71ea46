//! The settings as data: `tuning/settings.toml`, which is part of the binary. Reads no other file.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Release};
use super::value::{Format, Operator, Wanted};

const EMBEDDED: &str = include_str!("../../tuning/settings.toml");

/// All that `tuning/settings.toml` holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tuning {
    #[serde(rename = "setting")]
    pub settings: Vec<Setting>,
    #[serde(rename = "guide")]
    pub guides: Vec<Guide>,
    #[serde(rename = "socket_option")]
    pub socket_options: Vec<SocketOption>,
}

/// One setting; `tuning/settings.toml` says what each field is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setting {
    pub id: String,
    pub kind: Kind,
    pub key: String,
    pub module: Option<String>,
    #[serde(default)]
    pub format: Format,
    pub operator: Operator,
    pub want: String,
    #[serde(default)]
    pub accept: Vec<String>,
    #[serde(default)]
    pub kernel: Releases,
    #[serde(default)]
    pub condition: Vec<Condition>,
    #[serde(default)]
    pub requires: Vec<String>,
    pub tier: Tier,
    pub revert: Revert,
    pub why: String,
    pub risk: String,
    pub source: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Sysctl,
    File,
    Module,
    UnitLimit,
}

/// How far somebody wants to go: each tier holds those before it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    Safe,
    Recommended,
    Aggressive,
    /// Shown, never written.
    #[value(skip)]
    Never,
}

impl Tier {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Recommended => "recommended",
            Self::Aggressive => "aggressive",
            Self::Never => "never",
        }
    }
}

/// From when on the value before counts again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Revert {
    AtOnce,
    NewSockets,
    Restart,
    Reboot,
}

impl Revert {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::NewSockets => "for new sockets",
            Self::Restart => "when ringfort restarts",
            Self::Reboot => "at the next boot",
        }
    }
}

/// What a guide says, judged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Guide {
    pub setting: String,
    pub verdict: String,
    pub reason: String,
    pub instead: String,
}

/// What the configuration sets for each socket.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SocketOption {
    pub option: String,
    pub key: String,
    pub instead_of: String,
    pub why: String,
}

/// Kernel releases, from the first up to but without the last.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct Releases {
    from: Option<Release>,
    before: Option<Release>,
}

impl Releases {
    pub(super) fn contain(self, release: Release) -> bool {
        self.from.is_none_or(|from| release >= from) && self.before.is_none_or(|before| release < before)
    }
}

impl fmt::Display for Releases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.before) {
            (None, None) => f.write_str("any"),
            (Some(from), None) => write!(f, "from {from}"),
            (None, Some(before)) => write!(f, "before {before}"),
            (Some(from), Some(before)) => write!(f, "from {from}, before {before}"),
        }
    }
}

impl TryFrom<String> for Releases {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (from, before) =
            text.split_once("..").ok_or_else(|| format!("\"{text}\": write FROM..BEFORE"))?;
        let release = |text: &str| match text.trim() {
            "" => Ok(None),
            text => Release::parse(text).map(Some).ok_or_else(|| format!("\"{text}\" is no release")),
        };
        Ok(Self { from: release(from)?, before: release(before)? })
    }
}

/// Something that has to hold, or with `not` must not.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct Condition {
    not: bool,
    what: What,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum What {
    MemoryAtLeast(u64),
    Conntrack,
    IoUringDisabled,
    Group,
    Unit,
    CongestionControl(String),
}

impl Condition {
    pub(super) fn holds(&self, facts: &Facts) -> bool {
        let holds = match &self.what {
            What::MemoryAtLeast(bytes) => facts.memory_bytes >= *bytes,
            What::Conntrack => facts.conntrack,
            What::IoUringDisabled => facts.io_uring_disabled > 0,
            What::Group => facts.group.is_some(),
            What::Unit => facts.unit,
            What::CongestionControl(name) => facts.congestion_controls.contains(name),
        };
        holds != self.not
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.not {
            f.write_str("it is not so that ")?;
        }
        match &self.what {
            What::MemoryAtLeast(bytes) => write!(f, "there are {} GiB of memory", bytes >> 30),
            What::Conntrack => f.write_str("connections are tracked"),
            What::IoUringDisabled => f.write_str("kernel.io_uring_disabled is not 0"),
            What::Group => f.write_str("there is a group ringfort"),
            What::Unit => f.write_str("ringfort.service is installed"),
            What::CongestionControl(name) => write!(f, "the configuration asks for {name}"),
        }
    }
}

impl TryFrom<String> for Condition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (not, words) = match &words[..] {
            ["not", rest @ ..] => (true, rest),
            all => (false, all),
        };
        let what = match words {
            ["memory", ">=", size] => What::MemoryAtLeast(bytes(size)?),
            ["conntrack"] => What::Conntrack,
            ["io_uring_disabled"] => What::IoUringDisabled,
            ["group"] => What::Group,
            ["unit"] => What::Unit,
            ["configured", "congestion_control", name] => What::CongestionControl((*name).to_owned()),
            _ => return Err(format!("\"{text}\" is no condition")),
        };
        Ok(Self { not, what })
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let gib = text.strip_suffix("GiB").and_then(|number| number.parse::<u64>().ok());
    gib.and_then(|gib| gib.checked_mul(1 << 30)).ok_or_else(|| format!("\"{text}\": write such as 2GiB"))
}

impl Setting {
    /// What is wanted on this machine; `None` where a fact that it names is not known here.
    /// `widened`: the range of outgoing ports is about to be.
    pub(super) fn wanted(&self, facts: &Facts, widened: bool) -> Option<Wanted> {
        match &*self.want {
            "{listen_ports}" => Some(Wanted::Ports(facts.ports_to_reserve(widened))),
            "{group}" => facts.group.map(|group| Wanted::Numbers(vec![Some(group.into())])),
            text => Wanted::parse(self.format, text),
        }
    }

    /// Where the kernel has it, from the root of the file system; `None` for a limit of the unit.
    pub(super) fn path(&self) -> Option<String> {
        match self.kind {
            Kind::Sysctl | Kind::Module => Some(sysctl_path(&self.key)),
            Kind::File => Some(self.key.clone()),
            Kind::UnitLimit => None,
        }
    }

    /// The first condition that does not hold, or the releases, in words.
    pub(super) fn not_for(&self, facts: &Facts) -> Option<String> {
        if !self.kernel.contain(facts.kernel) {
            return Some(format!("for kernels {}", self.kernel));
        }
        let missing = self.condition.iter().find(|condition| !condition.holds(facts))?;
        Some(format!("only where {missing}"))
    }
}

/// `/proc/sys/net/core/somaxconn` of `net.core.somaxconn`.
pub(super) fn sysctl_path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

/// What the binary knows.
pub(super) fn embedded() -> Tuning {
    match toml::from_str(EMBEDDED) {
        Ok(tuning) => tuning,
        Err(error) => unreachable!("a test holds the embedded settings free of errors: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::value::{self, Value};

    #[test]
    fn what_the_doctor_and_start_up_offer_to_apply_is_there() {
        let texts = [
            include_str!("../doctor/judge/engine.rs"),
            include_str!("../doctor/judge/cpus.rs"),
            include_str!("../doctor/judge/net.rs"),
            include_str!("../runtime/reactor/setup.rs"),
        ];
        let settings = embedded().settings;
        let offered = texts.iter().flat_map(|text| text.split("--only ").skip(1));
        let offered =
            offered.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(rest));
        let offered: Vec<&str> = offered.collect();
        assert!(offered.len() >= 6, "{offered:?}");
        for id in offered {
            assert!(settings.iter().any(|setting| setting.id == id), "{id}");
        }
    }

    #[test]
    fn the_embedded_settings_are_sound() {
        let tuning = embedded();
        for setting in &tuning.settings {
            let id = &setting.id;
            for required in &setting.requires {
                assert!(
                    tuning.settings.iter().any(|other| other.id == *required),
                    "{id} requires {required}"
                );
            }
            assert_eq!(setting.kind == Kind::Module, setting.module.is_some(), "{id}");
            assert!(!setting.why.is_empty() && !setting.risk.is_empty(), "{id}");
            assert!(setting.source.iter().all(|source| source.starts_with("https://")), "{id}");
            assert!(!setting.source.is_empty(), "{id}");
            assert_eq!(setting.kind == Kind::File, setting.key.starts_with("/sys/"), "{id}");
            for accepted in &setting.accept {
                assert!(Value::parse(setting.format, accepted).is_some(), "{id} accepts {accepted}");
            }
            if !setting.want.starts_with('{') {
                let wanted = Wanted::parse(setting.format, &setting.want);
                let wanted = wanted.unwrap_or_else(|| panic!("{id} wants {}", setting.want));
                let now = match &wanted {
                    Wanted::Numbers(numbers) => Value::Numbers(vec![0; numbers.len()]),
                    Wanted::Ports(ports) => Value::Ports(ports.clone()),
                    Wanted::Words(words) => Value::Words(words.clone()),
                };
                assert!(value::target(setting.operator, &now, &wanted).is_some(), "{id}: operator");
            }
        }
    }

    #[test]
    fn the_five_settings_of_the_guides_are_each_judged() {
        let tuning = embedded();
        for name in
            ["ip_local_port_range", "tcp_tw_reuse", "fs.file-max", "bpf_jit_enable", "nf_conntrack_max"]
        {
            let guide = tuning.guides.iter().find(|guide| guide.setting.contains(name)).expect(name);
            assert!(["kept", "changed", "refused"].contains(&&*guide.verdict), "{name}");
            assert!(!guide.reason.is_empty() && !guide.instead.is_empty(), "{name}");
        }
    }

    #[test]
    fn conditions_and_releases_are_read_or_refused() {
        let releases = |text: &str| Releases::try_from(text.to_owned());
        let release = |text: &str| Release::parse(text).unwrap();
        let old = releases("..6.16").unwrap();
        assert!(old.contain(release("6.15.9")) && !old.contain(release("6.16.0")));
        let new = releases("6.6..").unwrap();
        assert!(new.contain(release("6.6")) && !new.contain(release("6.5.13")));
        assert!(releases("6.6").is_err() && releases("a..").is_err());
        let condition = |text: &str| Condition::try_from(text.to_owned());
        let facts = Facts { memory_bytes: 2 << 30, ..Facts::default() };
        assert!(condition("memory >= 2GiB").unwrap().holds(&facts));
        assert!(!condition("memory >= 3GiB").unwrap().holds(&facts));
        assert!(condition("not conntrack").unwrap().holds(&facts));
        for wrong in ["", "not", "memory >= 2", "memory < 2GiB", "moon"] {
            assert!(condition(wrong).is_err(), "{wrong}");
        }
    }
}
