//! A queue of byte records from one thread to another, of a fixed size. Neither side ever waits, takes a lock or enters
//! the kernel: a record that finds no room is refused. Allocates when it is made and never after.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_BYTES: usize = 8;

/// On a pair of cache lines of its own: the two sides write one of these each.
#[derive(Default)]
#[repr(align(128))]
struct Position(AtomicU64);

struct Shared {
    /// A power of two of them. A record is its length in one word, then its bytes, the last word filled with zeros.
    words: Box<[AtomicU64]>,
    /// Words written since the start; stored by the producer alone.
    written: Position,
    /// Words read since the start; stored by the consumer alone.
    read: Position,
    /// Records that came through and were lost behind; stored by the consumer alone.
    lost: AtomicU64,
}

/// The side that puts records in.
pub struct Producer {
    shared: Arc<Shared>,
    written: Cell<u64>,
    /// Where the consumer was when this side last looked.
    read: Cell<u64>,
}

/// The side that takes them out.
pub struct Consumer {
    shared: Arc<Shared>,
    read: u64,
}

/// A ring with room for `bytes`, rounded up to a power of two of words; each record takes a word beside its bytes.
pub fn byte_ring(bytes: usize) -> (Producer, Consumer) {
    let words = bytes.div_ceil(WORD_BYTES).max(2).next_power_of_two();
    let words = std::iter::repeat_with(AtomicU64::default).take(words).collect();
    let shared = Shared { words, written: Position::default(), read: Position::default(), lost: 0.into() };
    let shared = Arc::new(shared);
    let producer = Producer { shared: shared.clone(), written: Cell::new(0), read: Cell::new(0) };
    (producer, Consumer { shared, read: 0 })
}

impl Shared {
    fn word(&self, position: u64) -> &AtomicU64 {
        &self.words[position as usize & (self.words.len() - 1)]
    }
}

impl Producer {
    /// Puts a record in. `false`: there is no room for it now.
    pub fn push(&self, record: &[u8]) -> bool {
        let shared = &*self.shared;
        let needed = 1 + record.len().div_ceil(WORD_BYTES) as u64;
        let written = self.written.get();
        let has_room = |read: u64| written - read + needed <= shared.words.len() as u64;
        if !has_room(self.read.get()) {
            // Acquire: what the consumer read of these words it read before we write them anew.
            self.read.set(shared.read.0.load(Ordering::Acquire));
            if !has_room(self.read.get()) {
                return false;
            }
        }
        shared.word(written).store(record.len() as u64, Ordering::Relaxed);
        for (position, bytes) in (written + 1..).zip(record.chunks(WORD_BYTES)) {
            let mut word = [0; WORD_BYTES];
            word[..bytes.len()].copy_from_slice(bytes);
            shared.word(position).store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        self.written.set(written + needed);
        // Release: whoever sees this position sees the words before it.
        shared.written.0.store(written + needed, Ordering::Release);
        true
    }

    /// Records that the consumer took and lost, since the start.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Consumer {
    /// Appends the next record to `out`. `false`: there is none.
    pub fn pop(&mut self, out: &mut Vec<u8>) -> bool {
        let shared = &*self.shared;
        if self.read == shared.written.0.load(Ordering::Acquire) {
            return false;
        }
        let len = shared.word(self.read).load(Ordering::Relaxed) as usize;
        let words = len.div_ceil(WORD_BYTES) as u64;
        let end = out.len() + len;
        for position in self.read + 1..=self.read + words {
            out.extend_from_slice(&shared.word(position).load(Ordering::Relaxed).to_ne_bytes());
        }
        out.truncate(end);
        self.read += 1 + words;
        shared.read.0.store(self.read, Ordering::Release);
        true
    }

    /// Tells the producer of records that were taken and lost.
    pub fn note_lost(&self, count: u64) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        self.shared.lost.store(lost + count, Ordering::Relaxed);
    }

    /// Whether nothing will ever come any more.
    pub fn is_over(&self) -> bool {
        let alone = Arc::strong_count(&self.shared) == 1;
        alone && self.read == self.shared.written.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_finds_no_room_is_refused_and_the_rest_comes_whole() {
        let (producer, mut consumer) = byte_ring(32);
        assert!(producer.push(b"12345678") && producer.push(b"9"));
        assert!(!producer.push(b""), "two records of two words fill four");
        let mut out = Vec::new();
        assert!(consumer.pop(&mut out));
        assert!(!producer.push(b"123456789"), "three words");
        assert!(producer.push(b"abc"));
        assert!(consumer.pop(&mut out) && consumer.pop(&mut out) && !consumer.pop(&mut out));
        assert_eq!(out, b"123456789abc");
        assert!(!consumer.is_over());
        consumer.note_lost(3);
        assert_eq!(producer.lost(), 3);
        drop(producer);
        assert!(consumer.is_over());
    }

    #[test]
    fn two_threads_lose_and_mix_nothing() {
        const RECORDS: u32 = 20_000;
        let (producer, mut consumer) = byte_ring(256);
        let writer = std::thread::spawn(move || {
            for n in 0..RECORDS {
                let record = n.to_string().repeat(n as usize % 4);
                while !producer.push(record.as_bytes()) {
                    std::thread::yield_now();
                }
            }
        });
        for n in 0..RECORDS {
            let mut out = Vec::new();
            while !consumer.pop(&mut out) {
                std::thread::yield_now();
            }
            assert_eq!(out, n.to_string().repeat(n as usize % 4).as_bytes());
        }
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn records_come_out_as_a_queue_would_have_them(
            bytes in 1_usize..200,
            steps in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..60)), 0..200),
        ) {
            let (producer, mut consumer) = byte_ring(bytes);
            let mut queue = std::collections::VecDeque::new();
            for step in steps {
                match step {
                    Some(record) => {
                        if producer.push(&record) {
                            queue.push_back(record);
                        }
                    }
                    None => {
                        let mut out = Vec::new();
                        let popped = consumer.pop(&mut out).then_some(out);
                        prop_assert_eq!(popped, queue.pop_front());
                    }
                }
            }
        }
    }
}
