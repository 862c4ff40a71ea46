//! TLS on one connection of the load generator: records to plaintext and back. Never touches HTTP, and never
//! lets a connection pass that is not what its workload says.

use std::io::{self, BufRead, ErrorKind, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::connection::would_wait;
use crate::tls::{Handshake, Tls};

/// What all connections of a load share.
pub(super) struct Terms {
    tls: Tls,
    server_name: ServerName<'static>,
    /// One for all slots, or one for each.
    configs: Vec<Arc<ClientConfig>>,
}

pub(super) struct Secure {
    session: ClientConnection,
    resumption_due: bool,
    /// What the handshake came to, once it is over.
    handshake: Option<Handshake>,
    peer_closed: bool,
}

impl Terms {
    pub(super) fn new(tls: Tls, slots: usize, verify_all: bool) -> io::Result<Self> {
        Ok(Self { server_name: tls.server_name()?, configs: tls.configs(slots, verify_all)?, tls })
    }

    pub(super) fn resume(&self) -> bool {
        self.tls.resume
    }

    /// TLS for a connection of `slot`, which had `before` connections before.
    pub(super) fn start(&self, slot: usize, before: u64) -> io::Result<Secure> {
        let config = Arc::clone(&self.configs[slot % self.configs.len()]);
        let session = ClientConnection::new(config, self.server_name.clone()).map_err(io::Error::other)?;
        let resumption_due = self.tls.resume && before > 0;
        Ok(Secure { session, resumption_due, handshake: None, peer_closed: false })
    }
}

impl Secure {
    /// Takes plaintext to be sent: what comes before the end of the handshake goes out with its last flight.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.session.writer().write_all(bytes)
    }

    /// Sends what is waiting, as far as the socket takes it.
    pub(super) fn flush(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if would_wait(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Decrypts `bytes` and hands each piece of plaintext to `plain`; whether one of them ended the exchange.
    pub(super) fn receive(
        &mut self,
        mut bytes: &[u8],
        terms: &Terms,
        mut plain: impl FnMut(&[u8]) -> Result<bool, String>,
    ) -> Result<bool, String> {
        let mut complete = false;
        while !bytes.is_empty() {
            if self.session.read_tls(&mut bytes).map_err(|error| format!("TLS: {error}"))? == 0 {
                return Err(format!("{} octets behind close_notify", bytes.len()));
            }
            let state = self.session.process_new_packets().map_err(|error| format!("TLS: {error}"))?;
            self.peer_closed |= state.peer_has_closed();
            if self.handshake.is_none() && !self.session.is_handshaking() {
                self.handshake = Some(terms.tls.judge(&self.session, self.resumption_due)?);
            }
            if !terms.tls.tickets && self.tickets() > 0 {
                return Err("session ticket from a server that was told to send none".to_owned());
            }
            if state.plaintext_bytes_to_read() > 0 {
                complete |= self.read(&mut plain)?;
            }
        }
        Ok(complete)
    }

    pub(super) fn handshake(&self) -> Option<Handshake> {
        self.handshake
    }

    /// Session tickets so far.
    pub(super) fn tickets(&self) -> u64 {
        u64::from(self.session.tls13_tickets_received())
    }

    /// Whether the peer has sent its close_notify; an end without is a truncation (RFC 8446 §6.1).
    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    fn read(&mut self, plain: &mut impl FnMut(&[u8]) -> Result<bool, String>) -> Result<bool, String> {
        let mut complete = false;
        let mut reader = self.session.reader();
        loop {
            let count = match reader.fill_buf() {
                Ok([]) => return Ok(complete),
                Ok(bytes) => {
                    complete |= plain(bytes)?;
                    bytes.len()
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(complete),
                Err(error) => return Err(format!("TLS: {error}")),
            };
            reader.consume(count);
        }
    }
}
