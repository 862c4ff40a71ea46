//! Lost CPU time as an operator sees it: the real binary over a procfs of the test's own, whose counters the test moves.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, TempDir};
use crate::harness::h2::raw::{self, RawClient};
use crate::harness::load::Load;
use crate::harness::message::End;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, SOON, eventually, on_both_engines, process};

on_both_engines!(
    a_stolen_cpu_is_noticed_shown_and_forgotten,
    new_connections_avoid_a_stolen_cpu_while_the_other_is_better,
    nobody_notices_changes_while_connections_are_steered,
    a_queue_that_stands_is_kept_short_in_mode_act_alone,
    long_lived_connections_leave_a_stolen_worker_between_requests,
    a_connection_in_http2_leaves_a_stolen_worker_and_its_streams_finish,
    an_endpoint_is_not_blamed_for_what_came_while_the_worker_stood_still,
);

/// A procfs with two CPUs, each with a share of steal in thousandths, kept up to date as a kernel would.
pub(crate) struct Machine {
    dir: TempDir,
    stolen: Arc<[AtomicU64; 2]>,
    ends: Arc<AtomicBool>,
    mover: Option<JoinHandle<()>>,
    /// Further files that grow, by their nanoseconds in a millisecond.
    waits: Arc<Mutex<Vec<(PathBuf, u64)>>>,
}

impl Machine {
    /// `has_column`: whether there is a column of steal.
    pub(crate) fn new(has_column: bool) -> Self {
        let (dir, stolen) = (TempDir::new(), Arc::new([AtomicU64::new(0), AtomicU64::new(0)]));
        let (ends, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        write_stat(dir.path(), [0.0; 2], 0.0, has_column);
        let mover = std::thread::spawn({
            let (path, stolen, ends, waits) =
                (dir.path().to_owned(), stolen.clone(), ends.clone(), waits.clone());
            move || move_counters(&path, &stolen, &ends, &waits, has_column)
        });
        Self { dir, stolen, ends, mover: Some(mover), waits }
    }

    pub(crate) fn steals(&self, cpu: usize, thousandths: u64) {
        self.stolen[cpu].store(thousandths, Ordering::Relaxed);
    }

    /// Has `schedstat` of a worker's thread tell that it waits.
    fn waits(&self, thread: &str, ns_in_ms: u64) {
        let path = self.dir.path().join("self/task").join(thread).join("schedstat");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        self.waits.lock().unwrap().push((path, ns_in_ms));
    }

    pub(crate) fn sections(&self, steal: &str) -> String {
        format!("[host]\nprocfs = {:?}\n[steal]\n{steal}", self.dir.path())
    }

    fn gateway(&self, engine: Engine, steal: &str) -> Gateway {
        Setup::answering(engine).sections(&self.sections(steal)).start()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.mover.take().map(JoinHandle::join);
    }
}

fn move_counters(
    root: &Path,
    stolen: &[AtomicU64; 2],
    ends: &AtomicBool,
    waits: &Mutex<Vec<(PathBuf, u64)>>,
    has_column: bool,
) {
    let (start, mut last) = (Instant::now(), Instant::now());
    let mut stolen_ms = [0.0; 2];
    while !ends.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
        let now = Instant::now();
        let passed_ms = now.duration_since(last).as_secs_f64() * 1e3;
        for (sum, share) in stolen_ms.iter_mut().zip(stolen) {
            *sum += passed_ms * share.load(Ordering::Relaxed) as f64 / 1e3;
        }
        last = now;
        let passed_ms = start.elapsed().as_millis() as u64;
        write_stat(root, stolen_ms, passed_ms as f64, has_column);
        for (path, ns_in_ms) in waits.lock().unwrap().iter() {
            replace(path, &format!("0 {} 1\n", passed_ms * ns_in_ms));
        }
    }
}

fn write_stat(root: &Path, stolen_ms: [f64; 2], passed_ms: f64, has_column: bool) {
    let mut text = String::from("cpu  0 0 0 0 0 0 0 0 0 0\n");
    for (cpu, stolen_ms) in stolen_ms.into_iter().enumerate() {
        let idle = (passed_ms - stolen_ms).max(0.0) as u64 / 10;
        let steal = if has_column { format!(" {} 0 0", 500 + stolen_ms as u64 / 10) } else { String::new() };
        text.push_str(&format!("cpu{cpu} 100 0 50 {idle} 0 0 0{steal}\n"));
    }
    replace(&root.join("stat"), &(text + "intr 1 2 3\nctxt 4\n"));
}

/// As a kernel's file: never seen half-written.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    // The folder is gone at the end of the test.
    if fs::write(&draft, text).is_ok() {
        let _ = fs::rename(&draft, path);
    }
}

fn steal(gateway: &Gateway) -> Value {
    let text = gateway.admin("/steal").expect("an answer").text();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn a_stolen_cpu_is_noticed_shown_and_forgotten(engine: Engine) {
    let machine = Machine::new(true);
    let gateway = machine.gateway(engine, "");
    eventually("a sample", || steal(&gateway)["sample_age_ms"].is_number());
    let calm = steal(&gateway);
    assert_eq!(
        (&calm["reported"], &calm["mode"], &calm["source"]),
        (&true.into(), &"observe".into(), &"procfs".into())
    );
    machine.steals(0, 300);
    eventually("level 2", || steal(&gateway)["cpus"][0]["level"] == 2);
    gateway.wait_for_log("level of lost CPU time changed");
    eventually("the share is known", || {
        let ratio = steal(&gateway)["cpus"][0]["steal_ratio"].as_f64().unwrap();
        (0.2..0.4).contains(&ratio)
    });
    let shown = steal(&gateway);
    let cpus = shown["cpus"].as_array().unwrap();
    assert_eq!(cpus.len(), 2);
    assert_eq!((&cpus[1]["steal_ratio"], &cpus[1]["worker"]), (&0.0.into(), &Value::Null));
    assert_eq!(cpus[0]["accept_weight"], 1.0, "observing changes nothing");
    assert!(cpus[0]["wait_ratio"].is_null(), "this procfs tells no wait");
    assert_eq!(gateway.workers()[0]["level"], 2);
    assert_eq!(gateway.metric("ringfort_throttle_level", "worker=\"0\""), 2.0);
    assert!(gateway.metric("ringfort_throttle_transitions_total", "to=\"2\"") >= 1.0);
    assert!(gateway.metric("ringfort_cpu_steal_seconds_total", "cpu=\"0\"") > 0.02);
    assert_eq!(gateway.metric("ringfort_cpu_steal_seconds_total", "cpu=\"1\""), 0.0);
    assert_eq!(gateway.metric("ringfort_steal_source", "source=\"procfs\",trusted=\"true\""), 1.0);
    machine.steals(0, 0);
    eventually("calm again", || steal(&gateway)["cpus"][0]["level"] == 0);
    assert_eq!(gateway.get("/").status, 200);
}

#[test]
fn a_machine_without_the_counter_is_not_said_to_lose_nothing() {
    let machine = Machine::new(false);
    let gateway = machine.gateway(Engine::Epoll, "");
    eventually("a sample", || steal(&gateway)["sample_age_ms"].is_number());
    let shown = steal(&gateway);
    assert_eq!((&shown["reported"], &shown["source"]), (&false.into(), &"gap".into()));
    assert!(shown["cpus"][0]["steal_ratio"].is_null() && shown["cpus"][0]["lost_ratio"].is_number());
    let metrics = gateway.admin("/metrics").unwrap().text();
    assert!(!metrics.contains("\nringfort_cpu_steal_ratio{"), "no 0 where nothing is known");
    assert!(metrics.contains("\nringfort_cpu_lost_ratio{cpu=\"0\"}"));
}

#[test]
fn a_counter_that_lies_is_not_believed() {
    let machine = Machine::new(true);
    machine.steals(0, 100);
    let gateway = machine.gateway(Engine::Epoll, "");
    eventually("a sample", || steal(&gateway)["trusted"] == true);
    // From 0 to 100 times what can have passed and back, again and again: after three of them it is not believed.
    eventually("trust is lost", || {
        let before = machine.stolen[0].load(Ordering::Relaxed);
        machine.steals(0, if before == 100 { 900_000 } else { 100 });
        std::thread::sleep(Duration::from_millis(110));
        steal(&gateway)["trusted"] == false
    });
    let shown = steal(&gateway);
    assert!(shown["cpus"][0]["steal_ratio"].is_null(), "{shown}");
    assert_eq!(gateway.metric("ringfort_steal_source", "trusted=\"false\""), 1.0);
}

#[test]
fn what_other_threads_take_is_wait_and_counts_as_lost() {
    let machine = Machine::new(true);
    let gateway = machine.gateway(Engine::Epoll, "");
    let tasks = format!("/proc/{}/task", gateway.data_process());
    let name = |path: &Path| fs::read_to_string(path.join("comm")).unwrap_or_default();
    let threads = fs::read_dir(tasks).unwrap().map(|entry| entry.unwrap().path());
    let worker = threads.into_iter().find(|path| name(path).trim() == "worker-0").expect("a worker");
    machine.waits(worker.file_name().unwrap().to_str().unwrap(), 400_000);
    eventually("level 2", || steal(&gateway)["cpus"][0]["level"] == 2);
    eventually("the share is known", || {
        let shown = steal(&gateway);
        let wait = shown["cpus"][0]["wait_ratio"].as_f64().unwrap_or(0.0);
        (0.3..0.5).contains(&wait) && shown["cpus"][0]["steal_ratio"] == 0.0
    });
    assert!(gateway.metric("ringfort_worker_runqueue_wait_seconds_total", "worker=\"0\"") > 0.1);
}

#[test]
fn the_trace_holds_what_was_read() {
    let machine = Machine::new(true);
    machine.steals(1, 500);
    let gateway = machine.gateway(Engine::Epoll, "");
    let mut rows: Vec<Vec<u64>> = Vec::new();
    eventually("two seconds of trace", || {
        let reply = gateway.admin("/steal?format=csv").unwrap();
        assert_eq!(reply.fields.get("content-type"), Some("text/csv; charset=utf-8"));
        let text = reply.text();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("t_ms,cpu,user,nice,system,idle,iowait,irq,softirq,steal"));
        let row = |line: &str| line.split(',').map(|number| number.parse().unwrap()).collect();
        rows = lines.map(row).collect();
        rows.last().is_some_and(|row| row[0] >= 2_000)
    });
    assert!(rows.iter().all(|row| row.len() == 10 && row[2..5] == [100, 0, 50]));
    assert_eq!((rows[0][0], rows[0][1], rows[1][1]), (0, 0, 1));
    let (first, last) = (&rows[1], &rows[rows.len() - 1]);
    let stolen_ms = (last[9] - first[9]) * 10;
    let passed_ms = last[0] - first[0];
    assert!(stolen_ms * 10 > passed_ms * 4 && stolen_ms * 10 < passed_ms * 6, "{stolen_ms} of {passed_ms}");
    assert_eq!(gateway.admin("/steal?format=xml").unwrap().status, 400);
}

#[test]
fn what_is_turned_off_is_not_measured() {
    let machine = Machine::new(true);
    let gateway = machine.gateway(Engine::Epoll, "mode = \"off\"\n");
    let shown = steal(&gateway);
    assert_eq!((&shown["mode"], &shown["cpus"]), (&"off".into(), &Value::Array(Vec::new())));
    assert!(!gateway.admin("/metrics").unwrap().text().contains("\nringfort_throttle_level{"));
    assert_eq!(gateway.workers()[0]["accept_weight"], 1.0);
}

fn two_workers(machine: &Machine, engine: Engine) -> Option<Gateway> {
    two_workers_of(machine, Setup::answering(engine))
}

/// In mode `act` with a worker on each of the two CPUs; `None` where there are not two.
fn two_workers_of(machine: &Machine, setup: Setup) -> Option<Gateway> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "one CPU is not enough");
        eprintln!("not run: this machine has one CPU");
        return None;
    }
    let setup = setup.sections(&machine.sections("mode = \"act\"\n"));
    Some(Gateway::launch(&setup.text().replace("cpus = \"0\"", "cpus = \"0-1\""), setup.launch))
}

fn accepted(gateway: &Gateway) -> [f64; 2] {
    ["worker=\"0\"", "worker=\"1\""]
        .map(|worker| gateway.metric("ringfort_worker_connections_accepted_total", worker))
}

/// New connections that each worker got of 200.
fn spread(gateway: &Gateway) -> [f64; 2] {
    let before = accepted(gateway);
    for _ in 0..200 {
        assert_eq!(gateway.get("/").status, 200);
    }
    let after = accepted(gateway);
    [after[0] - before[0], after[1] - before[1]]
}

fn new_connections_avoid_a_stolen_cpu_while_the_other_is_better(engine: Engine) {
    let machine = Machine::new(true);
    let Some(gateway) = two_workers(&machine, engine) else { return };
    let even = spread(&gateway);
    assert!(even[0] > 50.0 && even[1] > 50.0, "{even:?}");
    machine.steals(0, 600);
    eventually("worker 0 gets less", || gateway.workers()[0]["accept_weight"].as_f64() < Some(0.65));
    let shown = steal(&gateway);
    assert_eq!(shown["mode"], "act");
    assert!(shown["cpus"][1]["accept_weight"].as_f64() > Some(1.2), "{shown}");
    let steered = spread(&gateway);
    assert!(steered[0] > 0.0 && steered[0] < 85.0, "less, never nothing: {steered:?}");
    machine.steals(0, 0);
    eventually("both get the same", || gateway.workers()[0]["accept_weight"] == 1.0);
    let even = spread(&gateway);
    assert!(even[0] > 50.0 && even[1] > 50.0, "{even:?}");
}

/// What one worker takes from another's queue, it answers, whatever becomes of the listeners.
fn nobody_notices_changes_while_connections_are_steered(engine: Engine) {
    let (machine, origin) = (Machine::new(true), Origin::serving());
    let Some(mut gateway) = two_workers_of(&machine, Setup::to(engine, &origin)) else { return };
    machine.steals(0, 600);
    let is_steered = |gateway: &Gateway| gateway.workers()[0]["accept_weight"].as_f64() < Some(0.65);
    eventually("worker 0 gets less", || is_steered(&gateway));
    let port = gateway.web();
    let clients = Load::start().new_connections(port).new_connections(port).keep_alive(port);
    clients.goes_on(100);
    gateway.reload();
    clients.goes_on(100);
    gateway.upgrade();
    eventually("worker 0 of the next process gets less", || is_steered(&gateway));
    clients.goes_on(100);
    clients.stop();
    gateway.drain();
}

#[test]
fn what_all_cpus_lose_alike_moves_no_connection() {
    let machine = Machine::new(true);
    let Some(gateway) = two_workers(&machine, Engine::Epoll) else { return };
    machine.steals(0, 400);
    machine.steals(1, 400);
    eventually("both are at level 2", || gateway.workers().iter().all(|worker| worker["level"] == 2));
    assert!(gateway.workers().iter().all(|worker| worker["accept_weight"] == 1.0));
}

#[test]
fn a_data_process_that_died_leaves_no_preference_behind() {
    let machine = Machine::new(true);
    let Some(mut gateway) = two_workers(&machine, Engine::Epoll) else { return };
    machine.steals(0, 900);
    eventually("worker 0 gets less", || gateway.workers()[0]["accept_weight"].as_f64() < Some(0.5));
    machine.steals(0, 0);
    gateway.expect_log("data process");
    let before = gateway.data_process();
    process::signal(before, libc::SIGKILL);
    eventually("another one serves", || {
        gateway.data_process() != before && gateway.admin("/readyz").is_ok_and(|reply| reply.status == 200)
    });
    let even = spread(&gateway);
    assert!(even[0] > 50.0 && even[1] > 50.0, "{even:?}");
}

/// So many connections that have each been answered once.
fn crowd(gateway: &Gateway, count: usize) -> Vec<Client> {
    let connect = |_| {
        let mut client = gateway.client();
        assert_eq!(client.get("/").status, 200);
        client
    };
    (0..count).map(connect).collect()
}

fn drained(gateway: &Gateway, worker: usize) -> f64 {
    gateway.metric("ringfort_drain_total", &format!("worker=\"{worker}\",reason=\"steal\""))
}

fn long_lived_connections_leave_a_stolen_worker_between_requests(engine: Engine) {
    let (machine, origin) = (Machine::new(true), Origin::serving());
    let Some(gateway) = two_workers_of(&machine, Setup::to(engine, &origin).relay("")) else { return };
    let mut clients = crowd(&gateway, 300);
    let mut relays: Vec<Client> = (0..8).map(|_| Client::connect(gateway.port("relay"))).collect();
    // Responses that have begun and stand in the way of nobody until their clients read on.
    let mut slow: Vec<Client> = (0..8).map(|_| gateway.client()).collect();
    slow.iter_mut().for_each(|client| client.send("GET /bytes/3000000 HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    machine.steals(0, 600);
    eventually("steering", || gateway.workers()[0]["accept_weight"].as_f64() < Some(0.8));
    let (mut responses, mut asked_to_leave) = (0, 0);
    eventually("some are asked to leave", || {
        for client in &mut clients {
            let response = client.get("/x");
            assert_eq!((response.status, response.end), (200, End::Complete));
            responses += 1;
            if response.closes() {
                client.expect_end();
                asked_to_leave += 1;
                *client = gateway.client();
            }
        }
        asked_to_leave >= 4
    });
    assert!(asked_to_leave * 20 <= responses, "{asked_to_leave} of {responses}");
    gateway.wait_for_metric("ringfort_drain_total", "worker=\"0\",reason=\"steal\"", |count| {
        count + drained(&gateway, 1) == f64::from(asked_to_leave)
    });
    assert!(drained(&gateway, 0) > drained(&gateway, 1));
    gateway.wait_for_metric("ringfort_sessions_ended_total", "reason=\"moved\"", |count| count > 0.0);
    for client in &mut slow {
        let response = client.read_response();
        assert_eq!(
            (response.body_len, response.end),
            (3_000_000, End::Complete),
            "I1: cut off by the control loop"
        );
    }
    assert!(relays.iter_mut().all(|relay| relay.get("/y").status == 200 && !relay.get("/z").closes()));
}

fn a_connection_in_http2_leaves_a_stolen_worker_and_its_streams_finish(engine: Engine) {
    let (machine, origin) = (Machine::new(true), Origin::serving());
    let Some(gateway) = two_workers_of(&machine, Setup::to(engine, &origin)) else { return };
    let crowd = crowd(&gateway, 300);
    let get = |stream, path| {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a.test")];
        raw::frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, stream, &raw::block(&fields))
    };
    // Before the theft, after which few come to worker 0: one in a thousand times none of them is there.
    let connect = |_| {
        let mut client = RawClient::connect(gateway.web());
        client.send(&get(1, "/"));
        client.until(|frame| frame.flags & raw::END_STREAM != 0 && frame.stream == 1).expect("an answer");
        (client, 5)
    };
    let mut clients: Vec<(RawClient, u32)> = (0..10).map(connect).collect();
    machine.steals(0, 600);
    eventually("steering", || gateway.workers()[0]["accept_weight"].as_f64() < Some(0.8));
    clients.iter_mut().for_each(|(client, _)| client.send(&get(3, "/late/9000")));
    let goes_away = |(client, next): &mut (RawClient, u32)| {
        let stream = std::mem::replace(next, *next + 2);
        client.send(&get(stream, "/x"));
        let ends = |frame: &raw::Frame| frame.stream == stream && frame.flags & raw::END_STREAM != 0;
        let frame =
            client.until(|frame| ends(frame) || frame.kind == raw::GOAWAY).expect("the connection lives");
        (frame.kind == raw::GOAWAY).then_some((stream, frame))
    };
    let mut gone = None;
    eventually("one is asked to leave", || {
        gone = clients.iter_mut().enumerate().find_map(|(at, client)| Some((at, goes_away(client)?)));
        gone.is_some()
    });
    let (at, (stream, goaway)) = gone.expect("found");
    assert_eq!((goaway.code(), &goaway.payload[..4]), (Some(0), &[0x7f, 0xff, 0xff, 0xff][..]));
    let client = &mut clients[at].0;
    let mut finished = Vec::new();
    while let Some(frame) = client.next() {
        match frame.kind {
            raw::PING if frame.flags == 0 => client.send(&raw::frame(raw::PING, 1, 0, &frame.payload)),
            raw::DATA if frame.flags & raw::END_STREAM != 0 => finished.push(frame.stream),
            raw::GOAWAY => assert_eq!(frame.code(), Some(0)),
            kind => assert_ne!(kind, raw::RST_STREAM),
        }
    }
    assert!(finished.contains(&3), "I1: stream 3 of {stream} was under way: {finished:?}");
    drop(crowd);
}

fn an_endpoint_is_not_blamed_for_what_came_while_the_worker_stood_still(engine: Engine) {
    let silent = [0, 1].map(|_| Origin::start(|peer| while peer.read_request().is_some() {}));
    let setup = Setup::to_all(engine, &[silent[0].address(), silent[1].address()]);
    let gateway = setup.request_timeout_ms(400).ejection(1, 10_000).start();
    let data = gateway.data_process();
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("an endpoint has it", || silent[0].requests().len() + silent[1].requests().len() == 1);
    // As a hypervisor that takes all CPUs away, past the endpoint's deadline.
    process::signal(data, libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(600));
    process::signal(data, libc::SIGCONT);
    assert_eq!(client.read_response().status, 504);
    assert_eq!(gateway.metric("ringfort_upstream_failures_excused_total", ""), 1.0);
    assert_eq!(gateway.metric("ringfort_upstream_ejections_total", ""), 0.0);
    // The same without a stall, of which this machine may have some of its own.
    eventually("the endpoint is ejected", || {
        assert_eq!(client.get("/").status, 504);
        gateway.metric("ringfort_upstream_ejections_total", "") == 1.0
    });
}

/// Statuses of answers to more than one worker can do at once: 400 connections with 50 requests each, sent ahead.
fn flood(gateway: &Gateway) -> (usize, usize) {
    const REQUESTS: usize = 50;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".repeat(REQUESTS);
    let connect = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port("web"))).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let streams: Vec<TcpStream> = (0..400).map(connect).collect();
    let (mut served, mut shed) = (0, 0);
    for mut stream in streams {
        let (mut text, mut piece) = (String::new(), [0; 16_384]);
        while text.matches("HTTP/1.1 ").count() < REQUESTS {
            let read = stream.read(&mut piece).unwrap();
            assert!(read > 0, "the connection is kept: {text}");
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
        served += text.matches("HTTP/1.1 200 ").count();
        shed += text.matches("HTTP/1.1 503 ").count();
        let told = text.matches("Retry-After: 1").count()
            + text.matches("Retry-After: 2").count()
            + text.matches("Retry-After: 3").count();
        // The last answer may not be whole yet.
        assert!(text.matches("HTTP/1.1 503 ").count() - told <= 1, "{text}");
    }
    (served, shed)
}

fn a_queue_that_stands_is_kept_short_in_mode_act_alone(engine: Engine) {
    let machine = Machine::new(true);
    let gateway = machine.gateway(engine, "mode = \"act\"\nlatency_objective_ms = 1\n");
    let (mut served, mut shed) = (0, 0);
    eventually("some is shed", || {
        let flood = flood(&gateway);
        (served, shed) = (served + flood.0, shed + flood.1);
        shed > 0
    });
    assert!(served > 0, "never all");
    let of_requests = "worker=\"0\",stage=\"request\",proto=\"http1\",reason=\"age\"";
    gateway.wait_for_metric("ringfort_shed_total", of_requests, |count| count == shed as f64);
    assert_eq!(gateway.get("/").status, 200, "a worker with nothing to do takes all");
    let gateway = machine.gateway(engine, "mode = \"observe\"\nlatency_objective_ms = 1\n");
    assert_eq!(flood(&gateway).1, 0);
    assert_eq!(gateway.metric("ringfort_shed_total", ""), 0.0);
}

#[test]
fn a_browser_gets_a_page_that_needs_nothing_else() {
    let machine = Machine::new(true);
    let gateway = machine.gateway(Engine::Epoll, "");
    eventually("a sample", || steal(&gateway)["sample_age_ms"].is_number());
    let mut client = Client::connect(gateway.port("admin"));
    client.send("GET /steal HTTP/1.1\r\nHost: localhost\r\nAccept: text/html,application/xhtml+xml\r\n\r\n");
    let page = client.read_response();
    let text = page.text();
    assert_eq!(page.fields.get("content-type"), Some("text/html; charset=utf-8"));
    assert!(text.contains("<svg") && text.contains("CPU 1") && text.contains("source: procfs"), "{text}");
    for outside in ["http://", "https://", "<script", "src="] {
        assert!(!text.contains(outside), "{outside}");
    }
}
