//! Which action a request gets: listener, host, path, method and fields against a table compiled once. Pure. Never
//! connects, never reads a body, never changes a request: it says what is to be changed.
//!
//! # Which route wins
//! Of all routes that match, the most specific one, compared in this order:
//! 1. host: an exact name, then the longest wildcard, then no host at all;
//! 2. path: exact, then the longest prefix, then regex, then any;
//! 3. the number of further conditions: one for `methods`, `alpn` and `identities`, one for each field;
//! 4. the order of the table.
//!
//! Paths are compared byte for byte, as the caller normalised them and forwards them (`http::normalize_path`: no dot
//! segments; `//` and percent-encodings as received). The query takes no part.

use crate::base::field_edits::FieldEdits;
use crate::base::identity::IdentityPattern;

mod action;
mod explain;
mod pattern;
mod table;
mod tunnels;

pub use action::{Action, Redirect, Respond, WeightedClusters};
pub use explain::{Candidate, Explanation, Standing};
pub use pattern::{Pattern, PatternError};
pub use table::{ROUTES_MAX, Route, Table, TooManyRoutes};
pub use tunnels::Tunnels;

/// One route as written. What it names is checked by who builds it: names of fields are lower-case tokens, hosts
/// lower-case, indices exist.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: Box<str>,
    /// Empty: every HTTP listener.
    pub listeners: Vec<u16>,
    /// Empty: any host, also none.
    pub hosts: Vec<HostPattern>,
    /// Protocols one of which a client of a passthrough listener must offer (ALPN). Empty: any, also none.
    pub alpn: Vec<Box<str>>,
    pub path: PathMatch,
    /// Empty: any method. Compared with case (RFC 9110 §9.1).
    pub methods: Vec<Box<str>>,
    /// One must match the identity of the client's certificate. Empty: any client, also one without.
    pub identities: Vec<IdentityPattern>,
    /// All must match.
    pub fields: Vec<FieldMatch>,
    pub action: Action,
    /// Positions of the limits that its requests meet, in this order.
    pub rate_limits: Vec<u16>,
    pub tunnels: Tunnels,
    /// Replaces the prefix that matched; only with `PathMatch::Prefix`. Starts with `/`.
    pub prefix_rewrite: Option<Box<str>>,
    pub request_edits: FieldEdits,
    pub response_edits: FieldEdits,
}

/// Lower-case, without port and without a final dot.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HostPattern {
    Exact(Box<str>),
    /// `*.api.test` is kept as `.api.test`: one or more labels before it, never the bare `api.test`.
    Wildcard(Box<str>),
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PathMatch {
    Any,
    Exact(Box<str>),
    /// A plain string prefix: `/v1` also matches `/v10`, `/v1/` does not match `/v1`.
    Prefix(Box<str>),
    /// The whole path must match. Syntax of the `regex` crate, ASCII classes.
    Regex(Pattern),
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FieldMatch {
    /// Lower-case.
    pub name: Box<str>,
    pub rule: FieldRule,
}

/// What the first field of that name must be, if any. Values are compared with case.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum FieldRule {
    Present,
    Absent,
    Exact(Box<str>),
    Prefix(Box<str>),
    /// The whole value must match.
    Regex(Pattern),
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => path.starts_with(&**prefix),
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }
}

impl FieldRule {
    fn matches(&self, value: Option<&[u8]>) -> bool {
        match (self, value) {
            (Self::Absent, value) => value.is_none(),
            (_, None) => false,
            (Self::Present, _) => true,
            (Self::Exact(exact), Some(value)) => exact.as_bytes() == value,
            (Self::Prefix(prefix), Some(value)) => value.starts_with(prefix.as_bytes()),
            (Self::Regex(pattern), Some(value)) => pattern.matches(value),
        }
    }

    /// Whether it accepts all that `other` does, as far as the text tells.
    fn covers(&self, other: &Self) -> bool {
        self == other || (*self == Self::Present && *other != Self::Absent)
    }
}

/// What of a request takes part in the choice, beside its fields.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub listener: u16,
    pub method: &'a str,
    /// Without port, in any case; empty where the request has none.
    pub host: &'a str,
    /// Without query; `*` for the asterisk-form.
    pub path: &'a str,
    /// SPIFFE id of the certificate that the client presented.
    pub identity: Option<&'a str>,
}

/// Looks up the first field of a (lower-case) name in the request at hand.
pub type FieldLookup<'f, 'a> = &'f dyn Fn(&str) -> Option<&'a [u8]>;

#[cfg(test)]
mod tests;
