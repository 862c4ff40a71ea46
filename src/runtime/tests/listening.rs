//! Listeners: everything accepted is served, nothing is accepted without bound, and a closed one is closed.

use std::os::fd::AsRawFd;
use std::task::Waker;

use super::*;
use crate::sys::socket_options::SocketOptions;

/// Connects `count` clients. The listener's queue holds 128.
fn crowd(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| connect(address)).collect()
}

#[test]
fn u9_a_stopped_listener_hands_out_everything_accepted_or_queued_before() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        let clients = crowd(address, 100);
        runtime.play(async {
            let listener = Listener::new(runtime, socket);
            let mut served = Vec::new();
            for _ in 0..3 {
                served.push(listener.accept().await.expect("accept").open(runtime).expect("open"));
            }
            listener.stop();
            while let Some(incoming) = listener.accept_rest().await {
                served.push(incoming.open(runtime).expect("open"));
            }
            assert_eq!(served.len(), clients.len());
            for socket in &served {
                socket.send(b"!", false);
            }
        });
        for mut client in clients {
            assert_eq!(read_all(&mut client).expect("served, not reset"), b"!");
        }
    });
}

#[test]
fn u9_stopping_twice_or_with_nothing_armed_ends_as_well() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        let clients = crowd(address, 2);
        let served = runtime.play(async {
            let listener = Listener::new(runtime, socket);
            listener.stop();
            listener.stop();
            let mut served = 0;
            while let Some(incoming) = listener.accept_rest().await {
                incoming.refuse();
                served += 1;
            }
            served
        });
        assert_eq!(served, clients.len());
    });
}

#[test]
fn a_listener_that_nobody_asks_stops_accepting() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        const WAVE: usize = 20;
        let mut clients = crowd(address, 1);
        runtime.play(async {
            let listener = Listener::new(runtime, socket);
            listener.accept().await.expect("accept").open(runtime).expect("open");
            let mut longest = 0;
            for _ in 0..6 {
                clients.extend(crowd(address, WAVE));
                for _ in 0..5 {
                    runtime.sleep_until(runtime.now() + Duration::from_millis(1)).await;
                }
                longest = longest.max(runtime.inside().inbox_longest);
            }
            assert!(
                longest <= reactor::ACCEPTED_MAX + WAVE,
                "{longest} connections taken that nobody asked for"
            );
            for _ in 1..clients.len() {
                listener.accept().await.expect("accept").open(runtime).expect("open");
            }
        });
    });
}

#[test]
fn u2_a_dropped_listener_frees_its_port_though_an_accept_is_armed() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        runtime.play(async {
            let listener = Listener::new(runtime, socket);
            let armed = runtime.deadline();
            armed.set(runtime.now() + Duration::from_millis(2));
            assert!(armed.within(listener.accept()).await.is_err());
            drop(listener);
            runtime.until(|| runtime.inside().sockets == 0).await;
        });
        let refused = TcpStream::connect(address).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_dropped_listener_wakes_no_worker_though_its_socket_lives_on_elsewhere() {
    let (runtime, _) = Runtime::new(EngineChoice::Epoll, TINY).expect("epoll");
    let (socket, _) = listener();
    let elsewhere = socket.try_clone().expect("clone");
    let watched = || {
        let fd = runtime.0.reactor.borrow().engine_fd();
        let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
        facts.lines().filter(|line| line.starts_with("tfd:")).count()
    };
    let listener = Listener::new(&runtime, socket);
    let _ = listener.poll_accept(&mut Context::from_waker(Waker::noop()));
    assert_eq!(watched(), 1);
    drop(listener);
    assert_eq!(watched(), 0);
    drop(elsewhere);
}

/// As where `fs.epoll.max_user_watches` is reached: a reload must not end for it, nor the socket be lost.
#[test]
fn a_listener_that_cannot_be_watched_yet_accepts_once_it_can() {
    let (runtime, _) = Runtime::new(EngineChoice::Epoll, TINY).expect("epoll");
    let (socket, address) = listener();
    let (epoll, number) = (runtime.0.reactor.borrow().engine_fd(), socket.as_raw_fd());
    let control = |operation| {
        let mut event = libc::epoll_event { events: 0, u64: u64::MAX };
        // SAFETY: both descriptors are open and `event` lives through the call.
        assert_eq!(unsafe { libc::epoll_ctl(epoll, operation, number, &raw mut event) }, 0);
    };
    // What is there already cannot be added.
    control(libc::EPOLL_CTL_ADD);
    let listener = Listener::new(&runtime, socket);
    let _client = connect(address);
    runtime.play(async {
        assert_eq!(listener.accept().await.err().and_then(|error| error.raw_os_error()), Some(libc::EEXIST));
        control(libc::EPOLL_CTL_DEL);
        listener.accept().await.expect("the one that waited");
        let _later = connect(address);
        listener.accept().await.expect("one that came later");
    });
}

#[test]
fn a_refused_connection_is_reset() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        let mut client = connect(address);
        runtime.play(async {
            let listener = Listener::new(runtime, socket);
            listener.accept().await.expect("accept").refuse();
        });
        assert_eq!(read_all(&mut client).expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn connecting_to_nobody_is_refused_and_to_somebody_works() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        runtime.play(async {
            let connected =
                Socket::connect(runtime, address, &SocketOptions::default()).await.expect("connect");
            let (mut peer, _) = socket.accept().expect("accept");
            connected.send(b"hello", false);
            let mut hello = [0; 5];
            peer.read_exact(&mut hello).expect("read");
            assert_eq!(&hello, b"hello");
            drop(socket);
            let error =
                Socket::connect(runtime, address, &SocketOptions::default()).await.err().expect("refused");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn what_a_listener_takes_singly_is_there_for_others_until_it_is_asked_for() {
    on_engines(|runtime| {
        let (socket, address) = listener();
        let others = socket.try_clone().expect("a copy");
        let mut clients = crowd(address, 10);
        runtime.play(async {
            let listener = Listener::new(runtime, socket);
            listener.set_singly(true);
            for left in (7..10).rev() {
                listener.accept().await.expect("accept").refuse();
                runtime.sleep_until(runtime.now() + Duration::from_millis(1)).await;
                assert!(listener.is_singly() && left > 0);
            }
            let taken = std::iter::from_fn(|| Incoming::waiting_at(&others)).count();
            assert_eq!(taken, 7);
            // Armed, taken back, and armed for many again.
            for singly in [true, false, true, false] {
                let armed = runtime.deadline();
                armed.set(runtime.now() + Duration::from_millis(2));
                assert!(armed.within(listener.accept()).await.is_err());
                listener.set_singly(singly);
                clients.extend(crowd(address, 5));
                for _ in 0..5 {
                    listener.accept().await.expect("accept").refuse();
                }
            }
            assert!(Incoming::waiting_at(&others).is_none());
        });
    });
}
