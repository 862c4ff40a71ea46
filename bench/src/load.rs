//! The load generator: one thread, many connections, every response checked. Never retries and never hides an
//! error: a response that is wrong, short, late or missing is counted, and a run with such a response has
//! failed.
//!
//! Closed loop: each connection sends its next request when its response is complete. Open loop: requests are
//! due at a constant rate whatever the responses do, and a latency counts from when its request was due, so a
//! stall shows in the latency of every request that it delayed (no coordinated omission).

mod arrivals;
mod connection;
mod secure;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Poll, Token};
use serde::Serialize;

use crate::tls::{Handshake, Negotiated, Tls};
use crate::{certificate, wire};
use arrivals::Arrivals;
use connection::{Connection, News, Progress};
use secure::Terms;

/// A run without any progress for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(5);
/// Connections that are opened at once; a proxy's accept queue holds more.
const OPENING_MAX: usize = 64;
/// After so many errors a run is given up.
const ERRORS_MAX: u64 = 100;
const LATENCY_NS_MAX: u64 = 60_000_000_000;
const READ_BYTES: usize = 256 * 1024;
const TIMER: Token = Token(usize::MAX);

/// What to send, to whom and how.
#[derive(Clone, Debug)]
pub struct Plan {
    pub address: SocketAddr,
    /// The request's target, and what its response must hold.
    pub target: &'static str,
    pub body_bytes: usize,
    pub connections: usize,
    pub reuse: Reuse,
    pub pace: Pace,
    /// Compare every octet of every body. Off, a long body is compared on a connection's first response only,
    /// and counted on all.
    pub verify_all: bool,
    /// `None`: plaintext.
    pub tls: Option<Tls>,
    /// Each connection becomes a WebSocket, and each request and response a message of `body_bytes`, up to 125, and its
    /// echo. Plaintext only.
    pub websocket: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reuse {
    KeepAlive,
    /// `Connection: close` and a new connection a request. The proxy closes first, so the generator's side
    /// holds no TIME_WAIT and never runs out of ports.
    Churn,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Closed,
    /// Requests a second.
    Open(f64),
}

/// What a phase of a run amounted to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    pub seconds: f64,
    pub responses: u64,
    pub body_bytes: u64,
    pub rate_per_second: f64,
    pub latency_us: Latency,
    pub errors: u64,
    pub first_error: Option<String>,
    /// Open loop: requests that were due and had no response at the end.
    pub unanswered: u64,
    /// What TLS was negotiated, on every connection alike.
    pub tls: Option<Negotiated>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Connections to one address, and the counters of the current phase.
pub struct Load {
    plan: Plan,
    shape: Shape,
    poll: Poll,
    connections: Vec<Connection>,
    arrivals: Option<Arrivals>,
    /// Connections with no request on them, in open loop.
    idle: Vec<usize>,
    refill: bool,
    buffer: Box<[u8]>,
    /// The newest handshake, of this phase or an earlier one.
    handshake: Option<Handshake>,
    tally: Tally,
}

/// What each connection needs to know.
struct Shape {
    address: SocketAddr,
    request: Vec<u8>,
    /// What is sent once the connection is a WebSocket, if it becomes one.
    message: Option<Vec<u8>>,
    body: Vec<u8>,
    churn: bool,
    verify_all: bool,
    secure: Option<Terms>,
}

struct Tally {
    latency: Histogram<u64>,
    responses: u64,
    handshakes: u64,
    tickets: u64,
    errors: u64,
    first_error: Option<String>,
    seconds: f64,
    progress: Instant,
}

impl Load {
    /// Opens the plan's connections and puts one request on each (keep-alive), a few at a time.
    pub fn open(plan: Plan) -> io::Result<Self> {
        let host = plan.tls.as_ref().map_or(certificate::NAME, |tls| &tls.server_name);
        let secure = plan.tls.clone().map(|tls| Terms::new(tls, plan.connections, plan.verify_all));
        let body = wire::body(plan.body_bytes);
        let (request, message, body) = if plan.websocket {
            let (message, echo) = wire::websocket_message(&body);
            (wire::websocket_request(host, plan.target), Some(message), echo)
        } else {
            (wire::request(host, plan.target, plan.reuse == Reuse::Churn), None, body)
        };
        let shape = Shape {
            address: plan.address,
            request,
            message,
            body,
            churn: plan.reuse == Reuse::Churn,
            verify_all: plan.verify_all,
            secure: secure.transpose()?,
        };
        let mut load = Self {
            shape,
            poll: Poll::new()?,
            connections: Vec::with_capacity(plan.connections),
            arrivals: None,
            idle: Vec::with_capacity(plan.connections),
            refill: false,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            handshake: None,
            tally: Tally::new()?,
            plan,
        };
        if load.shape.churn {
            load.connections.resize_with(load.plan.connections, Connection::default);
            load.idle.extend(0..load.plan.connections);
            if load.shape.secure.as_ref().is_some_and(Terms::resume) {
                load.prime()?;
            }
        } else {
            load.add(load.plan.connections, OPENING_MAX)?;
        }
        Ok(load)
    }

    /// Opens `count` more connections, puts one request on each, and waits for the responses; at most
    /// `at_once` wait at a time.
    pub fn add(&mut self, count: usize, at_once: usize) -> io::Result<()> {
        self.refill = false;
        let mut events = Events::with_capacity(OPENING_MAX);
        let wanted = self.connections.len() + count;
        self.tally.progress = Instant::now();
        while self.connections.len() < wanted {
            let first = self.connections.len();
            for slot in first..wanted.min(first + at_once.max(1)) {
                self.connections.push(Connection::default());
                self.begin(slot, Instant::now());
            }
            while self.connections[first..].iter().any(Connection::busy) {
                self.turn(&mut events, Some(Duration::from_millis(100)))?;
                self.give_up_if_broken()?;
            }
            self.check()?;
        }
        Ok(())
    }

    /// One connection on each slot, so that the next has a session to resume.
    fn prime(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(OPENING_MAX);
        for slot in 0..self.connections.len() {
            self.begin(slot, Instant::now());
        }
        while self.connections.iter().any(Connection::busy) {
            self.turn(&mut events, Some(Duration::from_millis(100)))?;
            self.give_up_if_broken()?;
        }
        self.check()
    }

    /// Puts load on for `span`. Requests under way at its end stay under way for the next phase.
    pub fn run(&mut self, span: Duration) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let started = Instant::now();
        let end = started + span;
        self.tally.progress = started;
        self.start(started)?;
        loop {
            let now = Instant::now();
            if now >= end {
                break;
            }
            self.send_due(now);
            self.turn(&mut events, Some(end - now))?;
            self.give_up_if_broken()?;
        }
        self.tally.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Open loop: sends what was due by now and waits for the responses, so that the slowest count too.
    /// Closed loop: nothing, since no request waits for another connection's response.
    pub fn settle(&mut self) -> io::Result<()> {
        let Some(arrivals) = &mut self.arrivals else { return Ok(()) };
        arrivals.stop(Instant::now());
        self.refill = false;
        let mut events = Events::with_capacity(1024);
        let end = Instant::now() + STALL_MAX;
        while Instant::now() < end && (self.owed() > 0 || self.connections.iter().any(Connection::busy)) {
            self.send_due(Instant::now());
            self.turn(&mut events, Some(Duration::from_millis(10)))?;
            self.give_up_if_broken()?;
        }
        Ok(())
    }

    /// An error if any response so far was wrong.
    pub fn check(&self) -> io::Result<()> {
        match &self.tally.first_error {
            None => Ok(()),
            Some(first) => Err(io::Error::other(format!("{} errors, first: {first}", self.tally.errors))),
        }
    }

    /// Forgets what was counted so far: the warm-up is over.
    pub fn reset(&mut self) -> io::Result<()> {
        self.check()?;
        self.tally = Tally::new()?;
        Ok(())
    }

    pub fn measured(&self) -> Measured {
        let tally = &self.tally;
        let at = |quantile: f64| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
        Measured {
            seconds: tally.seconds,
            responses: tally.responses,
            body_bytes: tally.responses * self.plan.body_bytes as u64,
            rate_per_second: if tally.seconds > 0.0 { tally.responses as f64 / tally.seconds } else { 0.0 },
            latency_us: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: tally.latency.max() as f64 / 1e3,
            },
            errors: tally.errors,
            first_error: tally.first_error.clone(),
            unanswered: self.owed() + self.in_flight_open(),
            tls: self.handshake.map(|handshake| handshake.in_words(tally.handshakes, tally.tickets)),
        }
    }

    fn start(&mut self, now: Instant) -> io::Result<()> {
        self.refill = true;
        match self.plan.pace {
            Pace::Closed => {
                for slot in 0..self.connections.len() {
                    if !self.connections[slot].busy() {
                        self.begin(slot, now);
                    }
                }
            }
            Pace::Open(rate) if self.arrivals.is_none() => {
                self.idle.clear();
                self.idle.extend(0..self.connections.len());
                self.arrivals = Some(Arrivals::start(rate, now, self.poll.registry(), TIMER)?);
            }
            Pace::Open(_) => {}
        }
        Ok(())
    }

    fn send_due(&mut self, now: Instant) {
        while !self.idle.is_empty() {
            let Some(due) = self.arrivals.as_mut().and_then(|arrivals| arrivals.take_due(now)) else {
                return;
            };
            if let Some(slot) = self.idle.pop() {
                self.begin(slot, due);
            }
        }
    }

    fn owed(&self) -> u64 {
        self.arrivals.as_ref().map_or(0, |arrivals| arrivals.owed(Instant::now()))
    }

    fn in_flight_open(&self) -> u64 {
        if self.arrivals.is_none() {
            return 0;
        }
        self.connections.iter().filter(|connection| connection.busy()).count() as u64
    }

    fn turn(&mut self, events: &mut Events, wait: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(events, wait) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in events.iter() {
            if event.token() == TIMER {
                if let Some(arrivals) = &mut self.arrivals {
                    arrivals.acknowledge();
                }
                continue;
            }
            let slot = event.token().0;
            let progress =
                self.connections[slot].proceed(&self.shape, &mut self.buffer, event.is_read_closed());
            let progress = match self.note(slot) {
                Err(why) if !matches!(progress, Progress::Failed(_)) => Progress::Failed(why),
                _ => progress,
            };
            self.account(slot, progress);
        }
        Ok(())
    }

    /// Counts handshakes and tickets; an error if a handshake came to something else than those before.
    fn note(&mut self, slot: usize) -> Result<(), String> {
        let News { handshake, tickets } = self.connections[slot].take_news();
        self.tally.tickets += tickets;
        let Some(handshake) = handshake else { return Ok(()) };
        self.tally.handshakes += 1;
        match self.handshake.replace(handshake) {
            Some(before) if !before.agrees_with(&handshake) => {
                Err(format!("{handshake:?} negotiated, and before {before:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Puts a request on a connection that has none.
    fn begin(&mut self, slot: usize, due: Instant) {
        let progress = self.connections[slot].begin(&self.shape, due, slot, self.poll.registry());
        if let Progress::Failed(_) = progress {
            self.account(slot, progress);
        }
    }

    fn account(&mut self, slot: usize, progress: Progress) {
        let now = match progress {
            Progress::Waiting => return,
            Progress::Complete => {
                let now = Instant::now();
                let nanos =
                    u64::try_from((now - self.connections[slot].due()).as_nanos()).unwrap_or(u64::MAX);
                self.tally.latency.saturating_record(nanos);
                self.tally.responses += 1;
                self.tally.progress = now;
                now
            }
            Progress::Failed(why) => {
                self.tally.errors += 1;
                self.tally.first_error.get_or_insert(why);
                self.connections[slot].discard();
                Instant::now()
            }
        };
        if self.arrivals.is_some() {
            self.idle.push(slot);
        } else if self.refill && self.tally.errors <= ERRORS_MAX {
            self.begin(slot, now);
        }
    }

    fn give_up_if_broken(&self) -> io::Result<()> {
        if self.tally.errors > ERRORS_MAX {
            return self.check();
        }
        if self.tally.progress.elapsed() > STALL_MAX {
            let busy = self.connections.iter().filter(|connection| connection.busy()).count();
            return Err(io::Error::other(format!(
                "no response for {} s from {} with {busy} requests under way",
                STALL_MAX.as_secs(),
                self.plan.address
            )));
        }
        Ok(())
    }
}

impl Tally {
    fn new() -> io::Result<Self> {
        Ok(Self {
            latency: Histogram::new_with_bounds(100, LATENCY_NS_MAX, 3).map_err(io::Error::other)?,
            responses: 0,
            handshakes: 0,
            tickets: 0,
            errors: 0,
            first_error: None,
            seconds: 0.0,
            progress: Instant::now(),
        })
    }
}

#[cfg(test)]
mod tests;
