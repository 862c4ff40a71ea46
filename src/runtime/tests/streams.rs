//! Byte streams: exact, in order, half-closed and reset as TCP says, and bounded where nobody reads.

use super::*;
use crate::limits::RECV_BUF_BYTES;

/// Eight clients at once, each of them checks every byte. Serves until all tasks are done.
pub(super) fn echo_to_eight(runtime: &Runtime, len: usize) {
    let (socket, address) = listener();
    let clients: Vec<_> = (0..8)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut stream = connect(address);
                let sent = pattern(seed, len);
                let writing = write_in_background(&stream, sent.clone());
                let received = read_all(&mut stream).expect("read");
                writing.join().expect("writer");
                assert!(received == sent, "stream {seed}: bytes differ");
            })
        })
        .collect();
    runtime.play(async {
        let listener = Listener::new(runtime, socket);
        for _ in 0..8 {
            let socket = listener.accept().await.expect("accept").open(runtime).expect("open");
            runtime.spawn(echo(socket));
        }
        runtime.until(|| runtime.tasks() == 0).await;
    });
    for client in clients {
        client.join().expect("client");
    }
}

#[test]
fn echoes_a_megabyte_over_many_connections() {
    on_engines(|runtime| {
        echo_to_eight(runtime, 1_000_000);
        assert_eq!(runtime.buffer_stats().in_use, 0);
    });
}

#[test]
fn a_half_closed_stream_still_carries_the_other_direction() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        peer.write_all(b"question").expect("write");
        peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
        runtime.play(async {
            assert_eq!(receive_all(&socket).await.expect("bytes"), b"question");
            // The end is found again and again.
            assert!(socket.recv().await.expect("end").is_empty());
            socket.send(b"answer", false);
            socket.shutdown_write();
        });
        assert_eq!(read_all(&mut peer).expect("read"), b"answer");
    });
}

#[test]
fn what_was_given_back_is_received_again_before_what_follows() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        peer.write_all(b"first").expect("write");
        runtime.play(async {
            let first = socket.recv().await.expect("bytes");
            assert_eq!(&*first, b"first");
            peer.write_all(b"second").expect("write");
            peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
            socket.unread(first);
            assert!(socket.has_input());
            assert_eq!(receive_all(&socket).await.expect("bytes"), b"firstsecond");
        });
    });
}

#[test]
fn the_end_of_our_direction_comes_behind_what_was_sent() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        let sent = pattern(1, 8_000_000);
        socket.send(&sent, false);
        socket.shutdown_write();
        let reading = std::thread::spawn(move || {
            let read = read_all(&mut peer).expect("read");
            peer.write_all(b"seen it end").expect("write");
            read
        });
        runtime.play(async {
            assert_eq!(&*socket.recv().await.expect("an answer"), b"seen it end");
        });
        assert!(reading.join().expect("reader") == sent, "bytes differ");
    });
}

#[test]
fn a_reset_by_the_peer_is_an_error_and_not_an_end() {
    on_engines(|runtime| {
        let (socket, peer) = pair(runtime);
        runtime.play(async {
            // With a receive armed, so that the reset meets it.
            let resetting = async {
                runtime.yield_now().await;
                runtime.yield_now().await;
                socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("linger");
                drop(peer);
                std::future::pending::<()>().await;
            };
            let error = first(socket.recv(), resetting).await.expect_err("a reset");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
            let again = socket.recv().await.expect_err("still a reset");
            assert_eq!(again.raw_os_error(), Some(libc::ECONNRESET));
        });
    });
}

#[test]
fn abort_resets_the_peer_though_a_receive_and_a_send_are_in_flight() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        runtime.play(async {
            socket.send(&pattern(2, 8_000_000), false);
            let armed = runtime.deadline();
            armed.set(runtime.now() + Duration::from_millis(2));
            armed.within(socket.recv()).await.expect_err("nothing is sent to us");
            socket.abort();
            runtime.until(|| runtime.inside().sockets == 0).await;
        });
        let error = read_all(&mut peer).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_receiver_that_nobody_reads_holds_a_bounded_number_of_buffers() {
    on_engines(|runtime| {
        let (socket, mut peer) = pair(runtime);
        peer.set_nonblocking(true).expect("nonblocking");
        let (mut sent, mut longest) = (0, 0);
        runtime.play(async {
            socket.watch();
            // Until the kernel on both sides is full, too: nothing more goes out for a while.
            let mut refused = 0;
            while refused < 50 {
                match peer.write(&[b'x'; 65_536]) {
                    Ok(count) => (sent, refused) = (sent + count, 0),
                    Err(_) => refused += 1,
                }
                runtime.sleep_until(runtime.now() + Duration::from_millis(1)).await;
                longest = longest.max(runtime.inside().inbox_longest);
            }
            // The inbox, and what one turn may still bring: a ring's worth of buffers.
            let ring = if runtime.0.reactor.borrow_mut().uring().is_some() { 128 } else { 0 };
            assert!(!ON_DEMAND.get() || longest <= 1, "{longest} buffers");
            assert!(longest <= reactor::INBOX_MAX + ring, "{longest} buffers");
            let held = runtime.buffer_stats().in_use;
            assert!(held <= reactor::INBOX_MAX + ring, "{held} buffers held");
            // And nothing of it was lost: all is there as soon as somebody reads.
            peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
            assert_eq!(receive_all(&socket).await.expect("bytes").len(), sent);
        });
    });
}

#[test]
fn with_a_tiny_ring_the_bound_of_an_inbox_is_tight() {
    let Some(runtime) = tiny_ring() else { return };
    let (socket, mut peer) = pair(&runtime);
    let writing = std::thread::spawn(move || {
        peer.write_all(&pattern(3, 2_000_000)).expect("write");
    });
    let mut longest = 0;
    runtime.play(async {
        socket.watch();
        let mut still = 0;
        let mut before = 0;
        while still < 20 {
            runtime.sleep_until(runtime.now() + Duration::from_millis(1)).await;
            let now = runtime.inside().inbox_longest;
            longest = longest.max(now);
            still = if now == before && now > 0 { still + 1 } else { 0 };
            before = now;
        }
        let mut all = Vec::new();
        while all.len() < 2_000_000 {
            all.extend_from_slice(&socket.recv().await.expect("bytes"));
        }
        assert!(all == pattern(3, 2_000_000), "bytes differ");
    });
    writing.join().expect("writer");
    let bound = reactor::INBOX_MAX + usize::from(TINY.recv_buffers);
    assert!((1..=bound).contains(&longest), "{longest} buffers, bound {bound}");
}

#[test]
fn switching_how_bytes_are_received_at_any_place_keeps_every_byte_in_order() {
    on_engines(|runtime| {
        for seed in 0..3 {
            let (socket, peer) = pair(runtime);
            let sent = pattern(seed, 3_000_000);
            let writing = write_in_background(&peer, sent.clone());
            let mut random = Random::new(u64::from(seed) + 1);
            let received = runtime.play(async {
                let (mut all, mut switch_at) = (Vec::new(), 0);
                loop {
                    if all.len() >= switch_at {
                        socket.set_bulk(random.below(2) == 1);
                        socket.set_on_demand(random.below(2) == 1);
                        // Sometimes back within the same turn, so that a stop overtakes its own reason.
                        if random.below(4) == 0 {
                            socket.set_bulk(random.below(2) == 1);
                            socket.set_on_demand(random.below(2) == 1);
                        }
                        switch_at = all.len() + random.below(300_000) as usize;
                    }
                    let buf = socket.recv().await.expect("recv");
                    if buf.is_empty() {
                        break all;
                    }
                    all.extend_from_slice(&buf);
                    if random.below(8) == 0 {
                        runtime.yield_now().await;
                    }
                }
            });
            writing.join().expect("writer");
            assert!(received == sent, "bytes differ");
        }
    });
}

#[test]
fn bulk_buffers_carry_more_than_usual_ones() {
    on_engines(|runtime| {
        let (socket, peer) = pair(runtime);
        let writing = write_in_background(&peer, pattern(4, 4_000_000));
        let largest = runtime.play(async {
            socket.set_bulk(true);
            let mut largest = 0;
            loop {
                let len = socket.recv().await.expect("recv").len();
                if len == 0 {
                    break largest;
                }
                largest = largest.max(len);
                // Lets some gather.
                runtime.sleep_until(runtime.now() + Duration::from_millis(1)).await;
            }
        });
        writing.join().expect("writer");
        assert!(largest > RECV_BUF_BYTES, "{largest}");
    });
}

/// Both futures run; the first one's output counts.
pub(super) async fn first<T, U>(wanted: impl Future<Output = T>, beside: impl Future<Output = U>) -> T {
    let (mut wanted, mut beside) = (pin!(wanted), pin!(beside));
    let mut over = false;
    std::future::poll_fn(|cx| {
        if !over {
            over = beside.as_mut().poll(cx).is_ready();
        }
        wanted.as_mut().poll(cx)
    })
    .await
}

/// Kernels from 6.14 on run no more than twenty pieces of a ring's deferred work when it is entered. What stays behind
/// would be unseen, and no wait of it known.
#[test]
fn all_that_is_ready_comes_in_one_turn() {
    const SOCKETS: usize = 200;
    for choice in [EngineChoice::Epoll, EngineChoice::IoUring] {
        if choice == EngineChoice::IoUring && !ring_allowed() {
            continue;
        }
        let (runtime, _) = Runtime::new(choice, RingSizes::default()).expect("an engine");
        let runtime = &runtime;
        runtime.play(async {
            let pairs: Vec<_> = (0..SOCKETS).map(|_| pair(runtime)).collect();
            let received = Rc::new(Cell::new(0));
            let (sockets, mut peers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            for socket in sockets {
                let received = received.clone();
                runtime.spawn(async move {
                    socket.recv().await.expect("a byte");
                    received.set(received.get() + 1);
                });
            }
            runtime.sleep_until(runtime.now() + Duration::from_millis(2)).await;
            peers.iter_mut().for_each(|peer| peer.write_all(b"x").expect("room"));
            // The first turn takes all in, the second has the tasks see it.
            runtime.yield_now().await;
            runtime.yield_now().await;
            assert_eq!(received.get(), SOCKETS, "{choice:?}");
        });
    }
}
