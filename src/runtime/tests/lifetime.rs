//! What outlives what: descriptors, operations in flight, the memory they name, and the ring itself.

use super::*;

/// Whether `received` is the beginning of `sent`: what a closed connection may show of it, and nothing else.
fn is_prefix(received: &[u8], sent: &[u8]) -> bool {
    sent.starts_with(received)
}

/// Reads until the end or a reset: both may close a connection with bytes in flight.
fn read_what_came(peer: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 65_536];
    loop {
        match peer.read(&mut chunk) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("neither an end nor a reset: {error}"),
        }
    }
}

#[test]
fn u2_closing_with_a_receive_armed_sends_fin_and_closes_the_descriptor() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        runtime.play(async {
            socket.watch();
            runtime.yield_now().await;
            runtime.yield_now().await;
            drop(socket);
            runtime.until(|| runtime.inside() == Inside::default()).await;
        });
        assert!(read_all(&mut peer).expect("an end").is_empty());
    });
}

#[test]
fn u2_closing_before_the_receive_was_even_submitted_sends_fin_too() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        runtime.play(async {
            socket.watch();
            drop(socket);
            runtime.until(|| runtime.inside() == Inside::default()).await;
        });
        assert!(read_all(&mut peer).expect("an end").is_empty());
    });
}

/// One of many short connections: answers a seed with its pattern, then goes while operations are in flight.
async fn answer_and_go(socket: Socket) {
    let Ok(buf) = socket.recv().await else { return };
    let Ok(word) = <[u8; 4]>::try_from(&buf[..]) else { return };
    let seed = u32::from_le_bytes(word);
    // Leaves a receive armed, and for one in five a send that the peer does not take in time.
    socket.watch();
    let len = if seed % 5 == 0 { 4_000_000 } else { 3_000 };
    socket.send(&pattern(seed, len), false);
}

#[test]
fn u3_descriptors_reused_at_once_never_show_one_connection_the_bytes_of_another() {
    const CONNECTIONS: u32 = 150;
    on_engines(|runtime| {
        let (socket, address) = listener();
        let clients: Vec<_> = (0..2u32)
            .map(|client| {
                std::thread::spawn(move || {
                    for seed in (0..CONNECTIONS).map(|i| 2 * i + client) {
                        let mut stream = connect(address);
                        stream.write_all(&seed.to_le_bytes()).expect("write");
                        if seed % 7 == 0 {
                            continue;
                        }
                        let received = read_what_came(&mut stream);
                        let whole = seed % 5 != 0;
                        let sent = pattern(seed, if whole { 3_000 } else { 4_000_000 });
                        assert!(is_prefix(&received, &sent), "connection {seed} got bytes of another");
                        assert!(!whole || received.len() == sent.len(), "connection {seed} was cut short");
                    }
                })
            })
            .collect();
        runtime.play(async {
            let listener = Listener::new(runtime, socket);
            for _ in 0..2 * CONNECTIONS {
                let socket = listener.accept().await.expect("accept").open(runtime).expect("open");
                runtime.spawn(answer_and_go(socket));
            }
            runtime.until(|| runtime.tasks() == 0 && runtime.inside().sockets == 1).await;
        });
        for client in clients {
            client.join().expect("client");
        }
        assert_eq!(runtime.reactor_stats().stale, 0, "an operation outlived its slot");
        assert_eq!(runtime.buffer_stats().in_use, 0);
    });
}

#[test]
fn u4_a_send_in_flight_keeps_its_memory_when_its_session_is_dropped() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        let sent = pattern(1, 8_000_000);
        runtime.play(async {
            socket.send(&sent, false);
            // The peer reads nothing: the send stays with the kernel.
            runtime.yield_now().await;
            runtime.yield_now().await;
            assert!(socket.unsent() > 0);
            drop(socket);
            // Whoever asks for memory now may be given what the send gave up.
            let other: Vec<Vec<u8>> = (0..16).map(|_| vec![0xEE; 1_000_000]).collect();
            runtime.until(|| runtime.inside().sockets == 0).await;
            drop(other);
        });
        let received = read_what_came(&mut peer);
        assert!(is_prefix(&received, &sent), "bytes that were never sent on this connection");
    });
}

#[test]
fn u4_received_buffers_in_flight_towards_a_stalled_peer_are_not_reused() {
    on_engines(|runtime| {
        let (from, source) = pair(runtime);
        let (to, mut sink) = pair(runtime);
        let sent = pattern(2, 12_000_000);
        let writing = {
            let (mut source, sent) = (source, sent.clone());
            // The relay stops reading when it is dropped: a failed write ends this.
            std::thread::spawn(move || drop(source.write_all(&sent)))
        };
        runtime.play(async {
            let relay = async {
                loop {
                    let buf = from.recv().await.expect("recv");
                    to.send_buf(buf, false);
                    if to.unsent() > 100_000 {
                        return;
                    }
                }
            };
            relay.await;
            assert!(runtime.buffer_stats().in_use > 0);
            drop((from, to));
            runtime.until(|| runtime.inside().sockets == 0).await;
        });
        assert_eq!(runtime.buffer_stats().in_use, 0, "given back with the connection");
        let received = read_what_came(&mut sink);
        assert!(is_prefix(&received, &sent), "bytes that were never sent on this connection");
        writing.join().expect("writer");
    });
}

#[test]
fn u4_a_runtime_that_ends_takes_back_what_the_kernel_holds_first() {
    on_engines(|runtime| {
        // A runtime of its own, to drop: on the same engine.
        let choice = match runtime.engine() {
            Engine::Epoll => EngineChoice::Epoll,
            Engine::IoUring => EngineChoice::IoUring,
        };
        let (ending, _) = Runtime::new(choice, TINY).expect("the same engine again");
        let (socket, mut stalled) = pair(&ending);
        let (idle, mut waiting) = pair(&ending);
        let sent = pattern(3, 8_000_000);
        ending.play(async {
            socket.send(&sent, false);
            idle.watch();
            ending.spawn(async move {
                let _hold = (socket, idle);
                std::future::pending::<()>().await;
            });
            ending.yield_now().await;
            ending.yield_now().await;
        });
        drop(ending);
        assert!(read_all(&mut waiting).expect("an end").is_empty());
        assert!(is_prefix(&read_what_came(&mut stalled), &sent));
    });
}

#[test]
fn a_ring_that_ends_gives_its_buffers_back() {
    if !ring_allowed() {
        return;
    }
    let reactor = Reactor::on_rung(TINY, 2).expect("the plainest ring");
    let buffers = reactor.buffers_of_all();
    let allocated = buffers.stats().bytes_allocated;
    drop(reactor);
    let again: Vec<_> = (0..TINY.recv_buffers).map(|_| buffers.take(buffers::Size::Usual)).collect();
    assert_eq!(buffers.stats().bytes_allocated, allocated, "the ring's buffers were lost");
    drop(again);
}

#[test]
fn a_slow_reader_does_not_push_sends_onto_kernel_threads() {
    let Some(runtime) = tiny_ring() else { return };
    let (socket, mut peer) = pair(&runtime);
    let sent = pattern(4, 3_000_000);
    let expected = sent.clone();
    let reading = std::thread::spawn(move || {
        let (mut all, mut chunk) = (Vec::new(), [0; 1_000]);
        while let count @ 1.. = peer.read(&mut chunk).expect("read") {
            all.extend_from_slice(&chunk[..count]);
        }
        assert!(all == expected, "bytes differ");
    });
    let mut kernel_threads = 0;
    runtime.play(async {
        socket.send(&sent, false);
        socket.shutdown_write();
        runtime
            .until(|| {
                let tasks = std::fs::read_dir("/proc/self/task").expect("procfs").flatten();
                let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
                kernel_threads += names.filter(|name| name.starts_with("iou-wrk")).count();
                socket.unsent() == 0
            })
            .await;
    });
    reading.join().expect("reader");
    assert_eq!(kernel_threads, 0);
}

#[test]
fn u12_no_descriptor_of_ours_survives_an_exec() {
    on_engines(|runtime| {
        let (socket, _peer) = pair(runtime);
        let (_mailbox, _) = Mailbox::new(runtime).expect("mailbox");
        let (accepting, address) = listener();
        let accepted = runtime.play(async {
            let listener = Listener::new(runtime, accepting);
            let _client = connect(address);
            listener.accept().await.expect("accept").open(runtime).expect("open")
        });
        let reactor = runtime.0.reactor.borrow();
        let mut descriptors = reactor.descriptors();
        descriptors.push(reactor.engine_fd());
        for fd in descriptors {
            // SAFETY: plain integers; an invalid descriptor is reported, not followed.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
            assert!(flags >= 0 && flags & libc::FD_CLOEXEC != 0, "descriptor {fd}: {flags}");
        }
        drop(reactor);
        drop((socket, accepted));
    });
}
