//! Builds the configuration of a test. The names of the keys that tests set stand here and nowhere else.

use super::Engine;
use super::gateway::{Gateway, Launch};
use super::origin::Origin;

/// A gateway with a listener `web` (HTTP) that is described bit by bit; what is not set has its default.
#[derive(Clone)]
pub struct Setup {
    engine: Engine,
    ring: String,
    limits: String,
    drain: String,
    timeouts: String,
    sections: String,
    clusters: Vec<(String, Vec<String>)>,
    cluster_keys: String,
    routes: String,
    pub launch: Launch,
}

impl Setup {
    /// One worker, one HTTP listener `web`, no route yet.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            ring: String::new(),
            limits: String::new(),
            drain: String::new(),
            timeouts: String::new(),
            sections: String::new(),
            clusters: Vec::new(),
            cluster_keys: String::new(),
            routes: String::new(),
            launch: Launch::default(),
        }
    }

    /// As [`Setup::new`], with everything answered 200 `ok` by the gateway itself.
    pub fn answering(engine: Engine) -> Self {
        Self::new(engine).route("respond = { status = 200, body = \"ok\\n\" }")
    }

    /// As [`Setup::new`], with everything routed to one origin, which must outlive the gateway's traffic.
    pub fn to(engine: Engine, origin: &Origin) -> Self {
        Self::to_all(engine, &[origin.address()])
    }

    /// Everything routed to one cluster of these endpoints.
    pub fn to_all(engine: Engine, endpoints: &[String]) -> Self {
        Self::new(engine).cluster("site", endpoints).route("cluster = \"site\"")
    }

    /// A route; listener `web` is filled in.
    pub fn route(mut self, keys: &str) -> Self {
        self.routes.push_str(&format!("[[route]]\nlistener = \"web\"\n{keys}\n"));
        self
    }

    pub fn cluster(mut self, name: &str, endpoints: &[String]) -> Self {
        self.clusters.push((name.into(), endpoints.to_vec()));
        self
    }

    /// Keys for every cluster.
    pub fn cluster_keys(mut self, keys: &str) -> Self {
        push_line(&mut self.cluster_keys, keys);
        self
    }

    pub fn limits(mut self, keys: &str) -> Self {
        push_line(&mut self.limits, keys);
        self
    }

    pub fn ring(mut self, keys: &str) -> Self {
        push_line(&mut self.ring, keys);
        self
    }

    /// Whole sections, such as further listeners.
    pub fn sections(mut self, text: &str) -> Self {
        push_line(&mut self.sections, text);
        self
    }

    /// A TCP listener `relay` towards the cluster `site`.
    pub fn relay(self, keys: &str) -> Self {
        self.sections(&format!(
            "[[listener]]\nname = \"relay\"\nlisten = \"127.0.0.1:{{port:relay}}\"\nprotocol = \"tcp\"\ncluster = \"site\"\n{keys}"
        ))
    }

    pub fn drain(mut self, idle_grace_ms: u64, deadline_ms: u64) -> Self {
        self.drain = format!("idle_grace_ms = {idle_grace_ms}\ndeadline_ms = {deadline_ms}\n");
        self
    }

    /// From accepting, or from the first byte of a later request, to the end of a head.
    pub fn header_timeout_ms(self, ms: u64) -> Self {
        self.timeout("header_timeout_ms", ms)
    }

    /// Between two requests of one connection.
    pub fn idle_timeout_ms(self, ms: u64) -> Self {
        self.timeout("idle_timeout_ms", ms)
    }

    /// Longest pause inside a request's body.
    pub fn body_idle_timeout_ms(self, ms: u64) -> Self {
        self.timeout("body_idle_timeout_ms", ms)
    }

    /// Longest time that a peer takes nothing of what is sent to it.
    pub fn write_stall_timeout_ms(self, ms: u64) -> Self {
        self.timeout("write_stall_timeout_ms", ms)
    }

    /// Longest time without a byte in either direction of a relay.
    pub fn tcp_idle_timeout_ms(self, ms: u64) -> Self {
        self.timeout("tcp_idle_timeout_ms", ms)
    }

    pub fn connect_timeout_ms(self, ms: u64) -> Self {
        self.timeout("connect_timeout_ms", ms)
    }

    /// From the end of a request to the end of the response's head.
    pub fn request_timeout_ms(self, ms: u64) -> Self {
        self.timeout("request_timeout_ms", ms)
    }

    /// How long an unused connection to an endpoint is kept.
    pub fn pool_idle_timeout_ms(self, ms: u64) -> Self {
        self.timeout("pool_idle_timeout_ms", ms)
    }

    pub fn timeout(mut self, key: &str, value: u64) -> Self {
        push_line(&mut self.timeouts, &format!("{key} = {value}"));
        self
    }

    pub fn ejection(self, consecutive_failures: u32, base_ms: u64) -> Self {
        self.cluster_keys(&format!(
            "ejection = {{ consecutive_failures = {consecutive_failures}, base_ms = {base_ms} }}"
        ))
    }

    pub fn open_files(mut self, limit: u64) -> Self {
        self.launch.open_files = Some(limit);
        self
    }

    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.launch.env.push((name, value.into()));
        self
    }

    /// The configuration as text, ports still open.
    pub fn text(&self) -> String {
        let Self { engine, ring, limits, drain, timeouts, sections, clusters, cluster_keys, routes, .. } =
            self;
        let mut text = format!("[workers]\ncpus = \"0\"\nengine = \"{}\"\n", engine.key());
        for (name, keys) in
            [("workers.ring", ring), ("limits", limits), ("drain", drain), ("timeouts", timeouts)]
        {
            if !keys.is_empty() {
                text.push_str(&format!("[{name}]\n{keys}\n"));
            }
        }
        text.push_str("[admin]\nlisten = \"127.0.0.1:{port:admin}\"\nsocket = \"admin.sock\"\n");
        text.push_str(&format!(
            "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\nprotocol = \"http\"\n{sections}\n{routes}\n"
        ));
        for (name, endpoints) in clusters {
            text.push_str(&format!(
                "[[cluster]]\nname = \"{name}\"\nendpoints = {endpoints:?}\n{cluster_keys}\n"
            ));
        }
        text
    }

    #[track_caller]
    pub fn start(&self) -> Gateway {
        Gateway::launch(&self.text(), self.launch.clone())
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}
