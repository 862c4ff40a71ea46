//! What a WebSocket client hears through the gateway is what it hears without: the groups of cases of the Autobahn
//! test suite, each played to the same server directly and over every road through the gateway (ws and wss, HTTP/1.1
//! and HTTP/2 on either side), and compared byte for byte. The server judges the frames and says in the clear how each
//! connection ended, so a byte lost, added, moved or held back anywhere shows.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::harness::bytes::{Digest, random};
use crate::harness::gateway::Gateway;
use crate::harness::message::show;
use crate::harness::origin::Origin;
use crate::harness::tls::{Leaf, Pki};
use crate::harness::websocket::{CLOSE, Road, Streams, Wire, frame, serve};
use crate::harness::{Engine, on_both_engines};

on_both_engines!(
    framing_pings_bits_opcodes_fragments_and_closes_are_as_without_the_gateway,
    text_is_as_without_the_gateway,
    long_messages_are_as_without_the_gateway,
    compressed_messages_are_as_without_the_gateway,
);

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 128;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a client sends, piece by piece, before it listens to the end.
struct Case {
    id: String,
    /// What the client asks for, and the server agrees to.
    extensions: Option<&'static str>,
    pieces: Vec<Piece>,
}

struct Piece {
    bytes: Vec<u8>,
    /// Bytes of the server's that must have come before the next piece goes.
    heard: usize,
}

impl Case {
    fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), extensions: None, pieces: Vec::new() }
    }

    fn raw(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.pieces.push(Piece { bytes: bytes.into(), heard: 0 });
        self
    }

    fn frame(self, first: u8, payload: impl AsRef<[u8]>) -> Self {
        self.raw(frame(first, Some(MASK), payload.as_ref()))
    }

    /// A message, and its echo waited for.
    fn and_echo(mut self, first: u8, payload: &[u8]) -> Self {
        self = self.frame(first, payload);
        let heard = frame(first, None, payload).len();
        self.pieces.last_mut().unwrap().heard = heard;
        self
    }

    fn close(self) -> Self {
        self.frame(FIN | CLOSE, [3, 232])
    }

    /// The same bytes in pieces of this size.
    fn chopped(mut self, size: usize) -> Self {
        let all: Vec<u8> = self.pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        self.pieces = all.chunks(size).map(|bytes| Piece { bytes: bytes.to_vec(), heard: 0 }).collect();
        self.id.push_str(" chopped");
        self
    }

    /// Everything that the client heard until the end.
    fn play(&self, mut wire: Box<dyn Wire>) -> Vec<u8> {
        let (mut heard, mut wanted) = (Vec::new(), 0);
        let mut buf = vec![0; 65_536];
        for piece in &self.pieces {
            // A server that has ended does not listen; what it said counts.
            if wire.write_all(&piece.bytes).and_then(|()| wire.flush()).is_err() {
                break;
            }
            wanted += piece.heard;
            while heard.len() < wanted {
                match wire.read(&mut buf) {
                    Ok(n) if n > 0 => heard.extend_from_slice(&buf[..n]),
                    end => panic!("{}: {end:?} after {} bytes", self.id, heard.len()),
                }
            }
        }
        loop {
            match wire.read(&mut buf) {
                Ok(0) => return heard,
                Ok(n) => heard.extend_from_slice(&buf[..n]),
                Err(error) => panic!("{}: {error} after {}", self.id, show(&heard)),
            }
        }
    }
}

/// The gateway, and the roads through it.
fn roads(engine: Engine, origin: &Origin, pki: &Pki) -> (Gateway, BTreeMap<&'static str, Road>) {
    let (cert, key) = pki.issue("a", &Leaf::server(&["a.test"]));
    let tls = format!("[listener.tls]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n");
    let mut config = format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n",
        engine.key()
    );
    for (name, tls, cluster) in [
        ("web", "", "site"),
        ("secure", tls.as_str(), "site"),
        ("twice", "", "again"),
        ("secure-twice", tls.as_str(), "again-secure"),
    ] {
        config.push_str(&format!(
            "[[listener]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{{port:{name}}}\"\n{tls}\
             [[route]]\nlistener = \"{name}\"\ncluster = \"{cluster}\"\n"
        ));
    }
    config.push_str(&format!(
        "[[cluster]]\nname = \"site\"\nendpoints = [\"{}\"]\n\
         [[cluster]]\nname = \"again\"\nendpoints = [\"127.0.0.1:{{port:web}}\"]\nprotocol = \"h2\"\n\
         [[cluster]]\nname = \"again-secure\"\nendpoints = [\"127.0.0.1:{{port:secure}}\"]\nprotocol = \"h2\"\n\
         [cluster.tls]\nca = {:?}\nserver_name = \"a.test\"\n",
        origin.address(),
        pki.path("ca.pem"),
    ));
    let gateway = Gateway::start(&config);
    let client = pki.client();
    let tls = |name: &str| Road::Http1Tls { port: gateway.port(name), client: client.clone() };
    let roads = [
        ("ws", Road::Http1 { port: gateway.web() }),
        ("wss", tls("secure")),
        ("ws, HTTP/2 between", Road::Http1 { port: gateway.port("twice") }),
        ("wss, HTTP/2 over TLS between", tls("secure-twice")),
        ("HTTP/2", Road::Http2(Streams::connect(gateway.web()))),
        ("HTTP/2, HTTP/2 between", Road::Http2(Streams::connect(gateway.port("twice")))),
    ];
    (gateway, roads.into())
}

/// Plays the cases directly and over every road.
fn compare(engine: Engine, cases: &[Case]) {
    let (origin, pki) = (Origin::start(serve), Pki::new());
    let (gateway, roads) = roads(engine, &origin, &pki);
    let direct = Road::Http1 { port: origin.port() };
    let wanted: Vec<Vec<u8>> = cases.iter().map(|case| case.play(direct.open(case.extensions).0)).collect();
    let mut failures = Vec::new();
    for (name, road) in &roads {
        for (case, wanted) in cases.iter().zip(&wanted) {
            let (wire, agreed) = road.open(case.extensions);
            assert_eq!(agreed.as_deref(), case.extensions, "{name}: {}", case.id);
            let heard = case.play(wire);
            if heard != *wanted {
                failures.push(format!("{name}: {}: {} instead of {}", case.id, brief(&heard), brief(wanted)));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    gateway.wait_for_metric("ringfort_tunnels_active", "", |value| value == 0.0);
    // Those with HTTP/2 between pass the gateway twice.
    let opened = gateway.metric("ringfort_tunnels_opened_total", "websocket");
    assert_eq!(opened, (cases.len() * (3 + 3 * 2)) as f64);
}

fn brief(bytes: &[u8]) -> String {
    if bytes.len() <= 200 { show(bytes) } else { Digest::of(bytes).text() }
}

fn framing_pings_bits_opcodes_fragments_and_closes_are_as_without_the_gateway(engine: Engine) {
    let mut cases = Vec::new();
    sizes(&mut cases);
    pings(&mut cases);
    reserved(&mut cases);
    fragments(&mut cases);
    closes(&mut cases);
    compare(engine, &cases);
}

/// Group 1.
fn sizes(cases: &mut Vec<Case>) {
    for (kind, first) in [("text", FIN | TEXT), ("binary", FIN | BINARY)] {
        for len in [0, 1, 125, 126, 127, 128, 65_535, 65_536] {
            let case = || Case::new(format!("1 {kind} {len}")).frame(first, vec![b'*'; len]).close();
            cases.push(case());
            if len > 60_000 {
                cases.push(case().chopped(997));
            } else if len > 0 {
                cases.push(case().chopped(1));
            }
        }
    }
}

/// Group 2.
fn pings(cases: &mut Vec<Case>) {
    for (name, payload) in [
        ("empty", Vec::new()),
        ("text", b"Hello, world!".to_vec()),
        ("binary", vec![0, 255, 254, 253, 252, 251, 0, 255]),
        ("125", vec![254; 125]),
        ("126", vec![254; 126]),
    ] {
        cases.push(Case::new(format!("2 ping {name}")).frame(FIN | PING, &payload).close());
        cases.push(Case::new(format!("2 ping {name}")).frame(FIN | PING, &payload).close().chopped(1));
    }
    cases.push(Case::new("2 pong").frame(FIN | PONG, "").close());
    cases.push(Case::new("2 pong with payload").frame(FIN | PONG, "unsolicited").close());
    let both = Case::new("2 pong, ping").frame(FIN | PONG, "unsolicited").frame(FIN | PING, "ping");
    cases.push(both.close());
    let ten =
        |id: &str| (0..10).fold(Case::new(id), |case, n| case.and_echo_of_ping(&format!("payload-{n}")));
    cases.push(ten("2 ten pings").close());
}

impl Case {
    /// A ping, and its pong waited for: of several at once a server need answer only the last (RFC 6455 §5.5.3).
    fn and_echo_of_ping(mut self, payload: &str) -> Self {
        self = self.frame(FIN | PING, payload);
        self.pieces.last_mut().unwrap().heard = 2 + payload.len();
        self
    }
}

/// Groups 3 and 4.
fn reserved(cases: &mut Vec<Case>) {
    for rsv in 1..8u8 {
        for (name, opcode) in [("text", TEXT), ("binary", BINARY), ("ping", PING), ("close", CLOSE)] {
            let first = FIN | rsv << 4 | opcode;
            cases.push(Case::new(format!("3 {rsv} {name}")).frame(first, "Hello").frame(FIN | PING, ""));
        }
        let after = Case::new(format!("3 {rsv} after a message")).and_echo(FIN | TEXT, b"Hello");
        cases.push(after.frame(FIN | rsv << 4 | TEXT, "Hello").frame(FIN | PING, ""));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15u8] {
        cases.push(Case::new(format!("4 {opcode}")).frame(FIN | opcode, ""));
        cases.push(Case::new(format!("4 {opcode} with payload")).frame(FIN | opcode, "reserved"));
        let after = || Case::new(format!("4 {opcode} after")).and_echo(FIN | TEXT, b"Hello, world!");
        cases.push(after().frame(FIN | opcode, "reserved").frame(FIN | PING, ""));
        cases.push(Case::new(format!("4 {opcode}")).frame(FIN | opcode, "reserved").chopped(1));
    }
}

/// Group 5.
fn fragments(cases: &mut Vec<Case>) {
    let new = |id: &str| Case::new(format!("5 {id}"));
    cases.extend([
        new("ping in two").frame(PING, "fragment1").frame(FIN, "fragment2"),
        new("pong in two").frame(PONG, "fragment1").frame(FIN, "fragment2"),
        new("text in two").frame(TEXT, "fragment1").frame(FIN, "fragment2").close(),
        new("text in two").frame(TEXT, "fragment1").frame(FIN, "fragment2").close().chopped(1),
        new("text, ping, text").frame(TEXT, "1").and_echo_of_ping("ping").frame(FIN, "2").close(),
        new("text, ping, text").frame(TEXT, "1").frame(FIN | PING, "p").frame(FIN, "2").close().chopped(1),
        new("nothing to go on with").frame(FIN, "continued").frame(FIN | TEXT, "Hello"),
        new("nothing to go on with").frame(0, "continued").frame(FIN | TEXT, "Hello").chopped(1),
        new("two begun").frame(TEXT, "fragment1").frame(FIN | TEXT, "fragment2"),
        new("two begun").frame(TEXT, "fragment1").frame(BINARY, "fragment2").chopped(1),
        new("empty fragments").frame(TEXT, "").frame(0, "").frame(FIN, "").close(),
        new("empty around").frame(TEXT, "").frame(0, "middle").frame(FIN, "").close(),
        new("close between").frame(TEXT, "fragment1").close(),
    ]);
    let many = (0..5).fold(new("many with pings").frame(TEXT, "f0"), |case, n| {
        case.frame(0, format!("f{n}")).and_echo_of_ping(&format!("p{n}"))
    });
    cases.push(many.frame(FIN, "end").close());
}

/// Group 7.
fn closes(cases: &mut Vec<Case>) {
    let new = |id: String| Case::new(format!("7 {id}"));
    let code = |code: u16, reason: &str| [&code.to_be_bytes(), reason.as_bytes()].concat();
    cases.extend([
        new("after a message".into()).frame(FIN | TEXT, "Hello World!").close(),
        new("twice".into()).close().close(),
        new("ping behind".into()).close().frame(FIN | PING, ""),
        new("text behind".into()).close().frame(FIN | TEXT, "Hello"),
        new("within a message".into()).frame(TEXT, "fragment1").close().frame(FIN, "fragment2"),
        new("with much behind".into()).frame(FIN | TEXT, vec![b'B'; 262_144]).close().frame(FIN | PING, ""),
        new("empty".into()).frame(FIN | CLOSE, ""),
        new("of one byte".into()).frame(FIN | CLOSE, "a"),
        new("with a reason".into()).frame(FIN | CLOSE, code(1000, "Hello World!")),
        new("with the longest reason".into()).frame(FIN | CLOSE, code(1000, &"*".repeat(123))),
        new("too long".into()).frame(FIN | CLOSE, code(1000, &"*".repeat(124))),
        new("not UTF-8".into()).frame(FIN | CLOSE, [3, 232, 0xce, 0xba, 0xed, 0xa0, 0x80]),
        new("not final".into()).frame(CLOSE, code(1000, "")),
        new("unmasked".into()).raw(frame(FIN | CLOSE, None, &[3, 232])),
        new("unmasked text".into()).raw(frame(FIN | TEXT, None, b"Hello")),
    ]);
    let good = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    let bad = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535];
    for number in good.into_iter().chain(bad) {
        cases.push(new(format!("code {number}")).frame(FIN | CLOSE, code(number, "")));
    }
}

/// Group 6.
fn text_is_as_without_the_gateway(engine: Engine) {
    let mut texts: Vec<Vec<u8>> =
        ["", "Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\u{10ffff}", "\u{feff}", "\u{fffd}\u{fffe}"]
            .into_iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
    // First and last of each length, surrogates, what is too long, what stands alone, what is cut off.
    for hex in [
        "00",
        "7f",
        "c280",
        "dfbf",
        "e0a080",
        "efbfbf",
        "ed9fbf",
        "ee8080",
        "f0908080",
        "f48fbfbf",
        "f4908080",
        "f7bfbfbf",
        "f888808080",
        "fbbfbfbfbf",
        "fc8480808080",
        "fdbfbfbfbfbf",
        "80",
        "bf",
        "80bf80",
        "c0",
        "c1bf",
        "c0af",
        "e080af",
        "f08080af",
        "f8808080af",
        "c020",
        "e08020",
        "fe",
        "ff",
        "fefeffff",
        "eda080",
        "edadbf",
        "edb080",
        "edbfbf",
        "eda080edb080",
        "edafbfedbfbf",
        "efbfbe",
        "cebae1bdb9cf83cebcceb5eda080656469746564",
        "cebae1bdb9cf83cebcceb5f4908080656469746564",
        "c3",
        "e28d",
        "f09f92",
        "61c3",
        "61e282",
    ] {
        texts.push(
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect(),
        );
    }
    let mut cases = Vec::new();
    for text in &texts {
        let id = format!("6 {}", show(text));
        cases.push(Case::new(&*id).frame(FIN | TEXT, text).close());
        cases.push(Case::new(&*id).frame(FIN | TEXT, text).close().chopped(1));
        let (one, two) = text.split_at(text.len() / 2);
        cases.push(Case::new(format!("{id} in two")).frame(TEXT, one).frame(FIN, two).close());
        let bytes = text
            .iter()
            .fold(Case::new(format!("{id} in bytes")).frame(TEXT, ""), |case, byte| case.frame(0, [*byte]));
        cases.push(bytes.frame(FIN, "").close());
    }
    compare(engine, &cases);
}

/// Groups 9 and 10.
fn long_messages_are_as_without_the_gateway(engine: Engine) {
    const MIB: usize = 1 << 20;
    let ascii =
        |len: usize| random(len as u64, len).into_iter().map(|byte| b' ' + byte % 90).collect::<Vec<u8>>();
    let mut cases = Vec::new();
    for len in [MIB / 16, MIB / 4, MIB, 4 * MIB, 16 * MIB] {
        cases.push(Case::new(format!("9 binary {len}")).and_echo(FIN | BINARY, &random(1, len)).close());
    }
    for len in [MIB / 16, MIB, 4 * MIB] {
        cases.push(Case::new(format!("9 text {len}")).and_echo(FIN | TEXT, &ascii(len)).close());
    }
    let fragmented = |id: &str, all: &[u8], size: usize| {
        let start = Case::new(format!("{id} {} in {size}", all.len())).frame(BINARY, "");
        all.chunks(size).fold(start, |case, part| case.frame(0, part)).frame(FIN, "").close()
    };
    for (len, size) in [(MIB / 4, 64), (MIB, 1_024), (4 * MIB, 65_536), (4 * MIB, MIB)] {
        cases.push(fragmented("9 fragments", &random(2, len), size));
    }
    cases.push(fragmented("10 fragments", &random(3, 65_536), 1_300));
    for size in [64, 1_024, 65_536] {
        let whole = Case::new(format!("9 {size}")).frame(FIN | BINARY, random(4, MIB)).close();
        cases.push(whole.chopped(size));
    }
    for len in [0, 16, 64, 256, 1_024, 16_384] {
        let trips = (0..100).fold(Case::new(format!("9 round trips of {len}")), |case, n| {
            case.and_echo(FIN | BINARY, &random(n, len))
        });
        cases.push(trips.close());
    }
    compare(engine, &cases);
}

/// Groups 12 and 13: what is compressed, and how both ends agreed on it, is their own matter.
fn compressed_messages_are_as_without_the_gateway(engine: Engine) {
    const COMPRESSED: u8 = 0x40;
    let mut cases = Vec::new();
    let deflated = |id: String, extensions| Case { extensions: Some(extensions), ..Case::new(id) };
    for len in [16, 256, 1_024, 4_096, 8_192, 32_768, 131_072] {
        let new = || deflated(format!("12 {len}"), "permessage-deflate");
        let many = (0..10).fold(new(), |case, n| case.and_echo(FIN | COMPRESSED | BINARY, &random(n, len)));
        cases.push(many.close());
        let parts = new().frame(COMPRESSED | TEXT, random(1, len)).frame(0, random(2, len));
        cases.push(parts.frame(FIN, random(3, len)).close());
    }
    for extensions in [
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits=9; server_max_window_bits=15",
        "permessage-deflate; server_no_context_takeover; client_max_window_bits",
        "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits",
    ] {
        let case = deflated(format!("13 {extensions}"), extensions);
        cases.push(case.and_echo(FIN | COMPRESSED | TEXT, &random(5, 1_024)).close());
    }
    compare(engine, &cases);
}
