//! Two processes: what happens when one of them dies, and when a second copy is started by mistake.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, Launch, TempDir, install, install_script, ringfort};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, SOON, eventually, on_both_engines, process};

on_both_engines!(
    a_killed_data_process_is_restarted_and_nothing_is_refused,
    endpoints_named_by_names_are_known_before_what_waited_is_taken,
    signals_that_come_while_a_data_process_starts_wait_until_it_serves,
    a_panic_of_a_worker_is_reported_and_restarted,
    a_data_process_that_keeps_dying_is_restarted_with_back_off,
    a_second_copy_says_so_and_exits,
    a_killed_supervisor_takes_all_with_it_and_a_restart_binds_at_once,
    a_stopped_gateway_goes_on_where_it_was,
);

/// Lines that a death of the data process leaves in the log.
fn expect_death(gateway: &mut Gateway) {
    for text in ["data process", "panic"] {
        gateway.expect_log(text);
    }
}

fn a_killed_data_process_is_restarted_and_nothing_is_refused(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).start();
    expect_death(&mut gateway);
    assert_eq!(gateway.get("/").status, 200);
    let supervisor = gateway.supervisor();
    for round in 0..2 {
        let data = gateway.data_process();
        kill(data);
        // While nobody accepts, the kernel queues: no connection may be refused, and each is served.
        let clients: Vec<_> = (0..20).map(|_| gateway.client()).collect();
        for mut client in clients {
            client.send("GET /meanwhile HTTP/1.1\r\nHost: a.test\r\n\r\n");
            let response = client.try_read_response("GET");
            assert!(response.as_ref().is_ok_and(|r| r.status == 200), "round {round}: {response:?}");
        }
        assert_ne!(gateway.data_process(), data);
    }
    assert_eq!(gateway.supervisor(), supervisor);
    eventually("it is ready again", || gateway.admin("/readyz").is_ok_and(|r| r.status == 200));
    gateway.drain();
}

/// Kills a data process, and waits until it has ended. What a dying process still accepts dies with it, as what it had
/// accepted before. Its main thread may be gone before its workers are: it has ended when it is reaped.
fn kill(data: u32) {
    process::signal(data, libc::SIGKILL);
    while !process::is_gone(data) {
        std::hint::spin_loop();
    }
}

fn endpoints_named_by_names_are_known_before_what_waited_is_taken(engine: Engine) {
    let origin = Origin::serving();
    let setup = Setup::to_all(engine, &[format!("localhost:{}", origin.port())]);
    // The first worker serves while the second is still made.
    let mut gateway = Gateway::start(&setup.text().replace("cpus = \"0\"", "cpus = \"0-1\""));
    expect_death(&mut gateway);
    // Where it stands for ::1 too, nobody listens there.
    gateway.expect_log("eject");
    eventually("the name is resolved", || gateway.get("/").status == 200);
    kill(gateway.data_process());
    let mut clients: Vec<_> = (0..40).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send("GET /meanwhile HTTP/1.1\r\nHost: a.test\r\n\r\n");
    }
    for client in &mut clients {
        let response = client.try_read_response("GET");
        assert!(response.as_ref().is_ok_and(|r| r.status == 200), "{response:?}");
    }
    gateway.drain();
}

fn signals_that_come_while_a_data_process_starts_wait_until_it_serves(engine: Engine) {
    let answering =
        |body: &str| Setup::new(engine).route(&format!("respond = {{ status = 200, body = \"{body}\" }}"));
    let mut gateway = answering("old").start();
    expect_death(&mut gateway);
    let supervisor = gateway.supervisor();
    gateway.rewrite(&answering("new").text());
    kill(gateway.data_process());
    // At once, and again and again from the first moment of the next one on.
    process::signal(supervisor, libc::SIGHUP);
    eventually("it serves again", || {
        (0..200).for_each(|_| process::signal(supervisor, libc::SIGUSR1));
        gateway.admin("/readyz").is_ok_and(|ready| ready.status == 200)
    });
    eventually("the new configuration is in use", || gateway.get("/").text() == "new");
    assert_eq!(gateway.metric("ringfort_process_restarts", ""), 1.0, "no signal has ended it");
    gateway.drain();
}

/// Started as a service manager starts it: by a user who may do nothing but listen on low ports.
#[test]
fn only_the_supervisor_keeps_the_capability_to_open_sockets() {
    const AS_SERVICE: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups \
                              --inh-caps +net_bind_service --ambient-caps +net_bind_service --";
    let can = |script: &str| Command::new("sh").args(["-c", script]).status().is_ok_and(|it| it.success());
    if !can(&format!("{AS_SERVICE} true 2>/dev/null")) {
        eprintln!("not run: it takes root and setpriv(1)");
        return;
    }
    let dir = TempDir::new();
    let (binary, script) = (dir.path().join("ringfort"), dir.path().join("as-service"));
    install(&binary);
    // The folder of the configuration, for the admin socket.
    let text = format!("chmod 777 \"${{3%/*}}\"\nexec {AS_SERVICE} {} \"$@\"\n", binary.display());
    install_script(&script, &text);
    let text = Setup::answering(Engine::Epoll).text();
    let mut gateway = Gateway::launch(&text, Launch { binary: Some(script), ..Launch::default() });
    let capabilities = |pid: u32| -> Vec<String> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let sets = ["CapPrm:\t", "CapEff:\t", "CapAmb:\t", "NoNewPrivs:\t"];
        let field = |set: &&str| status.lines().find_map(|line| line.strip_prefix(set)).map(str::to_owned);
        sets.iter().filter_map(field).collect()
    };
    let (one, none) = ("0000000000000400", "0000000000000000");
    assert_eq!(capabilities(gateway.supervisor())[..3], [one, one, one]);
    assert_eq!(capabilities(gateway.data_process()), [none, none, none, "1"]);
    gateway.upgrade();
    eventually("the new one serves alone", || process::children(gateway.supervisor()).len() == 1);
    assert_eq!(capabilities(gateway.data_process()), [none, none, none, "1"]);
    assert_eq!(gateway.get("/").status, 200);
    gateway.drain();
}

fn a_panic_of_a_worker_is_reported_and_restarted(engine: Engine) {
    if !cfg!(debug_assertions) {
        return;
    }
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).env("RINGFORT_TEST_PANIC", "1").start();
    expect_death(&mut gateway);
    gateway.expect_log("worker");
    let data = gateway.data_process();
    let mut client = gateway.client();
    client.send("GET /__panic_worker HTTP/1.1\r\nHost: a.test\r\n\r\n");
    client.expect_end();
    gateway.wait_for_log("panic");
    let start = Instant::now();
    assert_eq!(gateway.get("/after").status, 200, "queued until the new data process serves it");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_ne!(gateway.data_process(), data);
}

fn a_data_process_that_keeps_dying_is_restarted_with_back_off(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).start();
    expect_death(&mut gateway);
    let start = Instant::now();
    let mut deaths = 0;
    while start.elapsed() < Duration::from_secs(3) {
        for pid in process::children(gateway.supervisor()).into_iter().filter(|&pid| process::alive(pid)) {
            process::signal(pid, libc::SIGKILL);
            deaths += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!((2..60).contains(&deaths), "{deaths} restarts in three seconds");
    let mut client = gateway.client();
    client.read_timeout(SOON * 3);
    assert_eq!(client.get("/").status, 200, "it comes back when it is left alone");
}

/// R31: never two copies that share the connections silently.
fn a_second_copy_says_so_and_exits(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let start = Instant::now();
    let output = ringfort().args(["run", "--config"]).arg(gateway.config()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(text.contains("in use"), "{text}");
    let port = gateway.web().to_string();
    let admin = gateway.port("admin").to_string();
    assert!(text.contains(&port) || text.contains(&admin) || text.contains("admin.sock"), "{text}");
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status, 200, "the first copy serves on, alone");
    }
}

/// R6: `kill -9` of the supervisor ends the data process; a new start binds within a second.
fn a_killed_supervisor_takes_all_with_it_and_a_restart_binds_at_once(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).relay("").start();
    let mut kept: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    for client in &mut kept {
        assert_eq!(client.get("/").status, 200);
    }
    let data = gateway.data_process();
    process::signal(gateway.supervisor(), libc::SIGKILL);
    eventually("the supervisor is gone", || gateway.wait_exit(Duration::ZERO).is_some());
    let start = Instant::now();
    gateway.restart();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "ready after {took:?}");
    assert!(!process::alive(data), "the old data process is gone");
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(process::tree(gateway.supervisor()).len(), 2);
}

/// R24: stopped for a while and continued, as a paused machine is.
fn a_stopped_gateway_goes_on_where_it_was(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).request_timeout_ms(4000).start();
    let data = gateway.data_process();
    let mut idle: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    let mut busy = gateway.client();
    busy.send("GET /late/500 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the request is at the origin", || {
        origin.targets().iter().any(|target| target == "/late/500")
    });
    process::stop(data);
    std::thread::sleep(Duration::from_millis(2500));
    let mut new: Client = gateway.client();
    new.send("GET /new HTTP/1.1\r\nHost: a.test\r\n\r\n");
    process::signal(data, libc::SIGCONT);
    assert_eq!(busy.read_response().status, 200);
    assert_eq!(new.read_response().status, 200);
    for client in &mut idle {
        assert_eq!(client.get("/again").status, 200, "no deadline that had not passed has fired");
    }
    let before = process::cpu_ticks(data);
    std::thread::sleep(Duration::from_secs(1));
    let ticks = process::cpu_ticks(data) - before;
    assert!(ticks < 20, "{ticks} ticks of CPU in an idle second");
}
