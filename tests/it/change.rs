//! Reloads and upgrades under clients of every kind: none of them notices, and nothing is left behind. A few of each;
//! `$RINGFORT_CHANGES=20,10` asks for so many reloads and upgrades.

use crate::harness::gateway::Gateway;
use crate::harness::h2::H2Origin;
use crate::harness::load::Load;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines, process, websocket};

on_both_engines!(nobody_notices_reloads_and_upgrades,);

struct Endpoints {
    origin: Origin,
    streams: H2Origin,
    chat: Origin,
}

/// Everything through one gateway, by path. Rounds differ in a route, a cluster, and whether there is a second listener.
fn setup(engine: Engine, to: &Endpoints, round: usize) -> Setup {
    let more = "[[listener]]\nname = \"more\"\nlisten = \"127.0.0.1:{port:more}\"\n\
                [[route]]\nlistener = \"more\"\nrespond = { status = 200 }\n";
    Setup::new(engine)
        .route("path_prefix = \"/chat\"\ncluster = \"chat\"\ntunnels = [\"websocket\"]")
        .route("path_prefix = \"/echo\"\ncluster = \"streams\"")
        .route(&format!("path_prefix = \"/round/{round}\"\nrespond = {{ status = 200 }}"))
        .route("cluster = \"site\"")
        .cluster("chat", &[to.chat.address()])
        .sections(&format!(
            "[[cluster]]\nname = \"streams\"\nprotocol = \"h2\"\nendpoints = [\"{}\"]\n\
             [[cluster]]\nname = \"site\"\nendpoints = [\"{}\"]\nrequest_timeout_ms = {}\n",
            to.streams.address(),
            to.origin.address(),
            20_000 + round
        ))
        .sections(if round.is_multiple_of(2) { more } else { "" })
        .drain(1_000, 120_000)
}

fn load(gateway: &Gateway) -> Load {
    let port = gateway.web();
    let load = Load::start()
        .keep_alive(port)
        .keep_alive(port)
        .new_connections(port)
        .streams(port)
        .websocket(port, true)
        .call(port, "/echo");
    load.goes_on(100);
    load
}

/// Reloads and upgrades to make.
fn rounds() -> (usize, usize) {
    let wanted = std::env::var("RINGFORT_CHANGES").unwrap_or_default();
    let numbers: Vec<usize> = wanted.split(',').filter_map(|text| text.parse().ok()).collect();
    if let [reloads, upgrades] = numbers[..] { (reloads, upgrades) } else { (4, 2) }
}

fn nobody_notices_reloads_and_upgrades(engine: Engine) {
    let to = Endpoints {
        origin: Origin::serving(),
        streams: H2Origin::start(),
        chat: Origin::start(websocket::serve),
    };
    let (reloads, upgrades) = rounds();
    let mut gateway = setup(engine, &to, 0).start();
    let memory = |gateway: &Gateway| {
        let processes = [gateway.supervisor(), gateway.data_process()];
        processes.map(process::anonymous_bytes).iter().sum::<u64>() as f64
    };
    load(&gateway).stop();
    let before = memory(&gateway);

    let working = load(&gateway);
    for round in 1..=reloads {
        gateway.reload_to(&setup(engine, &to, round).text());
        working.goes_on(10);
    }
    for _ in 0..upgrades {
        gateway.upgrade();
        working.goes_on(40);
    }
    let answered = working.stop();
    assert_eq!(gateway.metric("ringfort_process_upgrades", ""), upgrades as f64);
    assert_eq!(gateway.metric("ringfort_requests_total", "class=\"5xx\""), 0.0);
    eventually("every process before this one has left", || {
        process::children(gateway.supervisor()).len() == 1
    });
    load(&gateway).stop();
    let after = memory(&gateway);
    println!(
        "{reloads} reloads, {upgrades} upgrades, {answered} answered, 0 failed; {before} bytes, then {after}"
    );
    assert!(after <= before * 1.05, "{before} bytes, then {after}");
    gateway.drain();
}
