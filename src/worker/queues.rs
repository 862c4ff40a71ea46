//! A worker's sockets of one listener, and how to reach those of the others: who is idle takes what waits there while CPU
//! time is stolen. Accepts nothing itself.

use std::net::TcpListener;
use std::sync::{Arc, Weak};

/// What one worker has of one listener.
#[derive(Default)]
pub struct Queues {
    /// To accept from.
    pub own: Vec<TcpListener>,
    /// Copies of them, for as long as the worker accepts: whoever else has one holds it only while he takes from it, so that
    /// no socket outlives its worker's interest, and gets connections that nobody takes.
    pub lent: Vec<Arc<TcpListener>>,
    /// The other workers'.
    pub others: Vec<Weak<TcpListener>>,
}

impl Queues {
    /// By worker, `sockets` of one listener in worker order. One that no worker has of his own goes to one of them: what
    /// waits in it is served, whatever the number of workers. One that cannot be copied is nobody else's.
    pub fn spread(sockets: Vec<TcpListener>, workers: usize) -> Vec<Self> {
        let mut spread: Vec<Self> = (0..workers).map(|_| Self::default()).collect();
        for (at, socket) in sockets.into_iter().enumerate() {
            if let Some(queues) = spread.get_mut(at % workers.max(1)) {
                let copy = if workers > 1 { socket.try_clone().ok() } else { None };
                queues.lent.extend(copy.map(Arc::new));
                queues.own.push(socket);
            }
        }
        let lent = |queues: &Self| queues.lent.iter().map(Arc::downgrade).collect();
        let lent: Vec<Vec<_>> = spread.iter().map(lent).collect();
        for (worker, queues) in spread.iter_mut().enumerate() {
            // The next one's first: not all take from the same.
            let others = (1..workers).filter_map(|step| lent.get((worker + step) % workers));
            queues.others = others.flatten().cloned().collect();
        }
        spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(count: usize) -> (Vec<TcpListener>, Vec<std::net::SocketAddr>) {
        let sockets: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        (sockets, addresses)
    }

    #[test]
    fn every_socket_has_a_worker_and_is_lent_to_the_others_while_he_has_it() {
        let (sockets, addresses) = sockets(3);
        let mut spread = Queues::spread(sockets, 2);
        let own = |queues: &Queues| -> Vec<_> {
            queues.own.iter().map(|socket| socket.local_addr().unwrap()).collect()
        };
        let others = |queues: &Queues| -> Vec<_> {
            let others = queues.others.iter().filter_map(Weak::upgrade);
            others.map(|socket| socket.local_addr().unwrap()).collect()
        };
        assert_eq!(
            (own(&spread[0]), others(&spread[0])),
            (vec![addresses[0], addresses[2]], vec![addresses[1]])
        );
        assert_eq!(
            (own(&spread[1]), others(&spread[1])),
            (vec![addresses[1]], vec![addresses[0], addresses[2]])
        );
        spread[0].lent.clear();
        assert!(others(&spread[1]).is_empty());
        let (sockets, _) = self::sockets(2);
        let alone = Queues::spread(sockets, 1);
        assert!(alone[0].own.len() == 2 && alone[0].lent.is_empty() && alone[0].others.is_empty());
    }
}
