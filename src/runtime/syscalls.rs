//! The socket calls that do not go through the ring. Each is one system call, never blocks, and never raises
//! SIGPIPE.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// # Safety
/// `address` must be valid for writes of `len` bytes.
pub(super) unsafe fn recv(fd: BorrowedFd<'_>, address: *mut u8, len: usize) -> io::Result<usize> {
    // SAFETY: the caller vouches for the memory; the descriptor is borrowed for the call.
    check(unsafe { libc::recv(fd.as_raw_fd(), address.cast(), len, libc::MSG_DONTWAIT) })
}

/// `more`: further bytes follow at once, so the kernel may hold back a short segment.
pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: pointer and length come from one slice that lives through the call.
    check(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Takes one connection from a listener's queue.
pub(super) fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null address and length are allowed and mean that neither is wanted.
    let accepted =
        unsafe { libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if accepted < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// Whether there is something to read, or a connection to accept, now.
pub(super) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is to one pollfd that outlives the call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLIN != 0
}

pub(super) fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: plain integers. Failure means that the peer closed first, which is no news.
    let _ = unsafe { libc::shutdown(fd.as_raw_fd(), how) };
}

/// Bytes sent that the peer's kernel has not acknowledged; its FIN counts as one (tcp(7), SIOCOUTQ).
pub(super) fn unacknowledged(fd: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the pointer is to one int that outlives the call.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if asked < 0 { 0 } else { usize::try_from(bytes).unwrap_or(0) }
}

/// Makes the next close send RST and drop what is unsent.
pub(super) fn reset_on_close(fd: BorrowedFd<'_>) {
    let _ = socket2::SockRef::from(&fd).set_linger(Some(Duration::ZERO));
}

pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd. A full counter is as good as an added one: the reader wakes.
pub(super) fn eventfd_signal(fd: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: pointer and length come from one array that lives through the call.
    let _ = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Sets an eventfd back to zero.
pub(super) fn eventfd_clear(fd: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: the kernel writes eight bytes at most, which the array holds.
    let _ = unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}
