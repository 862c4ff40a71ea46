//! The same behaviour on both engines, and the invariants of a correct io_uring program (U1 to U12 in the design
//! notes), with rings and pools small enough that trouble is certain.

mod faults;
mod lifetime;
mod listening;
mod streams;
mod timing;
mod watching;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::reactor::{Fault, Inside};
use super::*;
use crate::base::random::Random;

/// Sizes at which every queue and pool overflows.
const TINY: RingSizes = RingSizes { entries: 2, completions: 8, recv_buffers: 2 };

/// Bound on everything that a test waits for. Reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `test` on every engine that this machine allows, with usual and with tiny rings.
fn on_engines(test: impl Fn(&Runtime)) {
    for sizes in [RingSizes::default(), TINY] {
        eprintln!("engine: epoll, {sizes:?}");
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, sizes).expect("epoll");
        test(&runtime);
    }
    on_rings(test);
}

thread_local! {
    /// Whether connections of [`pair`] receive on demand.
    static ON_DEMAND: Cell<bool> = const { Cell::new(false) };
}

/// Runs `test` on rings of every set-up that a kernel may grant, with multishot receive, without, and on demand.
fn on_rings(test: impl Fn(&Runtime)) {
    if !ring_allowed() {
        return;
    }
    let (runtime, _) = Runtime::new(EngineChoice::IoUring, RingSizes::default()).expect("a probed engine");
    test(&runtime);
    drop(runtime);
    for rung in 0..3 {
        for receives in ["multishot", "single-shot", "on demand"] {
            eprintln!("engine: io_uring, set-up {rung}, receives {receives}, {TINY:?}");
            let mut reactor = Reactor::on_rung(TINY, rung).expect("a set-up that this kernel grants");
            if receives == "single-shot" {
                reactor.uring().expect("a ring").receive_single_shot();
            }
            ON_DEMAND.set(receives == "on demand");
            test(&Runtime::over(reactor));
            ON_DEMAND.set(false);
        }
    }
}

/// Says so where the half of the tests that needs io_uring cannot run.
fn ring_allowed() -> bool {
    match probe(RingSizes::default()) {
        Ok(_) => true,
        // Allowed and new enough, but it does not work: that is a failure of ours.
        Err(why) if io_uring::IoUring::new(2).is_ok() && why.code != Some(libc::EINVAL) => panic!("{why:?}"),
        Err(why) => {
            eprintln!("NOT TESTED on io_uring, only on epoll: {}", why.text);
            false
        }
    }
}

fn tiny_ring() -> Option<Runtime> {
    ring_allowed().then(|| {
        Runtime::over(Reactor::on_rung(TINY, 0).or_else(|_| Reactor::on_rung(TINY, 1)).expect("a ring"))
    })
}

impl Runtime {
    /// Runs a test's script to its end, or fails when that takes too long.
    fn play<T>(&self, script: impl Future<Output = T>) -> T {
        let limited = async {
            let deadline = self.deadline();
            deadline.set(self.now() + PATIENCE);
            deadline.within(script).await
        };
        self.block_on(limited).expect("a reactor that works").unwrap_or_else(|_| {
            panic!("a script that ends; {:?} {:?}", self.inside(), self.reactor_stats());
        })
    }

    /// Waits until `condition` holds, looking every millisecond.
    async fn until(&self, mut condition: impl FnMut() -> bool) {
        while !condition() {
            self.sleep_until(self.now() + Duration::from_millis(1)).await;
        }
    }

    fn inside(&self) -> Inside {
        self.0.reactor.borrow().inside()
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// A connection: our end on the runtime, the peer's as a blocking socket that never blocks for ever.
fn pair(runtime: &Runtime) -> (Socket, TcpStream) {
    let (listener, address) = listener();
    let peer = connect(address);
    let (ours, _) = listener.accept().expect("accept");
    let socket = Socket::new(runtime, ours.into()).expect("socket");
    socket.set_on_demand(ON_DEMAND.get());
    (socket, peer)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("write timeout");
    stream
}

/// Bytes that differ by place and by stream: any that go astray, missing or twice, show. Blocks of random bytes,
/// each stamped with its number; of an odd length, so that they align with no buffer.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    const BLOCK_BYTES: usize = 4_093;
    let mut random = Random::new(u64::from(seed) + 1);
    let block: Vec<u8> = (0..BLOCK_BYTES).map(|_| random.next_u64() as u8).collect();
    let mut all = block.repeat(len.div_ceil(BLOCK_BYTES));
    for (number, block) in all.chunks_mut(BLOCK_BYTES).enumerate() {
        block[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    all.truncate(len);
    all
}

/// Everything until the end of the stream.
async fn receive_all(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let buf = socket.recv().await?;
        if buf.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&buf);
    }
}

/// Sends back what comes until the end of the stream, then ends.
async fn echo(socket: Socket) {
    loop {
        match socket.recv().await {
            Ok(buf) if !buf.is_empty() => socket.send_buf(buf, false),
            _ => break,
        }
        if socket.sent(0).await.is_err() {
            break;
        }
    }
    socket.shutdown_write();
}

/// Takes every byte until the peer closes. `Err` after a reset.
fn read_all(peer: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    peer.read_to_end(&mut all).map(|_| all)
}

/// Writes from a thread of its own, then ends the stream.
fn write_in_background(peer: &TcpStream, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    let mut peer = peer.try_clone().expect("clone");
    std::thread::spawn(move || {
        peer.write_all(&bytes).expect("write");
        peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
    })
}
