//! From checked tables to the types that the rest of the product runs on. Finds what no single key can show: names
//! that refer to nothing, values that exclude each other, what has no effect.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::nearest::nearest;
use super::node::{Node, Text, shorten};
use super::problem::{Finding, Findings, Span};
use super::values::{self, Fault};
use super::{AdminSpec, Cpus, HostSpec, RingSpec, WorkersSpec};
use crate::proxy::snapshot::{DrainSpec, HttpSpec, Limits, Snapshot};
use crate::runtime::EngineChoice;
use crate::steal;
use crate::sys::socket_options::SocketOptions;

/// What is wrong with a file that serves nothing.
pub(super) const NO_LISTENER: &str = "there is no listener, so nothing is served";

mod access;
mod actions;
mod clusters;
mod edits;
mod listeners;
mod passthrough;
mod rate_limits;
mod routes;
mod tls;
mod tunnels;

/// All of a configuration but its text.
pub(super) struct Parts {
    pub workers: WorkersSpec,
    pub admin: AdminSpec,
    pub host: HostSpec,
    pub steal: steal::Spec,
    pub snapshot: Snapshot,
    /// Files that the configuration names, with the offset at which it does.
    pub files: Vec<(PathBuf, usize)>,
}

/// `None` only with an error among the findings. Relative paths are taken from `base`.
pub(super) fn build(root: &Node<'_>, base: &Path, findings: &mut Findings) -> Option<Parts> {
    let workers = workers(&root.table("workers"), findings);
    let admin = admin(&root.table("admin"), base, findings);
    let mut files = Files { base, list: Vec::new() };
    let (clusters, mut cluster_names) = clusters::build(root, &mut files, findings);
    let admin_listen = admin.as_ref().map(|admin| admin.listen);
    let mut listeners = listeners::build(root, admin_listen, &mut cluster_names, &mut files, findings);
    let (rate_limits, mut limit_names) = rate_limits::build(root, findings);
    let named = routes::Named { clusters: &mut cluster_names, rate_limits: &mut limit_names };
    let routes = routes::build(root, &mut listeners, &clusters, named, findings);
    cluster_names.warn_unused(findings);
    limit_names.warn_unused(findings);
    let host = root.table("host");
    let host = HostSpec {
        procfs: path(&host, "procfs", base),
        sysfs: path(&host, "sysfs", base),
        cgroupfs: path(&host, "cgroupfs", base),
    };
    let (http, limits) = limits(&root.table("limits"), findings);
    let drain = drain(&root.table("drain"), findings);
    let steal = steal(&root.table("steal"), findings);
    let access_log = access::build(root, base, &mut listeners.names, routes.as_ref(), findings);
    let (listeners, routes) = (listeners.list, routes?);
    let snapshot = Snapshot { listeners, routes, clusters, rate_limits, http, limits, drain, access_log };
    Some(Parts { workers: workers?, admin: admin?, host, steal, snapshot, files: files.list })
}

/// The files that a configuration names.
pub(super) struct Files<'b> {
    base: &'b Path,
    list: Vec<(PathBuf, usize)>,
}

impl Files<'_> {
    /// Notes the name, and gives the path.
    fn named(&mut self, text: &Text<'_>) -> PathBuf {
        let path = self.base.join(text.text);
        self.list.push((path.clone(), text.span.start));
        path
    }
}

fn workers(node: &Node<'_>, findings: &mut Findings) -> Option<WorkersSpec> {
    let cpus =
        node.text("cpus").map_or(Some(Cpus::All), |text| tell(values::cpus(text.text), &text.span, findings));
    let engine = match node.text("engine").map(|text| text.text) {
        Some("io_uring") => EngineChoice::IoUring,
        Some("epoll") => EngineChoice::Epoll,
        _ => EngineChoice::Auto,
    };
    let ring = node.table("ring");
    let recv_buffers = number(&ring, "recv_buffers");
    if !recv_buffers.is_power_of_two() {
        let what = format!("\"recv_buffers\" is {recv_buffers}, which is no power of two");
        let cure = format!("choose {}", recv_buffers.next_power_of_two().min(32_768));
        findings.push(Finding::error(&ring.value_span("recv_buffers"), what).cure(cure));
    }
    let ring = RingSpec { entries: number_u32(&ring, "entries"), recv_buffers: recv_buffers as u16 };
    Some(WorkersSpec { cpus: cpus?, engine, ring })
}

fn admin(node: &Node<'_>, base: &Path, findings: &mut Findings) -> Option<AdminSpec> {
    /// `sockaddr_un.sun_path` holds 108 bytes with the NUL at the end.
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    let text = node.text("listen")?;
    let listen = tell(values::listen(text.text), &text.span, findings);
    if let Some(listen) = listen.filter(|listen| !listen.ip().to_canonical().is_loopback()) {
        let what = format!("admin.listen {listen} can be reached from outside this machine");
        let cure = format!("write \"127.0.0.1:{}\"; tunnel to it from elsewhere", listen.port());
        findings.push(Finding::error(&text.span, what).cure(cure));
    }
    let socket = node.has("socket").then(|| path(node, "socket", base));
    if let Some(long) =
        socket.as_ref().map(|path| path.as_os_str().len()).filter(|len| *len > SOCKET_PATH_BYTES_MAX)
    {
        let what = format!("admin.socket is {long} bytes long with its folder; a socket's path can have 107");
        findings.push(Finding::error(&node.value_span("socket"), what).cure("choose a shorter path"));
    }
    Some(AdminSpec { listen: listen?, socket })
}

fn limits(node: &Node<'_>, findings: &mut Findings) -> (HttpSpec, Limits) {
    let http = HttpSpec {
        head_bytes_max: number(node, "head_bytes_max") as usize,
        target_bytes_max: number(node, "target_bytes_max") as usize,
        fields_max: number(node, "fields_max") as usize,
        requests_per_connection_max: number_u32(node, "requests_per_connection_max"),
        http2_streams_max: number_u32(node, "http2_streams_max"),
        http2_glitches_max: number_u32(node, "http2_glitches_max"),
    };
    if http.target_bytes_max >= http.head_bytes_max {
        let key = if node.has("target_bytes_max") { "target_bytes_max" } else { "head_bytes_max" };
        let what = format!(
            "a target of {} bytes does not fit into a head of {}",
            http.target_bytes_max, http.head_bytes_max
        );
        let cure = "make target_bytes_max less than head_bytes_max";
        findings.push(Finding::error(&node.value_span(key), what).cure(cure));
    }
    let limits = Limits {
        connections_max: number_u32(node, "connections_max"),
        memory_bytes_max: number(node, "memory_bytes_max") as usize,
        handshakes_per_turn_max: number_u32(node, "handshakes_per_turn_max"),
    };
    (http, limits)
}

fn drain(node: &Node<'_>, findings: &mut Findings) -> DrainSpec {
    let drain =
        DrainSpec { idle_grace: millis(node, "idle_grace_ms"), deadline: millis(node, "deadline_ms") };
    if drain.idle_grace > drain.deadline {
        let what = "drain.idle_grace_ms is longer than drain.deadline_ms, which ends everything";
        let key = if node.has("idle_grace_ms") { "idle_grace_ms" } else { "deadline_ms" };
        findings.push(Finding::error(&node.value_span(key), what).cure("make deadline_ms the longer one"));
    }
    drain
}

fn steal(node: &Node<'_>, findings: &mut Findings) -> steal::Spec {
    let mode = match node.text("mode").map(|text| text.text) {
        Some("off") => steal::Mode::Off,
        Some("act") => steal::Mode::Act,
        _ => steal::Mode::Observe,
    };
    let ratio = |key| node.ratio(key).unwrap_or_default();
    let spec = steal::Spec {
        mode,
        elevated_ratio: ratio("elevated_ratio"),
        stolen_ratio: ratio("stolen_ratio"),
        calm_ratio: ratio("calm_ratio"),
        latency_objective: millis(node, "latency_objective_ms"),
    };
    for (less, more) in [("calm_ratio", "elevated_ratio"), ("elevated_ratio", "stolen_ratio")] {
        let (below, above) = (ratio(less), ratio(more));
        if below >= above {
            let what = format!("steal.{less} {below} is not below steal.{more} {above}");
            let key = if node.has(less) { less } else { more };
            let cure = format!("make {less} less than {more}");
            findings.push(Finding::error(&node.value_span(key), what).cure(cure));
        }
    }
    spec
}

/// Options of the sockets of a listener or a cluster; 0 is the kernel's own.
fn socket_options(node: &Node<'_>, findings: &mut Findings) -> SocketOptions {
    let congestion_control = node
        .text("congestion_control")
        .and_then(|text| tell(values::congestion_control(text.text), &text.span, findings));
    let source_ports =
        node.text("source_ports").and_then(|text| tell(values::ports(text.text), &text.span, findings));
    SocketOptions {
        congestion_control,
        notsent_lowat_bytes: Some(number_u32(node, "notsent_lowat_bytes")).filter(|bytes| *bytes > 0),
        user_timeout: Some(millis(node, "user_timeout_ms")).filter(|timeout| !timeout.is_zero()),
        source_ports,
    }
}

/// The names of one kind of table, for others to refer to.
pub(super) struct Names<'t> {
    kind: &'static str,
    /// With whether something refers to it.
    list: Vec<(Text<'t>, bool)>,
    /// Positions in the list, of the first of each name.
    positions: HashMap<&'t str, usize>,
}

impl<'t> Names<'t> {
    fn new(kind: &'static str) -> Self {
        Self { kind, list: Vec::new(), positions: HashMap::new() }
    }

    /// Adds the name of the next table; also one that is missing or wrong, so that positions stay those of the file.
    fn add(&mut self, node: &Node<'t>, findings: &mut Findings) -> &'t str {
        let name = node.text("name").unwrap_or_else(|| Text { text: "", span: node.span() });
        let text = name.text;
        if node.has("name") {
            tell(values::name(text), &name.span, findings);
            if self.positions.contains_key(text) {
                let what = format!("{} \"{}\" is there twice", self.kind, shorten(text));
                findings.push(Finding::error(&name.span, what).cure("rename one of them"));
            }
            self.positions.entry(text).or_insert(self.list.len());
        }
        self.list.push((name, false));
        text
    }

    /// The position of a name that a text refers to.
    fn find(&mut self, name: &Text<'_>, findings: &mut Findings) -> Option<u16> {
        if let Some(&position) = self.positions.get(name.text) {
            self.list[position].1 = true;
            return u16::try_from(position).ok();
        }
        let known: Vec<&str> = self.positions.keys().copied().collect();
        let what = format!("there is no {} \"{}\"", self.kind, shorten(name.text));
        let cure = match known.len() {
            1..=8 => {
                let mut known = known.clone();
                known.sort_by_key(|known| self.positions[known]);
                format!("known: {}", known.join(", "))
            }
            _ => format!("add a [[{}]] of that name", self.kind),
        };
        let nearest = if findings.are_many() { None } else { nearest(name.text, known) };
        findings.push(Finding::error(&name.span, what).nearest(nearest).cure(cure).absence());
        None
    }

    /// Name and place by position.
    fn at(&self, position: u16) -> (&'t str, Span) {
        self.list.get(usize::from(position)).map_or(("", 0..0), |(name, _)| (name.text, name.span.clone()))
    }

    fn warn_unused(&self, findings: &mut Findings) {
        for (position, (name, used)) in self.list.iter().enumerate() {
            // Missing names and second ones of a name are told already.
            if *used || self.positions.get(name.text) != Some(&position) {
                continue;
            }
            let what = format!("nothing refers to {} \"{}\"", self.kind, shorten(name.text));
            findings
                .push(Finding::warning(&name.span, what).cure("remove it, or name it in a route").absence());
        }
    }
}

/// Turns a fault into a finding.
fn tell<T>(result: Result<T, Fault>, span: &Span, findings: &mut Findings) -> Option<T> {
    result.map_err(|Fault { what, cure }| findings.push(Finding::error(span, what).cure(cure))).ok()
}

/// A number that has a default.
fn number(node: &Node<'_>, key: &str) -> u64 {
    node.integer(key).unwrap_or_default()
}

/// As `number`, of a row whose range ends within 32 bits.
fn number_u32(node: &Node<'_>, key: &str) -> u32 {
    u32::try_from(number(node, key)).unwrap_or(u32::MAX)
}

fn millis(node: &Node<'_>, key: &str) -> Duration {
    Duration::from_millis(number(node, key))
}

/// A duration of its own, else the one that applies to all.
fn millis_or(node: &Node<'_>, all: &Node<'_>, key: &str) -> Duration {
    node.integer(key).map_or_else(|| millis(all, key), Duration::from_millis)
}

fn path(node: &Node<'_>, key: &str, base: &Path) -> PathBuf {
    base.join(node.text(key).map_or("", |text| text.text))
}
