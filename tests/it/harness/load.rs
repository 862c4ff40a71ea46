//! Clients of every kind that work until they are told to stop, and what went wrong for any of them. A client that is
//! told to leave (`Connection: close`, GOAWAY) leaves and comes back; everything else that ends is a failure.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;

use super::client::Client;
use super::message::End;
use super::websocket::{Road, frame};
use super::{SOON, h2 as http2};

/// Between two requests of a client: there are to be many reloads, not many requests.
const PAUSE: Duration = Duration::from_millis(3);
const MASK: [u8; 4] = [1, 2, 3, 4];
const FIN_BINARY: u8 = 0x82;

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    done: AtomicUsize,
    reconnected: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn fail(&self, who: &str, what: impl std::fmt::Debug) {
        self.failures.lock().unwrap().push(format!("{who}: {what:?}"));
    }

    fn good(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(PAUSE);
    }
}

/// Clients at work.
pub struct Load {
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start() -> Self {
        Self { tally: Arc::default(), threads: Vec::new() }
    }

    fn with(mut self, work: impl FnOnce(&Tally) + Send + 'static) -> Self {
        let tally = self.tally.clone();
        self.threads.push(std::thread::spawn(move || work(&tally)));
        self
    }

    /// One connection in HTTP/1.1 for as many requests as it is good for.
    pub fn keep_alive(self, port: u16) -> Self {
        self.with(move |tally| {
            let mut client = None;
            while tally.goes_on() {
                let mut connected = client.take().unwrap_or_else(|| Client::connect(port));
                connected.send("GET /bytes/2000 HTTP/1.1\r\nHost: a.test\r\n\r\n");
                match connected.try_read_response("GET") {
                    Ok(got) if got.status == 200 && got.end == End::Complete && got.body_len == 2_000 => {
                        tally.good();
                        if got.closes() {
                            tally.reconnected.fetch_add(1, Ordering::SeqCst);
                        } else {
                            client = Some(connected);
                        }
                    }
                    other => tally.fail("keep-alive", other),
                }
            }
        })
    }

    /// A connection for each request.
    pub fn new_connections(self, port: u16) -> Self {
        self.with(move |tally| {
            while tally.goes_on() {
                let Some(mut client) = Client::try_connect(port) else {
                    tally.fail("new connection", "refused");
                    continue;
                };
                client.send("GET /bytes/10 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
                match client.try_read_response("GET") {
                    Ok(got) if got.status == 200 && got.body_len == 10 => tally.good(),
                    other => tally.fail("new connection", other),
                }
            }
        })
    }

    /// Streams of connections in HTTP/2, one after another.
    pub fn streams(self, port: u16) -> Self {
        self.with(move |tally| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = http2::connect(port).await;
                while tally.goes_on() {
                    if left(&mut connection).await {
                        tally.reconnected.fetch_add(1, Ordering::SeqCst);
                        connection = http2::connect(port).await;
                    }
                    match http2::fetch(&mut connection, http2::get("/bytes/3000")).await {
                        Ok(got) if got.status == 200 && got.body.len() == 3_000 => {
                            tally.done.fetch_add(1, Ordering::SeqCst);
                        }
                        // Told to leave between the look and the request, which did not go out (RFC 9113 §6.8).
                        Err(error) if error.is_go_away() && error.is_remote() => {}
                        other => tally.fail("stream", other),
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        })
    }

    /// A WebSocket whose server sends everything back; `stays`: it is to live to the end.
    pub fn websocket(self, port: u16, stays: bool) -> Self {
        self.with(move |tally| {
            while tally.goes_on() {
                let (mut wire, _) = Road::Http1 { port }.open(None);
                let mut number = 0_u32;
                while tally.goes_on() {
                    number += 1;
                    let payload = number.to_be_bytes();
                    let mut echoed = [0; 6];
                    let sent = wire.write_all(&frame(FIN_BINARY, Some(MASK), &payload));
                    match sent.and_then(|()| wire.read_exact(&mut echoed)) {
                        Ok(()) if echoed[2..] == payload => tally.good(),
                        other if stays => return tally.fail("websocket", (other, echoed)),
                        _ => break,
                    }
                }
            }
        })
    }

    /// A call of gRPC's manner: messages both ways on one stream, which is to live to the end.
    pub fn call(self, port: u16, path: &'static str) -> Self {
        self.with(move |tally| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Err(error) = call(port, path, tally).await {
                    tally.fail("call", error);
                }
            });
        })
    }

    /// Waits until `more` further requests were answered: nobody is stuck.
    #[track_caller]
    pub fn goes_on(&self, more: usize) {
        let wanted = self.tally.done.load(Ordering::SeqCst) + more;
        let goes_on = super::holds_within(SOON, || self.tally.done.load(Ordering::SeqCst) >= wanted);
        assert!(goes_on, "nobody is served: {:?}", self.tally.failures.lock().unwrap());
    }

    /// Ends the work. Requests that were answered; none may have failed.
    #[track_caller]
    pub fn stop(self) -> usize {
        self.tally.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            assert!(thread.join().is_ok(), "a client panicked");
        }
        let failures = self.tally.failures.lock().unwrap();
        let done = self.tally.done.load(Ordering::SeqCst);
        assert!(failures.is_empty(), "{} of {done} failed: {failures:#?}", failures.len());
        done
    }
}

/// Whether the gateway said that it takes no more streams on this connection.
async fn left(connection: &mut SendRequest<Bytes>) -> bool {
    let ready = std::future::poll_fn(|cx| connection.poll_ready(cx));
    ready.await.is_err()
}

async fn call(port: u16, path: &str, tally: &Tally) -> Result<(), h2::Error> {
    let connection = http2::connect(port).await;
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("http://site.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut up) = connection.ready().await?.send_request(request, false)?;
    let mut down = response.await?.into_body();
    let mut number = 0_u32;
    while tally.goes_on() {
        number += 1;
        http2::send_all(&mut up, &number.to_be_bytes(), false).await?;
        let mut echoed = Vec::new();
        while echoed.len() < 4 {
            let Some(data) = down.data().await else { break };
            let data = data?;
            let _ = down.flow_control().release_capacity(data.len());
            echoed.extend_from_slice(&data);
        }
        if echoed != number.to_be_bytes() {
            tally.fail("call", (number, echoed));
            break;
        }
        tally.done.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(PAUSE).await;
    }
    up.send_trailers(http::HeaderMap::new())?;
    let (_, trailers) = http2::read_body(&mut down).await?;
    if trailers.is_none_or(|trailers| trailers.get("grpc-status").is_none_or(|status| status != "0")) {
        tally.fail("call", "it did not end well");
    }
    Ok(())
}
