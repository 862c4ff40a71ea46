//! The admin endpoints over real sockets, without workers.

use super::*;
use crate::control::data::reload::Requests;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::control::handover::tests::facts;
use crate::metrics::{Gauge, Shard, WorkerFacts};
use crate::worker::view::Question;

struct Tested {
    tcp: std::net::SocketAddr,
    unix: PathBuf,
    state: Arc<State>,
}

impl Drop for Tested {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.unix);
    }
}

fn start(name: &str) -> Tested {
    let shard = Arc::new(Shard::new(0, &["web".into()], &["site".into()], &["done"]));
    shard.listeners()[0].request(Some(200));
    shard.set(Gauge::LoopGapMax, 1_500_000);
    let (requests, mut asked) = Requests::new();
    tokio::spawn(async move {
        while let Some(asked) = asked.recv().await {
            let (Asked::Reload(waiting) | Asked::Upgrade(waiting)) = asked;
            let _ = waiting.send(Ok("nothing".into()));
        }
    });
    let state = State::new(vec![shard], serde_json::json!({ "workers": {} }), None, &facts(&[0], None), 64);
    let state = Arc::new(state.with_requests(requests));
    state.set_workers(vec![WorkerFacts { worker: 0, cpu: Some(1), engine: "epoll" }]);
    state.set_phase(Phase::Serving);
    let unix = std::env::temp_dir().join(format!("ringfort-admin-{name}-{}", std::process::id()));
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = Tested { tcp: tcp.local_addr().unwrap(), unix, state };
    Admin::serve(tcp, Some(UnixListener::bind(&admin.unix).unwrap()), &admin.state).unwrap();
    admin
}

impl Tested {
    async fn over_tcp(&self, request: &str) -> String {
        exchange(TcpStream::connect(self.tcp).await.unwrap(), request).await
    }

    async fn over_unix(&self, request: &str) -> String {
        exchange(UnixStream::connect(&self.unix).await.unwrap(), request).await
    }

    async fn get(&self, path: &str) -> String {
        self.over_tcp(&format!("GET {path} HTTP/1.1\r\nHost: localhost:9901\r\n\r\n")).await
    }
}

/// The whole answer: the connection is closed behind it.
async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    request: &str,
) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer));
    read.await.expect("an answer and a close").unwrap();
    answer
}

fn body(answer: &str) -> serde_json::Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn every_endpoint_of_the_table_answers_and_stands_on_the_index() {
    let admin = start("table");
    let index = admin.get("/").await;
    assert!(index.contains("content-type: text/html"), "{index}");
    let missing = admin.get("/none").await;
    assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
    for endpoint in &ENDPOINTS {
        assert!(index.contains(endpoint.path) && index.contains(endpoint.help), "{}", endpoint.path);
        assert!(missing.contains(endpoint.path), "{}", endpoint.path);
        let request = format!("{} {} HTTP/1.1\r\nHost: localhost\r\n\r\n", endpoint.method, endpoint.path);
        let answer = admin.over_unix(&request).await;
        // Placeholders name no endpoint.
        let wanted = if endpoint.path.contains('{') { "HTTP/1.1 400" } else { "HTTP/1.1 20" };
        assert!(answer.starts_with(wanted), "{}: {answer}", endpoint.path);
        assert!(answer.contains("connection: close"), "{}", endpoint.path);
    }
    assert!(!index.contains("http://") && !index.contains("https://"), "no outside asset");
}

#[tokio::test]
async fn workers_have_exactly_the_agreed_shape() {
    let admin = start("workers");
    assert_eq!(
        body(&admin.get("/workers").await),
        serde_json::json!({"workers": [{
            "worker": 0, "cpu": 1, "engine": "epoll", "connections": 0, "requests_total": 1,
            "loop_gap_max_ms": 1.5, "accept_weight": 1.0, "level": 0,
        }]})
    );
}

#[tokio::test]
async fn metrics_and_configuration_are_those_of_the_process() {
    let admin = start("metrics");
    let metrics = admin.get("/metrics").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nringfort_requests_total{listener=\"web\",class=\"2xx\"} 1\n"));
    assert!(metrics.contains("\nringfort_process_restarts 2\n"));
    assert_eq!(body(&admin.get("/config").await), serde_json::json!({ "workers": {} }));
}

#[tokio::test]
async fn readiness_follows_the_phase_and_health_does_not() {
    let admin = start("ready");
    assert!(admin.get("/readyz").await.starts_with("HTTP/1.1 200 "));
    for (phase, reason) in [(Phase::Starting, "starting"), (Phase::Draining, "draining")] {
        admin.state.set_phase(phase);
        let answer = admin.get("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!(body(&answer), serde_json::json!({ "ready": false, "reason": reason }));
        assert!(admin.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_foreign_host_is_refused_over_tcp() {
    let admin = start("host");
    for request in [
        "GET /metrics HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "GET /metrics HTTP/1.1\r\n\r\n",
        "GET /none HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "GET http://evil.test/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let answer = admin.over_tcp(request).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_over_tcp() {
    let admin = start("site");
    let with = |fields: &str| format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    let fetch = with("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Dest: empty\r\n");
    let answer = admin.over_tcp(&fetch).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("pages of other sites"), "{answer}");
    let link = with("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Dest: document\r\n");
    assert!(admin.over_tcp(&link).await.starts_with("HTTP/1.1 200 "));
}

/// Answers questions as one worker would. With how many came of connections, of many connections, and of clusters.
fn answer_questions(state: &State) -> Arc<[AtomicU64; 3]> {
    let mut questions = state.take_questions();
    let counts = Arc::<[AtomicU64; 3]>::default();
    let counted = counts.clone();
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            let kind = match question {
                Question::Connections { max, replies } => {
                    let _ = replies.send((0, (3, Vec::new())));
                    usize::from(max > 1_000)
                }
                Question::Clusters(replies) => {
                    let _ = replies.send((0, Vec::new()));
                    2
                }
                Question::DrainEndpoint { replies, .. } => {
                    let _ = replies.send((0, true));
                    continue;
                }
            };
            counted[kind].fetch_add(1, Ordering::Relaxed);
        }
    });
    counts
}

#[tokio::test]
async fn workers_are_asked_once_a_second_however_often_somebody_asks() {
    let admin = start("often");
    let counts = answer_questions(&admin.state);
    let began = Instant::now();
    for max in (1..=40).chain(1_001..=1_040) {
        assert_eq!(body(&admin.get(&format!("/connections?max={max}")).await)["total"], 3);
        assert_eq!(body(&admin.get("/clusters").await)["silent_workers"], serde_json::json!([]));
    }
    // Who does not wait for the answer has no more of them asked.
    for path in ["/connections", "/clusters"].repeat(20) {
        let mut stream = TcpStream::connect(admin.tcp).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    assert_eq!(body(&admin.get("/connections").await)["total"], 3);
    for count in &*counts {
        let (count, time) = (count.load(Ordering::Relaxed), began.elapsed());
        assert!((1..=1 + time.as_secs()).contains(&count), "{count} within {time:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_drained_shows_at_once() {
    let admin = start("shows");
    let counts = answer_questions(&admin.state);
    admin.get("/clusters").await;
    let before = counts[2].load(Ordering::Relaxed);
    let post = "POST /clusters/site/endpoints/127.0.0.1:1/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    assert!(admin.over_unix(post).await.starts_with("HTTP/1.1 200 "));
    admin.get("/clusters").await;
    assert_eq!(counts[2].load(Ordering::Relaxed), before + 1);
}

#[tokio::test]
async fn state_is_changed_over_the_unix_socket_only() {
    let admin = start("drain");
    let post = "POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let answer = admin.over_tcp(post).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let get = admin.over_unix("GET /drain HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.1 405 "), "{get}");
    let asked = tokio::time::timeout(Duration::from_millis(10), admin.state.asked_to_drain()).await;
    assert!(asked.is_err(), "nothing asked yet");
    assert!(admin.over_unix(post).await.starts_with("HTTP/1.1 202 "));
    tokio::time::timeout(Duration::from_secs(5), admin.state.asked_to_drain()).await.unwrap();
}
