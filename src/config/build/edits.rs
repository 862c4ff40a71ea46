//! Fields (headers) that the file sets, adds or removes.

use std::collections::HashSet;

use super::tell;
use crate::base::field_edits::FieldEdits;
use crate::config::node::{Node, Text, shorten};
use crate::config::problem::{Finding, Findings};
use crate::config::values;

/// `request_headers` and `response_headers`.
pub(super) fn edits(node: &Node<'_>, findings: &mut Findings) -> FieldEdits {
    let remove = node.texts("remove");
    FieldEdits {
        remove: remove.iter().filter_map(|name| own_name(name, findings)).collect(),
        set: fields(node, "set", findings),
        add: fields(node, "add", findings),
    }
}

/// A table of names and values, each name once.
pub(super) fn fields(node: &Node<'_>, key: &str, findings: &mut Findings) -> Vec<(Box<str>, Box<str>)> {
    let mut fields: Vec<(Box<str>, Box<str>)> = Vec::new();
    let mut seen = HashSet::new();
    for (name, value) in node.fields(key) {
        tell(values::field_value(value.text), &value.span, findings);
        let Some(lower) = own_name(&name, findings) else { continue };
        if !seen.insert(lower.clone()) {
            let what = format!("field \"{lower}\" is there twice");
            findings.push(Finding::error(&name.span, what).cure("keep one: case does not set names apart"));
            continue;
        }
        fields.push((lower, value.text.into()));
    }
    fields
}

/// A field name that the file may change.
fn own_name(name: &Text<'_>, findings: &mut Findings) -> Option<Box<str>> {
    let lower = tell(values::field_name(name.text), &name.span, findings)?;
    if values::is_own_field(&lower) {
        let what =
            format!("field \"{}\" belongs to the connection and cannot be changed", shorten(name.text));
        findings
            .push(Finding::error(&name.span, what).cure("remove it: Ringfort sets it as the message needs"));
        return None;
    }
    Some(lower)
}
