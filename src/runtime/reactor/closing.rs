//! The last of a descriptor. To close one ends a connection in the kernel, about 10 µs for each: where a hundred are let go
//! at once, as when a client with as many streams leaves, most wait for later turns, lest everybody else wait for them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Descriptors closed in a turn, while few wait.
pub(in crate::runtime) const CLOSES_A_TURN: usize = 8;
/// Of those that wait, one in so many is closed in a turn: they get no more than so many turns' closes, however many come.
const WAITING_PART: usize = 8;

#[derive(Default)]
pub(super) struct Closing {
    /// Closed in this turn.
    closed: usize,
    waiting: VecDeque<OwnedFd>,
}

impl Closing {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Closes a descriptor, in this turn where there is room.
    pub(super) fn close(&mut self, fd: OwnedFd) {
        if self.closed >= CLOSES_A_TURN {
            return self.waiting.push_back(fd);
        }
        self.closed += 1;
        drop(fd);
    }

    /// Begins a turn.
    pub(super) fn turn(&mut self) {
        self.closed = 0;
        if self.waiting.is_empty() {
            return;
        }
        let waiting = self.waiting.len();
        self.closed = CLOSES_A_TURN.max(waiting / WAITING_PART).min(waiting);
        self.waiting.drain(..self.closed);
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pairs(count: usize) -> (Vec<OwnedFd>, Vec<UnixStream>) {
        let pair = |_| {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            theirs.set_nonblocking(true).expect("nonblocking");
            (ours.into(), theirs)
        };
        (0..count).map(pair).unzip()
    }

    fn closed(peers: &[UnixStream]) -> usize {
        let has_ended = |mut peer: &UnixStream| matches!(peer.read(&mut [0]), Ok(0));
        peers.iter().filter(|peer| has_ended(peer)).count()
    }

    #[test]
    fn a_few_close_at_once_and_the_rest_in_later_turns() {
        let (ours, peers) = pairs(20);
        let mut closing = Closing::default();
        ours.into_iter().for_each(|fd| closing.close(fd));
        let mut seen = vec![closed(&peers)];
        while !closing.is_empty() {
            closing.turn();
            seen.push(closed(&peers));
        }
        assert_eq!(seen, [8, 16, 20]);
        // A turn that closed few of those that waited has room for more.
        let (ours, peers) = pairs(5);
        ours.into_iter().for_each(|fd| closing.close(fd));
        assert_eq!((closed(&peers), closing.is_empty()), (4, false));
    }

    #[test]
    fn what_waits_is_bounded_by_what_comes() {
        let mut closing = Closing::default();
        for _ in 0..100 {
            pairs(30).0.into_iter().for_each(|fd| closing.close(fd));
            closing.turn();
            assert!(closing.waiting.len() <= 30 * WAITING_PART, "{}", closing.waiting.len());
        }
    }
}
