//! The compiled routes and the search for the most specific one. Built once; `find` allocates nothing and does work
//! bounded by the table, not by the request.

use std::collections::HashMap;

use super::action::Action;
use super::{FieldLookup, FieldMatch, HostPattern, PathMatch, Request, Spec, Tunnels};
use crate::base::field_edits::FieldEdits;
use crate::base::identity::IdentityPattern;

/// Routes of one table: they are counted in 16 bits.
pub const ROUTES_MAX: usize = u16::MAX as usize;

/// Routes of one path that `unreachable` compares a route with: a bound on its work, not on the table.
const COMPARED_MAX: usize = 1_024;

/// A route as it is served.
#[derive(Debug)]
pub struct Route {
    pub name: Box<str>,
    pub action: Action,
    /// Positions of the limits that its requests meet, in this order.
    pub rate_limits: Vec<u16>,
    pub tunnels: Tunnels,
    pub request_edits: FieldEdits,
    pub response_edits: FieldEdits,
    pub(super) listeners: Vec<u16>,
    pub(super) hosts: Vec<HostPattern>,
    alpn: Vec<Box<str>>,
    pub(super) path: PathMatch,
    pub(super) methods: Vec<Box<str>>,
    pub(super) identities: Vec<IdentityPattern>,
    pub(super) fields: Vec<FieldMatch>,
    prefix_rewrite: Option<Box<str>>,
}

impl Route {
    /// The path to send upstream. Allocates only what `scratch` lacks.
    pub fn rewrite_path<'p>(&self, path: &'p str, scratch: &'p mut String) -> &'p str {
        let (Some(replacement), PathMatch::Prefix(prefix)) = (&self.prefix_rewrite, &self.path) else {
            return path;
        };
        let Some(rest) = path.strip_prefix(&**prefix) else { return path };
        scratch.clear();
        scratch.push_str(replacement);
        scratch.push_str(rest);
        scratch
    }

    /// Those it is for; none named stands for every HTTP listener.
    pub fn listeners(&self) -> &[u16] {
        &self.listeners
    }

    /// How many conditions it has beside listener, host and path.
    pub(super) fn conditions(&self) -> usize {
        usize::from(!self.methods.is_empty())
            + usize::from(!self.alpn.is_empty())
            + usize::from(!self.identities.is_empty())
            + self.fields.len()
    }

    pub(super) fn method_matches(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|allowed| **allowed == *method)
    }

    fn alpn_matches(&self, offers: impl Fn(&[u8]) -> bool) -> bool {
        self.alpn.is_empty() || self.alpn.iter().any(|protocol| offers(protocol.as_bytes()))
    }

    /// Without an identity, no condition on it matches.
    pub(super) fn identity_matches(&self, identity: Option<&str>) -> bool {
        self.identities.is_empty()
            || identity.is_some_and(|id| self.identities.iter().any(|pattern| pattern.matches(id)))
    }

    fn conditions_match(&self, request: &Request<'_>, field: FieldLookup<'_, '_>) -> bool {
        self.method_matches(request.method)
            && self.identity_matches(request.identity)
            && self.fields.iter().all(|FieldMatch { name, rule }| rule.matches(field(name)))
    }
}

impl From<Spec> for Route {
    fn from(spec: Spec) -> Self {
        let Spec {
            name,
            listeners,
            hosts,
            alpn,
            path,
            methods,
            identities,
            fields,
            action,
            rate_limits,
            tunnels,
            prefix_rewrite,
            ..
        } = spec;
        let (request_edits, response_edits) = (spec.request_edits, spec.response_edits);
        Self {
            name,
            action,
            rate_limits,
            tunnels,
            request_edits,
            response_edits,
            listeners,
            hosts,
            alpn,
            path,
            methods,
            identities,
            fields,
            prefix_rewrite,
        }
    }
}

/// A table of more than `ROUTES_MAX` routes was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooManyRoutes;

/// All routes of a snapshot, indexed for `find`.
#[derive(Debug)]
pub struct Table {
    routes: Vec<Route>,
    /// By listener index, for listeners that some route names.
    listeners: Vec<Hosts>,
    /// For every other listener.
    elsewhere: Hosts,
}

/// The routes of one listener by host.
#[derive(Debug, Default)]
struct Hosts {
    exact: HostMap,
    wildcard: HostMap,
    /// Longest suffix among the wildcards, in bytes: longer tails of a host are not looked up.
    wildcard_bytes_max: usize,
    any: Paths,
}

/// Routes of one listener and host, each kind in the order in which they are tried.
#[derive(Debug, Default)]
struct Paths {
    /// By path.
    exact: Vec<(Box<str>, u16)>,
    /// Longest first.
    prefix: Vec<(Box<str>, u16)>,
    regex: Vec<u16>,
    any: Vec<u16>,
}

/// Host names by hash. Keys come from the configuration, so nobody outside can make them collide.
#[derive(Debug, Default)]
struct HostMap(Vec<(u64, Box<str>, Paths)>);

impl HostMap {
    fn get(&self, host: &str) -> Option<&Paths> {
        /// Up to here comparing is quicker than hashing: nearly all names differ in length.
        const COMPARED_MAX: usize = 8;
        let same = |(_, name, _): &&(u64, Box<str>, Paths)| {
            name.len() == host.len() && name.eq_ignore_ascii_case(host)
        };
        let found = if self.0.len() <= COMPARED_MAX {
            self.0.iter().find(same)
        } else {
            let hash = hash_ignoring_case(host);
            let first = self.0.partition_point(|(other, ..)| *other < hash);
            self.0[first..].iter().take_while(|(other, ..)| *other == hash).find(same)
        };
        found.map(|(.., paths)| paths)
    }

    fn new(hosts: HashMap<&str, Paths>) -> Self {
        let mut list: Vec<_> =
            hosts.into_iter().map(|(host, paths)| (hash_ignoring_case(host), host.into(), paths)).collect();
        list.sort_by_key(|(hash, ..)| *hash);
        Self(list)
    }
}

/// FNV-1a over the lower-cased bytes.
fn hash_ignoring_case(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Paths {
    fn insert(&mut self, index: u16, route: &Route) {
        match &route.path {
            PathMatch::Exact(path) => self.exact.push((path.clone(), index)),
            PathMatch::Prefix(path) => self.prefix.push((path.clone(), index)),
            PathMatch::Regex(_) => self.regex.push(index),
            PathMatch::Any => self.any.push(index),
        }
    }

    fn sort(&mut self, routes: &[Route]) {
        let rank = |index: u16| (std::cmp::Reverse(routes[usize::from(index)].conditions()), index);
        self.exact.sort_by(|(one, a), (two, b)| one.cmp(two).then(rank(*a).cmp(&rank(*b))));
        self.prefix.sort_by(|(one, a), (two, b)| two.len().cmp(&one.len()).then(rank(*a).cmp(&rank(*b))));
        self.regex.sort_by_key(|index| rank(*index));
        self.any.sort_by_key(|index| rank(*index));
    }

    /// The most specific route of this path that `accept` takes.
    fn find(&self, routes: &[Route], path: &str, accept: impl Fn(&u16) -> bool) -> Option<u16> {
        if !self.exact.is_empty() {
            let first = self.exact.partition_point(|(exact, _)| **exact < *path);
            let same = self.exact[first..].iter().take_while(|(exact, _)| **exact == *path);
            if let Some(found) = same.map(|(_, index)| *index).find(&accept) {
                return Some(found);
            }
        }
        for (prefix, index) in &self.prefix {
            if path.starts_with(&**prefix) && accept(index) {
                return Some(*index);
            }
        }
        let matches = |index: &&u16| routes[usize::from(**index)].path.matches(path) && accept(index);
        self.regex.iter().find(matches).or_else(|| self.any.iter().find(|index| accept(index))).copied()
    }

    /// Every route, most specific path first.
    fn all(&self) -> impl Iterator<Item = u16> {
        let texts = self.exact.iter().chain(&self.prefix).map(|(_, index)| index);
        texts.chain(&self.regex).chain(&self.any).copied()
    }
}

impl Hosts {
    /// The routes that serve the listener; `None` stands for one that no route names.
    fn new(routes: &[Route], listener: Option<u16>) -> Self {
        let (mut exact, mut wildcard, mut any) = (HashMap::new(), HashMap::new(), Paths::default());
        for (index, route) in (0..).zip(routes) {
            if !route.listeners.is_empty() && !listener.is_some_and(|one| route.listeners.contains(&one)) {
                continue;
            }
            for host in &route.hosts {
                let (map, host): (&mut HashMap<&str, Paths>, _) = match host {
                    HostPattern::Exact(host) => (&mut exact, host),
                    HostPattern::Wildcard(suffix) => (&mut wildcard, suffix),
                };
                map.entry(host).or_default().insert(index, route);
            }
            if route.hosts.is_empty() {
                any.insert(index, route);
            }
        }
        exact
            .values_mut()
            .chain(wildcard.values_mut())
            .chain([&mut any])
            .for_each(|paths| paths.sort(routes));
        let wildcard_bytes_max = wildcard.keys().map(|suffix| suffix.len()).max().unwrap_or(0);
        Self { exact: HostMap::new(exact), wildcard: HostMap::new(wildcard), wildcard_bytes_max, any }
    }

    fn paths(&self) -> impl Iterator<Item = &Paths> {
        let named = self.exact.0.iter().chain(&self.wildcard.0).map(|(.., paths)| paths);
        named.chain([&self.any])
    }

    /// The most specific route of this host and path that `accept` takes.
    fn find(&self, routes: &[Route], host: &str, path: &str, accept: impl Fn(&u16) -> bool) -> Option<u16> {
        let found = self.exact.get(host).and_then(|paths| paths.find(routes, path, &accept));
        if found.is_some() {
            return found;
        }
        if self.wildcard_bytes_max > 0 {
            for dot in memchr::memchr_iter(b'.', host.as_bytes()) {
                // Before the tail there is at least one byte; a tail longer than every wildcard matches none.
                if dot > 0
                    && host.len() - dot <= self.wildcard_bytes_max
                    && let Some(paths) = self.wildcard.get(&host[dot..])
                    && let Some(found) = paths.find(routes, path, &accept)
                {
                    return Some(found);
                }
            }
        }
        self.any.find(routes, path, accept)
    }
}

impl Table {
    pub fn compile(specs: Vec<Spec>) -> Result<Self, TooManyRoutes> {
        if specs.len() > ROUTES_MAX {
            return Err(TooManyRoutes);
        }
        let routes: Vec<Route> = specs.into_iter().map(Route::from).collect();
        let named =
            routes.iter().flat_map(|route| &route.listeners).max().map_or(0, |max| u32::from(*max) + 1);
        let listeners =
            (0..named).map(|listener| Hosts::new(&routes, u16::try_from(listener).ok())).collect();
        let elsewhere = Hosts::new(&routes, None);
        Ok(Self { routes, listeners, elsewhere })
    }

    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The most specific route that matches, with its index. One dot at the end of the host is ignored.
    pub fn find(&self, request: &Request<'_>, field: FieldLookup<'_, '_>) -> Option<(u16, &Route)> {
        let host = request.host.strip_suffix('.').unwrap_or(request.host);
        let accept = |index: &u16| self.routes[usize::from(*index)].conditions_match(request, field);
        let index = self.hosts(request.listener).find(&self.routes, host, request.path, accept)?;
        Some((index, &self.routes[usize::from(index)]))
    }

    /// The most specific route that names the passthrough listener and matches a client's server name (lower-case,
    /// empty where it sent none) and offer: whether the client offers a protocol.
    pub fn find_passthrough(
        &self,
        listener: u16,
        server_name: &str,
        offers: impl Fn(&[u8]) -> bool,
    ) -> Option<(u16, &Route)> {
        // A route that names no listener is for those of HTTP.
        let accept = |index: &u16| {
            let route = &self.routes[usize::from(*index)];
            !route.listeners.is_empty() && route.alpn_matches(&offers)
        };
        let index = self.hosts(listener).find(&self.routes, server_name, "", accept)?;
        Some((index, &self.routes[usize::from(index)]))
    }

    /// Routes that can never be chosen, each with a route that always comes before it.
    pub fn unreachable(&self) -> Vec<(u16, u16)> {
        // By route: the lists it stands in, those where another covers it, and one that does.
        let mut tally = vec![(0u32, 0u32, 0u16); self.routes.len()];
        for paths in self.listeners.iter().chain([&self.elsewhere]).flat_map(Hosts::paths) {
            let mut same_path: HashMap<&PathMatch, Vec<u16>> = HashMap::new();
            for index in paths.all() {
                let earlier = same_path.entry(&self.routes[usize::from(index)].path).or_default();
                let (standing, covered, by) = &mut tally[usize::from(index)];
                *standing += 1;
                if let Some(first) =
                    earlier.iter().take(COMPARED_MAX).find(|earlier| self.covers(**earlier, index))
                {
                    *covered += 1;
                    *by = *first;
                }
                earlier.push(index);
            }
        }
        (0..)
            .zip(tally)
            .filter(|(_, (standing, covered, _))| *standing > 0 && standing == covered)
            .map(|(index, (.., by))| (index, by))
            .collect()
    }

    /// Whether a route earlier in the same list and of the same path takes every request that `later` would.
    fn covers(&self, earlier: u16, later: u16) -> bool {
        let (earlier, later) = (&self.routes[usize::from(earlier)], &self.routes[usize::from(later)]);
        // A route that names no listener serves those of HTTP; whether a named one is of HTTP, the table does not know.
        (!earlier.listeners.is_empty() || later.listeners.is_empty())
            && (earlier.methods.is_empty()
                || (!later.methods.is_empty()
                    && later.methods.iter().all(|method| earlier.methods.contains(method))))
            && (earlier.alpn.is_empty()
                || (!later.alpn.is_empty() && later.alpn.iter().all(|one| earlier.alpn.contains(one))))
            && (earlier.identities.is_empty()
                || (!later.identities.is_empty()
                    && later.identities.iter().all(|id| earlier.identities.iter().any(|all| all.covers(id)))))
            && earlier.fields.iter().all(|field| {
                later.fields.iter().any(|other| field.name == other.name && field.rule.covers(&other.rule))
            })
    }

    fn hosts(&self, listener: u16) -> &Hosts {
        self.listeners.get(usize::from(listener)).unwrap_or(&self.elsewhere)
    }
}
