//! The generator over TLS, against rustls servers that do what they should and what they should not.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream, SupportedCipherSuite};

use super::*;
use crate::tls::Offer;

struct Server {
    suites: Vec<SupportedCipherSuite>,
    groups: Vec<&'static dyn SupportedKxGroup>,
    tickets: usize,
    end: End,
}

/// What follows the response on each connection.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Notified,
    Truncated,
    /// None, until the client goes.
    Kept,
}

impl Default for Server {
    fn default() -> Self {
        let provider = default_provider();
        Self { suites: provider.cipher_suites, groups: provider.kx_groups, tickets: 0, end: End::Notified }
    }
}

impl Server {
    /// Answers one request on each connection.
    fn start(self) -> (SocketAddr, Tls) {
        let (certificate, key) = certificate::issue().expect("a certificate");
        let tls = Tls {
            server_name: certificate::NAME.to_owned(),
            offer: Offer::Aes128,
            resume: false,
            tickets: false,
            certificate: Some(certificate.der().clone()),
        };
        let provider =
            CryptoProvider { cipher_suites: self.suites, kx_groups: self.groups, ..default_provider() };
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8");
        let mut config = ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)
            })
            .expect("a configuration");
        config.send_tls13_tickets = self.tickets;
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, end) = (Arc::clone(&config), self.end);
                // A client that finds something wrong goes away: that is what these tests are about.
                thread::spawn(move || answer(stream.expect("a connection"), config, end));
            }
        });
        (address, tls)
    }
}

fn answer(mut socket: std::net::TcpStream, config: Arc<ServerConfig>, end: End) -> io::Result<()> {
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = Stream::new(&mut session, &mut socket);
    let mut request = [0; 1024];
    if stream.read(&mut request)? > 0 {
        stream.write_all(&wire::response("200 OK", &wire::body(wire::SMALL_BYTES), true))?;
    }
    if end == End::Kept {
        return stream.read(&mut request).map(drop);
    }
    if end == End::Notified {
        session.send_close_notify();
        while session.wants_write() {
            session.write_tls(&mut socket)?;
        }
    }
    Ok(())
}

fn churn(address: SocketAddr, tls: Tls) -> Plan {
    Plan { reuse: Reuse::Churn, tls: Some(tls), ..plan(address) }
}

fn measure(plan: Plan) -> io::Result<Measured> {
    let mut load = Load::open(plan)?;
    load.run(Duration::from_millis(50))?;
    load.reset()?;
    load.run(Duration::from_millis(100))?;
    load.check()?;
    Ok(load.measured())
}

fn error(server: Server, alter: impl Fn(&mut Tls)) -> String {
    let (address, mut tls) = server.start();
    alter(&mut tls);
    measure(churn(address, tls)).expect_err("a handshake that should fail the run").to_string()
}

#[test]
fn every_connection_of_churn_is_a_full_handshake() {
    let (address, tls) = Server::default().start();
    let measured = measure(churn(address, tls)).expect("a run");
    let negotiated = measured.tls.expect("TLS");
    assert_eq!((negotiated.suite.as_str(), negotiated.group.as_str()), ("TLS_AES_128_GCM_SHA256", "X25519"));
    assert!(!negotiated.resumed && negotiated.handshakes > 0 && measured.responses > 0);
    assert_eq!(negotiated.tickets, 0);
}

#[test]
fn keep_alive_shakes_hands_once_and_says_what_came_of_it() {
    let (address, tls) = Server { end: End::Kept, ..Server::default() }.start();
    let load = Load::open(Plan { tls: Some(tls), ..plan(address) }).expect("a response on each connection");
    let negotiated = load.measured().tls.expect("TLS");
    assert_eq!((negotiated.handshakes, negotiated.resumed), (4, false));
}

#[test]
fn every_connection_resumes_from_the_one_before_it() {
    let (address, tls) = Server { tickets: 2, ..Server::default() }.start();
    let measured = measure(churn(address, Tls { resume: true, tickets: true, ..tls })).expect("a run");
    let negotiated = measured.tls.expect("TLS");
    assert!(negotiated.resumed && negotiated.handshakes > 0 && negotiated.tickets > 0);
}

#[test]
fn a_server_that_does_not_resume_fails_a_run_of_resumptions() {
    let why = error(Server::default(), |tls| (tls.resume, tls.tickets) = (true, true));
    assert!(why.contains("handshake Full, not Resumed"), "{why}");
}

#[test]
fn an_offer_like_openssls_leaves_the_choice_to_the_server() {
    let (address, tls) = Server { tickets: 2, ..Server::default() }.start();
    let tls = Tls { offer: Offer::Openssl, tickets: true, ..tls };
    let negotiated = measure(churn(address, tls)).expect("a run").tls.expect("TLS");
    assert_eq!(negotiated.suite, "TLS_AES_256_GCM_SHA384");
    assert!(!negotiated.resumed && negotiated.tickets > 0);
}

#[test]
fn what_was_not_asked_for_fails_the_run() {
    let aes256 = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    let p256: Vec<&'static dyn SupportedKxGroup> = vec![kx_group::SECP256R1];
    let tls12 = vec![cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
    let good = Server::default;
    for (server, offer, why) in [
        (Server { suites: aes256, ..good() }, Offer::Aes128, "HandshakeFailure"),
        (Server { groups: p256.clone(), ..good() }, Offer::Aes128, "HandshakeFailure"),
        (Server { groups: p256, ..good() }, Offer::Openssl, "FullWithHelloRetryRequest, not Full"),
        (Server { suites: tls12, ..good() }, Offer::Openssl, "TLS 1.2 negotiated"),
        (Server { tickets: 2, ..good() }, Offer::Aes128, "session ticket"),
        (Server { end: End::Truncated, ..good() }, Offer::Aes128, "without close_notify"),
    ] {
        let error = error(server, |tls| tls.offer = offer);
        assert!(error.contains(why), "{error}: wanted {why}");
    }
    let other = CertificateDer::from(vec![0]);
    let error = error(good(), |tls| tls.certificate = Some(other.clone()));
    assert!(error.contains("UnknownIssuer"), "{error}");
}
