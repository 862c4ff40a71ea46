//! Idle connections: what arrives unasked must be known before the next request goes out, or its answer could be
//! taken for another's.

use super::streams::first;
use super::*;
use crate::limits::RECV_BUF_BYTES;

/// Lets the reactor report what is there already.
async fn settle(runtime: &Runtime) {
    for _ in 0..5 {
        runtime.sleep_until(runtime.now() + Duration::from_millis(1)).await;
    }
}

#[test]
fn an_idle_watched_connection_is_quiet_until_something_arrives() {
    on_engines(|runtime| {
        runtime.play(async {
            let (socket, mut peer) = pair(runtime);
            assert!(!socket.is_quiet(), "nobody watches it yet");
            socket.watch();
            settle(runtime).await;
            assert!(socket.is_quiet());
            peer.write_all(b"unasked").expect("write");
            runtime.until(|| !socket.is_quiet()).await;
            assert_eq!(&*socket.recv().await.expect("bytes"), b"unasked");

            let (socket, peer) = pair(runtime);
            socket.watch();
            settle(runtime).await;
            drop(peer);
            runtime.until(|| !socket.is_quiet()).await;
            assert!(socket.recv().await.expect("end").is_empty());
        });
    });
}

#[test]
fn a_receive_that_filled_its_buffer_to_the_brim_leaves_a_quiet_connection() {
    on_engines(|runtime| {
        runtime.play(async {
            let (socket, mut peer) = pair(runtime);
            peer.write_all(&pattern(1, RECV_BUF_BYTES)).expect("write");
            let mut len = 0;
            while len < RECV_BUF_BYTES {
                len += socket.recv().await.expect("bytes").len();
            }
            socket.watch();
            settle(runtime).await;
            assert!(socket.is_quiet());
        });
    });
}

#[test]
fn watching_survives_the_stop_of_a_receive_that_bulk_mode_asked_for() {
    on_engines(|runtime| {
        runtime.play(async {
            let (socket, mut peer) = pair(runtime);
            peer.write_all(b"part").expect("write");
            assert_eq!(&*socket.recv().await.expect("bytes"), b"part");
            // The rest comes before the receive has stopped, so the exchange ends while it stops.
            socket.set_bulk(true);
            socket.watch();
            settle(runtime).await;
            assert!(socket.is_quiet());
            drop(peer);
            runtime.until(|| !socket.is_quiet()).await;
        });
    });
}

#[test]
fn watching_starts_again_after_a_wait_for_the_end() {
    on_engines(|runtime| {
        runtime.play(async {
            let (socket, mut peer) = pair(runtime);
            socket.set_bulk(true);
            let armed = runtime.deadline();
            armed.set(runtime.now() + Duration::from_millis(2));
            let hung_up = std::future::poll_fn(|cx| socket.poll_hung_up(cx));
            armed.within(hung_up).await.expect_err("nothing ends");
            socket.watch();
            settle(runtime).await;
            assert!(socket.is_quiet());
            peer.write_all(b"unasked").expect("write");
            runtime.until(|| !socket.is_quiet()).await;
        });
    });
}

#[test]
fn u6_a_watch_that_ended_for_want_of_buffers_is_not_called_quiet() {
    on_engines(|runtime| {
        runtime.play(async {
            let mut pairs: Vec<_> = (0..20).map(|_| pair(runtime)).collect();
            for (socket, _) in &pairs {
                socket.watch();
            }
            settle(runtime).await;
            assert!(pairs.iter().all(|(socket, _)| socket.is_quiet()));
            for (_, peer) in &mut pairs {
                peer.write_all(b"unasked").expect("write");
            }
            runtime.until(|| pairs.iter().all(|(socket, _)| !socket.is_quiet())).await;
            for (socket, _) in &pairs {
                assert_eq!(&*socket.recv().await.expect("bytes"), b"unasked");
            }
        });
    });
}

#[test]
fn the_end_is_noticed_behind_more_bytes_than_an_inbox_holds() {
    on_engines(|runtime| {
        for bulk in [false, true] {
            let (socket, mut peer) = pair(runtime);
            socket.set_bulk(bulk);
            let sent = pattern(5, 120_000);
            peer.write_all(&sent).expect("write");
            peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
            let received = runtime.play(async {
                std::future::poll_fn(|cx| socket.poll_hung_up(cx)).await;
                receive_all(&socket).await.expect("bytes")
            });
            assert!(received == sent, "bytes differ");
        }
    });
}

#[test]
fn waiting_for_the_end_beside_unread_bytes_does_not_spin() {
    on_engines(|runtime| {
        for bulk in [false, true] {
            let (socket, mut peer) = pair(runtime);
            socket.set_bulk(bulk);
            let sent = pattern(6, 120_000);
            peer.write_all(&sent).expect("write");
            let received = runtime.play(async {
                let (before, _) = runtime.take_loop_facts();
                let over = runtime.deadline();
                over.set(runtime.now() + Duration::from_millis(100));
                let hung_up = std::future::poll_fn(|cx| socket.poll_hung_up(cx));
                over.within(hung_up).await.expect_err("nothing ends");
                let (after, _) = runtime.take_loop_facts();
                assert!(after - before < 50, "{} turns to wait once", after - before);
                // Bytes are not lost to the wait, and more may come after them.
                let mut all = Vec::new();
                while all.len() < sent.len() {
                    all.extend_from_slice(&socket.recv().await.expect("bytes"));
                }
                peer.write_all(b"more").expect("write");
                let more = first(socket.recv(), std::future::pending::<()>()).await.expect("bytes");
                assert_eq!(&*more, b"more");
                all
            });
            assert!(received == sent, "bytes differ");
        }
    });
}
