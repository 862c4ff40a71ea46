//! The downstream connections of one worker, as its operator sees them: from where, since when, at what. A few words
//! each, as there may be as many as there are descriptors. Knows no socket and no session.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use crate::base::time::Instant;

use super::serving::Served;

/// What a connection is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Doing {
    /// Nothing is known of it yet, or its TLS handshake is on its way.
    Opening,
    Http1,
    Http2,
    /// Bytes of any protocol are passed on.
    Relay,
    /// The same, once it was asked for over HTTP/1.1.
    Tunnel,
}

impl Doing {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Relay => "relay",
            Self::Tunnel => "tunnel",
        }
    }
}

/// One open connection.
#[derive(Clone)]
pub struct Connected {
    /// `None`: it left before it was asked for its address.
    pub client: Option<IpAddr>,
    pub since: Instant,
    /// Requests, or 1 for a relay.
    pub exchanges: u32,
    pub listener: Rc<Served>,
    pub doing: Doing,
}

// An idle connection is to cost less than elsewhere.
const _: () = assert!(size_of::<Option<Connected>>() <= 40);

#[derive(Default)]
pub struct Connections(RefCell<Places>);

#[derive(Default)]
struct Places {
    list: Vec<Option<Connected>>,
    free: Vec<u32>,
}

impl Connections {
    /// Takes a place until `leave`.
    pub fn enter(&self, connected: Connected) -> u32 {
        let Places { list, free } = &mut *self.0.borrow_mut();
        if let Some(place) = free.pop() {
            list[place as usize] = Some(connected);
            return place;
        }
        list.push(Some(connected));
        list.len() as u32 - 1
    }

    pub fn leave(&self, place: u32) {
        let Places { list, free } = &mut *self.0.borrow_mut();
        if list.get_mut(place as usize).and_then(Option::take).is_some() {
            free.push(place);
        }
    }

    pub fn with<T>(&self, place: u32, read: impl FnOnce(&Connected) -> T) -> Option<T> {
        self.0.borrow().list.get(place as usize)?.as_ref().map(read)
    }

    pub fn change(&self, place: u32, change: impl FnOnce(&mut Connected)) {
        if let Some(Some(connected)) = self.0.borrow_mut().list.get_mut(place as usize) {
            change(connected);
        }
    }

    /// How many there are, and the oldest `max` of them, the oldest first.
    pub fn oldest(&self, max: usize) -> (usize, Vec<Connected>) {
        let Places { list, .. } = &*self.0.borrow();
        let since = |(place, it): (usize, &Option<Connected>)| Some((it.as_ref()?.since, place));
        let mut all: Vec<(Instant, usize)> = list.iter().enumerate().filter_map(since).collect();
        let count = all.len();
        if max < count {
            all.select_nth_unstable(max);
            all.truncate(max);
        }
        all.sort_unstable();
        // Only those that are listed are copied: each copy is one more user of its listener.
        (count, all.into_iter().filter_map(|(_, place)| list.get(place)?.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::metrics::Shard;

    #[test]
    fn the_oldest_are_listed_and_places_are_used_again() {
        let connections = Connections::default();
        let snapshot = config::embedded_default().snapshot;
        let shard = Shard::new(0, &["web".into()], &[], &[]);
        let listener = Served::new(&shard.listeners()[0], 0, &snapshot.listeners[0]);
        let at = |ms| Connected {
            client: Some([127, 0, 0, 1].into()),
            since: Instant::from_millis(ms),
            exchanges: 0,
            listener: listener.clone(),
            doing: Doing::Opening,
        };
        let places: Vec<u32> = [30, 10, 20].map(|ms| connections.enter(at(ms))).into();
        connections.leave(places[1]);
        connections.leave(places[1]);
        assert_eq!(connections.enter(at(40)), places[1]);
        connections.change(places[2], |connected| connected.exchanges += 1);
        let listed = |max| {
            let (count, oldest) = connections.oldest(max);
            (count, oldest.iter().map(|it| (it.since.millis(), it.exchanges)).collect::<Vec<_>>())
        };
        assert_eq!(listed(2), (3, vec![(20, 1), (30, 0)]));
        assert_eq!(listed(9), (3, vec![(20, 1), (30, 0), (40, 0)]));
        assert_eq!(listed(0), (3, vec![]));
    }
}
