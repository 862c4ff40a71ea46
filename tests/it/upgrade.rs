//! Another binary in place of the one that runs: nobody notices, one service all the time, and where the other one cannot
//! take over everything stays as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, Launch, TempDir, install, install_script};
use crate::harness::h2;
use crate::harness::load::Load;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki};
use crate::harness::{Engine, eventually, on_both_engines, process};

on_both_engines!(
    another_binary_takes_over_and_the_service_stays_one_process,
    what_the_old_one_accepted_it_serves_and_tells_to_leave,
    a_changed_configuration_comes_with_the_new_binary,
    sockets_of_fewer_workers_are_all_served,
    a_crash_after_an_upgrade_is_followed_by_a_restart,
    a_stop_while_the_old_one_still_serves_ends_both,
);

fn answering(engine: Engine, body: &str) -> Setup {
    Setup::new(engine).route(&format!("respond = {{ status = 200, body = \"{body}\" }}"))
}

fn upgrades(gateway: &Gateway) -> f64 {
    gateway.metric("ringfort_process_upgrades", "")
}

fn another_binary_takes_over_and_the_service_stays_one_process(engine: Engine) {
    let mut gateway = Setup::answering(engine).start();
    let (supervisor, first) = (gateway.supervisor(), gateway.data_process());
    gateway.upgrade();
    assert_eq!(gateway.get("/").status, 200);
    let second = gateway.data_process();
    assert!(first != second && process::alive(supervisor));
    assert_eq!((upgrades(&gateway), gateway.metric("ringfort_process_restarts", "")), (1.0, 0.0));
    // By signal as well.
    process::signal(supervisor, libc::SIGUSR2);
    eventually("a third one serves", || upgrades(&gateway) == 2.0);
    assert_ne!(gateway.data_process(), second);
    // All that can be asked for goes on.
    gateway.reload_to(&answering(engine, "reloaded").text());
    assert_eq!(gateway.get("/").text(), "reloaded");
    assert_eq!(gateway.metric("ringfort_last_upgrade_successful", ""), 1.0);
    gateway.drain();
}

fn what_the_old_one_accepted_it_serves_and_tells_to_leave(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).drain(5_000, 20_000).start();
    let old = gateway.data_process();
    let (mut idle, mut busy) = (gateway.client(), gateway.client());
    assert_eq!(idle.get("/1").status, 200);
    busy.send("GET /late/700 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the request is at the origin", || origin.targets().iter().any(|at| at == "/late/700"));
    let mut streams = h2::raw::RawClient::connect(gateway.web());
    gateway.upgrade();
    assert_eq!(gateway.get("/new").status, 200, "the new one serves beside it");
    // Its worker hears of it a moment later than whoever asked for the upgrade.
    eventually("it is told to leave", || {
        let told = idle.get("/2");
        assert_eq!(told.status, 200);
        told.closes()
    });
    idle.expect_end();
    let told = busy.read_response();
    assert_eq!((told.status, told.closes()), (200, true));
    streams.until(|frame| frame.kind == 7).expect("a GOAWAY");
    drop(streams);
    eventually("the old one has left", || !process::alive(old));
    gateway.drain();
}

fn a_changed_configuration_comes_with_the_new_binary(engine: Engine) {
    let late = "[[listener]]\nname = \"late\"\nlisten = \"127.0.0.1:{port:late}\"\n\
                [[route]]\nlistener = \"late\"\nrespond = { status = 200, body = \"late\" }\n";
    let mut gateway = answering(engine, "old").start();
    gateway.expect_log("the upgrade did not come about");
    let data = gateway.data_process();
    gateway.rewrite(&answering(engine, "new").text().replace("status = 200", "statu = 200"));
    let (code, printed) = gateway.try_upgrade();
    assert!(code == Some(1) && printed.contains("did you mean \"status\"?"), "{printed}");
    let ready = gateway.admin("/readyz").unwrap();
    assert!(ready.status == 200 && ready.text().contains("upgrade"), "{}", ready.text());
    assert_eq!(gateway.metric("ringfort_last_upgrade_successful", ""), 0.0);
    assert_eq!((gateway.get("/").text(), gateway.data_process()), ("old".to_owned(), data));
    // What a reload cannot change comes as well.
    let other = match engine {
        Engine::Epoll => "cpus = \"0-1\"",
        Engine::IoUring => "cpus = \"1\"",
    };
    let text = answering(engine, "new").sections(late).text();
    gateway.rewrite(&text.replace("cpus = \"0\"", other));
    gateway.upgrade();
    eventually("only the new one accepts", || gateway.get("/").text() == "new");
    assert_eq!(Client::connect(gateway.port("late")).get("/").text(), "late");
    assert_eq!(gateway.workers().last().expect("a worker")["cpu"], 1);
    gateway.drain();
}

fn sockets_of_fewer_workers_are_all_served(engine: Engine) {
    let origin = Origin::serving();
    // Long: a connection that one of those before accepts last is to be idle for as long as this test takes.
    let setup = || Setup::to(engine, &origin).drain(20_000, 30_000);
    let text = |cpus: &str| setup().text().replace("cpus = \"0\"", cpus);
    let mut gateway = setup().start();
    let load =
        Load::start().keep_alive(gateway.web()).new_connections(gateway.web()).new_connections(gateway.web());
    for (round, cpus) in
        ["cpus = \"0-1\"", "cpus = \"1\"", "cpus = \"0-1\"", "cpus = \"0\""].iter().enumerate()
    {
        load.goes_on(20);
        gateway.rewrite(&text(cpus));
        gateway.upgrade();
        let workers = if round % 2 == 0 { 2 } else { 1 };
        assert_eq!(gateway.workers().len(), workers);
    }
    // Enough for every socket to get some, wherever the kernel puts them.
    let mut clients: Vec<Client> = (0..64).map(|_| gateway.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    drop(clients);
    load.goes_on(20);
    load.stop();
    gateway.drain();
}

fn a_crash_after_an_upgrade_is_followed_by_a_restart(engine: Engine) {
    let mut gateway = Setup::answering(engine).start();
    gateway.expect_log("data process");
    gateway.upgrade();
    let data = gateway.data_process();
    process::signal(data, libc::SIGKILL);
    eventually("it is gone", || process::is_gone(data));
    assert_eq!(gateway.get("/").status, 200, "it waited for the next one");
    eventually("the restart is counted", || gateway.metric("ringfort_process_restarts", "") == 1.0);
    gateway.upgrade();
    assert_eq!(gateway.get("/").status, 200);
    gateway.drain();
}

fn a_stop_while_the_old_one_still_serves_ends_both(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).drain(200, 10_000).start();
    let old = gateway.data_process();
    let mut busy = gateway.client();
    busy.send("GET /late/1500 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the request is at the origin", || origin.targets().iter().any(|at| at == "/late/1500"));
    gateway.upgrade();
    assert!(process::alive(old));
    gateway.terminate();
    assert_eq!(busy.read_response().status, 200, "what the old one accepted is finished");
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)).and_then(|status| status.code()), Some(0));
    assert!(!process::alive(old));
}

/// A gateway whose binary can be replaced.
fn installed() -> (Gateway, PathBuf, TempDir) {
    installed_with(&Setup::answering(Engine::Epoll).text())
}

fn installed_with(text: &str) -> (Gateway, PathBuf, TempDir) {
    let dir = TempDir::new();
    let binary = dir.path().join("ringfort");
    install(&binary);
    let gateway = Gateway::launch(text, Launch { binary: Some(binary.clone()), ..Launch::default() });
    (gateway, binary, dir)
}

/// Puts a script in place of the binary, which the real one serves `else`.
fn replace(binary: &Path, real: &Path, script: &str) {
    install_script(binary, &script.replace("REAL", &real.display().to_string()));
}

#[test]
fn a_binary_that_cannot_take_over_changes_nothing_and_is_told_of() {
    let (mut gateway, binary, dir) = installed();
    gateway.expect_log("the upgrade did not come about");
    let real = dir.path().join("real");
    install(&real);
    let data = gateway.data_process();
    let mut kept = gateway.client();
    let table = [
        ("echo no such library >&2; exit 127", "no such library"),
        ("exit 0", "ended without saying what it needs"),
        ("exec sleep 60", "did not say within 10 s"),
        ("[ \"$1\" = __data ] && exit 3; exec REAL \"$@\"", "ended before it served"),
        ("[ \"$1\" = __data ] && kill -SEGV $$; exec REAL \"$@\"", "ended before it served"),
    ];
    for (script, told) in table {
        replace(&binary, &real, script);
        let (code, printed) = gateway.try_upgrade();
        assert!(code == Some(1) && printed.contains(told), "{script}: {printed}");
        let ready = gateway.admin("/readyz").unwrap();
        assert!(ready.status == 200 && ready.text().contains(told), "{}", ready.text());
        assert_eq!((kept.get("/").closes(), gateway.get("/").status), (false, 200), "{script}");
        assert_eq!(gateway.data_process(), data, "{script}");
    }
    fs::remove_file(&binary).unwrap();
    let (code, printed) = gateway.try_upgrade();
    assert!(code == Some(1) && printed.contains("cannot be run: No such file"), "{printed}");
    assert_eq!(gateway.metric("ringfort_last_upgrade_successful", ""), 0.0);
    install(&binary);
    gateway.upgrade();
    assert_eq!((kept.get("/").closes(), gateway.get("/").status, upgrades(&gateway)), (true, 200, 1.0));
    gateway.drain();
}

#[test]
fn a_data_process_that_hangs_before_it_serves_is_given_up() {
    let (mut gateway, binary, dir) = installed();
    gateway.expect_log("the upgrade did not come about");
    let real = dir.path().join("real");
    install(&real);
    let data = gateway.data_process();
    replace(&binary, &real, "[ \"$1\" = __data ] && exec sleep 300; exec REAL \"$@\"");
    let (code, printed) = gateway.try_upgrade();
    assert!(code == Some(1) && printed.contains("did not serve within 30 s"), "{printed}");
    assert_eq!((gateway.get("/").status, gateway.data_process()), (200, data));
    gateway.drain();
}

#[test]
fn sockets_of_further_workers_get_no_connections_before_these_serve() {
    let (mut gateway, binary, dir) = installed();
    gateway.expect_log("the upgrade did not come about");
    let (real, go) = (dir.path().join("real"), dir.path().join("go"));
    install(&real);
    let supervisor = gateway.supervisor();
    let text = Setup::answering(Engine::Epoll).text();
    gateway.rewrite(&text.replace("cpus = \"0\"", "cpus = \"0-1\""));
    let hangs = format!("while [ ! -e {} ]; do sleep 0.02; done\nexit 3", go.display());
    replace(&binary, &real, &format!("if [ \"$1\" = __data ]; then\n{hangs}\nfi\nexec REAL \"$@\""));
    process::signal(supervisor, libc::SIGUSR2);
    eventually("the candidate was sent its sockets", || process::thread_waits(supervisor, "candidate"));
    for _ in 0..40 {
        assert_eq!(gateway.get("/").status, 200);
    }
    fs::write(go, "").unwrap();
    gateway.wait_for_log("the upgrade did not come about");
    install(&binary);
    gateway.upgrade();
    assert_eq!(gateway.workers().len(), 2);
    // Enough for every socket to get some, wherever the kernel puts them.
    let mut clients: Vec<Client> = (0..64).map(|_| gateway.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let served: f64 = gateway.metric("ringfort_worker_connections_accepted_total", "worker=\"1\"");
    assert!(served > 0.0);
    drop(clients);
    gateway.drain();
}

/// Both accept from when the new one is ready until the supervisor is executed, which may fail yet.
#[test]
fn what_a_candidate_accepted_is_finished_where_it_is_given_up() {
    let origin = Origin::serving();
    let (mut gateway, binary, dir) =
        installed_with(&Setup::to(Engine::Epoll, &origin).drain(200, 20_000).text());
    gateway.expect_log("the upgrade did not come about");
    let (real, go) = (dir.path().join("real"), dir.path().join("go"));
    install(&real);
    let (old, supervisor) = (gateway.data_process(), gateway.supervisor());
    let script = format!(
        "if [ \"$1\" = __data ]; then\nchmod 644 {}\nwhile [ ! -e {} ]; do sleep 0.02; done\nfi\nexec REAL \"$@\"",
        binary.display(),
        go.display(),
    );
    replace(&binary, &real, &script);
    process::signal(supervisor, libc::SIGUSR2);
    eventually("the candidate was sent its sockets", || process::thread_waits(supervisor, "candidate"));
    // Nobody else is to take the connection, nor to hear that the candidate is ready.
    process::stop(supervisor);
    process::stop(old);
    fs::write(go, "").unwrap();
    let mut busy = gateway.client();
    busy.send("GET /late/4000 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the request is at the origin", || origin.targets().iter().any(|at| at == "/late/4000"));
    process::signal(old, libc::SIGCONT);
    process::signal(supervisor, libc::SIGCONT);
    gateway.wait_for_log("cannot take this one's place: Permission denied");
    assert_eq!(busy.read_response().status, 200);
    assert_eq!((gateway.data_process(), gateway.get("/").status), (old, 200));
    gateway.drain();
}

/// It may have read the file before that was changed.
#[test]
fn a_reload_asked_for_during_an_upgrade_is_done_by_the_new_one() {
    let (mut gateway, binary, dir) = installed_with(&answering(Engine::Epoll, "old").text());
    let (real, began, go) = (dir.path().join("real"), dir.path().join("began"), dir.path().join("go"));
    install(&real);
    let script = format!(
        "if [ \"$1\" = __data ]; then\ntouch {}\nwhile [ ! -e {} ]; do sleep 0.02; done\nfi\nexec REAL \"$@\"",
        began.display(),
        go.display(),
    );
    replace(&binary, &real, &script);
    process::signal(gateway.supervisor(), libc::SIGUSR2);
    eventually("the new one has read the configuration", || began.exists());
    gateway.rewrite(&answering(Engine::Epoll, "new").text());
    process::signal(gateway.supervisor(), libc::SIGHUP);
    gateway.wait_for_log("are read anew");
    fs::write(go, "").unwrap();
    eventually("the changed file is in use", || gateway.get("/").text() == "new");
    gateway.drain();
}

#[test]
fn tickets_stay_good_after_an_upgrade() {
    let pki = Pki::new();
    pki.issue("a", &Leaf::server(&["a.test"]));
    let config = format!(
        "[workers]\ncpus = \"0\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n[listener.tls]\n\
         certificates = [{{ cert = {:?}, key = {:?} }}]\n\
         [[route]]\nrespond = {{ status = 200, body = \"ok\" }}\n",
        pki.path("a.pem"),
        pki.path("a.key"),
    );
    let mut gateway = Gateway::start(&config);
    let resuming = pki.client().resuming();
    assert_eq!(resuming.connect(gateway.web(), "a.test").get("/").text(), "ok");
    gateway.upgrade();
    assert_eq!(resuming.connect(gateway.web(), "a.test").get("/").text(), "ok");
    assert_eq!(gateway.metric("ringfort_tls_resumed_total", ""), 1.0);
    // After a crash as well.
    gateway.expect_log("data process");
    let data = gateway.data_process();
    process::signal(data, libc::SIGKILL);
    eventually("it is gone", || process::is_gone(data));
    assert_eq!(resuming.connect(gateway.web(), "a.test").get("/").text(), "ok");
    assert_eq!(gateway.metric("ringfort_tls_resumed_total", ""), 1.0);
}
