//! Work that an answer costs a proxy besides its own: it stands for TLS, an upstream, compression. The same for every proxy.
//!
//! Without it, asking costs the clients as much CPU as answering costs the proxy; on two shared CPUs a rig would measure
//! mostly itself. So a packet socket with a filter (classic BPF) looks at each answer for a while, and keeps none. On
//! loopback the kernel runs it within the sender's send call: it is the proxy's CPU time, and counts as such. Short packets
//! pass at once: acknowledgements, and refusals.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// Shorter packets cost nothing. A refusal is shorter, an answer longer.
const PACKET_BYTES_MIN: u32 = 500;
/// `BPF_MAXINSNS`, less the frame of the program.
const LOOKS_MAX: usize = 4_000;
/// Sends of which the faster third is taken.
const SENDS: usize = 150;
/// `ETH_P_IP`.
const IPV4: u16 = 0x0800;

const LOAD_LENGTH: u16 = 0x80;
const LOAD_HALF_ABSOLUTE: u16 = 0x28;
const LOAD_WORD_ABSOLUTE: u16 = 0x20;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Behind an IPv4 header without options.
const SOURCE_PORT_OFFSET: u32 = 20;
/// `SKF_AD_OFF + SKF_AD_PAY_OFFSET`: the kernel dissects the packet's headers, some 100 ns.
const DISSECT: u32 = 0xffff_f000 + 52;

/// How long the filter looks.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Work {
    looks: usize,
    /// As measured.
    pub us: f64,
}

impl Work {
    const NONE: Self = Self { looks: 0, us: 0.0 };

    /// Work of `us` microseconds an answer on this machine, as near as can be had. Needs root or CAP_NET_RAW.
    pub fn of_us(us: f64) -> io::Result<Self> {
        if us <= 0.0 {
            return Ok(Self::NONE);
        }
        let plain = send_us(Self::NONE)?;
        let most = send_us(Self { looks: LOOKS_MAX, us: 0.0 })? - plain;
        let looks = (us / (most / LOOKS_MAX as f64).max(1e-3)).round() as usize;
        let work = Self { looks: looks.clamp(1, LOOKS_MAX), us: 0.0 };
        Ok(Self { us: send_us(work)? - plain, ..work })
    }

    /// Has each answer from `port` cost its sender so much, as long as the socket lives.
    pub fn on(self, port: u16) -> io::Result<Option<Socket>> {
        if self.looks == 0 {
            return Ok(None);
        }
        let told = |error: io::Error| {
            let cure = "it takes root or CAP_NET_RAW; --work-us 0 does without";
            io::Error::new(error.kind(), format!("a packet socket: {error}; {cure}"))
        };
        let protocol = Protocol::from(i32::from(IPV4.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).map_err(told)?;
        socket.attach_filter(&self.program(port)).map_err(told)?;
        Ok(Some(socket))
    }

    fn program(self, port: u16) -> Vec<SockFilter> {
        let drop = || SockFilter::new(RETURN, 0, 0, 0);
        let mut program = vec![
            SockFilter::new(LOAD_LENGTH, 0, 0, 0),
            SockFilter::new(JUMP_GREATER_OR_EQUAL, 1, 0, PACKET_BYTES_MIN),
            drop(),
            SockFilter::new(LOAD_HALF_ABSOLUTE, 0, 0, SOURCE_PORT_OFFSET),
            SockFilter::new(JUMP_EQUAL, 1, 0, u32::from(port)),
            drop(),
        ];
        program.extend((0..self.looks).map(|_| SockFilter::new(LOAD_WORD_ABSOLUTE, 0, 0, DISSECT)));
        program.push(drop());
        program
    }
}

impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an answer costs {:.0} µs besides ({} looks at its packet)", self.us, self.looks)
    }
}

/// What one send from a port with such work takes.
fn send_us(work: Work) -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut receiver = TcpStream::connect(address)?;
    let (mut sender, _) = listener.accept()?;
    sender.set_nodelay(true)?;
    receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
    let _works = work.on(address.port())?;
    let mut packet = [b'x'; 2 * PACKET_BYTES_MIN as usize];
    let mut times = Vec::with_capacity(SENDS);
    for _ in 0..SENDS {
        let began = Instant::now();
        sender.write_all(&packet)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        receiver.read_exact(&mut packet)?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times[SENDS / 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_packets_and_other_ports_pass_before_any_look() {
        let program = Work { looks: 7, us: 0.0 }.program(8080);
        assert_eq!(program.len(), 6 + 7 + 1);
        assert!(Work::NONE.on(8080).expect("no socket").is_none());
    }
}
