//! `[[rate_limit]]`, and where routes name them.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::routes::Reader;
use super::{Names, millis, number, number_u32, tell};
use crate::config::node::Node;
use crate::config::problem::{Finding, Findings};
use crate::config::values;
use crate::limit::rate::{REFILL_MAX, Rate, Store};
use crate::proxy::snapshot::{LimitKey, RateLimit};

/// Limits of one configuration; each has a table of its own.
const RATE_LIMITS_MAX: usize = 256;

pub(super) fn build<'t>(root: &Node<'t>, findings: &mut Findings) -> (Vec<RateLimit>, Names<'t>) {
    let mut names = Names::new("rate_limit");
    let nodes = root.tables("rate_limit");
    if let Some(node) = nodes.get(RATE_LIMITS_MAX) {
        let what = format!("more than {RATE_LIMITS_MAX} rate limits");
        findings.push(Finding::error(&node.span(), what).cure("name one limit in several routes"));
    }
    let mut limits = Vec::new();
    for node in nodes.iter().take(RATE_LIMITS_MAX) {
        let name = names.add(node, findings);
        let requests = number_u32(node, "requests");
        let burst = node.integer("burst").map_or(requests, |burst| u32::try_from(burst).unwrap_or(u32::MAX));
        let rate = Rate { requests, period: millis(node, "period_ms"), burst };
        if rate.refill() > REFILL_MAX {
            let what =
                format!("a burst of {burst}, once used, would take more than 30 days to be there again");
            let key = if node.has("burst") { "burst" } else { "requests" };
            findings
                .push(Finding::error(&node.value_span(key), what).cure("make burst less, or requests more"));
        }
        limits.push(RateLimit {
            name: name.into(),
            by: by(node, findings),
            ipv6_prefix_len: number(node, "ipv6_prefix_len") as u8,
            store: Arc::new(Store::new(rate, number_u32(node, "keys_max"), secret())),
        });
    }
    (limits, names)
}

/// What no client knows.
fn secret() -> u64 {
    RandomState::new().hash_one(0)
}

fn by(node: &Node<'_>, findings: &mut Findings) -> LimitKey {
    let by = node.text("by");
    let header = node.text("header");
    let kind = by.as_ref().map_or("", |by| by.text);
    if kind != "header" {
        if let Some(header) = header {
            let what = format!("\"header\" has no effect where a client is known by \"{kind}\"");
            findings.push(Finding::warning(&header.span, what).cure("set by = \"header\", or remove it"));
        }
        return if kind == "everybody" { LimitKey::Everybody } else { LimitKey::ClientAddress };
    }
    let Some(header) = header else {
        if !node.has("header") {
            let span = by.map_or_else(|| node.span(), |by| by.span);
            let finding = Finding::error(&span, "clients are known by a header without a name");
            findings.push(finding.cure("add header = \"NAME\"").absence());
        }
        return LimitKey::ClientAddress;
    };
    let name = tell(values::field_name(header.text), &header.span, findings);
    name.map_or(LimitKey::ClientAddress, LimitKey::Field)
}

impl Reader<'_, '_> {
    /// Positions of the limits that a route names. `None` only with an error among the findings.
    pub(super) fn rate_limits(&mut self, limits: &mut Names<'_>) -> Option<Vec<u16>> {
        let texts = self.node.texts("rate_limits");
        let mut found: Vec<u16> = Vec::new();
        let mut complete = true;
        for text in &texts {
            match limits.find(text, self.findings) {
                None => complete = false,
                Some(index) if found.contains(&index) => {
                    let what = format!("rate limit \"{}\" is there twice", text.text);
                    let cure = "remove one, or halve its requests";
                    self.findings.push(Finding::warning(&text.span, what).cure(cure));
                }
                Some(index) => found.push(index),
            }
        }
        complete.then_some(found)
    }
}
