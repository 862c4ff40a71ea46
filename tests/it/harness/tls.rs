//! TLS for tests: authorities and certificates made on the spot, a client and an origin by rustls. The certificates lie
//! in a folder as an operator would have them.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, RevocationReason, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

use super::SOON;
use super::client::Client;
use super::gateway::TempDir;
use super::message::Reader;

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

static TLS12_UP: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
pub static TLS12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
pub static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

/// A folder with one authority and what it signed.
pub struct Pki {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf is to say.
#[derive(Clone, Default)]
pub struct Leaf {
    pub dns: Vec<String>,
    pub ip: Vec<std::net::IpAddr>,
    pub uri: Vec<String>,
    pub common_name: String,
    pub rsa: bool,
    /// Years from the first of January to the first of January; 2020 to 2040 where absent.
    pub years: Option<(i32, i32)>,
    /// Seconds from now to its end, in place of the second year.
    pub ends_in_s: Option<u64>,
    /// Only for servers, or only for clients; for both where absent.
    pub usage: Option<ExtendedKeyUsagePurpose>,
    pub serial: Option<u64>,
}

impl Leaf {
    pub fn server(names: &[&str]) -> Self {
        Self { dns: names.iter().map(ToString::to_string).collect(), ..Self::default() }
    }

    pub fn workload(spiffe: &str) -> Self {
        Self { uri: vec![spiffe.into()], common_name: "workload".into(), ..Self::default() }
    }
}

impl Pki {
    /// With the authority's certificate in `ca.pem`.
    pub fn new() -> Self {
        Self::of("test authority")
    }

    /// An authority of another name.
    pub fn of(authority: &str) -> Self {
        Self::until(authority, 2045)
    }

    /// An authority that ends with the first of January of the year.
    pub fn until(authority: &str, year: i32) -> Self {
        let dir = TempDir::new();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = named(authority);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        dir.file("ca.pem", &authority.pem());
        Self { dir, authority }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `NAME.pem` and `NAME.key`, only ours to read, and gives the pair of paths.
    pub fn issue(&self, name: &str, leaf: &Leaf) -> (PathBuf, PathBuf) {
        let kind = if leaf.rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 };
        let key = KeyPair::generate_for(kind).unwrap();
        let mut params = CertificateParams::new(leaf.dns.clone()).unwrap();
        params.distinguished_name = named(&leaf.common_name);
        params.subject_alt_names.extend(leaf.ip.iter().map(|ip| SanType::IpAddress(*ip)));
        let uris = leaf.uri.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let (from, to) = leaf.years.unwrap_or((2020, 2040));
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        if let Some(seconds) = leaf.ends_in_s {
            params.not_after = (SystemTime::now() + Duration::from_secs(seconds)).into();
        }
        let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.extended_key_usages = leaf.usage.clone().map_or_else(|| both.to_vec(), |usage| vec![usage]);
        params.serial_number = leaf.serial.map(SerialNumber::from);
        let cert = params.signed_by(&key, &self.authority).unwrap();
        let (cert_path, key_path) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&cert_path, cert.pem()).unwrap();
        private(&key_path, &key.serialize_pem());
        (cert_path, key_path)
    }

    /// Writes `NAME`: a revocation list that names these serial numbers.
    pub fn revoke(&self, name: &str, serials: &[u64]) -> PathBuf {
        let revoked = serials.iter().map(|&serial| RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2044, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.authority).unwrap();
        let path = self.path(name);
        std::fs::write(&path, list.pem().unwrap()).unwrap();
        path
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// A client that trusts the authority, resumes nothing and has no certificate.
    pub fn client(&self) -> TlsClient {
        TlsClient {
            roots: self.roots(),
            certificate: None,
            versions: &TLS12_UP,
            alpn: Vec::new(),
            unusable_first_group: false,
            fixed: None,
        }
    }

    /// An origin that speaks TLS with the pair, and serves each connection with `serve`. With `clients`, it requires a
    /// client certificate of the authority.
    pub fn origin(
        &self,
        (cert, key): &(PathBuf, PathBuf),
        clients: bool,
        serve: impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) + Send + Sync + 'static,
    ) -> SocketAddr {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(self.roots(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let config = Arc::new(builder.with_single_cert(chain(cert), private_key(key)).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, serve) = (config.clone(), serve.clone());
                std::thread::spawn(move || {
                    timeouts(&stream);
                    let connection = ServerConnection::new(config).unwrap();
                    serve(&mut StreamOwned::new(connection, stream));
                });
            }
        });
        address
    }
}

/// An HTTP/1.1 origin's way to serve: every request is answered 200 with its head as the body, until the client leaves.
pub fn mirror(stream: &mut StreamOwned<ServerConnection, TcpStream>) {
    loop {
        let mut reader = Reader::new(&mut *stream);
        let Ok(head) = reader.read_head() else { return };
        let mut body = format!("{}\n", head.start_line);
        for (name, value) in &head.fields.0 {
            body.push_str(&format!("{name}: {value}\n"));
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if !common_name.is_empty() {
        name.push(DnType::CommonName, common_name);
    }
    name
}

/// Writes a file that only its owner may read.
pub fn private(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

pub fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

pub fn private_key(path: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(path).unwrap()
}

fn timeouts(stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
}

/// A group that the gateway does not take; nothing is ever agreed in it.
#[derive(Debug)]
struct Unusable;

impl SupportedKxGroup for Unusable {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

impl ActiveKeyExchange for Unusable {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, rustls::Error> {
        Err(rustls::Error::General("nothing can be agreed in this group".into()))
    }

    fn pub_key(&self) -> &[u8] {
        &[4; 133]
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

/// Sessions that a client keeps whatever name they were begun under: the last of TLS 1.2 and all of TLS 1.3.
#[derive(Debug, Default)]
pub struct AnyName {
    tls12: Mutex<Option<Tls12ClientSessionValue>>,
    tls13: Mutex<Vec<Tls13ClientSessionValue>>,
    offered: AtomicUsize,
}

impl AnyName {
    /// Sessions given out to be resumed so far.
    pub fn offered(&self) -> usize {
        self.offered.load(Ordering::SeqCst)
    }

    fn count<T>(&self, session: Option<T>) -> Option<T> {
        self.offered.fetch_add(usize::from(session.is_some()), Ordering::SeqCst);
        session
    }
}

impl ClientSessionStore for AnyName {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        *self.tls12.lock().unwrap() = Some(session);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.count(self.tls12.lock().unwrap().clone())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        *self.tls12.lock().unwrap() = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, session: Tls13ClientSessionValue) {
        self.tls13.lock().unwrap().push(session);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let session = self.tls13.lock().unwrap().pop();
        self.count(session)
    }
}

/// How a client speaks TLS.
#[derive(Clone)]
pub struct TlsClient {
    roots: Arc<RootCertStore>,
    certificate: Option<(PathBuf, PathBuf)>,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: Vec<Vec<u8>>,
    unusable_first_group: bool,
    /// Made once where sessions are kept: rustls resumes only under the configuration that it began under.
    fixed: Option<Arc<ClientConfig>>,
}

impl TlsClient {
    pub fn presenting(mut self, pair: &(PathBuf, PathBuf)) -> Self {
        self.certificate = Some(pair.clone());
        self
    }

    pub fn versions(mut self, versions: &'static [&'static SupportedProtocolVersion]) -> Self {
        self.versions = versions;
        self
    }

    /// Has the gateway ask for another key share (HelloRetryRequest): the first is of P-521, which it does not take.
    pub fn with_unusable_first_group(mut self) -> Self {
        self.unusable_first_group = true;
        self
    }

    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Keeps sessions, for all connections made from this client and its clones. To be called last.
    pub fn resuming(mut self) -> Self {
        self.fixed = None;
        self.fixed = Some(self.config(Resumption::in_memory_sessions(64)));
        self
    }

    /// As `resuming`, and offers to whatever name the sessions of any. Gives how many were offered so far.
    pub fn resuming_anywhere(mut self) -> (Self, Arc<AnyName>) {
        self.fixed = None;
        let store = Arc::new(AnyName::default());
        self.fixed = Some(self.config(Resumption::store(store.clone())));
        (self, store)
    }

    fn config(&self, resumption: Resumption) -> Arc<ClientConfig> {
        let mut provider = default_provider();
        if self.unusable_first_group {
            provider.kx_groups = vec![&Unusable, kx_group::X25519];
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.certificate {
            Some((cert, key)) => builder.with_client_auth_cert(chain(cert), private_key(key)).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.resumption = resumption;
        Arc::new(config)
    }

    /// Connects and completes the handshake. An IP address as name sends no SNI.
    ///
    /// # Errors
    /// What the handshake failed with, an alert of the gateway's among them.
    pub fn try_connect(&self, port: u16, name: &str) -> std::io::Result<Client<TlsStream>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        self.try_over(stream, name)
    }

    /// The handshake over a connection that stands.
    pub fn try_over(&self, stream: TcpStream, name: &str) -> std::io::Result<Client<TlsStream>> {
        timeouts(&stream);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let config = self.fixed.clone().unwrap_or_else(|| self.config(Resumption::disabled()));
        let mut connection = ClientConnection::new(config, name).unwrap();
        let mut stream = stream;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Client { reader: Reader::new(StreamOwned::new(connection, stream)) })
    }

    #[track_caller]
    pub fn connect(&self, port: u16, name: &str) -> Client<TlsStream> {
        self.try_connect(port, name).unwrap_or_else(|error| panic!("TLS to {name} at {port}: {error}"))
    }

    /// As `connect`; `TLS 1.3` servers judge a client's certificate after the client is done: a request shows it.
    pub fn try_get(&self, port: u16, name: &str) -> std::io::Result<super::client::Response> {
        let mut client = self.try_connect(port, name)?;
        let sent = client.try_send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        // The alert, if there is one, says more than a failed send.
        client.reader.fill()?;
        sent?;
        client.try_read_response("GET").map_err(|none| std::io::Error::other(format!("{none:?}")))
    }
}
