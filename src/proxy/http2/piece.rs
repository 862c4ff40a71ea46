//! A piece of a body on its way between any two transports, without a copy unless it is small: part of a receive buffer of
//! the pool, or of what the `h2` crate received.

use std::rc::Rc;

use bytes::{Buf, Bytes};

use crate::runtime::RecvBuf;

/// Bytes that are copied, so that their receive buffer serves the next socket while it is in cache: a piece may wait for the
/// other streams of its connection. The largest that malloc takes from its fast lists.
const COPIED_MAX: usize = 1_024;

/// Some bytes of a body. Cheap to split; the memory goes back when the last part is gone.
pub struct Piece(Repr);

enum Repr {
    Pool { buf: Rc<RecvBuf>, at: usize, end: usize },
    Shared(Bytes),
}

impl Piece {
    pub fn new(buf: RecvBuf) -> Self {
        if buf.len() <= COPIED_MAX {
            return Self::copied(&buf);
        }
        let end = buf.len();
        Self(Repr::Pool { buf: Rc::new(buf), at: 0, end })
    }

    pub(super) const fn shared(bytes: Bytes) -> Self {
        Self(Repr::Shared(bytes))
    }

    pub(super) const fn empty() -> Self {
        Self(Repr::Shared(Bytes::new()))
    }

    pub fn copied(bytes: &[u8]) -> Self {
        Self(Repr::Shared(Bytes::copy_from_slice(bytes)))
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Pool { buf, at, end } => &buf[*at..*end],
            Repr::Shared(bytes) => bytes,
        }
    }

    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `count` bytes; this keeps the rest.
    #[must_use]
    pub fn split_to(&mut self, count: usize) -> Self {
        match &mut self.0 {
            Repr::Pool { buf, at, end } => {
                let split = (*at + count).min(*end);
                let first = Self(Repr::Pool { buf: buf.clone(), at: *at, end: split });
                *at = split;
                first
            }
            Repr::Shared(bytes) => Self(Repr::Shared(bytes.split_to(count.min(bytes.len())))),
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes()
    }

    fn advance(&mut self, count: usize) {
        match &mut self.0 {
            Repr::Pool { at, end, .. } => *at = (*at + count).min(*end),
            Repr::Shared(bytes) => bytes.advance(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_split_and_eaten_like_its_bytes() {
        let mut piece = Piece::copied(b"hello world");
        let first = piece.split_to(5);
        piece.advance(1);
        assert_eq!((first.bytes(), piece.bytes()), (&b"hello"[..], &b"world"[..]));
        assert_eq!(piece.split_to(99).bytes(), b"world");
        assert!(piece.is_empty());
    }
}
