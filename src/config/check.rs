//! `ringfort check`: tells every problem of a configuration, which route a request would get, and what carries
//! plaintext. Changes nothing.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

mod encryption;

use encryption::Plaintext;

use super::{Config, LoadError, Problem, Severity, embedded_default, load};
use crate::base::identity::SpiffeId;
use crate::http::normalize_path;
use crate::proxy::snapshot::{EndpointAddress, Protocol, Snapshot};
use crate::route::{Action, Explanation, Request, Route};

const GOOD: u8 = 0;
const FOUND_PROBLEMS: u8 = 1;
const COULD_NOT_RUN: u8 = 2;

/// What is asked of a configuration.
pub struct Asking<'a> {
    /// `None` for the embedded default.
    pub path: Option<&'a Path>,
    /// A request such as `GET http://api.test/v1/x`, whose route is to be told.
    pub explain: Option<&'a str>,
    /// Its fields, such as `x-canary: yes`.
    pub fields: &'a [String],
    /// The SPIFFE identity of the client that sends it, where it presents a certificate.
    pub identity: Option<&'a str>,
    /// Whether what carries plaintext is a problem.
    pub require_encryption: bool,
    pub as_json: bool,
    /// Reads the files that the configuration, of this name, names. With what is wrong with them.
    pub inspect: &'a dyn Fn(&str, &Config) -> Vec<Problem>,
}

/// What to print, with a newline at the end, and the exit code: 0 good (warnings may be told), 1 errors, 2 could not
/// run.
pub fn check(asking: &Asking<'_>) -> (String, u8) {
    let as_json = asking.as_json;
    let name = asking.path.map_or_else(|| "embedded default".to_owned(), |path| path.display().to_string());
    let loaded = asking.path.map_or_else(
        || Ok((embedded_default(), Vec::new())),
        |path| load(path).map(|loaded| (loaded.config, loaded.warnings)),
    );
    let (config, mut problems) = match loaded {
        Ok((config, warnings)) => (Some(config), warnings),
        Err(LoadError::Problems(problems)) => (None, problems),
        Err(LoadError::Unreadable(text)) => return refuse(&text, as_json),
    };
    let request = asking.explain.map(|text| Asked::parse(text, asking.fields, asking.identity)).transpose();
    let request = match request {
        Ok(request) => request,
        Err(text) => return refuse(&text, as_json),
    };
    if let Some(config) = &config {
        problems.extend((asking.inspect)(&name, config));
    }
    let explained = match (&config, &request) {
        (Some(config), Some(request)) => Some(request.explain(&config.snapshot)),
        _ => None,
    };
    let plaintext = config.as_ref().filter(|_| asking.require_encryption);
    let plaintext = plaintext.map(|config| encryption::plaintext(&config.snapshot));
    let good = config.is_some() && problems.iter().all(|problem| problem.severity != Severity::Error);
    let encrypted = plaintext.as_ref().is_none_or(Vec::is_empty);
    let code = if good && encrypted { GOOD } else { FOUND_PROBLEMS };
    if !as_json {
        let explained = explained.map_or_else(String::new, |explained| text_of(&explained));
        let plaintext = plaintext.map_or_else(String::new, |plaintext| plaintext_text(&plaintext));
        return (summary(&name, config.filter(|_| good).as_ref(), &problems) + &plaintext + &explained, code);
    }
    let mut object = json!({ "file": name, "ok": good && encrypted, "problems": problems });
    if let Some(plaintext) = plaintext {
        object["plaintext"] = json!(plaintext);
    }
    if let Some(explained) = explained {
        object["explain"] = explained.iter().map(Explained::to_json).collect();
    }
    (format!("{object:#}\n"), code)
}

fn plaintext_text(plaintext: &[Plaintext]) -> String {
    if plaintext.is_empty() {
        return "nothing carries plaintext\n".to_owned();
    }
    let mut text = String::new();
    for Plaintext { kind, name, why, cure } in plaintext {
        let _ = writeln!(text, "{kind} \"{name}\" carries plaintext: {why}; {cure}");
    }
    text
}

fn text_of(explained: &[Explained]) -> String {
    if explained.is_empty() {
        return "no listener takes HTTP requests\n".to_owned();
    }
    let mut text = String::new();
    for explained in explained {
        explained.write(&mut text);
    }
    text
}

fn refuse(text: &str, as_json: bool) -> (String, u8) {
    let text =
        if as_json { format!("{:#}\n", json!({ "ok": false, "error": text })) } else { format!("{text}\n") };
    (text, COULD_NOT_RUN)
}

fn summary(name: &str, config: Option<&Config>, problems: &[Problem]) -> String {
    let mut text = String::new();
    for problem in problems {
        let _ = writeln!(text, "{problem}");
    }
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let warnings = match count(Severity::Warning) {
        0 => String::new(),
        count => format!(", {}", plural(count, "warning")),
    };
    let _ = match config {
        Some(Config { snapshot, .. }) => writeln!(
            text,
            "{name}: good: {}, {}, {}{warnings}",
            plural(snapshot.listeners.len(), "listener"),
            plural(snapshot.routes.routes().len(), "route"),
            plural(snapshot.clusters.len(), "cluster"),
        ),
        None => writeln!(text, "{name}: {}{warnings}", plural(count(Severity::Error), "error")),
    };
    text
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The request asked about.
#[derive(Debug, Eq, PartialEq)]
struct Asked {
    method: String,
    https: bool,
    /// As in the URL; empty where only a path was given.
    authority: String,
    port: Option<u16>,
    /// As it is routed and forwarded.
    path: String,
    query: Option<String>,
    fields: Vec<(String, String)>,
    identity: Option<String>,
}

impl Asked {
    fn parse(text: &str, fields: &[String], identity: Option<&str>) -> Result<Self, String> {
        const CURE: &str = "write it as 'GET http://api.test/v1/x'";
        let mut words = text.split_whitespace();
        let (method, url) = match (words.next(), words.next(), words.next()) {
            (Some(method), Some(url), None) => (method, url),
            (Some(url), None, None) if url.contains('/') => ("GET", url),
            _ => return Err(format!("--explain \"{text}\" is not a method and a URL; {CURE}")),
        };
        let (https, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, Some(rest)),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, Some(rest)),
            Some((scheme, _)) => return Err(format!("--explain: no scheme \"{scheme}\" is known; {CURE}")),
            None => (false, None),
        };
        let (authority, target) = match rest {
            Some(rest) => {
                let (authority, _) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                (authority, &rest[authority.len()..])
            }
            None => ("", url),
        };
        if rest.is_none() && !target.starts_with('/') && target != "*" {
            return Err(format!("--explain: \"{url}\" is neither a URL nor a path; {CURE}"));
        }
        let target = target.split('#').next().unwrap_or_default();
        let mut scratch = String::new();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let path = normalize_path(if path.is_empty() { "/" } else { path }, &mut scratch);
        let path = path.map_err(|reject| {
            format!("--explain: \"{url}\" is answered {}: {}", reject.status, reject.text)
        })?;
        let fields: Result<Vec<_>, String> = fields
            .iter()
            .map(|field| match field.split_once(':') {
                Some((name, value)) => Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned())),
                None => Err(format!("-H \"{field}\" is not a field; write it as 'name: value'")),
            })
            .collect();
        if let Some(identity) = identity {
            SpiffeId::parse(identity)
                .map_err(|error| format!("--identity \"{identity}\" is no SPIFFE identity: {error}"))?;
        }
        Ok(Self {
            method: method.to_owned(),
            https,
            authority: authority.to_owned(),
            port: port(authority),
            path: path.to_owned(),
            query,
            fields: fields?,
            identity: identity.map(str::to_owned),
        })
    }

    fn host(&self) -> &str {
        match self.port {
            Some(_) => self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host),
            None => &self.authority,
        }
    }

    /// For the HTTP listener of the URL's port, or for each where none has it.
    fn explain(&self, snapshot: &Snapshot) -> Vec<Explained> {
        let http: Vec<u16> = (0u16..)
            .zip(&snapshot.listeners)
            .filter(|(_, listener)| listener.protocol == Protocol::Http)
            .map(|(index, _)| index)
            .collect();
        let of_port =
            |index: &&u16| Some(snapshot.listeners[usize::from(**index)].address.port()) == self.port;
        let of_port: Vec<u16> = http.iter().filter(of_port).copied().collect();
        let indices = if of_port.is_empty() { http } else { of_port };
        indices.into_iter().map(|listener| self.explain_on(listener, snapshot)).collect()
    }

    fn explain_on(&self, listener: u16, snapshot: &Snapshot) -> Explained {
        let lookup = |name: &str| {
            // The Host field is part of the URL here.
            let host = (name == "host" && !self.authority.is_empty()).then_some(self.authority.as_bytes());
            let field = self.fields.iter().find(|(field, _)| field == name);
            field.map(|(_, value)| value.as_bytes()).or(host)
        };
        let identity = self.identity.as_deref();
        let request =
            Request { listener, method: &self.method, host: self.host(), path: &self.path, identity };
        let explanation = snapshot.routes.explain(&request, &lookup);
        let route = explanation.chosen().map(|index| &snapshot.routes.routes()[usize::from(index)]);
        Explained {
            listener: snapshot.listeners[usize::from(listener)].name.to_string(),
            action: route.map(|route| self.action(route, snapshot)),
            explanation,
        }
    }

    fn action(&self, route: &Route, snapshot: &Snapshot) -> String {
        let mut scratch = String::new();
        let path = route.rewrite_path(&self.path, &mut scratch);
        match &route.action {
            Action::Cluster(cluster) => format!("{}, path {path}", cluster_text(*cluster, snapshot)),
            Action::WeightedClusters(weighted) => {
                let total: u64 = weighted.weights().map(|(_, weight)| weight).sum();
                let share = |(cluster, weight): (u16, u64)| {
                    format!("{weight} of {total} to {}", cluster_text(cluster, snapshot))
                };
                format!("{}, path {path}", weighted.weights().map(share).collect::<Vec<_>>().join(", "))
            }
            Action::Respond(respond) => {
                format!(
                    "answered here with {} and a body of {}",
                    respond.status,
                    plural(respond.body.len(), "byte")
                )
            }
            Action::Redirect(redirect) => {
                let scheme = if self.https { "https" } else { "http" };
                let mut location = String::new();
                redirect.write_location(&mut location, scheme, &self.authority, path, self.query.as_deref());
                format!("redirected with {} to {location}", redirect.status)
            }
        }
    }
}

fn port(authority: &str) -> Option<u16> {
    authority.rsplit_once(':')?.1.parse().ok()
}

fn cluster_text(cluster: u16, snapshot: &Snapshot) -> String {
    let Some(cluster) = snapshot.clusters.get(usize::from(cluster)) else { return String::new() };
    let endpoints = cluster.endpoints.iter().map(|endpoint| match endpoint {
        EndpointAddress::Socket(address) => address.to_string(),
        EndpointAddress::Name { host, port } => format!("{host}:{port}"),
    });
    format!("cluster \"{}\" ({})", cluster.name, endpoints.collect::<Vec<_>>().join(", "))
}

struct Explained {
    listener: String,
    action: Option<String>,
    explanation: Explanation,
}

impl Explained {
    fn write(&self, out: &mut String) {
        let _ = writeln!(out, "listener \"{}\":", self.listener);
        out.push_str(&self.explanation.to_string());
        if let Some(action) = &self.action {
            let _ = writeln!(out, "-> {action}");
        }
    }

    fn to_json(&self) -> Value {
        let chosen = self.explanation.chosen();
        json!({
            "listener": self.listener,
            "route": chosen.and_then(|_| self.explanation.candidates.first()).map(|chosen| &*chosen.name),
            "action": self.action,
            "why": self.explanation.to_string(),
        })
    }
}
