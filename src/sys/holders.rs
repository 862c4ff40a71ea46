//! Who listens on an address, as far as `/proc` tells. Only reads; used to explain, and to notice a second copy.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// A process that has a listening socket open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    pub id: u32,
    /// The process name, as `ps` shows it.
    pub name: String,
}

/// Inodes of the sockets that listen where a connection to `address` could arrive.
pub fn listening_inodes(address: SocketAddr) -> Vec<u64> {
    let table = if address.is_ipv4() { "tcp" } else { "tcp6" };
    let text = fs::read_to_string(Path::new("/proc/self/net").join(table)).unwrap_or_default();
    let rows = text.lines().filter_map(parse_row);
    rows.filter(|(local, _)| overlap(*local, address)).map(|(_, inode)| inode).collect()
}

/// Ports that somebody listens on, of the text of `/proc/net/tcp` or `tcp6`.
pub fn listening_ports(table: &str) -> Vec<u16> {
    table.lines().filter_map(parse_row).map(|(local, _)| local.port()).collect()
}

/// Processes that hold one of `inodes`. Those of other users are visible to root only.
pub fn of(inodes: &[u64]) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holders = ids.filter(|id| holds(*id, inodes)).map(|id| {
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        Holder { id, name: name.trim().to_string() }
    });
    holders.collect()
}

fn holds(id: u32, inodes: &[u64]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{id}/fd")) else {
        return false;
    };
    descriptors.flatten().any(|descriptor| {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        let inode =
            target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode: u64| inodes.contains(&inode))
    })
}

/// Two sockets of one family overlap when their ports are equal and one address is the other or a wildcard.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Local address and inode of a listening row of `/proc/net/tcp` or `tcp6` (proc_pid_net(5)).
fn parse_row(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut columns = line.split_ascii_whitespace().skip(1);
    let local = columns.next()?;
    let state = columns.nth(1)?;
    // After the state: queues, timer, retransmits, user, timeout, inode.
    let inode = columns.nth(5)?.parse().ok()?;
    if state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(parse_address(address)?, port), inode))
}

/// Each 32-bit word is printed as a number of this machine's byte order, its bytes being in network order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_of_this_process_is_found_on_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue;
            };
            let inodes = listening_inodes(listener.local_addr().unwrap());
            assert_eq!(inodes.len(), 1);
            assert!(of(&inodes).iter().any(|holder| holder.id == std::process::id()));
        }
    }

    #[test]
    fn rows_that_do_not_listen_or_are_broken_are_passed_over() {
        let row = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let expected = ("127.0.0.1:8080".parse().unwrap(), 4711);
        if cfg!(target_endian = "little") {
            assert_eq!(parse_row(row), Some(expected));
            assert_eq!(listening_ports(&format!("header\n{row}\n")), [8_080]);
        }
        assert_eq!(parse_row(&row.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_row("  sl  local_address rem_address   st tx_queue"), None);
        assert_eq!(parse_row(""), None);
        assert_eq!(parse_row("0: 01:1F90 x 0A a b c d e 1"), None);
    }
}
