//! What the service manager is told over its notify socket (`sd_notify(3)`), with a stand-in that listens there.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crate::harness::gateway::{Gateway, TempDir};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, SOON, eventually, on_both_engines, process};

on_both_engines!(
    each_state_is_told_when_it_is_reached,
    a_worker_that_stands_still_is_alive_and_a_control_thread_that_does_is_not,
    a_crash_is_told_and_the_watchdog_fed_meanwhile,
);

/// Signs of life are wanted as often as this.
const WATCHDOG: Duration = Duration::from_millis(400);

/// The end of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn new(address: &SocketAddr) -> Self {
        Self(UnixDatagram::bind_addr(address).unwrap())
    }

    /// The next message within `bound`.
    fn next_within(&self, bound: Duration) -> Option<String> {
        let mut bytes = [0; 4_096];
        self.0.set_read_timeout(Some(bound)).unwrap();
        let len = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    /// Passes over messages until one has this line.
    #[track_caller]
    fn wait_for(&self, line: &str) -> String {
        let end = Instant::now() + SOON;
        let mut seen = Vec::new();
        while let Some(message) =
            self.next_within(end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))
        {
            if message.lines().any(|found| found == line) {
                return message;
            }
            seen.push(message);
        }
        panic!("no {line:?} in {seen:?}");
    }
}

fn at_path(dir: &TempDir) -> (Manager, String) {
    let path = dir.path().join("notify");
    (Manager::new(&SocketAddr::from_pathname(&path).unwrap()), path.display().to_string())
}

fn start(engine: Engine, origin: &Origin, socket: &str) -> Gateway {
    let watchdog = WATCHDOG.as_micros().to_string();
    Setup::to(engine, origin)
        .drain(100, 5_000)
        .env("NOTIFY_SOCKET", socket)
        .env("WATCHDOG_USEC", &watchdog)
        .start()
}

fn each_state_is_told_when_it_is_reached(engine: Engine) {
    let origin = Origin::serving();
    let name = format!("ringfort-it-notify-{}-{}", std::process::id(), engine.key());
    let manager = Manager::new(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap());
    let mut gateway = start(engine, &origin, &format!("@{name}"));
    manager.wait_for("READY=1");
    assert_eq!(gateway.get("/").status, 200, "it serves when it says so");
    process::signal(gateway.supervisor(), libc::SIGHUP);
    let reloading = manager.wait_for("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.wait_for("READY=1");
    let environment = std::fs::read(format!("/proc/{}/environ", gateway.data_process())).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        assert!(
            !environment.contains(variable),
            "what the network reaches cannot speak in the service's name"
        );
    }
    gateway.terminate();
    let stopping = manager.wait_for("STOPPING=1");
    let micros = stopping.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
    let micros: u64 = micros.and_then(|text| text.parse().ok()).unwrap_or(0);
    assert!(micros > 5_000_000, "it takes the drain's deadline, and longer: {stopping}");
    assert_eq!(gateway.wait_exit(SOON).and_then(|status| status.code()), Some(0));
}

/// A stolen CPU makes a worker stand; killing the gateway for it would take its connections too.
fn a_worker_that_stands_still_is_alive_and_a_control_thread_that_does_is_not(engine: Engine) {
    let origin = Origin::serving();
    let dir = TempDir::new();
    let (manager, socket) = at_path(&dir);
    let gateway = start(engine, &origin, &socket);
    manager.wait_for("READY=1");
    let data = gateway.data_process();
    let held = process::hold_thread(process::thread(data, "worker-0"));
    let start = Instant::now();
    while start.elapsed() < WATCHDOG * 4 {
        manager.wait_for("WATCHDOG=1");
    }
    drop(held);
    assert_eq!(gateway.get("/").status, 200);

    let held = process::hold_thread(data);
    eventually("no sign of life comes", || manager.next_within(WATCHDOG * 3).is_none());
    drop(held);
    manager.wait_for("WATCHDOG=1");
    assert_eq!(gateway.get("/").status, 200);
}

fn a_crash_is_told_and_the_watchdog_fed_meanwhile(engine: Engine) {
    let origin = Origin::serving();
    let dir = TempDir::new();
    let (manager, socket) = at_path(&dir);
    let mut gateway = start(engine, &origin, &socket);
    gateway.expect_log("data process");
    manager.wait_for("READY=1");
    process::signal(gateway.data_process(), libc::SIGKILL);
    let mut seen = Vec::new();
    while !seen.iter().any(|message: &String| message.contains("STATUS=The data process died (signal 9")) {
        seen.push(manager.next_within(SOON).expect("the crash is told"));
    }
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("READY=1");
    assert_eq!(gateway.get("/").status, 200);
    gateway.drain();
}
