//! Messages with file descriptors between two processes of this machine (SCM_RIGHTS over a seqpacket pair).
//! Carries bytes and descriptors; knows nothing of what they mean.

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

/// Descriptors in one packet. The kernel's own bound is 253 (SCM_MAX_FD).
const FDS_PER_PACKET: usize = 128;
/// Payload bytes in one packet, well below the smallest default send buffer.
const BYTES_PER_PACKET: usize = 32 * 1024;
/// Lengths of payload and descriptors, before the first bytes of the payload.
const HEADER_BYTES: usize = 8;
/// Payload bytes and descriptors of one message, so that a broken peer cannot ask for any amount of memory.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const MESSAGE_FDS_MAX: usize = 64 * 1024;

/// One end of a pair over which messages keep their order and their boundaries.
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, closed on exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (left, right) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Self(left.into()), Self(right.into())))
    }

    /// Longest wait of `recv` and `send` for a packet, after which they fail with `WouldBlock`.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let socket = SockRef::from(&self.0);
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))
    }

    /// Sends one message; blocks until the kernel has taken it.
    pub fn send(&self, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if payload.len() > MESSAGE_BYTES_MAX || fds.len() > MESSAGE_FDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
        }
        let (first, rest) = payload.split_at(payload.len().min(BYTES_PER_PACKET));
        self.send_packet(&headed(first, payload.len(), fds.len()), &[], 0)?;
        for part in rest.chunks(BYTES_PER_PACKET) {
            self.send_packet(part, &[], 0)?;
        }
        for part in fds.chunks(FDS_PER_PACKET) {
            self.send_packet(b"f", part, 0)?;
        }
        Ok(())
    }

    /// Sends a short message, whole or not at all, as no other sender can come between; never blocks.
    ///
    /// # Errors
    /// `WouldBlock` where the other end has not taken those before; `InvalidInput` for more than one packet takes.
    pub fn try_send(&self, payload: &[u8]) -> io::Result<()> {
        if payload.len() > BYTES_PER_PACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
        }
        self.send_packet(&headed(payload, payload.len(), 0), &[], libc::MSG_DONTWAIT)
    }

    /// Receives one message; blocks until it is whole. `UnexpectedEof` when the other end is closed, EMFILE where this process
    /// may not have as many descriptors; all of the message is taken then.
    pub fn recv(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut first = vec![0; HEADER_BYTES + BYTES_PER_PACKET];
        let mut fds = Vec::new();
        let mut filled =
            self.recv_packet(&mut first, &mut fds)?.checked_sub(HEADER_BYTES).ok_or_else(malformed)?;
        let number = |at: usize| u32::from_ne_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
        let (bytes_expected, fds_expected) = (number(0) as usize, number(4) as usize);
        if bytes_expected > MESSAGE_BYTES_MAX || fds_expected > MESSAGE_FDS_MAX || filled > bytes_expected {
            return Err(malformed());
        }
        let mut payload = first.split_off(HEADER_BYTES);
        payload.resize(bytes_expected, 0);
        while filled < bytes_expected {
            filled += self.recv_packet(&mut payload[filled..], &mut fds)?;
        }
        let mut missing = None;
        for _ in 0..fds_expected.div_ceil(FDS_PER_PACKET) {
            let before = fds.len();
            match self.recv_packet(&mut [0], &mut fds) {
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => missing = Some(error),
                Ok(_) if fds.len() == before => return Err(malformed()),
                received => drop(received?),
            }
        }
        if let Some(missing) = missing {
            return Err(missing);
        }
        if fds.len() == fds_expected { Ok((payload, fds)) } else { Err(malformed()) }
    }

    fn send_packet(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: libc::c_int) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut io = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = Control::new();
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut io;
        message.msg_iovlen = 1;
        if !raw.is_empty() {
            control.write(&raw, &mut message);
        }
        loop {
            // SAFETY: `message` points at `io`, `bytes` and `control`, which outlive the call; the kernel only reads.
            let sent =
                unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | flags) };
            if sent >= 0 {
                return Ok(());
            }
            retry_if_interrupted()?;
        }
    }

    fn recv_packet(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut io = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = Control::new();
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut io;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        let received = loop {
            // SAFETY: `message` points at `io`, `bytes` and `control`, each with its true length, which outlive the
            // call.
            let received =
                unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
            if received >= 0 {
                break received.cast_unsigned();
            }
            retry_if_interrupted()?;
        };
        Control::take(&message, fds);
        match received {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if message.msg_flags & libc::MSG_TRUNC != 0 => Err(malformed()),
            // The kernel made as many descriptors as it could: a packet has fewer than there is room for.
            _ if message.msg_flags & libc::MSG_CTRUNC != 0 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            received => Ok(received),
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

/// Room for one control message of [`FDS_PER_PACKET`] descriptors, aligned as `cmsghdr` asks.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; CONTROL_BYTES]);

/// The descriptors, and slack that holds any header.
const CONTROL_BYTES: usize = FDS_PER_PACKET * size_of::<RawFd>() + 64;

impl Control {
    const fn new() -> Self {
        Self([MaybeUninit::zeroed(); CONTROL_BYTES])
    }

    fn write(&mut self, fds: &[RawFd], message: &mut libc::msghdr) {
        debug_assert!(fds.len() <= FDS_PER_PACKET);
        let bytes = size_of_val(fds) as libc::c_uint;
        message.msg_control = self.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(bytes) } as _;
        // SAFETY: msg_control points at this buffer, whose length is at least CMSG_SPACE of the most descriptors
        // (64 bytes of slack hold any header), so the first header and its data lie within it.
        let first = unsafe { libc::CMSG_FIRSTHDR(message) };
        // SAFETY: `first` lies within this buffer, which is aligned for it and zeroed; nothing else refers to it.
        let header = unsafe { &mut *first };
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: CMSG_LEN only computes.
        header.cmsg_len = unsafe { libc::CMSG_LEN(bytes) } as _;
        // SAFETY: CMSG_DATA only computes, from a header within this buffer.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: the data of `bytes` bytes lies within this buffer, as said above, and `fds` is elsewhere.
        unsafe { ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, bytes as usize) };
    }

    /// Takes ownership of every descriptor that the kernel put into a received message.
    fn take(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
        // SAFETY: recvmsg set msg_control and msg_controllen to what it wrote; CMSG_FIRSTHDR returns a header within
        // that length, or null.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
        // SAFETY: not null, so it lies within what recvmsg wrote, aligned as the buffer is.
        while let Some(header) = unsafe { next.as_ref() } {
            if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
                // SAFETY: CMSG_LEN only computes.
                let bytes = header.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
                // SAFETY: CMSG_DATA only computes, from a header that recvmsg wrote.
                let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    // SAFETY: `index` is within the `bytes` that the kernel says it wrote behind the header.
                    let at = unsafe { data.add(index) };
                    // SAFETY: as above; the kernel need not align it.
                    let fd = unsafe { at.read_unaligned() };
                    // SAFETY: the kernel installed this descriptor for this call: nobody else owns it.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            // SAFETY: `next` is a header of `message`; CMSG_NXTHDR returns one within msg_controllen, or null.
            next = unsafe { libc::CMSG_NXTHDR(message, next) };
        }
    }
}

fn headed(first: &[u8], bytes: usize, fds: usize) -> Vec<u8> {
    [&(bytes as u32).to_ne_bytes(), &(fds as u32).to_ne_bytes(), first].concat()
}

fn retry_if_interrupted() -> io::Result<()> {
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed message from the other process")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_as_the_same_socket() {
        let (left, right) = Channel::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        left.send(b"take it", &[listener.as_fd()]).unwrap();
        let (payload, mut fds) = right.recv().unwrap();
        assert_eq!(payload, b"take it");
        let taken = TcpListener::from(fds.pop().unwrap());
        assert!(fds.is_empty());
        assert_eq!(taken.local_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[test]
    fn more_descriptors_than_a_packet_holds_arrive_in_order() {
        let (left, right) = Channel::pair().unwrap();
        let pairs: Vec<_> = (0..FDS_PER_PACKET + 3).map(|_| UnixStream::pair().unwrap()).collect();
        let receiver = std::thread::spawn(move || right.recv().unwrap());
        let fds: Vec<_> = pairs.iter().map(|(near, _)| near.as_fd()).collect();
        left.send(&[7; 3 * BYTES_PER_PACKET + 1], &fds).unwrap();
        let (payload, received) = receiver.join().unwrap();
        assert_eq!(payload, [7; 3 * BYTES_PER_PACKET + 1]);
        assert_eq!(received.len(), pairs.len());
        for (index, (fd, (_, far))) in received.into_iter().zip(&pairs).enumerate() {
            UnixStream::from(fd).write_all(&[index as u8]).unwrap();
            let mut byte = [0];
            (&*far).read_exact(&mut byte).unwrap();
            assert_eq!(byte, [index as u8]);
        }
    }

    #[test]
    fn an_empty_message_is_a_message_and_a_closed_end_an_error() {
        let (left, right) = Channel::pair().unwrap();
        left.send(b"", &[]).unwrap();
        drop(left);
        let (payload, fds) = right.recv().unwrap();
        assert!(payload.is_empty() && fds.is_empty());
        assert_eq!(right.recv().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_message_that_lies_about_its_size_is_refused() {
        let (left, right) = Channel::pair().unwrap();
        let longer_than_it_says = headed(b"123", 2, 0);
        for lie in [&[0xff; 8], &b"short"[..], &longer_than_it_says] {
            left.send_packet(lie, &[], 0).unwrap();
            assert_eq!(right.recv().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn short_messages_hold_nobody_up_and_stay_whole() {
        let (left, right) = Channel::pair().unwrap();
        let sent = (0..1_000_000).take_while(|_| left.try_send(b"word").is_ok()).count();
        assert_eq!(left.try_send(b"word").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        for _ in 0..sent {
            assert_eq!(right.recv().unwrap().0, b"word");
        }
        let error = left.try_send(&[0; BYTES_PER_PACKET + 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        drop(right);
        assert!(left.try_send(b"word").is_err());
    }

    #[test]
    fn what_is_no_socket_is_refused_with_its_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Channel::from(OwnedFd::from(file)).recv().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
