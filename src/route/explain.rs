//! Why a request gets the route it gets, for an operator. Judges each route on its own, without the index that `find`
//! uses, so it is also the reference that `find` is tested against.

use std::cmp::Reverse;
use std::fmt::{self, Write as _};

use super::table::{Route, Table};
use super::{FieldLookup, FieldMatch, FieldRule, HostPattern, PathMatch, Request};

/// All routes of a table as one request meets them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explanation {
    /// The chosen one first, then other matches from most to least specific, then the rest in the table's order.
    pub candidates: Vec<Candidate>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    pub route: u16,
    pub name: Box<str>,
    pub standing: Standing,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// With what matched.
    Chosen(String),
    /// It matches too; with what decided against it.
    LessSpecific(String),
    /// What of the request does not match.
    Lacks(Vec<String>),
}

/// Greater is more specific. The position decides last.
type Specificity = (HostRank, PathRank, usize, Reverse<u16>);

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum HostRank {
    Any,
    Wildcard(usize),
    Exact,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum PathRank {
    Any,
    Regex,
    Prefix(usize),
    Exact,
}

impl Explanation {
    /// Index of the route that the request gets.
    pub fn chosen(&self) -> Option<u16> {
        self.candidates
            .first()
            .filter(|candidate| matches!(candidate.standing, Standing::Chosen(_)))
            .map(|candidate| candidate.route)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.chosen().is_none() {
            writeln!(f, "no route matches: the answer is 404")?;
        }
        for Candidate { name, standing, .. } in &self.candidates {
            match standing {
                Standing::Chosen(why) => writeln!(f, "route \"{name}\" is chosen: {why}")?,
                Standing::LessSpecific(why) => writeln!(f, "  \"{name}\" matches too, but {why}")?,
                Standing::Lacks(lacks) => writeln!(f, "  \"{name}\" does not match: {}", lacks.join("; "))?,
            }
        }
        Ok(())
    }
}

impl Table {
    /// Judges every route for this request.
    pub fn explain(&self, request: &Request<'_>, field: FieldLookup<'_, '_>) -> Explanation {
        let host = request.host.strip_suffix('.').unwrap_or(request.host).to_ascii_lowercase();
        let mut matching: Vec<(Specificity, &Route)> = Vec::new();
        let mut others = Vec::new();
        for (route, index) in self.routes().iter().zip(0..) {
            match judge(route, &host, request, field) {
                Ok((host, path)) => matching.push(((host, path, route.conditions(), Reverse(index)), route)),
                Err(lacks) => others.push(candidate(index, route, Standing::Lacks(lacks))),
            }
        }
        matching.sort_by_key(|(specificity, _)| Reverse(*specificity));
        let mut candidates = Vec::new();
        for (place, (specificity, route)) in matching.iter().enumerate() {
            let standing = if place == 0 {
                Standing::Chosen(describe(route))
            } else {
                Standing::LessSpecific(decisive(&matching[0], specificity, route))
            };
            candidates.push(candidate(specificity.3.0, route, standing));
        }
        candidates.extend(others);
        Explanation { candidates }
    }
}

fn candidate(route: u16, of: &Route, standing: Standing) -> Candidate {
    Candidate { route, name: of.name.clone(), standing }
}

fn judge(
    route: &Route,
    host: &str,
    request: &Request<'_>,
    field: FieldLookup<'_, '_>,
) -> Result<(HostRank, PathRank), Vec<String>> {
    let mut lacks = Vec::new();
    if !route.listeners.is_empty() && !route.listeners.contains(&request.listener) {
        lacks.push("another listener".to_owned());
    }
    let host_rank = host_rank(route, host);
    if host_rank.is_none() {
        lacks.push(format!("host is not {}", hosts(route)));
    }
    let path_rank = match &route.path {
        PathMatch::Any => PathRank::Any,
        PathMatch::Exact(_) => PathRank::Exact,
        PathMatch::Prefix(prefix) => PathRank::Prefix(prefix.len()),
        PathMatch::Regex(_) => PathRank::Regex,
    };
    if !route.path.matches(request.path) {
        lacks.push(match &route.path {
            PathMatch::Any => String::new(),
            PathMatch::Exact(exact) => format!("path is not {exact}"),
            PathMatch::Prefix(prefix) => format!("path does not begin with {prefix}"),
            PathMatch::Regex(regex) => format!("path does not match {}", regex.text()),
        });
    }
    if !route.method_matches(request.method) {
        lacks.push(format!("method is not {}", route.methods.join(" or ")));
    }
    if !route.identity_matches(request.identity) {
        lacks.push(format!("client identity is not {}", identities(route)));
    }
    for FieldMatch { name, rule } in &route.fields {
        if !rule.matches(field(name)) {
            lacks.push(format!("field {name} is not {}", field_rule(rule)));
        }
    }
    match host_rank {
        Some(host_rank) if lacks.is_empty() => Ok((host_rank, path_rank)),
        _ => Err(lacks),
    }
}

fn host_rank(route: &Route, host: &str) -> Option<HostRank> {
    if route.hosts.is_empty() {
        return Some(HostRank::Any);
    }
    let rank = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(exact) => (**exact == *host).then_some(HostRank::Exact),
        HostPattern::Wildcard(suffix) => (host.len() > suffix.len() && host.ends_with(&**suffix))
            .then_some(HostRank::Wildcard(suffix.len())),
    };
    route.hosts.iter().filter_map(rank).max()
}

fn hosts(route: &Route) -> String {
    let text = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(exact) => exact.to_string(),
        HostPattern::Wildcard(suffix) => format!("*{suffix}"),
    };
    route.hosts.iter().map(text).collect::<Vec<_>>().join(" or ")
}

fn identities(route: &Route) -> String {
    route.identities.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

fn path(route: &Route) -> String {
    match &route.path {
        PathMatch::Any => "any path".to_owned(),
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(path) => format!("path prefix {path}"),
        PathMatch::Regex(path) => format!("path regex {}", path.text()),
    }
}

fn field_rule(rule: &FieldRule) -> String {
    match rule {
        FieldRule::Present => "present".to_owned(),
        FieldRule::Absent => "absent".to_owned(),
        FieldRule::Exact(value) => format!("\"{value}\""),
        FieldRule::Prefix(value) => format!("a value beginning with \"{value}\""),
        FieldRule::Regex(value) => format!("a value matching {}", value.text()),
    }
}

fn describe(route: &Route) -> String {
    let mut text =
        if route.hosts.is_empty() { "any host".to_owned() } else { format!("host {}", hosts(route)) };
    let _ = write!(text, ", {}", path(route));
    if !route.methods.is_empty() {
        let _ = write!(text, ", method {}", route.methods.join(" or "));
    }
    if !route.identities.is_empty() {
        let _ = write!(text, ", client identity {}", identities(route));
    }
    for FieldMatch { name, rule } in &route.fields {
        let _ = write!(text, ", field {name} {}", field_rule(rule));
    }
    text
}

fn decisive(winner: &(Specificity, &Route), loser: &Specificity, route: &Route) -> String {
    let (won, chosen) = winner;
    if won.0 != loser.0 {
        let own =
            if route.hosts.is_empty() { "any host".to_owned() } else { format!("host {}", hosts(route)) };
        return format!("{own} is less specific than host {}", hosts(chosen));
    }
    if won.1 != loser.1 {
        return format!("{} is less specific than {}", path(route), path(chosen));
    }
    if won.2 != loser.2 {
        return format!("it has {} further conditions against {}", loser.2, won.2);
    }
    "it comes later in the file".to_owned()
}
