//! What a data process tells its supervisor while it runs. A word a datagram; neither side waits for the other, and what
//! a supervisor hears changes nothing but what it tells the service manager.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use crate::sys::fd_passing::Channel;

/// One word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Word {
    /// It serves, with the files that it has read last.
    Ready,
    /// Its control thread runs.
    Alive,
}

impl Word {
    const ALL: [(u8, Self); 2] = [(b'r', Self::Ready), (b'a', Self::Alive)];

    fn byte(self) -> u8 {
        Self::ALL.iter().find(|(_, word)| *word == self).map_or(0, |(byte, _)| *byte)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == byte).map(|(_, word)| *word)
    }
}

/// The supervisor's end.
#[derive(Debug)]
pub struct Ear(tokio::net::UnixDatagram);

/// The data process's end. Clones speak over the same socket.
#[derive(Clone, Debug)]
pub struct Mouth(Arc<UnixDatagram>);

/// Both ends; the second is for [`send`].
pub fn pair() -> io::Result<(Ear, OwnedFd)> {
    let (ear, mouth) = UnixDatagram::pair()?;
    ear.set_nonblocking(true)?;
    Ok((Ear(tokio::net::UnixDatagram::from_std(ear)?), mouth.into()))
}

/// Gives a data process its end, and how often a sign of life is wanted.
pub fn send(channel: &Channel, mouth: &OwnedFd, alive_every: Option<Duration>) -> io::Result<()> {
    channel.send(&serde_json::to_vec(&alive_every)?, &[mouth.as_fd()])
}

/// Receives what [`send`] sent.
pub fn receive(channel: &Channel) -> io::Result<(Mouth, Option<Duration>)> {
    let (payload, mut fds) = channel.recv()?;
    let incomplete =
        || io::Error::new(io::ErrorKind::InvalidData, "no socket to the supervisor was handed over");
    let socket = UnixDatagram::from(fds.pop().ok_or_else(incomplete)?);
    socket.set_nonblocking(true)?;
    Ok((Mouth(Arc::new(socket)), serde_json::from_slice(&payload)?))
}

impl Ear {
    /// The next word. What is none is passed over; after the end of the data process there is none any more.
    pub async fn next(&self) -> Word {
        let mut byte = [0];
        loop {
            match self.0.recv(&mut byte).await {
                Ok(1) => {
                    if let Some(word) = Word::from_byte(byte[0]) {
                        return word;
                    }
                }
                Ok(_) => {}
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Mouth {
    /// Says a word. A supervisor that has not heard many before misses this one.
    pub fn say(&self, word: Word) {
        let _ = self.0.send(&[word.byte()]);
    }

    /// Gives a sign of life as often as is wanted, for as long as the calling thread's tasks run.
    pub fn keep_saying_alive(&self, every: Duration) {
        let mouth = self.clone();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::spawn(async move {
            loop {
                ticks.tick().await;
                mouth.say(Word::Alive);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_cross_and_what_is_none_is_passed_over() {
        let (left, right) = Channel::pair().unwrap();
        let (ear, mouth) = pair().unwrap();
        send(&left, &mouth, Some(Duration::from_secs(15))).unwrap();
        let (mouth, every) = receive(&right).unwrap();
        assert_eq!(every, Some(Duration::from_secs(15)));
        mouth.0.send(b"?").unwrap();
        mouth.0.send(b"").unwrap();
        mouth.0.send(b"ready, at length").unwrap();
        for word in [Word::Ready, Word::Alive] {
            mouth.say(word);
        }
        assert_eq!(ear.next().await, Word::Ready, "the first byte of a long one");
        assert_eq!(ear.next().await, Word::Ready);
        assert_eq!(ear.next().await, Word::Alive);
    }

    #[tokio::test]
    async fn nobody_who_listens_holds_nobody_up() {
        let (left, right) = Channel::pair().unwrap();
        let (ear, mouth) = pair().unwrap();
        send(&left, &mouth, None).unwrap();
        let (mouth, every) = receive(&right).unwrap();
        assert_eq!(every, None);
        for _ in 0..10_000 {
            mouth.say(Word::Alive);
        }
        assert_eq!(ear.next().await, Word::Alive);
        drop(ear);
        mouth.say(Word::Ready);
    }

    #[test]
    fn a_handover_without_its_socket_is_refused() {
        let (left, right) = Channel::pair().unwrap();
        left.send(b"null", &[]).unwrap();
        assert_eq!(receive(&right).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
