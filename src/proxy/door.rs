//! Whether a worker takes the request that has just come: not when it could only be answered late. Asks how long the
//! request may have waited, a stall of the whole thread included. Refusing costs a parsed head and a prepared answer.
//! Also whether a connection goes on after a response, when the worker has too many. Never asked for the admin endpoints.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use crate::http::Prepared;
use crate::metrics::{Counter, Drained, Histogram, Shard, Shed};
use crate::runtime::Runtime;
use crate::steal::drain::Drain;
use crate::steal::shed::Shedder;
use crate::sys::clock;

/// What a refused client is told (RFC 9110 §10.2.3), in seconds: not all are to come back at once.
const RETRY_AFTER: [&str; 3] = ["1", "2", "3"];

/// The door of one worker. Open, until it is told to keep its queue short.
pub struct Door {
    shard: Arc<Shard>,
    objective: Cell<Duration>,
    shedder: RefCell<Option<Shedder>>,
    drain: RefCell<Drain>,
    /// Made once: by what they tell the client to wait.
    refusals: [Prepared; RETRY_AFTER.len()],
}

impl Door {
    pub fn new(shard: &Arc<Shard>) -> Self {
        let refusal = |seconds| {
            let fields = [("Content-Type", "text/plain; charset=utf-8"), ("Retry-After", seconds)];
            Prepared::new(503, &fields, b"503 Service Unavailable\nToo busy.\n")
        };
        Self {
            shard: shard.clone(),
            objective: Cell::new(Duration::MAX),
            shedder: RefCell::default(),
            drain: RefCell::default(),
            refusals: RETRY_AFTER.map(refusal),
        }
    }

    /// Sets what clients should be answered within, and whether to refuse what cannot be.
    pub fn set_objective(&self, objective: Duration, sheds: bool, runtime: &Runtime) {
        self.objective.set(objective);
        match &mut *self.shedder.borrow_mut() {
            // A reload does not make a queue that stands a burst, nor forgets how much is usual.
            Some(shedder) if sheds => shedder.set_objective(objective),
            shedder => *shedder = sheds.then(|| Shedder::new(objective, runtime.now())),
        }
    }

    /// Whether anything is refused for its age.
    pub fn sheds(&self) -> bool {
        self.shedder.borrow().is_some()
    }

    /// Whether to take a request whose head is whole now. Counts those that are not taken, by the protocol they came in.
    pub fn admits(&self, runtime: &Runtime, protocol: Shed) -> bool {
        let (oldest, emptied) = runtime.queue_facts();
        let mut shedder = self.shedder.borrow_mut();
        let Some(shedder) = &mut *shedder else {
            self.shard.observe(Histogram::QueueAge, runtime.now().since(oldest));
            return true;
        };
        shedder.emptied(emptied);
        // Not the time of the turn: what stands last in a long turn has waited for all of it.
        let now = clock::now();
        let age = now.since(oldest);
        self.shard.observe(Histogram::QueueAge, age);
        let admits = shedder.admits(now, age);
        if !admits {
            self.shard.shed(protocol);
        }
        admits
    }

    /// One of the prepared answers to a request that is not taken.
    pub fn refusal(&self, random: u32) -> &Prepared {
        &self.refusals[random as usize % self.refusals.len()]
    }

    /// Connections that may be asked to go elsewhere, in a second.
    pub fn allow_drain(&self, per_s: f64, runtime: &Runtime) {
        self.drain.borrow_mut().allow(runtime.now(), per_s);
    }

    /// Whether this response, or one of these, is to be the last of its connection, as the worker has too many. Counts it.
    pub fn drains(&self, runtime: &Runtime, responses: u32) -> bool {
        let drains = self.drain.borrow_mut().takes(runtime.now(), responses);
        if drains {
            self.shard.drained(Drained::Steal);
        }
        drains
    }

    /// Counts an answer that came in time.
    pub fn answered(&self, after: Duration, status: Option<u16>) {
        if after <= self.objective.get() && status.is_some_and(|status| status < 500) {
            self.shard.add(Counter::RequestsInTime, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::context::tests::embedded;
    use crate::proxy::facts::Facts;
    use crate::proxy::http1::Http1;
    use crate::proxy::stream::Stream;
    use crate::runtime::{EngineChoice, RingSizes, Socket};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    /// Requests admitted of those that ready tasks ask for, when each keeps the thread busy for `busy`. `reloads`: before each.
    fn admitted(sheds: bool, busy: Duration, reloads: bool) -> (u32, u64) {
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, RingSizes::default()).expect("epoll");
        let shard = Arc::new(Shard::new(0, &[], &[], &[]));
        let door = Door::new(&shard);
        door.set_objective(Duration::from_millis(25), sheds, &runtime);
        let mut admitted = 0;
        runtime
            .block_on(async {
                for _ in 0..25 {
                    if reloads {
                        door.set_objective(Duration::from_millis(25), sheds, &runtime);
                    }
                    admitted += u32::from(door.admits(&runtime, Shed::Http1));
                    let until = Instant::now() + busy;
                    while Instant::now() < until {
                        std::hint::spin_loop();
                    }
                    runtime.yield_now().await;
                }
            })
            .expect("a reactor");
        (admitted, shard.sheds(Shed::Http1))
    }

    #[test]
    fn a_reload_makes_no_burst_of_a_queue_that_stands() {
        let (admitted, _) = admitted(true, Duration::from_millis(15), true);
        assert!((8..20).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_worker_that_has_no_moment_to_itself_refuses_what_waited_too_long() {
        let (admitted, shed) = admitted(true, Duration::from_millis(15), false);
        assert!(
            (8..20).contains(&admitted),
            "the first 100 ms, and one in each 100 ms from then on: {admitted}"
        );
        assert_eq!(u64::from(admitted) + shed, 25);
    }

    #[test]
    fn a_worker_with_short_turns_and_an_open_door_refuse_nothing() {
        assert_eq!(admitted(true, Duration::from_micros(300), false).1, 0);
        assert_eq!(admitted(false, Duration::from_millis(15), false), (25, 0));
    }

    /// CPU time of one refusal: of `CONNECTIONS` connections that each bring `bytes` at once, behind work that never ends.
    fn cost_of_refusing(bytes: &[u8], requests: u64, protocol: Shed) -> Duration {
        const CONNECTIONS: u64 = 64;
        let context = embedded();
        let (runtime, shard) = (context.runtime.clone(), context.shard.clone());
        let served = context.serving().served()[0].clone();
        context.door.set_objective(Duration::ZERO, true, &runtime);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let connect = |_| {
            let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
            let near = listener.accept().expect("a connection").0;
            let stream = Stream::Socket(Socket::new(&runtime, near.into()).expect("a socket"));
            runtime.spawn(Http1::new(context.enter_session(&served, None), stream, Facts::default()).serve());
            far
        };
        let mut clients: Vec<TcpStream> = (0..CONNECTIONS).map(connect).collect();
        let (mut spun, begun, mut sent_at) = (Duration::ZERO, Instant::now(), None);
        let cost = runtime.block_on(async {
            loop {
                let before = clock::thread_cpu();
                while clock::thread_cpu() - before < Duration::from_millis(3) {}
                if sent_at.is_none() && begun.elapsed() > Duration::from_millis(150) {
                    clients.iter_mut().for_each(|client| client.write_all(bytes).expect("room for it"));
                    sent_at = Some(clock::thread_cpu() - (spun + clock::thread_cpu() - before));
                }
                spun += clock::thread_cpu() - before;
                runtime.yield_now().await;
                // One is admitted in each 100 ms, whatever comes.
                let enough = shard.sheds(protocol) * 10 >= CONNECTIONS * requests * 9;
                if enough || begun.elapsed() > Duration::from_secs(5) {
                    return clock::thread_cpu() - spun - sent_at.expect("sent");
                }
            }
        });
        assert!(shard.sheds(protocol) > 500, "{protocol:?}: {}", shard.sheds(protocol));
        let each = cost.expect("a reactor") / u32::try_from(shard.sheds(protocol)).expect("few");
        println!("{protocol:?}: {each:?} of CPU time for each of {}", shard.sheds(protocol));
        each
    }

    /// For the figure: `cargo test --lib refusing_costs -- --nocapture`, best with `--release`.
    #[test]
    fn refusing_costs_at_most_20_us_of_cpu_time() {
        let most = Duration::from_micros(if cfg!(debug_assertions) { 200 } else { 20 });
        let get = b"GET / HTTP/1.1\r\nHost: a.test\r\nUser-Agent: someone\r\nAccept: */*\r\n\r\n".repeat(60);
        assert!(cost_of_refusing(&get, 60, Shed::Http1) <= most);
        let mut streams = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for stream in (0..60).map(|n| 2 * n + 1) {
            // GET, http, /, and an authority, that ends headers and stream.
            streams.extend([0, 0, 6, 1, 5, 0, 0, 0, stream, 0x82, 0x86, 0x84, 0x41, 1, b'a']);
        }
        assert!(cost_of_refusing(&streams, 60, Shed::Http2) <= most);
    }
}
