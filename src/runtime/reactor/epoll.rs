//! The epoll backend: edge-triggered, each socket registered once for both directions, so no call is spent on
//! changing interest. Sockets are received from and sent to by the seam itself; this only reports readiness.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::base::slab::{Key, Slab};

use super::Slot;

/// Events taken from the kernel in one turn.
const EVENTS_MAX: usize = 256;

pub(super) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: plain integers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX] })
    }

    /// Registers a descriptor for its whole life. Closing it takes it out.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, key: Key) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let word = u64::from(key.index) | u64::from(key.generation) << 32;
        let mut event = libc::epoll_event { events: interest as u32, u64: word };
        // SAFETY: both descriptors are open and `event` lives through the call.
        let result = unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        // SAFETY: both descriptors are open; a null event is allowed when removing. It cannot fail for one added.
        let _ = unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut())
        };
    }

    /// Whether all that is ready was seen.
    pub(super) fn turn(&mut self, slots: &mut Slab<Slot>, wait: Duration) -> io::Result<bool> {
        // Rounded up: waking before the deadline would only mean waiting again.
        let wait_ms = i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        // SAFETY: pointer and capacity come from one vector that nothing else touches during the call.
        let count = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), EVENTS_MAX as i32, wait_ms)
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        for event in &self.events[..count as usize] {
            let (word, events) = (event.u64, event.events as i32);
            let key = Key { index: word as u32, generation: (word >> 32) as u32 };
            // A socket closed earlier in this turn: its slot is gone or has a new generation.
            if let Some(slot) = slots.get_mut(key) {
                report(slot, events);
            }
        }
        Ok((count as usize) < EVENTS_MAX)
    }
}

fn report(slot: &mut Slot, events: i32) {
    if events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
        slot.hung_up = true;
    }
    if events & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
        slot.readable = true;
        slot.wake_reader();
    }
    if events & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
        slot.writable = true;
        if !slot.outbox.is_empty() {
            slot.flush();
        }
        slot.wake_writer();
    }
}

#[cfg(test)]
impl Epoll {
    pub(super) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}
