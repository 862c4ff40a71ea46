//! What TLS clients do that no library does for them: records made by hand with the session's own keys. And the groups
//! that only some of them know.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, KeyLog, NamedGroup, StreamOwned};

use crate::harness::client::Client;
use crate::harness::gateway::Gateway;
use crate::harness::message::Reader;
use crate::harness::tls::{Leaf, Pki, TLS12, TLS13, TlsStream};
use crate::harness::{Engine, SOON, eventually, on_both_engines, process};

on_both_engines!(
    every_group_is_agreed_on_where_a_client_has_no_other,
    a_request_in_one_byte_records_is_served,
    empty_records_without_end_are_cut_off,
    a_few_key_updates_are_followed,
    key_updates_without_end_are_cut_off,
    clients_that_never_say_anything_keep_nobody_waiting,
);

/// `ContentType`s of RFC 8446 §5.
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// A KeyUpdate that asks for one in return (§4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 1];
const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

fn start(engine: Engine) -> (Pki, Gateway) {
    let pki = Pki::new();
    let (cert, key) = pki.issue("a", &Leaf::server(&["a.test"]));
    let text = format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n\
         [listener.tls]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n\
         [[route]]\nrespond = {{ status = 200, body = \"ok\\n\" }}\n",
        engine.key()
    );
    (pki, Gateway::start(&text))
}

/// A session of TLS 1.3 whose records are made by hand once its handshake is done.
struct Forger {
    client: Client<TlsStream>,
    secret: Vec<u8>,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Forger {
    fn connect(pki: &Pki, gateway: &Gateway) -> Self {
        let secrets = Arc::new(Secrets::default());
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&TLS13)
            .unwrap()
            .with_root_certificates(pki.roots())
            .with_no_client_auth();
        config.key_log = secrets.clone();
        let mut client = connect(config, gateway);
        let suite = client.stream().conn.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        let secret = secrets.0.lock().unwrap().clone();
        let (key, iv) = keys(&secret);
        Self { client, secret, key, iv, sequence: 0 }
    }

    /// A record as in RFC 8446 §5.2.
    fn record(&mut self, kind: u8, content: &[u8], padding_bytes: usize) -> Vec<u8> {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        self.sequence += 1;
        let mut sealed = [content, &[kind], &vec![0; padding_bytes]].concat();
        let len = u16::try_from(sealed.len() + AES_128_GCM.tag_len()).unwrap().to_be_bytes();
        let head = [DATA, 3, 3, len[0], len[1]];
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(head), &mut sealed).unwrap();
        [&head[..], &sealed].concat()
    }

    /// A KeyUpdate, and the keys that are in use behind it (§7.2).
    fn key_update(&mut self) -> Vec<u8> {
        let record = self.record(HANDSHAKE, &KEY_UPDATE, 0);
        self.secret = expand(&self.secret, "traffic upd", 32);
        (self.key, self.iv) = keys(&self.secret);
        self.sequence = 0;
        record
    }

    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.client.stream().sock.write_all(bytes)
    }

    /// Sends the records that `next` makes until the gateway takes no more of them, and waits for the end.
    #[track_caller]
    fn flood(mut self, gateway: &Gateway, mut next: impl FnMut(&mut Self) -> Vec<u8>) {
        let data = gateway.data_process();
        let before = process::anonymous_bytes(data);
        for _ in 0..200 {
            let records: Vec<u8> = (0..100).flat_map(|_| next(&mut self)).collect();
            if self.send(&records).is_err() {
                break;
            }
        }
        loop {
            match self.client.reader.fill() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    assert_ne!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock,
                        "it is still open after {SOON:?}"
                    );
                    break;
                }
            }
        }
        eventually("the connection is gone", || gateway.metric("ringfort_connections_active", "web") == 0.0);
        let grown = process::anonymous_bytes(data).saturating_sub(before);
        assert!(grown < 1 << 20, "{grown} bytes are left of it");
        assert_eq!(gateway.data_process(), data);
    }
}

/// Keeps the secret that a client's records are protected with.
#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<u8>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == "CLIENT_TRAFFIC_SECRET_0" {
            *self.0.lock().unwrap() = secret.to_vec();
        }
    }
}

/// Key and initialization vector of a traffic secret (RFC 8446 §7.3).
fn keys(secret: &[u8]) -> (LessSafeKey, [u8; 12]) {
    let key = UnboundKey::new(&AES_128_GCM, &expand(secret, "key", 16)).unwrap();
    (LessSafeKey::new(key), expand(secret, "iv", 12).try_into().unwrap())
}

/// `HKDF-Expand-Label` without a context (§7.1).
fn expand(secret: &[u8], label: &str, len: u8) -> Vec<u8> {
    struct Len(usize);
    impl KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let label = [b"tls13 ", label.as_bytes()].concat();
    let label_len = u8::try_from(label.len()).unwrap();
    let info: [&[u8]; 4] = [&[0, len, label_len], &label, &[0], &[]];
    let mut out = vec![0; usize::from(len)];
    let secret = Prk::new_less_safe(HKDF_SHA256, secret);
    secret.expand(&info, Len(out.len())).unwrap().fill(&mut out).unwrap();
    out
}

fn connect(config: ClientConfig, gateway: &Gateway) -> Client<TlsStream> {
    let mut sock = TcpStream::connect((Ipv4Addr::LOCALHOST, gateway.web())).unwrap();
    sock.set_nodelay(true).unwrap();
    sock.set_read_timeout(Some(SOON)).unwrap();
    sock.set_write_timeout(Some(SOON)).unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut sock).unwrap();
    }
    Client { reader: Reader::new(StreamOwned::new(connection, sock)) }
}

fn every_group_is_agreed_on_where_a_client_has_no_other(engine: Engine) {
    let (pki, gateway) = start(engine);
    let rows: [(&'static dyn SupportedKxGroup, NamedGroup); 4] = [
        (kx_group::X25519MLKEM768, NamedGroup::X25519MLKEM768),
        (kx_group::X25519, NamedGroup::X25519),
        (kx_group::SECP256R1, NamedGroup::secp256r1),
        (kx_group::SECP384R1, NamedGroup::secp384r1),
    ];
    for versions in [&TLS13, &TLS12] {
        for (group, wanted) in rows {
            if versions == &TLS12 && wanted == NamedGroup::X25519MLKEM768 {
                continue;
            }
            let provider = rustls::crypto::CryptoProvider { kx_groups: vec![group], ..default_provider() };
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(pki.roots())
                .with_no_client_auth();
            let mut client = connect(config, &gateway);
            assert_eq!(client.get("/").text(), "ok\n");
            let agreed = client.stream().conn.negotiated_key_exchange_group().unwrap();
            assert_eq!(agreed.name(), wanted, "{versions:?}");
        }
    }
    // With all of them, the one that a quantum computer does not open.
    let mut client = pki.client().connect(gateway.web(), "a.test");
    let agreed = client.stream().conn.negotiated_key_exchange_group().unwrap();
    assert_eq!(agreed.name(), NamedGroup::X25519MLKEM768);
}

fn a_request_in_one_byte_records_is_served(engine: Engine) {
    let (pki, gateway) = start(engine);
    let mut forger = Forger::connect(&pki, &gateway);
    let records: Vec<u8> = GET.bytes().flat_map(|byte| forger.record(DATA, &[byte], 3)).collect();
    for records in [&records[..700], &records[700..]] {
        forger.send(records).unwrap();
    }
    assert_eq!(forger.client.read_response().text(), "ok\n");
}

fn empty_records_without_end_are_cut_off(engine: Engine) {
    let (pki, gateway) = start(engine);
    for padding_bytes in [0, 200] {
        let mut forger = Forger::connect(&pki, &gateway);
        let request = forger.record(DATA, GET.as_bytes(), 0);
        forger.send(&request).unwrap();
        assert_eq!(forger.client.read_response().text(), "ok\n");
        forger.flood(&gateway, |forger| forger.record(DATA, &[], padding_bytes));
    }
}

fn a_few_key_updates_are_followed(engine: Engine) {
    let (pki, gateway) = start(engine);
    let mut forger = Forger::connect(&pki, &gateway);
    for _ in 0..3 {
        let mut records: Vec<u8> = (0..20).flat_map(|_| forger.key_update()).collect();
        records.extend(forger.record(DATA, GET.as_bytes(), 0));
        forger.send(&records).unwrap();
        assert_eq!(forger.client.read_response().text(), "ok\n");
    }
}

fn key_updates_without_end_are_cut_off(engine: Engine) {
    let (pki, gateway) = start(engine);
    Forger::connect(&pki, &gateway).flood(&gateway, Forger::key_update);
}

/// Empty records with a KeyUpdate between any two: neither comes too often in a row. Whether such clients are cut off or
/// not, another one is served meanwhile.
fn clients_that_never_say_anything_keep_nobody_waiting(engine: Engine) {
    const CLIENTS: usize = 4;
    const PAIRS: usize = 40_000;
    let (pki, gateway) = start(engine);
    let at_once = Arc::new(Barrier::new(CLIENTS + 1));
    let flood = |mut forger: Forger| {
        let at_once = at_once.clone();
        std::thread::spawn(move || {
            let mut records = Vec::new();
            for _ in 0..PAIRS {
                records.extend(forger.key_update());
                records.extend(forger.record(DATA, &[], 0));
            }
            at_once.wait();
            let _ = forger.send(&records);
            let _ = forger.client.stream().sock.shutdown(Shutdown::Write);
            // Until all of it was gone through, or cut off.
            let _ = std::io::copy(&mut forger.client.stream().sock, &mut std::io::sink());
        })
    };
    let floods: Vec<_> = (0..CLIENTS).map(|_| flood(Forger::connect(&pki, &gateway))).collect();
    at_once.wait();
    // By the gateway's own time: a busy machine says nothing of how it shares that out.
    let data = gateway.data_process();
    let mut longest = 0;
    while !floods.iter().all(JoinHandle::is_finished) {
        let started = process::cpu_ticks(data);
        assert_eq!(pki.client().try_get(gateway.web(), "a.test").unwrap().status, 200);
        longest = longest.max(process::cpu_ticks(data) - started);
    }
    assert!(longest < 75, "a request waited for {longest} ticks of the gateway's time");
    floods.into_iter().for_each(|flood| flood.join().unwrap());
}
