//! The last of a descriptor. To close one ends a connection in the kernel, about 10 µs for each: where a hundred are let go
//! at once, as when a client with as many streams leaves, most wait for later turns, lest everybody else wait for them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::Slot;

/// Descriptors closed in a turn, while few wait.
pub(in crate::runtime) const CLOSES_A_TURN: usize = 8;
/// Of those that wait, one in so many is closed in a turn: they get no more than so many turns' closes, however many come.
const WAITING_PART: usize = 4;

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

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Closes the descriptor of a socket that nobody has any more, in this turn where there is room. One that listens is
    /// closed at once: nobody takes what would come to it.
    pub(super) fn close(&mut self, slot: Slot) {
        if !slot.shared && self.closed >= CLOSES_A_TURN {
            return self.waiting.push_back(slot.fd);
        }
        self.closed += 1;
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

    fn pairs(count: usize) -> (Vec<Slot>, Vec<UnixStream>) {
        let pair = |_| {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            (Slot::new(ours.into()), theirs)
        };
        (0..count).map(pair).unzip()
    }

    #[test]
    fn a_few_close_at_once_and_the_rest_in_later_turns() {
        let (ours, mut peers) = pairs(20);
        let mut closing = Closing::default();
        ours.into_iter().for_each(|slot| closing.close(slot));
        let mut waiting = vec![closing.len()];
        while !closing.is_empty() {
            closing.turn();
            waiting.push(closing.len());
        }
        assert_eq!(waiting, [12, 4, 0]);
        for peer in &mut peers {
            assert_eq!(peer.read(&mut [0]).expect("an end"), 0);
        }
        // A turn that closed few of those that waited has room for more.
        pairs(5).0.into_iter().for_each(|slot| closing.close(slot));
        assert_eq!(closing.len(), 1);
    }

    #[test]
    fn one_that_listens_waits_for_no_other() {
        let mut closing = Closing::default();
        pairs(20).0.into_iter().for_each(|slot| closing.close(slot));
        let (ours, mut peers) = pairs(1);
        for mut slot in ours {
            slot.shared = true;
            closing.close(slot);
        }
        assert_eq!(closing.len(), 12);
        assert_eq!(peers[0].read(&mut [0]).expect("an end"), 0);
    }

    #[test]
    fn what_waits_is_bounded_by_what_comes() {
        let mut closing = Closing::default();
        for _ in 0..100 {
            pairs(30).0.into_iter().for_each(|slot| closing.close(slot));
            closing.turn();
            assert!(closing.len() <= 30 * WAITING_PART, "{}", closing.len());
        }
    }
}
