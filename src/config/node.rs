//! One table of the text beside the rows that declare it: checks the former against the latter, then reads values.
//! What failed the check reads as its default, so that one slip is told once.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::problem::{Finding, Findings, Span};
use super::schema::{Kind, Preset, Row, Table};

/// A table that is there, or one that is not and reads as its defaults.
#[derive(Clone, Copy)]
pub(super) struct Node<'t> {
    values: Option<&'t DeTable<'t>>,
    schema: &'static Table,
    /// Where to point when something is missing.
    start: usize,
}

/// A text with its place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Text<'t> {
    pub text: &'t str,
    pub span: Span,
}

impl<'t> Node<'t> {
    pub(super) fn root(values: &'t DeTable<'t>, schema: &'static Table) -> Self {
        Self { values: Some(values), schema, start: 0 }
    }

    pub(super) fn span(&self) -> Span {
        self.start..self.start
    }

    fn value(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.values?.get(key)
    }

    /// Where the key stands, if it does.
    pub(super) fn key_span(&self, key: &str) -> Option<Span> {
        self.values?.get_key_value(key).map(|(key, _)| key.span())
    }

    /// The keys that stand here, with their places, in the order of their declaration.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&'static str, Span)> {
        self.schema.keys().filter_map(|key| Some((key, self.key_span(key)?)))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        self.value(key).and_then(|value| value.get_ref().as_array()).is_some_and(|items| items.is_empty())
    }

    /// Where the value stands, else the table.
    pub(super) fn value_span(&self, key: &str) -> Span {
        self.value(key).map_or_else(|| self.span(), Spanned::span)
    }

    /// `None` where it is absent without a default.
    pub(super) fn integer(&self, key: &str) -> Option<u64> {
        let row = self.schema.row(key)?;
        let found = self.value(key).and_then(|value| integer(value.get_ref(), row));
        found.or(match row.preset {
            Preset::Integer(default) => Some(default),
            _ => None,
        })
    }

    /// `None` where it is absent without a default.
    pub(super) fn ratio(&self, key: &str) -> Option<f64> {
        let row = self.schema.row(key)?;
        let found = self.value(key).and_then(|value| ratio(value.get_ref(), row));
        found.or(match row.preset {
            Preset::Ratio(default) => Some(default),
            _ => None,
        })
    }

    /// `None` where it is absent without a default.
    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        let found = self.value(key).and_then(|value| value.get_ref().as_bool());
        found.or(match self.schema.row(key)?.preset {
            Preset::Boolean(default) => Some(default),
            _ => None,
        })
    }

    /// As written, or the default.
    pub(super) fn text(&self, key: &str) -> Option<Text<'t>> {
        if let Some(value) = self.value(key)
            && let Some(text) = value.get_ref().as_str()
        {
            return Some(Text { text, span: value.span() });
        }
        match self.schema.row(key)?.preset {
            Preset::Text(text) => Some(Text { text, span: self.value_span(key) }),
            _ => None,
        }
    }

    /// A list of texts, or the one text that stands for a list.
    pub(super) fn texts(&self, key: &str) -> Vec<Text<'t>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(items) => items.iter().filter_map(text).collect(),
            _ => text(value).into_iter().collect(),
        }
    }

    /// Names and texts of a table of the operator's own keys.
    pub(super) fn fields(&self, key: &str) -> Vec<(Text<'t>, Text<'t>)> {
        let Some(table) = self.value(key).and_then(|value| value.get_ref().as_table()) else {
            return Vec::new();
        };
        let mut fields: Vec<_> = table
            .iter()
            .filter_map(|(name, value)| {
                Some((Text { text: name.get_ref(), span: name.span() }, text(value)?))
            })
            .collect();
        fields.sort_by_key(|(name, _)| name.span.start);
        fields
    }

    /// The table of that key; one of defaults where it is absent.
    pub(super) fn table(&self, key: &str) -> Self {
        let Some(Row { kind: Kind::Table(schema) | Kind::Choice(schema), .. }) = self.schema.row(key) else {
            return *self;
        };
        let value = self.value(key);
        Self {
            values: value.and_then(|value| value.get_ref().as_table()),
            schema,
            start: value.map_or(self.start, |value| value.span().start),
        }
    }

    pub(super) fn tables(&self, key: &str) -> Vec<Self> {
        let Some(Row { kind: Kind::Tables(schema), .. }) = self.schema.row(key) else { return Vec::new() };
        let items =
            self.value(key).and_then(|value| value.get_ref().as_array()).into_iter().flat_map(|a| a.iter());
        let node = |item: &'t Spanned<DeValue<'t>>| {
            Some(Self { values: Some(item.get_ref().as_table()?), schema, start: item.span().start })
        };
        items.filter_map(node).collect()
    }

    /// Holds every key and value against the rows, here and below.
    pub(super) fn check(&self, title: &str, findings: &mut Findings) {
        for (key, value) in self.values.into_iter().flat_map(DeTable::iter) {
            match self.schema.row(key.get_ref()) {
                Some(row) => self.check_value(row, title, value, findings),
                None => findings.push(unknown(self.schema, title, key.get_ref(), &key.span())),
            }
        }
        for row in self.schema.rows {
            if let Preset::Required(sample) = row.preset
                && !self.has(row.key)
            {
                let what = format!("{title} has no \"{}\"", row.key);
                let cure = format!("add {} = {sample}", row.key);
                findings.push(Finding::error(&self.span(), what).cure(cure).absence());
            }
        }
    }

    fn check_value(&self, row: &Row, title: &str, value: &'t Spanned<DeValue<'t>>, findings: &mut Findings) {
        let below = |open: &str, close: &str| match title.trim_matches(['[', ']']) {
            "" | "the file" => format!("{open}{}{close}", row.key),
            parent => format!("{open}{parent}.{}{close}", row.key),
        };
        let entry = format!("an entry of \"{}\"", row.key);
        match (&row.kind, value.get_ref()) {
            // What the parser puts where it found no value: told as a syntax error.
            (_, DeValue::Integer(_)) if value.span().is_empty() => {}
            (Kind::Boolean, DeValue::Boolean(_)) => {}
            (Kind::Integer { .. }, value) if integer(value, row).is_some() => {}
            (Kind::Ratio { .. }, value) if ratio(value, row).is_some() => {}
            (Kind::Text | Kind::TextOrList, DeValue::String(_)) => {}
            (Kind::Word(words, later), DeValue::String(text)) => {
                check_word(row.key, words, later, text, &value.span(), findings);
            }
            (Kind::TextList | Kind::TextOrList, DeValue::Array(items)) => {
                for item in items.iter().filter(|item| !item.get_ref().is_str()) {
                    findings.push(wrong_type(&entry, &Kind::Text.describe(), item));
                }
            }
            (Kind::Fields, DeValue::Table(fields)) => {
                for (name, value) in fields.iter().filter(|(_, value)| !value.get_ref().is_str()) {
                    findings.push(wrong_type(&quoted(name.get_ref()), &Kind::Text.describe(), value));
                }
            }
            (Kind::Table(_) | Kind::Choice(_), DeValue::Table(_)) => {
                self.table(row.key).check(&below("[", "]"), findings)
            }
            (Kind::Tables(_), DeValue::Array(items)) => {
                for item in items.iter().filter(|item| !item.get_ref().is_table()) {
                    findings.push(wrong_type(&entry, "a table", item));
                }
                self.tables(row.key).iter().for_each(|node| node.check(&below("[[", "]]"), findings));
            }
            (Kind::Integer { min, max }, DeValue::Integer(found)) => {
                let unit = if row.unit.is_empty() { String::new() } else { format!(" {}", row.unit) };
                let what = format!("\"{}\" is {found}; it can be {min} to {max}{unit}", row.key);
                findings.push(Finding::error(&value.span(), what).cure(default_cure(row)));
            }
            (Kind::Ratio { min, max }, DeValue::Float(_) | DeValue::Integer(_)) => {
                let found = plain_number(value.get_ref());
                let what = format!("\"{}\" is {found}; it can be {min:?} to {max:?}", row.key);
                findings.push(Finding::error(&value.span(), what).cure(default_cure(row)));
            }
            (Kind::Tables(_), DeValue::Table(_)) => {
                let what = format!("\"{}\" is one table, but there can be several", row.key);
                let cure = format!("write {} with double brackets", below("[[", "]]"));
                findings.push(Finding::error(&value.span(), what).cure(cure));
            }
            (kind, _) => findings.push(wrong_type(&quoted(row.key), &kind.describe(), value)),
        }
    }
}

fn text<'t>(value: &'t Spanned<DeValue<'t>>) -> Option<Text<'t>> {
    value.get_ref().as_str().map(|text| Text { text, span: value.span() })
}

/// The number, if it is one within the row's range.
fn integer(value: &DeValue<'_>, row: &Row) -> Option<u64> {
    let (DeValue::Integer(found), Kind::Integer { min, max }) = (value, row.kind) else { return None };
    let found = u64::from_str_radix(found.as_str(), found.radix()).ok()?;
    (min..=max).contains(&found).then_some(found)
}

/// The share, if it is one within the row's range.
fn ratio(value: &DeValue<'_>, row: &Row) -> Option<f64> {
    let (DeValue::Float(found), Kind::Ratio { min, max }) = (value, row.kind) else { return None };
    let found = found.as_str().parse::<f64>().ok()?;
    (min..=max).contains(&found).then_some(found)
}

fn plain_number<'v>(value: &'v DeValue<'_>) -> &'v str {
    match value {
        DeValue::Integer(number) => number.as_str(),
        DeValue::Float(number) => number.as_str(),
        _ => "",
    }
}

fn unknown(schema: &Table, title: &str, key: &str, span: &Span) -> Finding {
    let nearest = nearest(key, schema.keys());
    let finding =
        Finding::error(span, format!("unknown key \"{}\" in {title}", shorten(key))).nearest(nearest);
    match nearest {
        Some(_) => finding.cure("correct or remove it"),
        None => {
            finding.cure(format!("remove it; known here: {}", schema.keys().collect::<Vec<_>>().join(", ")))
        }
    }
}

fn quoted(key: &str) -> String {
    format!("\"{}\"", shorten(key))
}

fn wrong_type(subject: &str, expected: &str, value: &Spanned<DeValue<'_>>) -> Finding {
    let article = match value.get_ref() {
        DeValue::Integer(_) | DeValue::Array(_) => "an",
        _ => "a",
    };
    let found = value.get_ref().type_str();
    let what = format!("{subject} is {article} {found}");
    Finding::error(&value.span(), what).cure(format!("write {expected}"))
}

fn check_word(key: &str, words: &[&str], later: &[&str], found: &str, span: &Span, findings: &mut Findings) {
    if words.contains(&found) {
        return;
    }
    let kind = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let cure = format!("known: {kind}");
    findings.push(if later.contains(&found) {
        Finding::error(span, format!("{key} \"{found}\" is not supported yet in this release")).cure(cure)
    } else {
        let what = format!("\"{key}\" cannot be \"{}\"", shorten(found));
        Finding::error(span, what).nearest(nearest(found, words.iter().copied())).cure(cure)
    });
}

fn default_cure(row: &Row) -> String {
    match row.preset {
        Preset::Integer(default) => format!("the default is {default}"),
        Preset::Ratio(default) => format!("the default is {default:?}"),
        _ => "choose a value within the range".to_owned(),
    }
}

/// Keeps a message readable whatever the file holds.
pub(super) fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut short: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    // Quotes of either kind stand unescaped in the messages.
    short = short.replace("\\'", "'").replace("\\\"", "\"");
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}
