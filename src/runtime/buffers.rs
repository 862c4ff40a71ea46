//! Memory that the kernel receives into, and blocks that heads are written into. One set a worker, bounded, last
//! in first out so that it stays in cache. Never shared with another thread.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::base::units::KIB;
use crate::limits::{BULK_BUF_BYTES, RECV_BUF_BYTES};

/// Room before the received bytes, so that a rewritten head or a chunk-size line can be put in front of a body
/// without moving it.
pub(super) const HEADROOM: usize = 512;
/// Room behind them for what ends a chunked body.
pub(super) const TAILROOM: usize = 16;
/// Blocks larger than this are not kept: one long head must not size every block for ever.
const BLOCK_KEPT_BYTES_MAX: usize = 4 * KIB;
const BLOCKS_KEPT_MAX: usize = 1_024;
const BULK_KEPT_MAX: usize = 8;
/// Initial capacity of a block: a usual head with its small body.
const BLOCK_BYTES: usize = KIB;

/// Two sizes of receive buffer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Size {
    Usual,
    Bulk,
}

impl Size {
    const fn bytes(self) -> usize {
        match self {
            Self::Usual => RECV_BUF_BYTES,
            Self::Bulk => BULK_BUF_BYTES,
        }
    }

    const fn layout(self) -> Layout {
        match Layout::from_size_align(HEADROOM + self.bytes() + TAILROOM, 64) {
            Ok(layout) => layout,
            Err(_) => panic!("buffer sizes that make a valid layout"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct BufferStats {
    /// Bytes of receive buffers that exist, free ones included.
    pub bytes_allocated: usize,
    /// Receive buffers that hold data somebody still needs.
    pub in_use: usize,
    /// Bytes of those.
    pub bytes_in_use: usize,
}

/// Free receive buffers of one worker and the count of all.
pub(super) struct Buffers {
    usual: RefCell<Vec<NonNull<u8>>>,
    bulk: RefCell<Vec<NonNull<u8>>>,
    usual_kept_max: usize,
    bytes_allocated: Cell<usize>,
    in_use: Cell<usize>,
    bytes_in_use: Cell<usize>,
}

impl Buffers {
    pub(super) fn new(usual_kept_max: usize) -> Rc<Self> {
        Rc::new(Self {
            usual: RefCell::default(),
            bulk: RefCell::default(),
            usual_kept_max,
            bytes_allocated: Cell::new(0),
            in_use: Cell::new(0),
            bytes_in_use: Cell::new(0),
        })
    }

    pub(super) fn stats(&self) -> BufferStats {
        BufferStats {
            bytes_allocated: self.bytes_allocated.get(),
            in_use: self.in_use.get(),
            bytes_in_use: self.bytes_in_use.get(),
        }
    }

    /// Raw memory of one buffer, for the buffer ring. Comes back through `adopt` or `release`.
    pub(super) fn take_raw(&self, size: Size) -> NonNull<u8> {
        let free = match size {
            Size::Usual => &self.usual,
            Size::Bulk => &self.bulk,
        };
        if let Some(base) = free.borrow_mut().pop() {
            return base;
        }
        let layout = size.layout();
        self.bytes_allocated.set(self.bytes_allocated.get() + layout.size());
        // SAFETY: the layout's size is not zero: HEADROOM alone makes it so.
        let base = unsafe { alloc(layout) };
        NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout))
    }

    pub(super) fn release_raw(&self, base: NonNull<u8>, size: Size) {
        let (free, kept_max) = match size {
            Size::Usual => (&self.usual, self.usual_kept_max),
            Size::Bulk => (&self.bulk, BULK_KEPT_MAX),
        };
        let mut free = free.borrow_mut();
        if free.len() < kept_max {
            free.push(base);
            return;
        }
        let layout = size.layout();
        self.bytes_allocated.set(self.bytes_allocated.get() - layout.size());
        // SAFETY: `base` came from `take_raw` of the same size, and its owner gives it up here.
        unsafe { dealloc(base.as_ptr(), layout) };
    }

    /// An empty buffer of ours to receive into.
    pub(super) fn take(self: &Rc<Self>, size: Size) -> RecvBuf {
        let base = self.take_raw(size);
        self.adopt(base, size, 0)
    }

    /// Makes a buffer of raw memory into which `len` bytes were received behind the headroom.
    pub(super) fn adopt(self: &Rc<Self>, base: NonNull<u8>, size: Size, len: usize) -> RecvBuf {
        debug_assert!(len <= size.bytes());
        self.in_use.set(self.in_use.get() + 1);
        self.bytes_in_use.set(self.bytes_in_use.get() + size.layout().size());
        let start = HEADROOM as u32;
        RecvBuf { home: self.clone(), base, start, end: start + len as u32, size }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        for (free, size) in [(self.usual.take(), Size::Usual), (self.bulk.take(), Size::Bulk)] {
            for base in free {
                // SAFETY: free buffers came from `take_raw` of this size and nobody else names them.
                unsafe { dealloc(base.as_ptr(), size.layout()) };
            }
        }
    }
}

/// Address and length at which the kernel writes into raw memory of the usual size.
pub(super) fn receive_area(base: NonNull<u8>) -> (*mut u8, usize) {
    // SAFETY: every buffer is HEADROOM + bytes + TAILROOM long, so the offset stays inside it.
    (unsafe { base.as_ptr().add(HEADROOM) }, RECV_BUF_BYTES)
}

/// Received bytes in a buffer of the worker's pool. Goes back to the pool when dropped; never leaves the thread.
pub struct RecvBuf {
    home: Rc<Buffers>,
    base: NonNull<u8>,
    start: u32,
    end: u32,
    size: Size,
}

impl RecvBuf {
    /// Gives up the first `count` bytes. The room they took can be written with `prepend`.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advance past the end of a buffer");
        self.start += count as u32;
    }

    /// Keeps `range` of the bytes only.
    pub fn narrow(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len(), "range outside of a buffer");
        self.end = self.start + range.end as u32;
        self.start += range.start as u32;
    }

    /// Puts `bytes` before the others, if there is room.
    #[must_use]
    pub fn prepend(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.start as usize {
            return false;
        }
        self.start -= bytes.len() as u32;
        // SAFETY: the check above keeps the target inside the buffer, and `&mut self` is its only name.
        unsafe {
            let target = self.base.as_ptr().add(self.start as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
        true
    }

    /// Puts `bytes` behind the others, if there is room.
    #[must_use]
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let capacity = HEADROOM + self.size.bytes() + TAILROOM;
        if bytes.len() > capacity - self.end as usize {
            return false;
        }
        // SAFETY: source and target do not overlap (`&mut self` is the only name of the target), and the check
        // above keeps the target inside the buffer.
        unsafe {
            let target = self.base.as_ptr().add(self.end as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
        self.end += bytes.len() as u32;
        true
    }

    /// A second buffer holding the bytes from `at` on; this one keeps those before. Copies.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        let mut rest = self.home.take(self.size);
        // As far in front as the bytes stand here at most, else they might not fit.
        rest.start = (self.start + at as u32).min(rest.start);
        rest.end = rest.start;
        let fits = rest.append(&self[at..]);
        debug_assert!(fits, "the rest of a buffer fits into one of the same size");
        self.end = self.start + at as u32;
        rest
    }

    /// An empty buffer of the same size.
    #[must_use]
    pub fn sibling(&self) -> Self {
        self.home.take(self.size)
    }

    /// What makes such buffers when this one is lent elsewhere.
    pub fn maker(&self) -> BufMaker {
        BufMaker { home: self.home.clone(), size: self.size }
    }

    /// Bytes the buffer has room for, margins included.
    pub const fn capacity(&self) -> usize {
        self.size.layout().size()
    }

    /// Replaces the bytes with what `write` writes to the front of `room` bytes, which may take in the margins. It
    /// returns how many those are.
    ///
    /// # Errors
    /// Those of `write`; the buffer is empty then.
    pub fn write_with<E>(
        &mut self,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        assert!(room <= self.capacity(), "more room than the buffer has");
        (self.start, self.end) = (0, 0);
        // SAFETY: the check above keeps `room` bytes inside the allocation.
        unsafe { self.base.as_ptr().write_bytes(0, room) };
        // SAFETY: just initialised, inside the allocation, and `&mut self` is the only name of the memory.
        let target = unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), room) };
        let written = write(target)?;
        assert!(written <= room, "more written than there is room for");
        self.end = written as u32;
        Ok(())
    }

    /// Where to receive into: the whole area behind the headroom. Only for an empty buffer.
    pub(super) fn spare(&mut self) -> (*mut u8, usize) {
        debug_assert!(self.is_empty() && self.start as usize == HEADROOM);
        // SAFETY: HEADROOM lies inside the allocation, and `size.bytes()` follow it.
        (unsafe { self.base.as_ptr().add(HEADROOM) }, self.size.bytes())
    }

    /// Says that the kernel wrote `len` bytes at `spare`.
    ///
    /// # Safety
    /// `len` bytes there are initialised.
    pub(super) unsafe fn set_received(&mut self, len: usize) {
        debug_assert!(len <= self.size.bytes());
        self.end = self.start + len as u32;
    }
}

/// Makes empty buffers of one size.
pub struct BufMaker {
    home: Rc<Buffers>,
    size: Size,
}

impl BufMaker {
    pub fn make(&self) -> RecvBuf {
        self.home.take(self.size)
    }
}

impl Deref for RecvBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..end` is initialised: the kernel or `prepend`/`append` wrote it, and this value is the
        // only name of the memory.
        unsafe {
            std::slice::from_raw_parts(
                self.base.as_ptr().add(self.start as usize),
                (self.end - self.start) as usize,
            )
        }
    }
}

impl DerefMut for RecvBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.base.as_ptr().add(self.start as usize),
                (self.end - self.start) as usize,
            )
        }
    }
}

impl Drop for RecvBuf {
    fn drop(&mut self) {
        self.home.in_use.set(self.home.in_use.get() - 1);
        self.home.bytes_in_use.set(self.home.bytes_in_use.get() - self.size.layout().size());
        self.home.release_raw(self.base, self.size);
    }
}

impl std::fmt::Debug for RecvBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBuf").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Recycled vectors that heads are written into.
#[derive(Default)]
pub(super) struct Blocks {
    free: Vec<Vec<u8>>,
}

impl Blocks {
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES))
    }

    pub(super) fn put(&mut self, mut block: Vec<u8>) {
        let kept = (BLOCK_BYTES..=BLOCK_KEPT_BYTES_MAX).contains(&block.capacity());
        if kept && self.free.len() < BLOCKS_KEPT_MAX {
            block.clear();
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(buffers: &Rc<Buffers>, bytes: &[u8]) -> RecvBuf {
        let mut buf = buffers.take(Size::Usual);
        assert!(buf.append(bytes));
        buf
    }

    #[test]
    fn a_head_fits_in_front_of_a_body_that_does_not_move() {
        let buffers = Buffers::new(4);
        let mut buf = filled(&buffers, b"HTTP/1.1 200 OK\r\n\r\nbody");
        buf.advance(19);
        let body_at = buf.as_ptr();
        assert!(buf.prepend(b"5\r\n"));
        assert!(buf.append(b"\r\n"));
        assert_eq!(&*buf, b"5\r\nbody\r\n");
        assert_eq!(body_at, buf[3..].as_ptr());
        assert!(!buf.prepend(&[0; HEADROOM + 20]), "no room for that");
    }

    #[test]
    fn the_last_buffer_given_back_is_the_next_one_out() {
        let buffers = Buffers::new(4);
        let (first, second) = (buffers.take(Size::Usual), buffers.take(Size::Usual));
        let address = second.base;
        assert_eq!(buffers.stats().in_use, 2);
        drop(first);
        drop(second);
        assert_eq!(buffers.take(Size::Usual).base, address);
        assert_eq!(buffers.stats().in_use, 0);
    }

    #[test]
    fn no_more_than_the_kept_buffers_stay_allocated() {
        let buffers = Buffers::new(1);
        let many: Vec<RecvBuf> = (0..5).map(|_| buffers.take(Size::Usual)).collect();
        drop(many);
        assert_eq!(buffers.stats().bytes_allocated, Size::Usual.layout().size());
    }

    #[test]
    fn what_is_written_anew_may_fill_the_margins() {
        let buffers = Buffers::new(1);
        let mut buf = filled(&buffers, b"before");
        let room = buf.capacity();
        let written: Result<(), ()> = buf.write_with(room, |target| {
            target.fill(b'x');
            Ok(target.len() - 1)
        });
        assert_eq!((written, buf.len()), (Ok(()), room - 1));
        assert!(!buf.append(b"yy") && buf.append(b"y"));
        assert_eq!(buf.sibling().capacity(), room);
        assert_eq!(buf.write_with(3, |_| Err("full")), Err("full"));
        assert!(buf.is_empty());
    }

    #[test]
    fn split_off_leaves_both_halves_whole() {
        let buffers = Buffers::new(1);
        let mut buf = filled(&buffers, b"firstsecond");
        let rest = buf.split_off(5);
        assert_eq!((&*buf, &*rest), (&b"first"[..], &b"second"[..]));
    }

    #[test]
    fn split_off_keeps_bytes_that_reach_into_both_margins() {
        let buffers = Buffers::new(1);
        let mut buf = filled(&buffers, &[b'x'; RECV_BUF_BYTES + TAILROOM]);
        assert!(buf.prepend(&[b'h'; HEADROOM]));
        let whole = buf.to_vec();
        let rest = buf.split_off(1);
        assert_eq!((&*buf, &*rest), (&whole[..1], &whole[1..]));
    }
}
