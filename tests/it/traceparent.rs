//! W3C trace context: passed on as it came, or begun where a listener says so; told in the access log.

use crate::harness::gateway::Gateway;
use crate::harness::h2;
use crate::harness::message::Fields;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    what_came_is_passed_on_as_it_came,
    a_trace_begins_where_none_came,
    a_trace_of_outside_is_replaced,
    a_stream_is_traced_likewise,
);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const FIELD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const BAD: &str = "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01";

fn start(engine: Engine, origin: &Origin, keys: &str) -> Gateway {
    let sections = format!("{keys}\n[access_log]\npath = \"access.log\"");
    Setup::to(engine, origin).sections(&sections).start()
}

/// The trace fields that the origin got.
fn ask(gateway: &Gateway, origin: &Origin, fields: &str) -> (Vec<String>, Vec<String>) {
    origin.forget();
    let mut client = gateway.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n"));
    assert_eq!(client.read_response().status, 200);
    got(&origin.requests().remove(0).fields)
}

fn got(fields: &Fields) -> (Vec<String>, Vec<String>) {
    let all = |name| fields.all(name).iter().map(|value| value.to_string()).collect();
    (all("traceparent"), all("tracestate"))
}

/// The trace ids in the log once it has `count` lines.
#[track_caller]
fn logged(gateway: &Gateway, count: usize) -> Vec<serde_json::Value> {
    let text = || std::fs::read_to_string(gateway.config().with_file_name("access.log")).unwrap_or_default();
    eventually("the lines are written", || text().lines().count() >= count);
    text()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["trace_id"].clone())
        .collect()
}

/// One valid field; its trace id.
#[track_caller]
fn begun(fields: &[String]) -> String {
    let [field] = fields else { panic!("{fields:?}") };
    let parts: Vec<&str> = field.split('-').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2], "{field}");
    assert_eq!((parts[0], parts[3]), ("00", "01"));
    assert_ne!(parts[1], TRACE);
    parts[1].to_owned()
}

fn what_came_is_passed_on_as_it_came(engine: Engine) {
    let origin = Origin::serving();
    let gateway = start(engine, &origin, "");
    let (parent, state) =
        ask(&gateway, &origin, &format!("TraceParent: {FIELD}\r\ntracestate: a=1\r\nTracestate: b=2\r\n"));
    assert_eq!((parent, state), (vec![FIELD.into()], vec!["a=1".into(), "b=2".into()]));
    assert_eq!(ask(&gateway, &origin, &format!("traceparent: {BAD}\r\n")).0, [BAD]);
    assert!(ask(&gateway, &origin, "").0.is_empty());
    assert_eq!(logged(&gateway, 3), [TRACE.into(), serde_json::Value::Null, serde_json::Value::Null]);
}

fn a_trace_begins_where_none_came(engine: Engine) {
    let origin = Origin::serving();
    let gateway = start(engine, &origin, "traceparent = \"begin\"");
    let (parent, state) = ask(&gateway, &origin, &format!("traceparent: {FIELD}\r\ntracestate: a=1\r\n"));
    assert_eq!((parent, state), (vec![FIELD.into()], vec!["a=1".into()]), "a valid one goes on");
    let mut ids = vec![TRACE.to_owned()];
    for fields in [
        String::new(),
        format!("traceparent: {BAD}\r\ntracestate: a=1\r\n"),
        format!("traceparent: {FIELD}\r\ntraceparent: {FIELD}\r\n"),
        "tracestate: a=1\r\n".to_owned(),
    ] {
        let (parent, state) = ask(&gateway, &origin, &fields);
        ids.push(begun(&parent));
        assert!(state.is_empty(), "{fields}: the state belongs to what was dropped");
    }
    assert_eq!(
        logged(&gateway, 5),
        ids.iter().map(|id| id.as_str().into()).collect::<Vec<serde_json::Value>>()
    );
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "each request has a trace of its own");
}

fn a_trace_of_outside_is_replaced(engine: Engine) {
    let origin = Origin::serving();
    let gateway = start(engine, &origin, "traceparent = \"replace\"");
    let (parent, state) = ask(&gateway, &origin, &format!("traceparent: {FIELD}\r\ntracestate: a=1\r\n"));
    let id = begun(&parent);
    assert!(state.is_empty());
    assert_eq!(logged(&gateway, 1), [id]);
}

fn a_stream_is_traced_likewise(engine: Engine) {
    let origin = Origin::serving();
    let gateway = start(engine, &origin, "traceparent = \"begin\"");
    h2::run(async {
        let mut send = h2::connect(gateway.web()).await;
        let mut request = h2::get("/");
        assert_eq!(h2::fetch(&mut send, request.clone()).await.unwrap().status, 200);
        request.headers_mut().insert("traceparent", FIELD.parse().unwrap());
        assert_eq!(h2::fetch(&mut send, request).await.unwrap().status, 200);
    });
    let requests = origin.requests();
    let id = begun(&got(&requests[0].fields).0);
    assert_eq!(got(&requests[1].fields).0, [FIELD]);
    assert_eq!(logged(&gateway, 2), [id, TRACE.to_owned()]);
}
