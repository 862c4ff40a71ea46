//! Values of kernel settings, and what an operator makes of one. Pure; knows no setting by name.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How a setting is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// One or several whole numbers, between spaces or tabs.
    #[default]
    Numbers,
    /// Ports and ranges, between commas.
    Ports,
    /// Words in no order.
    Words,
    /// One word of several; the kernel shows it in brackets among the others.
    Choice,
}

/// How what there is and what is wanted are compared.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub(super) enum Operator {
    #[serde(rename = "=")]
    Equal,
    /// Each number at least as wanted.
    #[serde(rename = "only raise")]
    OnlyRaise,
    /// Each number at most as wanted.
    #[serde(rename = "only lower")]
    OnlyLower,
    /// Every wanted port or word is there.
    #[serde(rename = "contains")]
    Contains,
    /// A range around the wanted one.
    #[serde(rename = "covers")]
    Covers,
}

impl Operator {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::OnlyRaise => "only raise",
            Self::OnlyLower => "only lower",
            Self::Contains => "contains",
            Self::Covers => "covers",
        }
    }
}

/// A value, read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Value {
    Numbers(Vec<i128>),
    Ports(BTreeSet<u16>),
    Words(BTreeSet<String>),
}

/// What is wanted: `None` in place of a number leaves that one as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    Numbers(Vec<Option<i128>>),
    Ports(BTreeSet<u16>),
    Words(BTreeSet<String>),
}

impl Value {
    /// `None` where the text is not of that format.
    pub(super) fn parse(format: Format, text: &str) -> Option<Self> {
        match format {
            Format::Numbers => {
                let numbers: Option<Vec<i128>> =
                    text.split_ascii_whitespace().map(|word| word.parse().ok()).collect();
                numbers.filter(|numbers| !numbers.is_empty()).map(Self::Numbers)
            }
            Format::Ports => ports(text).map(Self::Ports),
            Format::Words => Some(Self::Words(words(text))),
            Format::Choice => chosen(text).map(|word| Self::Words(BTreeSet::from([word.to_owned()]))),
        }
    }

    /// Whether the two texts say the same.
    pub(super) fn same(format: Format, one: &str, other: &str) -> bool {
        match (Self::parse(format, one), Self::parse(format, other)) {
            (Some(one), Some(other)) => one == other,
            _ => one.split_ascii_whitespace().eq(other.split_ascii_whitespace()),
        }
    }
}

impl Wanted {
    /// `None` where the text is not of that format.
    pub(super) fn parse(format: Format, text: &str) -> Option<Self> {
        if format != Format::Numbers {
            return Value::parse(format, text).map(|value| match value {
                Value::Ports(ports) => Self::Ports(ports),
                Value::Words(words) => Self::Words(words),
                Value::Numbers(numbers) => Self::Numbers(numbers.into_iter().map(Some).collect()),
            });
        }
        let number = |word: &str| if word == "-" { Some(None) } else { word.parse().ok().map(Some) };
        let numbers: Option<Vec<_>> = text.split_ascii_whitespace().map(number).collect();
        numbers.filter(|numbers| !numbers.is_empty()).map(Self::Numbers)
    }
}

/// What the value has to become; the value itself where it is good. `None` where the two do not fit together, as when
/// this kernel has another number of numbers.
pub(super) fn target(operator: Operator, now: &Value, wanted: &Wanted) -> Option<Value> {
    match (now, wanted) {
        (Value::Numbers(now), Wanted::Numbers(wanted)) if now.len() == wanted.len() => {
            let pairs = now.iter().zip(wanted).enumerate();
            let numbers = pairs.map(|(index, (&now, &wanted))| match (operator, wanted) {
                (_, None) => Some(now),
                (Operator::Equal, Some(wanted)) => Some(wanted),
                (Operator::OnlyRaise, Some(wanted)) => Some(now.max(wanted)),
                (Operator::OnlyLower, Some(wanted)) => Some(now.min(wanted)),
                (Operator::Covers, Some(wanted)) if index == 0 => Some(now.min(wanted)),
                (Operator::Covers, Some(wanted)) => Some(now.max(wanted)),
                (Operator::Contains, Some(_)) => None,
            });
            numbers.collect::<Option<Vec<_>>>().map(Value::Numbers)
        }
        (Value::Ports(now), Wanted::Ports(wanted)) => match operator {
            Operator::Equal => Some(Value::Ports(wanted.clone())),
            Operator::Contains => Some(Value::Ports(now | wanted)),
            _ => None,
        },
        (Value::Words(now), Wanted::Words(wanted)) => match operator {
            Operator::Equal => Some(Value::Words(wanted.clone())),
            Operator::Contains => Some(Value::Words(now | wanted)),
            _ => None,
        },
        _ => None,
    }
}

impl fmt::Display for Value {
    /// As it is written to the kernel and to files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (words, between): (Vec<String>, _) = match self {
            Self::Numbers(numbers) => (numbers.iter().map(i128::to_string).collect(), " "),
            Self::Ports(ports) => (ranges(ports), ","),
            Self::Words(words) => (words.iter().cloned().collect(), " "),
        };
        f.write_str(&words.join(between))
    }
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn chosen(text: &str) -> Option<&str> {
    let mut words = text.split_ascii_whitespace();
    let marked = words.clone().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    // What is to be written is the bare word.
    marked.or_else(|| words.next().filter(|_| words.next().is_none()))
}

fn ports(text: &str) -> Option<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u16, u16) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        if low > high {
            return None;
        }
        ports.extend(low..=high);
    }
    Some(ports)
}

fn ranges(ports: &BTreeSet<u16>) -> Vec<String> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let text = |(low, high)| if low == high { format!("{low}") } else { format!("{low}-{high}") };
    ranges.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn becomes(format: Format, operator: Operator, now: &str, wanted: &str) -> Option<String> {
        let (now, wanted) = (Value::parse(format, now)?, Wanted::parse(format, wanted)?);
        target(operator, &now, &wanted).map(|value| value.to_string())
    }

    #[test]
    fn operators_never_undo_what_is_better_already() {
        use Operator::{Contains, Covers, Equal, OnlyLower, OnlyRaise};
        for (format, operator, now, wanted, expected) in [
            (Format::Numbers, Equal, "0", "1", Some("1")),
            (Format::Numbers, OnlyRaise, "65535", "4096", Some("65535")),
            (Format::Numbers, OnlyRaise, "128", "4096", Some("4096")),
            (Format::Numbers, OnlyLower, "60", "10", Some("10")),
            (Format::Numbers, OnlyLower, "1", "10", Some("1")),
            (
                Format::Numbers,
                OnlyRaise,
                "4096\t131072\t6291456",
                "- - 16777216",
                Some("4096 131072 16777216"),
            ),
            (Format::Numbers, Covers, "32768\t60999", "16384 65535", Some("16384 65535")),
            (Format::Numbers, Covers, "1024 60999", "16384 65535", Some("1024 65535")),
            (Format::Numbers, OnlyRaise, "1 2", "3", None),
            (Format::Numbers, Contains, "1", "1", None),
            (Format::Ports, Contains, "9000,9002-9003", "8080,9001", Some("8080,9000-9003")),
            (Format::Ports, Contains, "\n", "", Some("")),
            (Format::Ports, OnlyRaise, "1", "2", None),
            (Format::Words, Contains, "reno cubic", "bbr", Some("bbr cubic reno")),
            (Format::Choice, Equal, "[always] madvise never", "madvise", Some("madvise")),
            (Format::Choice, Equal, "always [madvise] never", "madvise", Some("madvise")),
        ] {
            assert_eq!(
                becomes(format, operator, now, wanted).as_deref(),
                expected,
                "{operator:?} {now} {wanted}"
            );
        }
    }

    #[test]
    fn what_is_no_value_is_none() {
        for (format, text) in [
            (Format::Numbers, ""),
            (Format::Numbers, "1 x"),
            (Format::Numbers, "1.5"),
            (Format::Ports, "70000"),
            (Format::Ports, "9-8"),
            (Format::Ports, "a"),
            (Format::Choice, "a b"),
            (Format::Choice, ""),
        ] {
            assert_eq!(Value::parse(format, text), None, "{text}");
        }
    }

    #[test]
    fn sameness_is_of_meaning_not_of_spelling() {
        assert!(Value::same(Format::Numbers, "1\t2\n", "1 2"));
        assert!(Value::same(Format::Ports, "8080,8081", "8080-8081"));
        assert!(Value::same(Format::Choice, "always [madvise] never", "madvise"));
        assert!(!Value::same(Format::Numbers, "1", "2"));
        assert!(Value::same(Format::Numbers, "what is this", " what  is this"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            for format in [Format::Numbers, Format::Ports, Format::Words, Format::Choice] {
                if let Some(value) = Value::parse(format, &text) {
                    prop_assert_eq!(Value::parse(format, &value.to_string()), Some(value));
                }
                let _ = Wanted::parse(format, &text);
            }
        }

        #[test]
        fn a_reached_target_stays(now in prop::collection::vec(any::<i64>(), 1..4), wanted in prop::collection::vec(prop::option::of(any::<i64>()), 1..4)) {
            let now = Value::Numbers(now.into_iter().map(i128::from).collect());
            let wanted = Wanted::Numbers(wanted.into_iter().map(|wanted| wanted.map(i128::from)).collect());
            for operator in [Operator::Equal, Operator::OnlyRaise, Operator::OnlyLower, Operator::Covers] {
                if let Some(reached) = target(operator, &now, &wanted) {
                    prop_assert_eq!(target(operator, &reached, &wanted), Some(reached));
                }
            }
        }

        #[test]
        fn ports_survive_their_text(ports in prop::collection::btree_set(any::<u16>(), 0..50)) {
            let value = Value::Ports(ports);
            prop_assert_eq!(Value::parse(Format::Ports, &value.to_string()), Some(value));
        }
    }
}
