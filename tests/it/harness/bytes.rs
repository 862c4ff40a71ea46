//! Deterministic byte streams and their digest, quick enough for 64 MiB in a debug build.

use std::io::{self, Read, Write};

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// An endless pseudo-random stream fixed by its seed (xorshift64*, eight bytes a step).
pub struct Pattern {
    state: u64,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(MULTIPLIER) | 1 }
    }

    /// The next `len` bytes; `len` is a multiple of eight except in the last call.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            out.extend_from_slice(&self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// `len` bytes of the stream of `seed`.
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    Pattern::new(seed).take(len)
}

/// Order-sensitive 64-bit digest that may be fed in pieces of any size.
#[derive(Clone, Debug, Default)]
pub struct Digest {
    state: u64,
    pending: Vec<u8>,
    pub len: u64,
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = Self::default();
        digest.add(bytes);
        digest
    }

    pub fn add(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        while !self.pending.is_empty() && !bytes.is_empty() {
            self.pending.push(bytes[0]);
            bytes = &bytes[1..];
            if self.pending.len() == 8 {
                let word = u64::from_le_bytes(self.pending[..].try_into().unwrap());
                self.mix(word);
                self.pending.clear();
            }
        }
        let words = bytes.chunks_exact(8);
        self.pending.extend_from_slice(words.remainder());
        for word in words {
            self.mix(u64::from_le_bytes(word.try_into().unwrap()));
        }
    }

    /// Length and content in one printable word.
    pub fn text(&self) -> String {
        let mut last = self.clone();
        last.pending.resize(8, 0);
        let word = u64::from_le_bytes(last.pending[..].try_into().unwrap());
        last.mix(word);
        last.mix(self.len);
        format!("{}:{:016x}", self.len, last.state)
    }

    fn mix(&mut self, word: u64) {
        self.state = (self.state ^ word).wrapping_mul(MULTIPLIER).rotate_left(29) ^ (word >> 7);
    }
}

/// Writes `len` bytes of the stream of `seed` in writes of `step` bytes and returns their digest.
pub fn write_pattern(to: &mut impl Write, seed: u64, len: usize, step: usize) -> io::Result<String> {
    let step = step.next_multiple_of(8);
    let (mut pattern, mut digest, mut left) = (Pattern::new(seed), Digest::default(), len);
    while left > 0 {
        let piece = pattern.take(step.min(left));
        to.write_all(&piece)?;
        digest.add(&piece);
        left -= piece.len();
    }
    Ok(digest.text())
}

/// Reads to the end of the stream and returns the digest of what came.
pub fn read_digest(from: &mut impl Read) -> io::Result<String> {
    let mut digest = Digest::default();
    let mut buf = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buf)? {
            0 => return Ok(digest.text()),
            n => digest.add(&buf[..n]),
        }
    }
}

#[test]
fn a_digest_does_not_depend_on_the_pieces() {
    let bytes = random(7, 1003);
    for step in [1, 3, 8, 64, 1000] {
        let mut digest = Digest::default();
        bytes.chunks(step).for_each(|piece| digest.add(piece));
        assert_eq!(digest.text(), Digest::of(&bytes).text());
    }
    let mut changed = bytes.clone();
    changed[500] ^= 1;
    assert_ne!(Digest::of(&changed).text(), Digest::of(&bytes).text());
    assert_ne!(Digest::of(b"\0").text(), Digest::of(b"\0\0").text());
}
