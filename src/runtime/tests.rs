//! The same behaviour on both engines, and the invariants of a correct io_uring program (U1 to U12), with rings
//! and pools small enough that trouble is certain.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

const TINY: RingSizes = RingSizes { entries: 2, completions: 8, recv_buffers: 2 };

/// Runs `test` on every engine that this machine allows, with usual and with tiny rings.
fn on_engines(test: impl Fn(&Runtime)) {
    for choice in [EngineChoice::Epoll, EngineChoice::IoUring] {
        if choice == EngineChoice::IoUring && probe(RingSizes::default()).is_err() {
            continue;
        }
        for sizes in [RingSizes::default(), TINY] {
            let (runtime, _) = Runtime::new(choice, sizes).expect("an engine that was probed");
            test(&runtime);
        }
    }
}

fn listener() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

#[test]
fn echoes_a_megabyte_over_many_connections() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        let clients: Vec<_> = (0..8u8)
            .map(|seed| {
                std::thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).expect("connect");
                    let sent: Vec<u8> =
                        (0..1_000_000u32).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
                    let mut writer = stream.try_clone().expect("clone");
                    let copy = sent.clone();
                    let writing = std::thread::spawn(move || {
                        writer.write_all(&copy).expect("write");
                        writer.shutdown(std::net::Shutdown::Write).expect("shutdown");
                    });
                    let mut received = Vec::new();
                    stream.read_to_end(&mut received).expect("read");
                    writing.join().expect("writer");
                    assert!(received == sent, "bytes differ");
                })
            })
            .collect();
        let spawner = runtime.clone();
        runtime
            .block_on(async {
                let listener = Listener::new(&spawner, socket).expect("listener");
                for _ in 0..8 {
                    let socket = listener.accept().await.expect("accept").open(&spawner).expect("open");
                    spawner.spawn(async move {
                        loop {
                            let buf = socket.recv().await.expect("recv");
                            if buf.is_empty() {
                                break;
                            }
                            socket.send_buf(buf, false);
                            socket.sent(0).await.expect("sent");
                        }
                        socket.shutdown_write();
                    });
                }
                while spawner.tasks() > 0 {
                    spawner.sleep_until(spawner.now() + Duration::from_millis(5)).await;
                }
            })
            .expect("run");
        for client in clients {
            client.join().expect("client");
        }
    });
}
