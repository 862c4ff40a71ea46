//! `[access_log]`.

use std::path::Path;

use super::{Names, millis, number, path};
use crate::config::nearest::nearest;
use crate::config::node::{Node, Text, shorten};
use crate::config::problem::{Finding, Findings};
use crate::proxy::access::spec::{AccessLogSpec, Format, SampleRule, Target};
use crate::route::Table;

/// The word that stands for no status.
const NONE: &str = "none";

/// `None` where nothing is to be logged, or with an error among the findings.
pub(super) fn build(
    root: &Node<'_>,
    base: &Path,
    listeners: &mut Names<'_>,
    routes: Option<&Table>,
    findings: &mut Findings,
) -> Option<AccessLogSpec> {
    if !root.has("access_log") {
        return None;
    }
    let node = root.table("access_log");
    let target = match node.text("path")?.text {
        "stdout" => Target::Stdout,
        _ => Target::File(path(&node, "path", base)),
    };
    let format = match node.text("format").map(|text| text.text) {
        Some("text") => Format::Text,
        _ => Format::Json,
    };
    let rules =
        node.tables("rules").iter().map(|rule| self::rule(rule, listeners, routes, findings)).collect();
    Some(AccessLogSpec { target, format, buffer_bytes: number(&node, "buffer_bytes") as usize, rules })
}

fn rule(
    node: &Node<'_>,
    listeners: &mut Names<'_>,
    routes: Option<&Table>,
    findings: &mut Findings,
) -> SampleRule {
    let mut rule = SampleRule {
        failed: node.boolean("failed"),
        duration_min: millis(node, "duration_min_ms"),
        ratio: node.ratio("ratio").unwrap_or(1.0),
        ..SampleRule::default()
    };
    for name in node.texts("listeners") {
        rule.listeners.extend(listeners.find(&name, findings));
    }
    for name in node.texts("routes") {
        rule.routes.extend(route(&name, routes, findings));
    }
    for text in node.texts("statuses") {
        match text.text {
            NONE => rule.without_status = true,
            word => match statuses(word) {
                Some(range) => rule.statuses.push(range),
                None => {
                    let what = format!("\"{}\" names no status", shorten(word));
                    let cure = "write a code such as \"404\", a class such as \"5xx\", or \"none\"";
                    findings.push(Finding::error(&text.span, what).cure(cure));
                }
            },
        }
    }
    rule
}

/// A code, or a class such as `2xx`.
fn statuses(word: &str) -> Option<(u16, u16)> {
    let class = |digit: &str| digit.parse::<u16>().ok().filter(|digit| (1..=5).contains(digit));
    match word.strip_suffix("xx") {
        Some(digit) => class(digit).map(|digit| (digit * 100, digit * 100 + 99)),
        None => word.parse().ok().filter(|code| (100..=599).contains(code)).map(|code| (code, code)),
    }
}

/// Routes that could not be read are told already.
fn route(name: &Text<'_>, routes: Option<&Table>, findings: &mut Findings) -> Option<u16> {
    let routes = routes?.routes();
    if let Some(position) = routes.iter().position(|route| *route.name == *name.text) {
        return u16::try_from(position).ok();
    }
    let what = format!("there is no route \"{}\"", shorten(name.text));
    let nearest = nearest(name.text, routes.iter().map(|route| &*route.name));
    let cure = "name a [[route]], or remove it";
    findings.push(Finding::error(&name.span, what).nearest(nearest).cure(cure).absence());
    None
}
