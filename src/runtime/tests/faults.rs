//! Trouble with the ring itself: full queues, empty buffer rings, refusals of the kernel, forbidden operations.

use io_uring::{opcode, types};

use super::streams::echo_to_eight;
use super::*;

#[test]
fn u5_zero_copy_sends_are_not_used_and_not_allowed() {
    let source = include_str!("../reactor/uring.rs");
    assert!(!source.contains("SendZc") && !source.contains("SendMsgZc"));
    let Some(runtime) = tiny_ring() else { return };
    let mut reactor = runtime.0.reactor.borrow_mut();
    let uring = reactor.uring().expect("a ring");
    let entry = opcode::SendZc::new(types::Fd(-1), std::ptr::null(), 0).build();
    assert_eq!(uring.result_of(entry).expect("a result"), -libc::EACCES);
}

#[test]
fn operations_that_nobody_needs_are_refused_by_the_ring() {
    on_rings(|runtime| {
        let mut reactor = runtime.0.reactor.borrow_mut();
        let uring = reactor.uring().expect("a ring");
        let fd = types::Fd(-1);
        let null = std::ptr::null_mut::<u8>();
        let forbidden = [
            ("nop", opcode::Nop::new().build()),
            ("openat", opcode::OpenAt::new(fd, null.cast()).build()),
            ("read", opcode::Read::new(fd, null, 0).build()),
            ("write", opcode::Write::new(fd, null, 0).build()),
            ("close", opcode::Close::new(fd).build()),
            ("socket", opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()),
            ("shutdown", opcode::Shutdown::new(fd, libc::SHUT_RDWR).build()),
            // Allowed operation, forbidden flag: work on a kernel thread.
            (
                "send on a kernel thread",
                opcode::Send::new(fd, null, 0).build().flags(io_uring::squeue::Flags::ASYNC),
            ),
        ];
        for (name, entry) in forbidden {
            assert_eq!(uring.result_of(entry).expect("a result"), -libc::EACCES, "{name}");
        }
    });
}

#[test]
fn u6_receives_that_find_no_buffer_or_end_early_are_armed_again() {
    let Some(runtime) = tiny_ring() else { return };
    echo_to_eight(&runtime, 400_000);
    let stats = runtime.reactor_stats();
    assert!(stats.recv_starved > 0, "{stats:?}");
    assert!(stats.rearmed > 0, "{stats:?}");
    assert_eq!(runtime.buffer_stats().in_use, 0);
}

#[test]
fn u7_completions_that_overflow_are_all_applied() {
    on_rings(|runtime| {
        let tiny = runtime.0.reactor.borrow_mut().uring().expect("a ring").capacity() <= TINY.completions;
        let (socket, address) = listener();
        let clients: Vec<TcpStream> = (0..100).map(|_| connect(address)).collect();
        let served = runtime.play(async {
            let listener = Listener::new(runtime, socket);
            let mut served = Vec::new();
            while served.len() < clients.len() {
                served.push(listener.accept().await.expect("accept").open(runtime).expect("open"));
            }
            for (seed, mut client) in clients.iter().enumerate() {
                client.write_all(&pattern(seed as u32, 100)).expect("write");
            }
            for socket in &served {
                socket.set_bulk(true);
                let armed = runtime.deadline();
                armed.set(runtime.now());
                let _ = armed.within(std::future::poll_fn(|cx| socket.poll_hung_up(cx))).await;
            }
            for client in &clients {
                client.shutdown(std::net::Shutdown::Write).expect("shutdown");
            }
            let mut seen = Vec::new();
            for socket in &served {
                std::future::poll_fn(|cx| socket.poll_hung_up(cx)).await;
                seen.push(receive_all(socket).await.expect("bytes"));
            }
            seen
        });
        let expected: Vec<_> = (0..100).map(|seed| pattern(seed, 100)).collect();
        assert!(served == expected, "bytes differ");
        assert!(!tiny || runtime.reactor_stats().completion_overflows > 0, "the queue never overflowed");
    });
}

#[test]
fn u8_more_operations_than_the_submission_queue_holds_are_all_submitted() {
    on_engines(|runtime| {
        let (sockets, mut peers): (Vec<_>, Vec<_>) = (0..100).map(|_| pair(runtime)).unzip();
        let received = Rc::new(Cell::new(0));
        runtime.play(async {
            for (seed, socket) in sockets.into_iter().enumerate() {
                let received = received.clone();
                runtime.spawn(async move {
                    assert_eq!(&*socket.recv().await.expect("bytes"), pattern(seed as u32, 64));
                    received.set(received.get() + 1);
                });
            }
            // All hundred receives are armed in one turn.
            runtime.yield_now().await;
            for (seed, peer) in peers.iter_mut().enumerate() {
                peer.write_all(&pattern(seed as u32, 64)).expect("write");
            }
            runtime.until(|| runtime.tasks() == 0).await;
        });
        assert_eq!(received.get(), 100);
    });
}

/// What the kernel may answer to an entry without anything being wrong for good.
const PASSING: [Fault; 9] = [
    Fault::Errno(libc::EINTR),
    Fault::None,
    Fault::Errno(libc::EAGAIN),
    Fault::SubmitOne,
    Fault::Errno(libc::EBUSY),
    Fault::None,
    Fault::Errno(libc::ENOMEM),
    Fault::Errno(libc::ETIME),
    Fault::SubmitOne,
];

#[test]
fn r18_entries_that_fail_now_and_then_lose_no_byte() {
    on_rings(|runtime| {
        runtime.0.reactor.borrow_mut().uring().expect("a ring").inject(&PASSING);
        echo_to_eight(runtime, 1_000_000);
        let mut reactor = runtime.0.reactor.borrow_mut();
        assert!(reactor.uring().expect("a ring").injected() > 0);
        assert_eq!(reactor.stats().stale, 0);
    });
}

#[test]
fn r18_closing_works_while_entries_fail() {
    on_rings(|runtime| {
        runtime.0.reactor.borrow_mut().uring().expect("a ring").inject(&PASSING);
        let mut peers = Vec::new();
        runtime.play(async {
            for seed in 0..50 {
                let (socket, peer) = pair(runtime);
                socket.watch();
                if seed % 2 == 0 {
                    socket.send(&pattern(seed, 4_000_000), false);
                }
                if seed % 3 == 0 {
                    runtime.yield_now().await;
                }
                drop(socket);
                peers.push(peer);
            }
            runtime.until(|| runtime.inside() == Inside::default()).await;
        });
        for (seed, peer) in peers.iter_mut().enumerate() {
            let received = read_all(peer).expect("an end");
            assert!(pattern(seed as u32, 4_000_000).starts_with(&received), "connection {seed}");
        }
    });
}

#[test]
fn r18_a_ring_that_fails_for_good_ends_the_run_with_the_error() {
    on_rings(|runtime| {
        runtime.0.reactor.borrow_mut().uring().expect("a ring").inject(&[Fault::Errno(libc::EBADF)]);
        let (socket, _peer) = pair(runtime);
        let sockets: Vec<_> = (0..10).map(|_| pair(runtime)).collect();
        runtime.spawn(std::future::pending());
        let ended = runtime.block_on(async {
            // More than the submission queue holds: arming must not wait for room that never comes.
            for (socket, _) in &sockets {
                socket.watch();
            }
            let _ = socket.recv().await;
        });
        assert_eq!(ended.expect_err("no way to go on").raw_os_error(), Some(libc::EBADF));
        assert_eq!(runtime.tasks(), 0);
        runtime.0.reactor.borrow_mut().uring().expect("a ring").inject(&[]);
    });
}
