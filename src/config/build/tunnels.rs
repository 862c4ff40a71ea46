//! `tunnels` of a `[[route]]`.

use super::routes::{PATHS, Reader};
use crate::config::node::shorten;
use crate::config::problem::Finding;
use crate::http::is_protocol;
use crate::route::{Action, Tunnels};

/// Requests in a tunnel would get past every rule here.
const OF_HTTP: [&str; 4] = ["h2c", "h2", "http/1.1", "http/2"];

impl Reader<'_, '_> {
    /// `None` only with an error among the findings.
    pub(super) fn tunnels(&mut self, action: Option<&Action>) -> Option<Tunnels> {
        let Some(key) = self.node.key_span("tunnels") else { return Some(Tunnels::default()) };
        let texts = self.node.texts("tunnels");
        let mut complete = true;
        for text in &texts {
            let shown = shorten(text.text);
            if !is_protocol(text.text) {
                let cure = "write it as clients do in Upgrade, such as \"websocket\"; or \"connect\"";
                self.error(&text.span, format!("\"{shown}\" names no protocol"), cure);
            } else if OF_HTTP.iter().any(|name| name.eq_ignore_ascii_case(text.text)) {
                let what = format!("a tunnel of \"{shown}\" carries requests that no route sees");
                self.error(&text.span, what, "remove it; HTTP/2 is spoken without an upgrade");
            } else {
                continue;
            }
            complete = false;
        }
        let names: Vec<&str> = texts.iter().map(|text| text.text).collect();
        let tunnels = Tunnels::new(&names);
        if matches!(action, Some(Action::Respond(_) | Action::Redirect(_))) {
            let what = "\"tunnels\" has no effect: the request goes nowhere";
            self.findings.push(Finding::warning(&key, what).cure("remove it"));
        } else if tunnels.connect()
            && let Some(path) = PATHS.iter().find(|path| self.node.has(path))
        {
            let what = format!("\"connect\" beside \"{path}\" has no effect: CONNECT has no path");
            let cure = "make a route of its own for it, by listener and hosts";
            self.findings.push(Finding::warning(&self.node.value_span("tunnels"), what).cure(cure));
        }
        complete.then_some(tunnels)
    }
}
