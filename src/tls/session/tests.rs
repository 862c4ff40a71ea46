//! Sessions against rustls' buffered connections, whose bytes arrive in pieces.

use std::sync::Arc;

use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, ServerConfig, ServerConnection};

use super::*;
use crate::base::identity::IdentityPattern;
use crate::tls::fixture::{Authority, params};
use crate::tls::{
    Authorities, Client, ClientMaterial, ClientSpec, Purpose, ServerNameSource, VersionMin, provider,
};

/// A client session and a server that it meets.
struct Pair {
    session: Session,
    server: ServerConnection,
    /// What the session did not consume.
    pending: Vec<u8>,
    plain: Vec<u8>,
}

impl Pair {
    /// The server writes records of `fragment_bytes` at most.
    fn new(expect_identity: Vec<IdentityPattern>, fragment_bytes: Option<usize>) -> Self {
        let authority = Authority::new("authority");
        let certificate = authority.issue(&params("endpoint", &["192.0.2.1"])).parse();
        let provider = Arc::new(provider(true));
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let resolver = Arc::new(SingleCertAndKey::from(certificate.key.clone()));
        let mut config = builder.expect("versions").with_no_client_auth().with_cert_resolver(resolver);
        config.max_fragment_size = fragment_bytes;
        let spec = ClientSpec {
            ca: None,
            certificate: None,
            server_name: ServerNameSource::Address,
            expect_identity,
            version_min: VersionMin::Tls13,
        };
        let roots = Authorities::from_pem(authority.pem().as_bytes()).expect("an authority");
        let material = ClientMaterial::new(spec, &roots, None);
        let client = Client::new(&material, &provider, &[]).expect("a client");
        Self {
            session: client.session([192, 0, 2, 1].into(), Purpose::Http).expect("a session"),
            server: ServerConnection::new(Arc::new(config)).expect("a server"),
            pending: Vec::new(),
            plain: Vec::new(),
        }
    }

    /// Gives the session more bytes, and the server what comes of it.
    fn feed(&mut self, bytes: &[u8]) -> Result<Phase, Error> {
        self.pending.extend_from_slice(bytes);
        let mut out = Vec::new();
        let processed =
            self.session.process(&mut self.pending, &mut out, |bytes| self.plain.extend_from_slice(bytes));
        self.pending.drain(..processed.consumed);
        self.serve(&out);
        processed.phase
    }

    fn serve(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.server.read_tls(&mut bytes).expect("memory");
        }
    }

    /// All that the server has to send.
    fn served(&mut self) -> Result<Vec<u8>, Error> {
        self.server.process_new_packets()?;
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).expect("memory");
        }
        Ok(bytes)
    }
}

#[test]
fn a_certificate_that_is_refused_in_the_middle_of_a_flight_is_told_by_an_alert() {
    let nobody = IdentityPattern::parse("spiffe://td/a").expect("a pattern");
    for fragment_bytes in [None, Some(64)] {
        let mut pair = Pair::new(vec![nobody.clone()], fragment_bytes);
        assert_eq!(pair.feed(&[]), Ok(Phase::Handshake));
        // Certificate, CertificateVerify and Finished come at once.
        let flight = pair.served().expect("a flight");
        let error = pair.feed(&flight).expect_err("another endpoint");
        assert!(matches!(error, Error::InvalidCertificate(_)), "{error:?}");
        let told = pair.served().expect_err("an alert");
        assert_eq!(told, Error::AlertReceived(AlertDescription::CertificateUnknown));
    }
}

#[test]
fn bytes_are_sent_while_a_message_of_the_peer_is_half_there() {
    let mut pair = Pair::new(Vec::new(), Some(64));
    assert_eq!(pair.feed(&[]), Ok(Phase::Handshake));
    let flight = pair.served().expect("a flight");
    assert_eq!(pair.feed(&flight), Ok(Phase::Open));
    // Session tickets, each in several records, which arrive byte by byte.
    let tickets = pair.served().expect("tickets");
    assert!(tickets.len() > 200, "{}", tickets.len());
    let mut expected = Vec::new();
    for (index, byte) in tickets.iter().enumerate() {
        assert_eq!(pair.feed(&[*byte]), Ok(Phase::Open));
        let text = format!("{index},");
        let mut out = [0; 256];
        let bytes = pair.session.encrypt(&mut pair.pending, text.as_bytes(), &mut out).expect("open");
        pair.serve(&out[..bytes]);
        pair.server.process_new_packets().expect("valid records");
        expected.extend_from_slice(text.as_bytes());
    }
    let mut received = vec![0; expected.len()];
    std::io::Read::read_exact(&mut pair.server.reader(), &mut received).expect("all of it");
    assert_eq!(received, expected);
    assert!(pair.pending.is_empty());
    let mut out = Vec::new();
    pair.session.close(&mut pair.pending, &mut out);
    pair.serve(&out);
    assert!(pair.server.process_new_packets().expect("an alert").peer_has_closed());
}
