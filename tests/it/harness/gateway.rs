//! The real binary as a test sees it: started on a configuration with ports from the kernel, watched through its
//! admin port and its log, killed with all its processes at the end. After each test the log is judged: a warning
//! or an error that the test did not expect fails it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::client::{Client, Response, exchange};
use super::message::NoMessage;
use super::{SOON, eventually, holds_within, process};

/// A directory of one test, removed at its end.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringfort-it-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A listener of 127.0.0.1 on a port that no test of this run had before: what still speaks to the former owner
/// of a port must not reach a later one.
pub fn fresh_listener() -> TcpListener {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut given = GIVEN.lock().unwrap();
        if !given.contains(&port) {
            given.push(port);
            return listener;
        }
    }
}

/// A port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> u16 {
    fresh_listener().local_addr().unwrap().port()
}

/// The build under test: the one that belongs to these tests, or another one named by `$RINGFORT`.
fn binary() -> std::ffi::OsString {
    std::env::var_os("RINGFORT").unwrap_or_else(|| env!("CARGO_BIN_EXE_ringfort").into())
}

/// The binary under test, as a command.
pub fn ringfort() -> Command {
    clean(Command::new(binary()))
}

fn clean(mut command: Command) -> Command {
    command.env_remove("RINGFORT_TEST_PANIC").env_remove("NOTIFY_SOCKET");
    command
}

/// A copy of the binary under test, as if installed there; in place of what is there.
pub fn install(at: &Path) {
    let draft = at.with_extension("draft");
    // By a process of its own. While this one writes, a child that another test forks has the file open for writing until it
    // executes something, and executing the copy would fail with ETXTBSY.
    assert!(Command::new("cp").arg(binary()).arg(&draft).status().unwrap().success());
    std::fs::rename(draft, at).unwrap();
}

/// A shell script that can be executed; in place of what is there.
pub fn install_script(at: &Path, script: &str) {
    let (text, draft) = (at.with_extension("text"), at.with_extension("draft"));
    std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // As in `install`.
    assert!(Command::new("cp").arg(&text).arg(&draft).status().unwrap().success());
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(draft, at).unwrap();
}

/// Fills the `{port:NAME}` places of a configuration, one free port a name.
pub fn with_ports(config: &str) -> (String, BTreeMap<String, u16>) {
    let mut ports = BTreeMap::new();
    (fill_ports(config, &mut ports), ports)
}

/// The same; names that have a port keep it.
fn fill_ports(config: &str, ports: &mut BTreeMap<String, u16>) -> String {
    let mut text = String::new();
    let mut rest = config;
    while let Some((before, after)) = rest.split_once("{port:") {
        let (name, after) = after.split_once('}').expect("a closed {port:NAME}");
        let port = ports.entry(name.to_string()).or_insert_with(free_port);
        text.push_str(before);
        text.push_str(&port.to_string());
        rest = after;
    }
    text.push_str(rest);
    text
}

/// How a gateway is started, beside its configuration.
#[derive(Clone, Default)]
pub struct Launch {
    pub env: Vec<(&'static str, String)>,
    /// Soft and hard limit of open files.
    pub open_files: Option<u64>,
    /// The binary, where it is not the one under test itself.
    pub binary: Option<PathBuf>,
    /// Where its log goes, where it is not to be kept.
    pub stderr: Option<fn() -> Stdio>,
}

pub struct Gateway {
    child: Child,
    dir: TempDir,
    config: PathBuf,
    ports: BTreeMap<String, u16>,
    launch: Launch,
    log: Arc<Mutex<Vec<String>>>,
    expected: Vec<String>,
}

impl Gateway {
    /// Starts on a configuration that has its admin port at `{port:admin}` and waits until it is ready.
    #[track_caller]
    pub fn start(config: &str) -> Self {
        Self::launch(config, Launch::default())
    }

    #[track_caller]
    pub fn launch(config: &str, launch: Launch) -> Self {
        // Another process may take a port between its choice and our start: choose again, a few times.
        for _ in 0..3 {
            let dir = TempDir::new();
            let (text, ports) = with_ports(config);
            let path = dir.file("ringfort.toml", &text);
            let (child, log) = spawn(&path, &launch);
            let (launch, expected) = (launch.clone(), Vec::new());
            let mut gateway = Self { child, dir, config: path, ports, launch, log, expected };
            if gateway.wait_ready() {
                return gateway;
            }
            gateway.expect_log("");
            // It may have ended before its last line was read.
            let taken = holds_within(SOON, || gateway.log_text().contains("in use"));
            assert!(taken, "the gateway did not become ready:\n{text}\n{}", gateway.log_text());
        }
        panic!("three times another process took a port chosen for the gateway");
    }

    /// Starts again in the same directory on the same ports, after the supervisor ended or was killed.
    #[track_caller]
    pub fn restart(&mut self) {
        let (child, log) = spawn(&self.config, &self.launch);
        (self.child, self.log) = (child, log);
        assert!(self.wait_ready(), "the gateway did not become ready again:\n{}", self.log_text());
    }

    /// Puts another configuration in place of the present one. Ports that it names again stay what they are.
    pub fn rewrite(&mut self, config: &str) {
        let text = fill_ports(config, &mut self.ports);
        std::fs::write(&self.config, text).unwrap();
    }

    /// `ringfort reload`: its exit code, and all that it printed.
    pub fn try_reload(&self) -> (Option<i32>, String) {
        let output = ringfort().args(["reload", "--socket"]).arg(self.socket()).output().unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
    }

    /// A reload that is to succeed.
    #[track_caller]
    pub fn reload(&self) {
        let (code, printed) = self.try_reload();
        assert_eq!(code, Some(0), "{printed}\n{}", self.log_text());
    }

    /// `ringfort upgrade`: its exit code, and all that it printed.
    pub fn try_upgrade(&self) -> (Option<i32>, String) {
        let output = ringfort().args(["upgrade", "--socket"]).arg(self.socket()).output().unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
    }

    /// An upgrade that is to succeed.
    #[track_caller]
    pub fn upgrade(&self) {
        let (code, printed) = self.try_upgrade();
        assert_eq!(code, Some(0), "{printed}\n{}", self.log_text());
    }

    /// Another configuration, in use.
    #[track_caller]
    pub fn reload_to(&mut self, config: &str) {
        self.rewrite(config);
        self.reload();
    }

    /// One that is refused: what was printed.
    #[track_caller]
    pub fn refuse(&mut self, config: &str) -> String {
        self.expect_log("the configuration was not reloaded");
        self.rewrite(config);
        let (code, printed) = self.try_reload();
        assert_eq!(code, Some(1), "{printed}\n{}", self.log_text());
        printed
    }

    pub fn port(&self, name: &str) -> u16 {
        self.ports[name]
    }

    /// The port of the listener `web`.
    pub fn web(&self) -> u16 {
        self.port("web")
    }

    /// A connection to the listener `web`.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.web())
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    pub fn supervisor(&self) -> u32 {
        self.child.id()
    }

    /// The data process: the supervisor's only child.
    #[track_caller]
    pub fn data_process(&self) -> u32 {
        let mut found = Vec::new();
        eventually("the supervisor has one data process", || {
            found =
                process::children(self.supervisor()).into_iter().filter(|&pid| process::alive(pid)).collect();
            found.len() == 1
        });
        found[0]
    }

    pub fn log_text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Lines of warnings and errors that contain `text` are part of what the test provokes.
    pub fn expect_log(&mut self, text: &str) {
        self.expected.push(text.to_string());
    }

    /// Waits until some line of the log contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        let found = holds_within(SOON, || self.log_text().contains(text));
        assert!(found, "no {text:?} in the log:\n{}", self.log_text());
    }

    /// A GET on the admin port.
    pub fn admin(&self, path: &str) -> Result<Response, NoMessage> {
        self.admin_request("GET", path)
    }

    pub fn admin_request(&self, method: &str, path: &str) -> Result<Response, NoMessage> {
        let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port("admin"))) else {
            return Err(NoMessage::Closed);
        };
        let mut client = Client::over(stream);
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        client.try_send(request).map_err(|_| NoMessage::Reset)?;
        client.try_read_response(method)
    }

    /// A request on the admin Unix socket; the whole reply as text.
    #[track_caller]
    pub fn socket_request(&self, method: &str, path: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("the admin socket");
        stream.set_read_timeout(Some(SOON)).unwrap();
        exchange(
            &mut stream,
            &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        )
    }

    /// The sum of a metric over all its label sets whose text contains `labels`; 0 when there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.admin("/metrics").expect("metrics").text();
        metric(&text, name, labels)
    }

    /// Waits until a metric has the wanted value.
    #[track_caller]
    pub fn wait_for_metric(&self, name: &str, labels: &str, wanted: impl Fn(f64) -> bool) {
        let mut value = 0.0;
        let reached = holds_within(SOON, || {
            value = self.metric(name, labels);
            wanted(value)
        });
        assert!(reached, "{name}{{{labels}}} stays at {value}");
    }

    /// `GET /workers` as JSON.
    #[track_caller]
    pub fn workers(&self) -> Vec<serde_json::Value> {
        let text = self.admin("/workers").expect("workers").text();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        value["workers"].as_array().cloned().unwrap_or_default()
    }

    pub fn terminate(&self) {
        process::signal(self.supervisor(), libc::SIGTERM);
    }

    /// Waits for the end of the supervisor.
    pub fn wait_exit(&mut self, bound: Duration) -> Option<ExitStatus> {
        let mut status = None;
        holds_within(bound, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status
    }

    /// SIGTERM, and the clean end that must follow: exit code 0 and no process left.
    #[track_caller]
    pub fn drain(&mut self) {
        let tree = process::tree(self.supervisor());
        self.terminate();
        let status = self.wait_exit(Duration::from_secs(40));
        assert_eq!(status.and_then(|s| s.code()), Some(0), "exit after SIGTERM; log:\n{}", self.log_text());
        eventually("no process is left", || !tree.iter().any(|&pid| process::alive(pid)));
    }

    /// Kills supervisor and data process at once, as a machine's crash would.
    pub fn kill_all(&mut self) {
        let tree = process::tree(self.supervisor());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in tree.into_iter().skip(1).filter(|&pid| process::alive(pid)) {
            process::signal(pid, libc::SIGKILL);
            holds_within(SOON, || !process::alive(pid));
        }
    }

    /// Asked over the socket, which is surely ours: on a port that another process took first, that one may answer.
    fn is_ready(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return false };
        let waits = stream.set_read_timeout(Some(SOON)).is_ok();
        let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut reply = Vec::new();
        let read = stream.write_all(request).and_then(|()| stream.read_to_end(&mut reply));
        waits && read.is_ok() && reply.starts_with(b"HTTP/1.1 200")
    }

    fn wait_ready(&mut self) -> bool {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if self.is_ready() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Lines of the log at warning or error level that the test does not expect.
    fn unexpected_lines(&self) -> Vec<String> {
        let grave = |line: &&String| grave(line) && !self.expected.iter().any(|text| line.contains(text));
        self.log.lock().unwrap().iter().filter(grave).cloned().collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill_all();
        let unexpected = self.unexpected_lines();
        if std::thread::panicking() {
            eprintln!("log of the gateway:\n{}", self.log_text());
        } else {
            assert!(
                unexpected.is_empty(),
                "the log has what the test did not expect:\n{}",
                unexpected.join("\n")
            );
        }
    }
}

/// Whether a line of the log is a warning or worse; a panic's own text counts too.
fn grave(line: &str) -> bool {
    [r#""level":"warn""#, r#""level":"error""#, "panicked at"].iter().any(|mark| line.contains(mark))
}

fn metric(text: &str, name: &str, labels: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = rest.rsplit_once(' ')?;
        let matches = (set.is_empty() || set.starts_with('{')) && set.contains(labels);
        matches.then(|| value.parse::<f64>().ok()).flatten()
    };
    text.lines().filter_map(value).sum()
}

fn spawn(config: &Path, launch: &Launch) -> (Child, Arc<Mutex<Vec<String>>>) {
    let mut command = launch.binary.as_ref().map_or_else(ringfort, |binary| clean(Command::new(binary)));
    command.args(["run", "--config"]).arg(config);
    let stderr = launch.stderr.map_or_else(Stdio::piped, |stderr| stderr());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    command.envs(launch.env.iter().cloned());
    if let Some(limit) = launch.open_files {
        limit_open_files(&mut command, limit);
    }
    let mut child = command.spawn().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    collect(child.stdout.take().unwrap(), log.clone());
    child.stderr.take().into_iter().for_each(|stderr| collect(stderr, log.clone()));
    (child, log)
}

fn limit_open_files(command: &mut Command, limit: u64) {
    use std::os::unix::process::CommandExt;
    let set = move || {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: setrlimit reads one structure that lives across the call and is safe to call after fork.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) };
}

fn collect(from: impl Read + Send + 'static, into: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().push(line);
        }
    });
}

#[test]
fn ports_are_filled_in_by_name() {
    let (text, ports) = with_ports("a = {port:x}, b = {port:y}, c = {port:x}");
    let (x, y) = (ports["x"], ports["y"]);
    assert_eq!(text, format!("a = {x}, b = {y}, c = {x}"));
    assert_ne!(x, y);
}

#[test]
fn a_metric_is_summed_over_its_label_sets() {
    let text =
        "# TYPE a counter\na{w=\"0\",k=\"x\"} 2\na{w=\"1\",k=\"x\"} 3\na{w=\"1\",k=\"y\"} 7\nab 100\nb 5\n";
    assert_eq!(
        (metric(text, "a", "k=\"x\""), metric(text, "a", ""), metric(text, "b", "")),
        (5.0, 12.0, 5.0)
    );
}

#[test]
fn a_warning_in_the_log_is_grave() {
    assert!(grave(r#"{"ts":"2026","level":"warn","message":"x"}"#));
    assert!(grave("thread 'worker-0' panicked at src/x.rs:1:1:"));
    assert!(!grave(r#"{"ts":"2026","level":"info","message":"warn"}"#));
}
