//! Clients that come whether or not those before them were served, ask, and leave. One thread; looks at its sockets on a
//! grid of time and does all that is due at once, so that it costs little beside what it measures. Retries nothing.
//!
//! A client connects, asks, pauses after each answer as a user does, and closes after its last: sessions arrive in open
//! loop, each with the same number of requests ("partly open": Schroeder, Wierman, Harchol-Balter, NSDI 2006). Clients may also
//! keep pace, as devices that report by the clock do: then a request is due a pause after the one before was due, waits for
//! its answer, and its latency counts from when it was due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::random::Random;
use super::realtime;
use super::tally::Tally;
use crate::wire;

/// Between two looks at the sockets. Each wakes the thread, and takes the CPU from the proxy: a finer grid would show in
/// what the proxy knows of lost time.
pub const GRID: Duration = Duration::from_millis(3);
/// Octets of answers that a connection holds while they are incomplete.
const READ_BYTES: usize = 64 * 1024;
/// A thread without any answer for so long gives up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Requests of one connection.
    pub requests: u32,
    /// Before the next request of a connection.
    pub pause: Duration,
    /// The pause begins when a request was due, not when its answer came.
    pub keep_pace: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Clients come at random, so that so many requests a second are due.
    Open(f64),
    /// So many connections, each of which always has a request under way: what is the most that can be had?
    Closed(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub address: SocketAddr,
    pub habits: Habits,
    pub pace: Pace,
    pub seed: u64,
    /// Clients begin; what is due from here on counts; and until here.
    pub start: Instant,
    pub from: Instant,
    pub until: Instant,
    /// Time for what was due before `until` and is not answered then. Load goes on meanwhile.
    pub patience: Duration,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Arrival,
    Request(usize),
}

#[derive(Default)]
struct Client {
    stream: Option<TcpStream>,
    /// Of the request under way, or of the next one.
    due: Option<Instant>,
    /// A request is without an answer.
    waits: bool,
    /// It is not sent yet.
    unsent: bool,
    requests_left: u32,
    answer: Vec<u8>,
}

pub struct Clients {
    plan: Plan,
    request: Vec<u8>,
    poll: Poll,
    random: Random,
    agenda: BinaryHeap<Reverse<(Instant, Event)>>,
    clients: Vec<Client>,
    free: Vec<usize>,
    tally: Tally,
    buffer: Box<[u8]>,
    /// The last answer of any.
    heard: Instant,
}

impl Clients {
    pub fn new(plan: Plan) -> io::Result<Self> {
        Ok(Self {
            request: wire::request("bench.test", "/small", false),
            poll: Poll::new()?,
            random: Random::new(plan.seed),
            agenda: BinaryHeap::new(),
            clients: Vec::new(),
            free: Vec::new(),
            tally: Tally::new()?,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            heard: plan.start,
            plan,
        })
    }

    /// Puts the load on.
    pub fn run(mut self) -> io::Result<Tally> {
        let mut events = Events::with_capacity(1_024);
        let Plan { start, from, until, patience, .. } = self.plan;
        thread::sleep(start.saturating_duration_since(Instant::now()));
        self.begin();
        let mut tick = Instant::now();
        let mut used: (Option<u64>, Option<u64>) = (None, None);
        loop {
            match self.poll.poll(&mut events, Some(Duration::ZERO)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                self.proceed(event.token().0, now);
            }
            self.do_what_is_due(now);
            if now >= from {
                used.0.get_or_insert_with(realtime::used_ns);
            }
            if now >= until {
                used.1.get_or_insert_with(realtime::used_ns);
                if now >= until + patience || !self.clients.iter().any(|client| client.is_counted(&self.plan))
                {
                    break;
                }
            }
            if now.saturating_duration_since(self.heard) > SILENCE_MAX {
                break;
            }
            tick += GRID;
            let now = Instant::now();
            if tick < now {
                tick = now;
            } else {
                thread::sleep(tick - now);
            }
        }
        self.tally.used_ns = used.1.zip(used.0).map_or(0, |(after, before)| after - before);
        for client in &self.clients {
            self.tally.unanswered += client.unanswered(&self.plan);
        }
        Ok(self.tally)
    }

    /// The clients that are there when it begins: as many as there would be had it begun long ago.
    fn begin(&mut self) {
        let Habits { requests, pause, .. } = self.plan.habits;
        let now = Instant::now();
        match self.plan.pace {
            Pace::Closed(count) => {
                for _ in 0..count {
                    let left = 1 + (self.random.unit() * f64::from(requests)) as u32;
                    self.connect(now, left);
                }
            }
            Pace::Open(rate) => {
                let present = rate * pause.as_secs_f64();
                for _ in 0..present.round() as usize {
                    let left = 1 + (self.random.unit() * f64::from(requests)) as u32;
                    let due = now + pause.mul_f64(self.random.unit());
                    let slot = self.slot(due, left.min(requests));
                    self.agenda.push(Reverse((due, Event::Request(slot))));
                }
                self.await_arrival(now);
            }
        }
    }

    fn await_arrival(&mut self, after: Instant) {
        let Pace::Open(rate) = self.plan.pace else { return };
        let pause = self.random.pause(rate / f64::from(self.plan.habits.requests));
        self.agenda.push(Reverse((after + Duration::from_secs_f64(pause), Event::Arrival)));
    }

    fn slot(&mut self, due: Instant, requests_left: u32) -> usize {
        let client = Client { due: Some(due), requests_left, ..Client::default() };
        if let Some(slot) = self.free.pop() {
            self.clients[slot] = client;
            return slot;
        }
        self.clients.push(client);
        self.clients.len() - 1
    }

    fn connect(&mut self, due: Instant, requests_left: u32) {
        let slot = self.slot(due, requests_left);
        self.send(slot);
    }

    fn do_what_is_due(&mut self, now: Instant) {
        while self.agenda.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            let Some(Reverse((due, event))) = self.agenda.pop() else { return };
            match event {
                Event::Arrival => {
                    self.connect(due, self.plan.habits.requests);
                    self.await_arrival(due);
                }
                Event::Request(slot) => self.send(slot),
            }
        }
    }

    /// Sends a request, on a new connection where there is none.
    fn send(&mut self, slot: usize) {
        let client = &mut self.clients[slot];
        client.waits = true;
        if client.stream.is_none() {
            let opened = TcpStream::connect(self.plan.address).and_then(|mut stream| {
                self.poll.registry().register(
                    &mut stream,
                    Token(slot),
                    Interest::READABLE | Interest::WRITABLE,
                )?;
                Ok(stream)
            });
            self.tally.connections += 1;
            match opened {
                Ok(stream) => client.stream = Some(stream),
                Err(error) => return self.fail(slot, &error.to_string()),
            }
        }
        let Some(stream) = &mut client.stream else { return };
        match stream.write(&self.request) {
            Ok(count) if count == self.request.len() => client.unsent = false,
            Ok(_) => self.fail(slot, "a request was sent in part"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                client.unsent = true;
            }
            Err(error) => self.fail(slot, &error.to_string()),
        }
    }

    fn proceed(&mut self, slot: usize, now: Instant) {
        if self.clients.get(slot).is_none_or(|client| client.stream.is_none()) {
            return;
        }
        if self.clients[slot].unsent {
            self.send(slot);
        }
        loop {
            let Some(stream) = &mut self.clients[slot].stream else { return };
            match stream.read(&mut self.buffer) {
                Ok(0) => return self.closed(slot, "closed by the proxy before its answers"),
                Ok(count) => {
                    self.clients[slot].answer.extend_from_slice(&self.buffer[..count]);
                    if !self.take_answer(slot, now) {
                        return;
                    }
                    // A full buffer may not be all; less than that is.
                    if count < self.buffer.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::NotConnected => return,
                Err(error) => return self.closed(slot, &error.to_string()),
            }
        }
    }

    /// Takes the answer, once it is whole. Whether the connection may have more.
    fn take_answer(&mut self, slot: usize, now: Instant) -> bool {
        let client = &mut self.clients[slot];
        let head = match wire::response_head(&client.answer) {
            Ok(Some(head)) if client.answer.len() as u64 >= head.len as u64 + head.body_bytes => head,
            Ok(_) => return true,
            Err(why) => {
                self.fail(slot, why);
                return false;
            }
        };
        let surplus = client.answer.len() as u64 - head.len as u64 - head.body_bytes;
        let Some(due) = client.due.filter(|_| client.waits && surplus == 0) else {
            self.fail(slot, "an answer that nothing had asked for");
            return false;
        };
        self.heard = now;
        client.answer.clear();
        if self.plan.counts(due) {
            self.tally.answer(head.status, now.saturating_duration_since(due));
        }
        if head.close {
            client.stream = None;
        }
        self.answered(slot, due, now);
        false
    }

    fn answered(&mut self, slot: usize, due: Instant, now: Instant) {
        let client = &mut self.clients[slot];
        client.waits = false;
        client.requests_left = client.requests_left.saturating_sub(1);
        if client.requests_left == 0 {
            *client = Client::default();
            self.free.push(slot);
            if let Pace::Closed(_) = self.plan.pace {
                self.connect(Instant::now(), self.plan.habits.requests);
            }
            return;
        }
        match self.plan.pace {
            Pace::Open(_) => {
                let Habits { pause, keep_pace, .. } = self.plan.habits;
                let next = if keep_pace { due } else { now } + pause;
                client.due = Some(next);
                self.agenda.push(Reverse((next, Event::Request(slot))));
            }
            Pace::Closed(_) => {
                client.due = Some(Instant::now());
                self.send(slot);
            }
        }
    }

    /// The connection ended: an error if answers are owed. Between two requests the next one opens another.
    fn closed(&mut self, slot: usize, why: &str) {
        if self.clients[slot].waits {
            return self.fail(slot, why);
        }
        self.clients[slot].stream = None;
        self.clients[slot].answer.clear();
    }

    /// The request is lost; the client goes on with its next one.
    fn fail(&mut self, slot: usize, why: &str) {
        let client = &mut self.clients[slot];
        client.stream = None;
        client.answer.clear();
        client.unsent = false;
        let due = client.due.unwrap_or(self.plan.start);
        if self.plan.counts(due) {
            self.tally.fail(1, why);
        }
        match self.plan.pace {
            Pace::Open(_) => self.answered(slot, due, Instant::now()),
            // At once again would be a loop.
            Pace::Closed(_) => *client = Client::default(),
        }
    }
}

impl Plan {
    fn counts(&self, due: Instant) -> bool {
        due >= self.from && due < self.until
    }
}

impl Client {
    /// Whether it owes anything that counts.
    fn is_counted(&self, plan: &Plan) -> bool {
        matches!(plan.pace, Pace::Open(_)) && self.due.is_some_and(|due| due < plan.until)
    }

    /// Requests that were due and have no answer.
    fn unanswered(&self, plan: &Plan) -> u64 {
        let Some(due) = self.due.filter(|_| self.is_counted(plan)) else { return 0 };
        if !plan.habits.keep_pace {
            return 1;
        }
        let late = (plan.until - due).as_secs_f64() / plan.habits.pause.as_secs_f64();
        (late.ceil().max(1.0) as u64).min(u64::from(self.requests_left.max(1)))
    }
}
