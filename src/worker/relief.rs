//! Relief: while new connections are steered, a worker with time to spare takes those that wait in the accept queues of
//! others. A steered queue still gets its share, and whoever comes while its worker's CPU is taken away waits until it is
//! given back, though a neighbour idles; a queue that all workers share, as nginx has it, does not know this wait. Asks the
//! kernel for nothing but what is there: the queue's own worker has a while to take it first, and nobody is woken twice.

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::accept::{Port, admit, exceeded};
use crate::metrics::Counter;
use crate::proxy::context::Context;
use crate::runtime::Incoming;

/// Between two looks into the queues of others. What is there in both is taken.
const PAUSE: Duration = Duration::from_millis(1);
/// Queues looked into after a pause: bounds what looking costs where there are many.
const LOOKS_MAX: usize = 16;

/// Relief goes on until it is dropped.
pub(super) struct Relief(#[expect(dead_code, reason = "lives as long as the relief is wanted")] Rc<()>);

impl Relief {
    pub(super) fn begin(context: &Rc<Context>, ports: Vec<Rc<Port>>) -> Self {
        let wanted = Rc::new(());
        context.runtime.spawn(run(context.clone(), ports, Rc::downgrade(&wanted)));
        Self(wanted)
    }
}

async fn run(context: Rc<Context>, ports: Vec<Rc<Port>>, wanted: Weak<()>) {
    let runtime = &context.runtime;
    let queues = ports.iter().flat_map(|port| port.others().iter().map(move |queue| (port, queue)));
    let queues: Vec<_> = queues.collect();
    if queues.is_empty() {
        return;
    }
    let mut waited = vec![false; queues.len()];
    let mut next = 0..0;
    loop {
        runtime.sleep_until(runtime.now() + PAUSE).await;
        runtime.leisure().await;
        if wanted.strong_count() == 0 || context.is_draining() {
            return;
        }
        for _ in 0..queues.len().min(LOOKS_MAX) {
            if next.is_empty() {
                next = 0..queues.len();
            }
            let Some(((port, queue), waited)) =
                next.next().and_then(|at| queues.get(at).zip(waited.get_mut(at)))
            else {
                continue;
            };
            let waits = queue.upgrade().is_some_and(|socket| Incoming::waits_at(&socket));
            // What had come a moment ago is left to who has the queue, and is likely to be at it.
            if !std::mem::replace(waited, waits) {
                continue;
            }
            // Only what this worker has room for.
            while exceeded(&context, &port.served()).is_none()
                && let Some(incoming) = queue.upgrade().and_then(|socket| Incoming::waiting_at(&socket))
            {
                context.shard.add(Counter::ConnectionsRelieved, 1);
                admit(&context, &port.served(), incoming);
                // It begins before the next one is taken, which by then its own worker may have.
                runtime.leisure().await;
                if wanted.strong_count() == 0 || context.is_draining() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;
    use crate::proxy::context::tests::embedded;
    use crate::steal::steering::program;
    use crate::sys::{listeners, reuseport};
    use crate::worker::Queues;
    use crate::worker::accept::Ports;
    use crate::worker::easing::{Ease, Easing};

    #[test]
    fn who_is_steered_takes_what_waits_at_others_as_long_as_they_accept() {
        let context = embedded();
        let runtime = context.runtime.clone();
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 2, 1_024).unwrap();
        let address = sockets[0].local_addr().unwrap();
        // All go to the first one's queue, which nobody looks into.
        reuseport::steer(&sockets[0], &program(&[1.0, 0.0]).unwrap()).unwrap();
        let mut spread = Queues::spread(sockets, 2);
        let (own, first) = (spread.pop().unwrap(), spread.pop().unwrap());
        let ports = Ports::open(&context, vec![own]);
        let mut easing = Easing::new(16);
        let ease = Ease { is_steered: true, ..Ease::usual(16) };
        let come = |count: usize| -> Vec<TcpStream> {
            let client = || {
                let mut client = TcpStream::connect(address).unwrap();
                client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
                client.set_nonblocking(true).unwrap();
                client
            };
            (0..count).map(|_| client()).collect()
        };
        let are_answered = |clients: &[TcpStream]| {
            let is_answered = |client: &TcpStream| client.peek(&mut [0; 12]).is_ok_and(|read| read == 12);
            clients.iter().all(is_answered)
        };
        let play = async {
            easing.take(ease, runtime.now(), &ports, &context);
            let end = runtime.now() + Duration::from_secs(10);
            for _ in 0..3 {
                let clients = come(20);
                while !are_answered(&clients) {
                    assert!(runtime.now() < end, "left alone");
                    runtime.sleep_until(runtime.now() + Duration::from_millis(1)).await;
                }
            }
            let taken = context.shard.counter(Counter::ConnectionsRelieved);
            drop(first.lent);
            let _later = come(3);
            runtime.sleep_until(runtime.now() + PAUSE * 20).await;
            assert_eq!((taken, context.shard.counter(Counter::ConnectionsRelieved)), (60, 60));
            assert!(Incoming::waiting_at(&first.own[0]).is_some(), "left to who has it");
        };
        runtime.block_on(play).unwrap();
    }
}
