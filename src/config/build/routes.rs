//! `[[route]]`.

use std::collections::HashSet;

use super::edits::edits;
use super::listeners::{Kind, Listeners};
use super::{Names, tell};
use crate::base::identity::IdentityPattern;
use crate::config::nearest::nearest;
use crate::config::node::{Node, Text, shorten};
use crate::config::problem::{Finding, Findings, Span};
use crate::config::values;
use crate::proxy::snapshot::Cluster;
use crate::route::{
    Action, FieldMatch, FieldRule, HostPattern, PathMatch, Pattern, PatternError, ROUTES_MAX, Spec, Table,
};
use crate::tls::MtlsMode;

pub(super) const PATHS: [&str; 3] = ["path", "path_prefix", "path_regex"];
const FIELD_RULES: [&str; 4] = ["exact", "prefix", "regex", "present"];
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// What routes refer to.
pub(super) struct Named<'n, 't> {
    pub(super) clusters: &'n mut Names<'t>,
    pub(super) rate_limits: &'n mut Names<'t>,
}

/// `None` only with an error among the findings.
pub(super) fn build<'t>(
    root: &Node<'t>,
    listeners: &mut Listeners<'t>,
    cluster_specs: &[Cluster],
    mut named: Named<'_, '_>,
    findings: &mut Findings,
) -> Option<Table> {
    let nodes = root.tables("route");
    let mut names = Names::new("route");
    let mut specs = Vec::new();
    for (index, node) in nodes.iter().enumerate().take(ROUTES_MAX + 1) {
        names.add(node, findings);
        let reader =
            Reader { node, findings: &mut *findings, listeners: &mut *listeners, clusters: cluster_specs };
        specs.push(reader.route(index, &mut named));
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

/// An HTTP listener that no route names answers 404 to everything; one for passthrough refuses all.
fn warn_unserved(listeners: &Listeners<'_>, specs: &[Option<Spec>], findings: &mut Findings) {
    for (index, kind) in (0u16..).zip(&listeners.kinds) {
        // A route that could not be read may have been for this listener.
        let served =
            specs.iter().any(|spec| spec.as_ref().is_none_or(|spec| spec.listeners.contains(&index)));
        let (name, span) = listeners.names.at(index);
        let (what, cure) = match kind {
            Kind::Http if !served => ("it answers 404 to everything", "add a [[route]]".to_owned()),
            Kind::Passthrough if !served => {
                let cure = format!("add a [[route]] with listener = \"{}\"", shorten(name));
                ("it refuses every client", cure)
            }
            _ => continue,
        };
        let what = format!("no route serves listener \"{}\": {what}", shorten(name));
        findings.push(Finding::warning(&span, what).cure(cure).absence());
    }
}

/// Reads one `[[route]]`.
pub(super) struct Reader<'r, 't> {
    pub(super) node: &'r Node<'t>,
    pub(super) findings: &'r mut Findings,
    pub(super) listeners: &'r mut Listeners<'t>,
    pub(super) clusters: &'r [Cluster],
}

impl<'t> Reader<'_, 't> {
    /// `None` only with an error among the findings.
    fn route(mut self, index: usize, named: &mut Named<'_, '_>) -> Option<Spec> {
        let name = match self.node.text("name") {
            Some(name) => name.text.to_owned(),
            None => format!("route-{}", index + 1),
        };
        let listeners = self.listeners();
        let hosts = self.hosts();
        let alpn = self.alpn();
        let suits = listeners
            .as_deref()
            .is_none_or(|listeners| self.suits(listeners, hosts.as_deref().unwrap_or_default()));
        let path = self.path();
        let methods = self.methods();
        let identities = self.identities(listeners.as_deref());
        let headers = self.node.tables("headers");
        let count = headers.len();
        let fields: Vec<FieldMatch> = headers.iter().filter_map(|header| self.field(header)).collect();
        let complete = fields.len() == count;
        let action = self.action(named.clusters);
        let rate_limits = self.rate_limits(named.rate_limits);
        let wraps = self.wraps_twice(listeners.as_deref().unwrap_or_default(), action.as_ref());
        let prefix_rewrite = self.prefix_rewrite(action.as_ref());
        let tunnels = self.tunnels(action.as_ref());
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
            alpn: alpn.filter(|_| suits && !wraps)?,
            path: path?,
            methods: methods?,
            identities: identities?,
            fields: complete.then_some(fields)?,
            action: action?,
            rate_limits: rate_limits?,
            tunnels: tunnels?,
            prefix_rewrite: prefix_rewrite?,
            request_edits,
            response_edits,
        })
    }

    pub(super) fn error(&mut self, span: &Span, what: impl Into<String>, cure: impl Into<String>) {
        self.findings.push(Finding::error(span, what).cure(cure));
    }

    /// Positions of the listeners it serves: all HTTP listeners where it names none.
    fn listeners(&mut self) -> Option<Vec<u16>> {
        if !self.node.has("listener") {
            let kinds = (0u16..).zip(&self.listeners.kinds);
            let http: Vec<u16> =
                kinds.filter(|(_, kind)| **kind == Kind::Http).map(|(index, _)| index).collect();
            if http.is_empty() && self.listeners.kinds.iter().all(|kind| *kind != Kind::Unknown) {
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
    pub(super) fn at_most_one(&mut self, keys: &[&str]) -> bool {
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

    /// `listeners`: those that the route serves.
    fn identities(&mut self, listeners: Option<&[u16]>) -> Option<Vec<IdentityPattern>> {
        const KEY: &str = "client_identities";
        let texts = self.node.texts(KEY);
        let Some(span) = self.node.key_span(KEY) else { return Some(Vec::new()) };
        if texts.is_empty() {
            let span = self.node.value_span(KEY);
            self.error(
                &span,
                "an empty list of identities",
                "leave \"client_identities\" out to take any client",
            );
            return None;
        }
        let mut identities: Vec<IdentityPattern> = Vec::new();
        let mut complete = true;
        for text in &texts {
            match tell(values::identity(text.text), &text.span, self.findings) {
                None => complete = false,
                Some(pattern) if identities.contains(&pattern) => {
                    let what = format!("identity \"{}\" is there twice", shorten(text.text));
                    self.findings.push(Finding::warning(&text.span, what).cure("remove one"));
                }
                Some(pattern) => identities.push(pattern),
            }
        }
        self.warn_anonymous(&span, listeners.unwrap_or_default());
        complete.then_some(identities)
    }

    /// Only a listener that asks clients for a certificate knows whom it talks to.
    fn warn_anonymous(&mut self, span: &Span, listeners: &[u16]) {
        for index in listeners {
            let Some(listener) = self.listeners.list.get(usize::from(*index)) else { continue };
            if listener.tls.as_ref().is_none_or(|tls| tls.mtls == MtlsMode::Disable) {
                let what = format!(
                    "listener \"{}\" asks no client for a certificate, so \"client_identities\" matches nobody there",
                    shorten(&listener.name)
                );
                let cure =
                    "set mtls = \"permissive\" or \"strict\" in its [listener.tls], or name other listeners";
                self.findings.push(Finding::warning(span, what).cure(cure));
            }
        }
    }

    fn field(&mut self, header: &Node<'t>) -> Option<FieldMatch> {
        let name = header.text("name")?;
        let span = name.span.clone();
        let name = tell(values::field_name(name.text), &name.span, self.findings);
        if name.as_deref() == Some("x-forwarded-client-cert") {
            let what = "any client can send \"x-forwarded-client-cert\": a condition on it proves nothing";
            self.findings.push(Finding::warning(&span, what).cure("use client_identities"));
        }
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
}
