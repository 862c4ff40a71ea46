//! Who of a group of SO_REUSEPORT listeners gets a new connection: a program in place of the kernel's even hash. The
//! program counts the listeners in the order in which they began to listen, which is worker order. Decides nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::steal::steering::Instruction;

/// Has the program choose from now on, for the whole group that the listener is of. Replaces one that was there; needs no
/// privilege. A number beyond the group makes the kernel fall back to its hash.
pub fn steer(listener: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let mut filters: Vec<libc::sock_filter> = program
        .iter()
        .map(|step| libc::sock_filter { code: step.code, jt: step.jump_true, jf: step.jump_false, k: step.k })
        .collect();
    let len = u16::try_from(filters.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filters.as_mut_ptr() };
    // SAFETY: the option reads one sock_fprog, whose pointer and length are those of `filters`; both outlive the call, and
    // the kernel copies them.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel's even hash choose again. Good also where there was no program.
pub fn unsteer(listener: &impl AsFd) -> io::Result<()> {
    let nothing: libc::c_int = 0;
    // SAFETY: the option reads an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const nothing).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::steal::steering::program;
    use crate::sys::listeners;
    use std::net::{TcpListener, TcpStream};

    /// How many of `count` connections each listener gets.
    pub(crate) fn spread(sockets: &[TcpListener], count: usize) -> Vec<usize> {
        let address = sockets[0].local_addr().unwrap();
        let clients: Vec<_> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
        let spread =
            sockets.iter().map(|socket| std::iter::from_fn(|| socket.accept().ok()).count()).collect();
        drop(clients);
        spread
    }

    #[test]
    fn connections_go_where_the_program_says_until_it_is_gone() {
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 3, 1_024).unwrap();
        // Any socket speaks for the group.
        unsteer(&sockets[2]).unwrap();
        steer(&sockets[2], &program(&[0.0, 1.0, 0.0]).unwrap()).unwrap();
        assert_eq!(spread(&sockets, 60), [0, 60, 0]);
        steer(&sockets[0], &program(&[0.5, 0.1, 0.4]).unwrap()).unwrap();
        let weighted = spread(&sockets, 300);
        assert!(weighted[1] < 70 && weighted[0] > 90 && weighted[2] > 70, "{weighted:?}");
        unsteer(&sockets[1]).unwrap();
        let even = spread(&sockets, 300);
        assert!(even.iter().all(|count| *count > 50), "{even:?}");
        unsteer(&sockets[1]).unwrap();
    }
}
