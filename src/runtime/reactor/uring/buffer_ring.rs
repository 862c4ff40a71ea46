//! The ring of provided buffers: what the kernel may receive into. Each id is in the kernel's hands or not, and
//! comes out once; the memory behind it moves into a `RecvBuf` and is replaced by the hottest free buffer.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::super::super::buffers::{Buffers, Size, receive_area};

/// The one group of buffers a ring has.
pub(super) const BUFFER_GROUP: u16 = 0;

pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    bytes: usize,
    mask: u16,
    tail: u16,
    /// By id: the memory the kernel may write into, `None` while the id is out.
    lent: Vec<Option<NonNull<u8>>>,
    /// Ids that are out.
    vacant: Vec<u16>,
}

impl BufferRing {
    /// Registers a ring for `count` buffers (rounded up to a power of two) and fills it.
    pub(super) fn new(ring: &IoUring, count: u16, buffers: &Buffers) -> io::Result<Self> {
        let count = count.clamp(1, 1 << 14).next_power_of_two();
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        // SAFETY: a fresh anonymous mapping; no address is asked for.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries =
            NonNull::new(memory.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // A child must not copy what the kernel reads of us. Refusal costs nothing but the copy.
        // SAFETY: the mapping above, with its length.
        let _ = unsafe { libc::madvise(memory, bytes, libc::MADV_DONTFORK) };
        let mut this = Self {
            entries,
            bytes,
            mask: count - 1,
            tail: 0,
            lent: vec![None; usize::from(count)],
            vacant: (0..count).rev().collect(),
        };
        // SAFETY: the mapping is page aligned, holds `count` entries, and lives until this value is dropped,
        // which is after the ring (field order of `Uring`).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                this.entries.as_ptr() as u64,
                count,
                BUFFER_GROUP,
                0,
            )?;
        }
        this.refill(buffers);
        Ok(this)
    }

    /// Whether the kernel has a buffer left to receive into, as far as completions tell.
    pub(super) const fn has_free(&self) -> bool {
        self.vacant.len() < self.lent.len()
    }

    /// Lends the kernel a buffer for every vacant id.
    pub(super) fn refill(&mut self, buffers: &Buffers) {
        if self.vacant.is_empty() {
            return;
        }
        while let Some(id) = self.vacant.pop() {
            let base = buffers.take_raw(Size::Usual);
            let (address, len) = receive_area(base);
            self.lent[usize::from(id)] = Some(base);
            let at = usize::from(self.tail & self.mask);
            // SAFETY: `at` is below the count of entries, and the kernel reads an entry only after the tail
            // below says so.
            let entry = unsafe { self.entries.add(at).as_mut() };
            entry.set_addr(address as u64);
            entry.set_len(len as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
        }
        // SAFETY: the first entry's reserved field is the ring's tail; the mapping is live, the field is aligned,
        // and the kernel only reads it. Release: the entries are written before it.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// The memory of a buffer the kernel has filled. `None` for an id that is not lent: a broken kernel must not
    /// make two owners.
    pub(super) fn take(&mut self, id: u16) -> Option<NonNull<u8>> {
        let base = self.lent.get_mut(usize::from(id))?.take()?;
        self.vacant.push(id);
        Some(base)
    }
}

impl BufferRing {
    /// Takes back every buffer that is lent, when no operation is left that could receive into one.
    pub(super) fn reclaim(&mut self, buffers: &Buffers) {
        for lent in &mut self.lent {
            if let Some(base) = lent.take() {
                buffers.release_raw(base, Size::Usual);
            }
        }
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // Buffers that were not reclaimed are left to the process's end: the kernel tears a ring down
        // asynchronously, and a receive may still write into them.
        // SAFETY: mapped in `new` with this length; the kernel holds its own reference to the pages.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.bytes) };
    }
}

/// The descriptor that an accept completion carries.
pub(super) fn accepted(result: i32) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for this completion, which is applied once.
    unsafe { OwnedFd::from_raw_fd(result) }
}
