//! What a `[[route]]` does: its one action and the rewrite of the path.

use super::edits::fields;
use super::routes::Reader;
use super::{Names, number, number_u32, tell};
use crate::config::problem::Finding;
use crate::config::values;
use crate::route::{Action, Redirect, Respond, WeightedClusters};

/// Longest body of an answer held in the configuration, in bytes: it is sent in one piece.
const RESPOND_BODY_BYTES_MAX: usize = 64 << 10;
const ACTIONS: [&str; 4] = ["cluster", "clusters", "respond", "redirect"];

impl Reader<'_, '_> {
    pub(super) fn action(&mut self, clusters: &mut Names<'_>) -> Option<Action> {
        let node = self.node;
        if !ACTIONS.iter().any(|key| node.has(key)) {
            let span = node.span();
            let finding = Finding::error(&span, "the route does nothing");
            let cure = "give it one of cluster, clusters, respond, redirect";
            self.findings.push(finding.cure(cure).absence());
            return None;
        }
        let single = self.at_most_one(&ACTIONS);
        let cluster =
            node.text("cluster").map(|name| clusters.find(&name, self.findings).map(Action::Cluster));
        let weighted = node.has("clusters").then(|| self.weighted(clusters));
        let respond = node.has("respond").then(|| self.respond());
        let redirect = node.has("redirect").then(|| self.redirect());
        let action = cluster.or(weighted).or(respond).or(redirect).flatten();
        action.filter(|_| single)
    }

    fn weighted(&mut self, clusters: &mut Names<'_>) -> Option<Action> {
        let nodes = self.node.tables("clusters");
        let mut weights: Vec<(u16, u32)> = Vec::new();
        let mut complete = true;
        for node in &nodes {
            let Some(name) = node.text("name") else {
                complete = false;
                continue;
            };
            match clusters.find(&name, self.findings) {
                Some(index) if weights.iter().any(|(other, _)| *other == index) => {
                    let what = format!("cluster \"{}\" is there twice", name.text);
                    self.error(&name.span, what, "add the weights");
                }
                Some(index) => weights.push((index, number_u32(node, "weight"))),
                None => complete = false,
            }
        }
        let action = WeightedClusters::new(&weights);
        if complete && action.is_none() {
            let span = self.node.value_span("clusters");
            self.error(&span, "no cluster has a weight", "give at least one a weight above 0");
        }
        action.filter(|_| complete).map(Action::WeightedClusters)
    }

    fn respond(&mut self) -> Option<Action> {
        let node = self.node.table("respond");
        let status = number(&node, "status") as u16;
        let body = node.text("body").map_or("", |text| text.text);
        if body.len() > RESPOND_BODY_BYTES_MAX {
            let what = format!(
                "a body of {} bytes; an answer from here can have {RESPOND_BODY_BYTES_MAX}",
                body.len()
            );
            self.error(&node.value_span("body"), what, "serve it from a cluster");
        }
        if matches!(status, 204 | 304) && !body.is_empty() {
            let what = format!("an answer of status {status} has no body");
            self.error(&node.value_span("body"), what, "remove the body, or use status 200");
        }
        let fields = fields(&node, "headers", self.findings);
        Some(Action::Respond(Respond { status, fields, body: body.as_bytes().into() }))
    }

    fn redirect(&mut self) -> Option<Action> {
        let node = self.node.table("redirect");
        let status = number(&node, "status") as u16;
        if matches!(status, 304..=306) {
            let what = format!("\"status\" is {status}, which does not redirect");
            self.error(&node.value_span("status"), what, "choose 301, 302, 303, 307 or 308");
        }
        if ["scheme", "host", "path"].iter().all(|key| !node.has(key)) && !self.node.has("rewrite_prefix") {
            self.error(&node.span(), "a redirect to where the request is", "give it scheme, host or path");
        }
        if let Some(host) = node.text("host") {
            tell(values::authority(host.text), &host.span, self.findings);
        }
        if let Some(path) = node.text("path") {
            let bare = path.text.split('?').next().unwrap_or_default();
            tell(values::path(bare), &path.span, self.findings);
            if !path.text.bytes().all(|byte| byte.is_ascii_graphic()) {
                let what = "\"path\" has characters that no URL has";
                self.error(&path.span, what, "write them percent-encoded");
            }
        }
        let own = |key| node.text(key).map(|text| Box::from(text.text));
        Some(Action::Redirect(Redirect {
            status,
            scheme: own("scheme"),
            authority: own("host"),
            path: own("path"),
        }))
    }

    pub(super) fn prefix_rewrite(&mut self, action: Option<&Action>) -> Option<Option<Box<str>>> {
        let Some(text) = self.node.text("rewrite_prefix") else { return Some(None) };
        tell(values::path(text.text), &text.span, self.findings)?;
        let Some(prefix) = self.node.text("path_prefix") else {
            let cure = "add path_prefix, whose match it replaces";
            self.error(&text.span, "\"rewrite_prefix\" without \"path_prefix\"", cure);
            return None;
        };
        let replaced = match action {
            Some(Action::Respond(_)) => Some("the answer comes from here"),
            Some(Action::Redirect(Redirect { path: Some(_), .. })) => {
                Some("the redirect has a path of its own")
            }
            _ => None,
        };
        if let Some(why) = replaced {
            let what = format!("\"rewrite_prefix\" has no effect: {why}");
            self.findings.push(Finding::warning(&text.span, what).cure("remove it"));
        } else if prefix.text.ends_with('/') != text.text.ends_with('/') {
            let what = format!(
                "\"{}\" becomes \"{}\": {}x turns into {}x",
                prefix.text, text.text, prefix.text, text.text
            );
            let cure = "end both with \"/\", or neither";
            self.findings.push(Finding::warning(&text.span, what).cure(cure));
        }
        Some(Some(text.text.into()))
    }
}
