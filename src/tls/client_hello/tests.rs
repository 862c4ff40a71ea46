//! Hellos as clients send them, as nobody should send them, and as they arrive.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use rustls::client::{ClientConnection, UnbufferedClientConnection};
use rustls::{ClientConfig, RootCertStore};

use super::*;

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

fn vector16(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u16).to_be_bytes()[..], data].concat()
}

fn name(name: &[u8]) -> Vec<u8> {
    [&[HOST_NAME][..], &vector16(name)].concat()
}

fn names(names: &[Vec<u8>]) -> Vec<u8> {
    extension(SERVER_NAME, &vector16(&names.concat()))
}

fn alpn(protocols: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|one| [&[one.len() as u8][..], one].concat()).collect();
    extension(ALPN, &vector16(&list))
}

/// A handshake message that ends with these bytes in place of the extensions.
fn message_ending(end: &[u8]) -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], end].concat();
    let len = (body.len() as u32).to_be_bytes();
    [&[CLIENT_HELLO][..], &len[1..], &body].concat()
}

fn message_of(extensions: &[Vec<u8>]) -> Vec<u8> {
    message_ending(&vector16(&extensions.concat()))
}

/// Records of at most `len` bytes each.
fn records(message: &[u8], len: usize) -> Vec<u8> {
    message.chunks(len).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &vector16(part)].concat()).collect()
}

fn hello_of(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message_of(extensions), 1 << 14)
}

fn read(bytes: &[u8]) -> Hello {
    Reader::default().read(bytes)
}

fn told(name: Option<&str>, protocols: &[&[u8]]) -> Hello {
    let list: Vec<u8> = protocols.iter().flat_map(|one| [&[one.len() as u8][..], one].concat()).collect();
    Hello::Complete(ClientHello { server_name: name.map(Into::into), alpn: Protocols(list.into()) })
}

fn refused(bytes: &[u8]) -> AlertDescription {
    match read(bytes) {
        Hello::Malformed(alert) => alert,
        other => panic!("{other:?}"),
    }
}

/// What rustls sends, with the shares of X25519MLKEM768: longer than one packet.
fn real_hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = "www.api.test".try_into().expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("a vector takes all");
    hello
}

#[test]
fn the_hello_of_a_real_client_tells_its_name_and_protocols() {
    let hello = real_hello();
    assert!(hello.len() > 1_200, "{}", hello.len());
    let told = told(Some("www.api.test"), &[b"h2", b"http/1.1"]);
    assert_eq!(read(&hello), told);
    let Hello::Complete(told) = told else { unreachable!() };
    assert!(told.alpn.contains(b"h2") && told.alpn.contains(b"http/1.1") && !told.alpn.contains(b"h"));
    assert_eq!(told.alpn.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
    // What follows it is not looked at: early data comes with the first flight.
    assert_eq!(read(&[&hello[..], &[23, 3, 3, 0, 1, 0]].concat()), Hello::Complete(told));
}

#[test]
fn every_split_of_a_real_hello_gives_the_same_answer() {
    let hello = real_hello();
    let whole = read(&hello);
    for cut in 0..hello.len() {
        let mut reader = Reader::default();
        assert_eq!(reader.read(&hello[..cut]), Hello::Partial, "{cut}");
        assert_eq!(reader.read(&hello), whole, "{cut}");
    }
    fuzz_client_hello(&hello);
}

#[test]
fn records_of_any_size_give_the_same_answer() {
    let hello = real_hello();
    let whole = read(&hello);
    for len in 1..hello.len() {
        assert_eq!(read(&records(&hello[RECORD_HEADER_BYTES..], len)), whole, "{len}");
    }
    fuzz_client_hello(&records(&hello[RECORD_HEADER_BYTES..], 1));
}

#[test]
fn empty_records_are_for_the_endpoint_to_judge() {
    let message = message_of(&[names(&[name(b"a.test")])]);
    let three_a_byte: Vec<u8> = message
        .iter()
        .flat_map(|byte| [HANDSHAKE, 3, 1, 0, 0, HANDSHAKE, 3, 1, 0, 0, HANDSHAKE, 3, 1, 0, 1, *byte])
        .collect();
    assert_eq!(read(&three_a_byte), told(Some("a.test"), &[]));
    let endless = [HANDSHAKE, 3, 1, 0, 0].repeat(HELLO_RECORDS_MAX + 1);
    assert_eq!(read(&endless[..endless.len() - 5]), Hello::Partial);
    assert_eq!(refused(&endless), AlertDescription::DecodeError);
}

/// A call looks at nothing that an earlier one looked at, so a dripped hello costs what its length does.
#[test]
fn a_dripped_hello_is_looked_at_once() {
    let padding = extension(21, &vec![0; HELLO_RECORDS_MAX - 100]);
    let hello = records(&message_of(&[padding, names(&[name(b"a.test")])]), 1);
    let mut reader = Reader::default();
    for len in 0..hello.len() {
        let before = reader.at;
        assert_eq!(reader.read(&hello[..len]), Hello::Partial);
        assert!(len - before <= RECORD_HEADER_BYTES, "{len}: read again from {before}");
    }
    assert_eq!(reader.read(&hello), told(Some("a.test"), &[]));
}

#[test]
fn a_hello_has_a_longest_length() {
    let padding = |len: usize| {
        let whole = message_of(&[extension(21, &[]), names(&[name(b"a.test")])]).len();
        message_of(&[extension(21, &vec![0; len - whole]), names(&[name(b"a.test")])])
    };
    let longest = padding(HELLO_BYTES_MAX);
    assert_eq!(longest.len(), HELLO_BYTES_MAX);
    assert_eq!(read(&records(&longest, 1 << 14)), told(Some("a.test"), &[]));
    // Known from the message's first four bytes.
    let longer = [HANDSHAKE, 3, 1, 0x40, 0, CLIENT_HELLO, 1, 0, 0];
    assert_eq!(refused(&longer), AlertDescription::DecodeError);
    assert_eq!(read(&longer[..8]), Hello::Partial);
}

#[test]
fn records_of_any_version_are_taken_up_to_their_longest_length() {
    let message = message_of(&[names(&[name(b"a.test")])]);
    for minor in 0..=255 {
        let bytes = [&[HANDSHAKE, 3, minor][..], &vector16(&message)].concat();
        assert_eq!(read(&bytes), told(Some("a.test"), &[]), "{minor}");
    }
    let empty = message_of(&[extension(21, &[])]).len();
    let longest = message_of(&[extension(21, &vec![0; RECORD_BYTES_MAX + 1 - empty])]);
    assert_eq!(read(&records(&longest, RECORD_BYTES_MAX)), told(None, &[]));
    assert_eq!(refused(&records(&longest, RECORD_BYTES_MAX + 1)), AlertDescription::RecordOverflow);
}

#[test]
fn what_does_not_begin_with_a_handshake_is_not_tls() {
    let sslv2: &[u8] = &[0x80, 0x2e, 1, 0, 2, 0, 21, 0, 0, 0, 16];
    for bytes in [sslv2, b"GET / HTTP/1.1\r\n", &[23, 3, 3, 0, 1, 0], &[21, 3, 3], &[HANDSHAKE, 2], &[0]] {
        assert_eq!(read(bytes), Hello::NotTls, "{bytes:?}");
    }
    assert_eq!(read(&[]), Hello::Partial);
    assert_eq!(read(&[HANDSHAKE]), Hello::Partial);
}

#[test]
fn other_records_and_messages_are_unexpected() {
    let half = records(&message_of(&[])[..20], 20);
    assert_eq!(read(&half), Hello::Partial);
    for kind in [20, 21, 23, 24] {
        let bytes = [&half[..], &[kind, 3, 3, 0, 1, 1]].concat();
        assert_eq!(refused(&bytes), AlertDescription::UnexpectedMessage, "{kind}");
    }
    let garbage = [&half[..], &[HANDSHAKE, 9, 9, 0, 1, 1]].concat();
    assert_eq!(refused(&garbage), AlertDescription::DecodeError);
    for kind in [0, 2, 11, 255] {
        assert_eq!(refused(&[HANDSHAKE, 3, 1, 0, 1, kind]), AlertDescription::UnexpectedMessage, "{kind}");
    }
}

#[test]
fn a_hello_without_extensions_names_nobody() {
    assert_eq!(read(&records(&message_ending(&[]), 99)), told(None, &[]));
    assert_eq!(read(&hello_of(&[])), told(None, &[]));
    assert_eq!(read(&hello_of(&[alpn(&[b"h2"])])), told(None, &[b"h2"]));
}

#[test]
fn a_name_is_lower_cased_and_loses_its_final_dot() {
    for (sent, meant) in [
        (&b"A.Test"[..], "a.test"),
        (b"a.test.", "a.test"),
        (b"x_y.a-b.test", "x_y.a-b.test"),
        (b"localhost", "localhost"),
        (b"1.2.3.4.test", "1.2.3.4.test"),
    ] {
        assert_eq!(read(&hello_of(&[names(&[name(sent)])])), told(Some(meant), &[]));
    }
}

#[test]
fn an_address_is_no_name() {
    for address in ["127.0.0.1", "::1", "[::1]", "2001:db8::1"] {
        assert_eq!(read(&hello_of(&[names(&[name(address.as_bytes())])])), told(None, &[]), "{address}");
    }
}

#[test]
fn a_name_that_no_host_can_have_is_unrecognized() {
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
    let label = format!("{}.test", "a".repeat(64));
    let names_of_nobody = [
        b"a\0.test",
        b"a.test\0",
        &b"a b.test"[..],
        b"a..test",
        b".test",
        b".",
        b"a.test..",
        b"*.test",
        "\u{e9}.test".as_bytes(),
        b"\xff.test",
        b"a.test:443",
        b"a/b",
        long.as_bytes(),
        label.as_bytes(),
    ];
    for one in names_of_nobody {
        let alert = refused(&hello_of(&[names(&[name(one)])]));
        assert_eq!(alert, AlertDescription::UnrecognisedName, "{}", one.escape_ascii());
    }
}

#[test]
fn one_host_name_is_all_that_a_list_may_hold() {
    let other_kind = [&[9][..], &vector16(b"x")].concat();
    assert_eq!(read(&hello_of(&[names(&[other_kind.clone(), name(b"a.test")])])), told(Some("a.test"), &[]));
    assert_eq!(read(&hello_of(&[names(&[other_kind])])), told(None, &[]));
    for list in [
        names(&[name(b"a.test"), name(b"b.test")]),
        names(&[name(b"")]),
        names(&[]),
        extension(SERVER_NAME, &[]),
        extension(SERVER_NAME, &[&vector16(&name(b"a.test"))[..], &[0]].concat()),
        extension(SERVER_NAME, &vector16(&name(b"a.test")[..8])),
        extension(SERVER_NAME, &vector16(&[HOST_NAME, 0])),
    ] {
        assert_eq!(
            refused(&hello_of(std::slice::from_ref(&list))),
            AlertDescription::DecodeError,
            "{list:?}"
        );
    }
}

#[test]
fn a_protocol_is_never_empty_nor_cut() {
    for list in [
        extension(ALPN, &[]),
        extension(ALPN, &[0, 0]),
        alpn(&[b"h2", b""]),
        extension(ALPN, &vector16(&[3, b'h', b'2'])),
        extension(ALPN, &[0, 3, 2, b'h', b'2', 0]),
    ] {
        assert_eq!(
            refused(&hello_of(std::slice::from_ref(&list))),
            AlertDescription::DecodeError,
            "{list:?}"
        );
    }
}

#[test]
fn an_extension_that_is_there_twice_is_refused() {
    for twice in [names(&[name(b"a.test")]), alpn(&[b"h2"]), extension(0xfafa, &[]), extension(65_535, b"x")]
    {
        let hello = hello_of(&[twice.clone(), extension(43, &[2, 3, 4]), twice]);
        assert_eq!(refused(&hello), AlertDescription::IllegalParameter);
    }
    let all: Vec<Vec<u8>> = (100..16_000).map(|kind| extension(kind, &[])).collect();
    assert_eq!(read(&hello_of(&all)), told(None, &[]));
}

#[test]
fn what_is_cut_within_the_message_is_a_decode_error() {
    let whole = message_of(&[names(&[name(b"a.test")]), alpn(&[b"h2"])]);
    let without_extensions = message_ending(&[]).len();
    for len in MESSAGE_HEADER_BYTES..whole.len() {
        let mut cut = whole[..len].to_vec();
        cut[1..4].copy_from_slice(&((len - MESSAGE_HEADER_BYTES) as u32).to_be_bytes()[1..]);
        if len == without_extensions {
            assert_eq!(read(&records(&cut, 99)), told(None, &[]));
        } else {
            assert_eq!(refused(&records(&cut, 99)), AlertDescription::DecodeError, "{len}");
        }
    }
    let after = message_ending(&[&vector16(&[])[..], &[0]].concat());
    assert_eq!(refused(&records(&after, 99)), AlertDescription::DecodeError);
}

#[test]
fn fields_out_of_their_bounds_are_decode_errors() {
    let body = |session_id: &[u8], suites: &[u8], compressions: &[u8]| {
        let lengths = [session_id.len() as u8, compressions.len() as u8];
        let (session, compression) = ([&lengths[..1], session_id], [&lengths[1..], compressions]);
        let parts = [&[3, 3][..], &[7; 32], &session.concat(), &vector16(suites), &compression.concat()];
        let body = parts.concat();
        records(&[&[CLIENT_HELLO, 0, 0, body.len() as u8][..], &body].concat(), 999)
    };
    assert_eq!(read(&body(&[1; 32], &[0x13, 1], &[0])), told(None, &[]));
    for bytes in [
        body(&[1; 33], &[0x13, 1], &[0]),
        body(&[], &[], &[0]),
        body(&[], &[0x13, 1, 0x13], &[0]),
        body(&[], &[0x13, 1], &[]),
    ] {
        assert_eq!(refused(&bytes), AlertDescription::DecodeError);
    }
}

#[test]
fn an_alert_is_a_record_that_clients_understand() {
    let alert = fatal_alert(AlertDescription::UnrecognisedName);
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 112]);
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "a.test".try_into().expect("a name");
    let mut client = UnbufferedClientConnection::new(Arc::new(config), name).expect("a client");
    let hello = client.process_tls_records(&mut []);
    assert!(hello.state.is_ok());
    let mut alert = alert;
    let told = client.process_tls_records(&mut alert).state.err();
    assert_eq!(told, Some(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn random_bytes_get_a_verdict(bytes in vec(any::<u8>(), 0..300)) {
        fuzz_client_hello(&bytes);
        fuzz_client_hello(&[&[HANDSHAKE, 3, 1, 0, 200, CLIENT_HELLO, 0, 0, 196], &bytes[..]].concat());
        fuzz_client_hello(&records(&message_ending(&vector16(&bytes)), 64));
    }

    #[test]
    fn mutated_hellos_get_the_same_verdict_however_they_arrive(
        cuts in vec((any::<prop::sample::Index>(), 0..4usize, vec(any::<u8>(), 0..4)), 0..5),
        record_len in 1..200usize,
    ) {
        let other = extension(43, &[2, 3, 4]);
        let message = message_of(&[names(&[name(b"www.api.test")]), other, alpn(&[b"h2", b"http/1.1"])]);
        let mut bytes = records(&message, record_len);
        for (at, removed, put) in cuts {
            let at = at.index(bytes.len() + 1);
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, put);
        }
        fuzz_client_hello(&bytes);
    }

    #[test]
    fn mutated_extensions_get_the_same_verdict_however_they_arrive(
        mutations in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        record_len in 1..200usize,
    ) {
        let mut message = message_of(&[alpn(&[b"h2", b"http/1.1"]), names(&[name(b"www.api.test")])]);
        for (at, byte) in mutations {
            let at = at.index(message.len());
            message[at] = byte;
        }
        fuzz_client_hello(&records(&message, record_len));
    }

    #[test]
    fn any_name_and_protocols_are_told(
        host in "[a-zA-Z0-9_-]{1,20}(\\.[a-z][a-z0-9]{0,9}){1,4}",
        protocols in vec(vec(any::<u8>(), 1..20), 1..6),
        record_len in 1..300usize,
    ) {
        let protocols: Vec<&[u8]> = protocols.iter().map(Vec::as_slice).collect();
        let message = message_of(&[names(&[name(host.as_bytes())]), alpn(&protocols)]);
        let wanted = told(Some(&host.to_ascii_lowercase()), &protocols);
        prop_assert_eq!(read(&records(&message, record_len)), wanted);
    }
}
