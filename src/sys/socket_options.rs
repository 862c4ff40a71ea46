//! Options of single TCP sockets that the configuration asks for, in place of sysctls: nobody else feels them, and they are
//! gone with the socket. Accepted connections inherit those of their listener, so that setting them costs nothing there.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

/// `IP_LOCAL_PORT_RANGE` of linux/in.h, Linux 6.3; for IPv6 as well.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// What a socket gets; `None` leaves it with the kernel's own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SocketOptions {
    /// The name of a congestion control, such as `bbr`; at most 15 bytes.
    pub congestion_control: Option<Box<str>>,
    /// Bytes that may wait in the kernel without being on their way.
    pub notsent_lowat_bytes: Option<u32>,
    /// How long sent bytes may stay unacknowledged, or the peer's window closed (tcp(7)); in milliseconds, at most 32 bits.
    pub user_timeout: Option<Duration>,
    /// First and last source port of connections. The kernel takes them from within its own range only.
    pub source_ports: Option<(u16, u16)>,
}

/// An option that this kernel refuses.
#[derive(Debug)]
pub struct Refusal {
    /// The key of the configuration.
    pub key: &'static str,
    pub value: String,
    pub cause: io::Error,
}

impl SocketOptions {
    /// Sets them, the first that is refused ends it. Those that passed `prove` are refused only where the socket is broken.
    ///
    /// # Errors
    /// What setsockopt(2) reports.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        if let Some(name) = &self.congestion_control {
            socket.set_tcp_congestion(name.as_bytes())?;
        }
        if let Some(bytes) = self.notsent_lowat_bytes {
            socket.set_tcp_notsent_lowat(bytes)?;
        }
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        if let Some((first, last)) = self.source_ports {
            set_source_ports(&socket, first, last)?;
        }
        Ok(())
    }

    /// Sets what accepted connections inherit, on a listening socket that may have got other options before: those that are
    /// absent go back to the kernel's own. Each as far as it can be.
    pub fn renew(&self, listener: &impl AsFd) {
        let socket = SockRef::from(listener);
        let present = socket.tcp_congestion().ok();
        match &self.congestion_control {
            Some(name) => drop(socket.set_tcp_congestion(name.as_bytes())),
            None => {
                let fresh =
                    Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|new| new.tcp_congestion());
                // A socket that was never told follows the machine's default; one that was told does not.
                if let Some(default) = fresh.ok().filter(|default| present.as_ref() != Some(default)) {
                    let _ = socket.set_tcp_congestion(&default);
                }
            }
        }
        let _ = socket.set_tcp_notsent_lowat(self.notsent_lowat_bytes.unwrap_or(0));
        let _ = socket.set_tcp_user_timeout(self.user_timeout);
    }

    /// Tries each on a socket of its own, and drops those that are refused: a connection is worth more than an option.
    pub fn prove(&mut self) -> Vec<Refusal> {
        let mut refused = Vec::new();
        let mut keep = |key, value: String, one: Self| {
            // Without a descriptor nothing is known, and nothing is refused.
            let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else { return true };
            let result = one.apply(&socket);
            let kept = result.is_ok();
            refused.extend(result.err().map(|cause| Refusal { key, value, cause }));
            kept
        };
        let alone = |change: &dyn Fn(&mut Self)| {
            let mut one = Self::default();
            change(&mut one);
            one
        };
        self.congestion_control = self.congestion_control.take().filter(|name| {
            keep(
                "congestion_control",
                name.to_string(),
                alone(&|one| one.congestion_control = Some(name.clone())),
            )
        });
        self.source_ports = self.source_ports.take().filter(|&(first, last)| {
            keep(
                "source_ports",
                format!("{first}-{last}"),
                alone(&|one| one.source_ports = Some((first, last))),
            )
        });
        refused
    }
}

impl fmt::Display for Refusal {
    /// Cause and cure.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, cause } = self;
        write!(f, "{key} = \"{value}\" is refused by this kernel: ")?;
        match (*key, cause.raw_os_error()) {
            ("congestion_control", Some(libc::ENOENT)) => write!(
                f,
                "it is not there; load its module ({}), or remove the key",
                if value == "bbr" {
                    "ringfort tune apply --only tcp_bbr".to_owned()
                } else {
                    format!("modprobe tcp_{value}")
                }
            ),
            ("congestion_control", Some(libc::EPERM)) => write!(
                f,
                "not permitted; add it to net.ipv4.tcp_allowed_congestion_control, or remove the key"
            ),
            ("source_ports", Some(libc::ENOPROTOOPT)) => {
                write!(f, "it needs Linux 6.3; remove the key")
            }
            _ => write!(f, "{cause}; remove the key"),
        }
    }
}

fn set_source_ports(socket: &SockRef<'_>, first: u16, last: u16) -> io::Result<()> {
    let range = u32::from(last) << 16 | u32::from(first);
    // SAFETY: the option reads a u32, which outlives the call; the descriptor is borrowed for it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    /// The range of source ports that the machine allows a socket.
    fn source_ports_of_machine() -> Option<(u16, u16)> {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Linux 6.3 has IP_LOCAL_PORT_RANGE.
    fn has_source_ports() -> bool {
        let mut options = SocketOptions { source_ports: Some((40_000, 40_099)), ..SocketOptions::default() };
        let refused = options.prove();
        assert!(refused.iter().all(|refusal| refusal.to_string().contains("Linux 6.3")), "{refused:?}");
        refused.is_empty()
    }

    #[test]
    fn accepted_connections_have_what_their_listener_was_given() {
        let options = SocketOptions {
            congestion_control: Some("reno".into()),
            notsent_lowat_bytes: Some(65_536),
            user_timeout: Some(Duration::from_millis(12_345)),
            source_ports: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        options.apply(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        let name = accepted.tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno\0") || name == b"reno", "{name:?}");
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), 65_536);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_millis(12_345)));
    }

    #[test]
    fn a_listener_told_of_none_any_more_has_those_of_the_kernel_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fresh = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let facts = |socket: SockRef<'_>| {
            let lowat = socket.tcp_notsent_lowat().unwrap();
            (socket.tcp_congestion().unwrap(), lowat, socket.tcp_user_timeout().unwrap())
        };
        let options = SocketOptions {
            congestion_control: Some("reno".into()),
            notsent_lowat_bytes: Some(65_536),
            user_timeout: Some(Duration::from_millis(5_000)),
            source_ports: None,
        };
        options.renew(&listener);
        let (name, lowat, timeout) = facts(SockRef::from(&listener));
        assert!(name.starts_with(b"reno"));
        assert_eq!((lowat, timeout), (65_536, options.user_timeout));
        SocketOptions::default().renew(&listener);
        assert_eq!(facts(SockRef::from(&listener)), facts(SockRef::from(&fresh)));
    }

    #[test]
    fn connections_come_from_the_source_ports_in_either_family() {
        let Some((low, high)) = source_ports_of_machine().filter(|_| has_source_ports()) else { return };
        assert!(high - low > 200, "{low} {high}");
        let range = (high - 150, high - 51);
        let options = SocketOptions { source_ports: Some(range), ..SocketOptions::default() };
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address: SocketAddr = listener.local_addr().unwrap();
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            options.apply(&socket).unwrap();
            socket.connect(&address.into()).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            assert!((range.0..=range.1).contains(&port), "{port} of {range:?}");
        }
    }

    #[test]
    fn source_ports_only_narrow_the_range_of_the_machine() {
        let Some((low, high)) = source_ports_of_machine().filter(|_| has_source_ports()) else { return };
        if low < 2_000 {
            return;
        }
        let options =
            SocketOptions { source_ports: Some((low - 500, low - 400)), ..SocketOptions::default() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        options.apply(&socket).unwrap();
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        assert!((low..=high).contains(&port), "{port}");
    }

    #[test]
    fn what_the_kernel_refuses_is_dropped_and_told_with_a_cure() {
        let mut options = SocketOptions {
            congestion_control: Some("nosuchthing".into()),
            notsent_lowat_bytes: Some(1),
            ..SocketOptions::default()
        };
        let refused = options.prove();
        assert_eq!(options, SocketOptions { notsent_lowat_bytes: Some(1), ..SocketOptions::default() });
        assert_eq!(refused.len(), 1);
        let text = refused[0].to_string();
        assert!(text.contains("nosuchthing") && text.contains("remove the key"), "{text}");
    }
}
