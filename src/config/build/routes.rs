//! `[[route]]`.

use std::collections::HashSet;

use super::edits::{edits, fields};
use super::listeners::{Kind, Listeners};
use super::{Names, number, tell};
use crate::config::nearest::nearest;
use crate::config::node::{Node, Text, shorten};
use crate::config::problem::{Finding, Findings, Span};
use crate::config::values;
use crate::route::{
    Action, FieldMatch, FieldRule, HostPattern, PathMatch, Pattern, PatternError, ROUTES_MAX, Redirect,
    Respond, Spec, Table, WeightedClusters,
};

/// Longest body of an answer held in the configuration, in bytes: it is sent in one piece.
const RESPOND_BODY_BYTES_MAX: usize = 64 << 10;
const ACTIONS: [&str; 4] = ["cluster", "clusters", "respond", "redirect"];
const PATHS: [&str; 3] = ["path", "path_prefix", "path_regex"];
const FIELD_RULES: [&str; 4] = ["exact", "prefix", "regex", "present"];
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// `None` only with an error among the findings.
pub(super) fn build<'t>(
    root: &Node<'t>,
    listeners: &mut Listeners<'t>,
    clusters: &mut Names<'_>,
    findings: &mut Findings,
) -> Option<Table> {
    let nodes = root.tables("route");
    let mut names = Names::new("route");
    let mut specs = Vec::new();
    for (index, node) in nodes.iter().enumerate().take(ROUTES_MAX + 1) {
        names.add(node, findings);
        let reader = Reader { node, findings: &mut *findings, listeners: &mut *listeners };
        specs.push(reader.route(index, clusters));
    }
    let complete = specs.iter().all(Option::is_some);
    warn_unserved(listeners, &specs, findings);
    let specs: Vec<Spec> = specs.into_iter().flatten().collect();
    if !complete {
        return None;
    }
    let Ok(table) = Table::compile(specs) else {
        let span = nodes.get(ROUTES_MAX).map_or(0..0, Node::span);
        let finding = Finding::error(&span, format!("more than {ROUTES_MAX} routes"));
        findings.push(finding.cure("merge some: a route can have several hosts"));
        return None;
    };
    for (route, by) in table.unreachable() {
        let (route, by) = (usize::from(route), usize::from(by));
        let what = format!(
            "route \"{}\" is never chosen: \"{}\" takes every request that it would",
            table.routes()[route].name,
            table.routes()[by].name
        );
        let cure = "give it a condition that the other lacks, or remove it";
        findings.push(Finding::warning(&nodes[route].span(), what).cure(cure));
    }
    Some(table)
}

/// An HTTP listener that no route names answers 404 to everything.
fn warn_unserved(listeners: &Listeners<'_>, specs: &[Option<Spec>], findings: &mut Findings) {
    for (index, kind) in (0u16..).zip(&listeners.kinds) {
        // A route that could not be read may have been for this listener.
        let served =
            specs.iter().any(|spec| spec.as_ref().is_none_or(|spec| spec.listeners.contains(&index)));
        if *kind == Kind::Http && !served {
            let (name, span) = listeners.names.at(index);
            let what =
                format!("no route serves listener \"{}\": it answers 404 to everything", shorten(name));
            findings.push(Finding::warning(&span, what).cure("add a [[route]]").absence());
        }
    }
}

/// Reads one `[[route]]`.
struct Reader<'r, 't> {
    node: &'r Node<'t>,
    findings: &'r mut Findings,
    listeners: &'r mut Listeners<'t>,
}

impl<'t> Reader<'_, 't> {
    /// `None` only with an error among the findings.
    fn route(mut self, index: usize, clusters: &mut Names<'_>) -> Option<Spec> {
        let name = match self.node.text("name") {
            Some(name) => name.text.to_owned(),
            None => format!("route-{}", index + 1),
        };
        let listeners = self.listeners();
        let hosts = self.hosts();
        let path = self.path();
        let methods = self.methods();
        let headers = self.node.tables("headers");
        let count = headers.len();
        let fields: Vec<FieldMatch> = headers.iter().filter_map(|header| self.field(header)).collect();
        let complete = fields.len() == count;
        let action = self.action(clusters);
        let prefix_rewrite = self.prefix_rewrite(action.as_ref());
        let request_edits = edits(&self.node.table("request_headers"), self.findings);
        let response_edits = edits(&self.node.table("response_headers"), self.findings);
        if let (Some(Action::Respond(_) | Action::Redirect(_)), Some(span)) =
            (&action, self.node.key_span("request_headers"))
        {
            let what = "\"request_headers\" has no effect: the request goes nowhere";
            self.findings.push(Finding::warning(&span, what).cure("remove it"));
        }
        Some(Spec {
            name: name.into(),
            listeners: listeners?,
            hosts: hosts?,
            path: path?,
            methods: methods?,
            fields: complete.then_some(fields)?,
            action: action?,
            prefix_rewrite: prefix_rewrite?,
            request_edits,
            response_edits,
        })
    }

    fn error(&mut self, span: &Span, what: impl Into<String>, cure: impl Into<String>) {
        self.findings.push(Finding::error(span, what).cure(cure));
    }

    /// Positions of the listeners it serves: all HTTP listeners where it names none.
    fn listeners(&mut self) -> Option<Vec<u16>> {
        if !self.node.has("listener") {
            let kinds = (0u16..).zip(&self.listeners.kinds);
            let http: Vec<u16> =
                kinds.filter(|(_, kind)| **kind == Kind::Http).map(|(index, _)| index).collect();
            if http.is_empty() && self.listeners.kinds.iter().all(|kind| *kind == Kind::Tcp) {
                let finding =
                    Finding::warning(&self.node.span(), "the route serves nothing: no listener is \"http\"");
                self.findings.push(finding.cure("remove it, or add a listener").absence());
            }
            return Some(http);
        }
        let names = self.node.texts("listener");
        if names.is_empty() {
            let span = self.node.value_span("listener");
            self.error(
                &span,
                "an empty list of listeners",
                "leave \"listener\" out to serve every HTTP listener",
            );
            return None;
        }
        let mut found = Vec::new();
        let mut complete = true;
        for name in &names {
            let Some(index) = self.listeners.names.find(name, self.findings) else {
                complete = false;
                continue;
            };
            if self.listeners.kinds[usize::from(index)] == Kind::Tcp {
                let what = format!("listener \"{}\" is of protocol \"tcp\" and takes no routes", name.text);
                self.error(&name.span, what, "name its cluster in the listener, or make it \"http\"");
                complete = false;
            }
            found.push(index);
        }
        found.sort_unstable();
        found.dedup();
        complete.then_some(found)
    }

    fn hosts(&mut self) -> Option<Vec<HostPattern>> {
        let texts = self.node.texts("hosts");
        if texts.is_empty() && self.node.has("hosts") {
            let span = self.node.value_span("hosts");
            self.error(&span, "an empty list of hosts", "leave \"hosts\" out to take any host");
            return None;
        }
        let mut hosts: Vec<HostPattern> = Vec::new();
        let mut seen = HashSet::new();
        let mut complete = true;
        for text in &texts {
            match tell(values::host(text.text), &text.span, self.findings) {
                None => complete = false,
                Some(host) if !seen.insert(host.clone()) => {
                    let what = format!("host \"{}\" is there twice", shorten(text.text));
                    self.findings.push(Finding::warning(&text.span, what).cure("remove one"));
                }
                Some(host) => hosts.push(host),
            }
        }
        complete.then_some(hosts)
    }

    fn path(&mut self) -> Option<PathMatch> {
        let node = self.node;
        if !self.at_most_one(&PATHS) {
            return None;
        }
        if let Some(text) = node.text("path_regex") {
            return self.pattern("path_regex", &text).map(PathMatch::Regex);
        }
        if let Some(text) = node.text("path").filter(|text| text.text == "*") {
            // The asterisk-form, RFC 9112 §3.2.4.
            return Some(PathMatch::Exact(text.text.into()));
        }
        for (key, wrap) in [("path", PathMatch::Exact as fn(_) -> _), ("path_prefix", PathMatch::Prefix)] {
            if let Some(text) = node.text(key) {
                tell(values::path(text.text), &text.span, self.findings)?;
                return Some(wrap(text.text.into()));
            }
        }
        // A path of the wrong type was told; the route is not for any path because of that.
        (!PATHS.iter().any(|key| node.has(key))).then_some(PathMatch::Any)
    }

    fn pattern(&mut self, key: &str, text: &Text<'_>) -> Option<Pattern> {
        let told = |PatternError(error)| {
            let what = format!("\"{key}\" is not a regular expression: {error}");
            self.error(&text.span, what, "mend it; single quotes keep backslashes, '/v\\d+/.*'");
        };
        Pattern::new(text.text).map_err(told).ok()
    }

    /// Whether no two of the keys are there.
    fn at_most_one(&mut self, keys: &[&str]) -> bool {
        let mut there: Vec<(&str, Span)> =
            keys.iter().filter_map(|key| Some((*key, self.node.key_span(key)?))).collect();
        there.sort_by_key(|(_, span)| span.start);
        for (key, span) in there.iter().skip(1) {
            let what = format!("\"{key}\" beside \"{}\": a route can have one of them", there[0].0);
            self.error(span, what, "remove one, or make two routes");
        }
        there.len() < 2
    }

    fn methods(&mut self) -> Option<Vec<Box<str>>> {
        let texts = self.node.texts("methods");
        if texts.is_empty() && self.node.has("methods") {
            let span = self.node.value_span("methods");
            self.error(&span, "an empty list of methods", "leave \"methods\" out to take any method");
            return None;
        }
        let mut complete = true;
        for text in &texts {
            if !values::is_token(text.text) {
                let what = format!("\"{}\" is not a method", shorten(text.text));
                self.error(&text.span, what, "write it as \"GET\"");
                complete = false;
            } else if !METHODS.contains(&text.text)
                && let Some(meant) = nearest(text.text, METHODS)
            {
                let what = format!("\"{}\" is no method that clients send; case counts", text.text);
                self.findings.push(
                    Finding::warning(&text.span, what).nearest(Some(meant)).cure("write it in upper case"),
                );
            }
        }
        complete.then(|| texts.iter().map(|text| text.text.into()).collect())
    }

    fn field(&mut self, header: &Node<'t>) -> Option<FieldMatch> {
        let name = header.text("name")?;
        let name = tell(values::field_name(name.text), &name.span, self.findings);
        let there: Vec<&str> = FIELD_RULES.into_iter().filter(|key| header.has(key)).collect();
        let [key] = there.as_slice() else {
            let what = match there.as_slice() {
                [] => "a condition on a field says nothing about its value".to_owned(),
                keys => format!("a condition on a field has {}", keys.join(" and ")),
            };
            self.error(&header.span(), what, "give it one of exact, prefix, regex, present");
            return None;
        };
        let rule = match *key {
            "present" => {
                if header.boolean("present")? {
                    FieldRule::Present
                } else {
                    FieldRule::Absent
                }
            }
            key => {
                let text = header.text(key)?;
                match key {
                    "exact" => FieldRule::Exact(text.text.into()),
                    "prefix" => FieldRule::Prefix(text.text.into()),
                    _ => FieldRule::Regex(self.pattern("regex", &text)?),
                }
            }
        };
        Some(FieldMatch { name: name?, rule })
    }

    fn action(&mut self, clusters: &mut Names<'_>) -> Option<Action> {
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
                Some(index) => weights.push((index, super::number_u32(node, "weight"))),
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

    fn prefix_rewrite(&mut self, action: Option<&Action>) -> Option<Option<Box<str>>> {
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
