//! Lines as operators and their tools read them.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn line(format: Format, entry: &Entry<'_>) -> String {
    let mut out = Vec::new();
    write_line(&mut out, format, entry);
    String::from_utf8(out).expect("text")
}

fn full() -> Entry<'static> {
    Entry {
        kind: "request",
        started_unix_ms: 951_827_696_007,
        duration: Duration::from_micros(12_345),
        worker: 1,
        listener: "web",
        protocol: "HTTP/1.1",
        client: Some([192, 0, 2, 1].into()),
        method: Some(b"GET"),
        host: Some(b"api.test"),
        target: Some(b"/a?b=c"),
        status: Some(200),
        grpc_status: Some(0),
        termination: "complete",
        tls_failure: None,
        received_bytes: 0,
        sent_bytes: 512,
        route: Some("api"),
        cluster: Some("site"),
        endpoint: Some(([127, 0, 0, 1], 9_000).into()),
        attempts: 1,
        first_byte: Some(Duration::from_millis(9)),
        tls_version: Some("TLSv1.3"),
        tls_cipher: Some("TLS_AES_128_GCM_SHA256"),
        tls_resumed: Some(false),
        server_name: Some(b"api.test"),
        alpn: Some(b"http/1.1"),
        identity: Some("spiffe://td/a"),
        trace_id: Some("0af7651916cd43dd8448eb211c80319c"),
        referer: Some(b"http://b.test/"),
        user_agent: Some(b"curl/8"),
        sample_ratio: Some(0.25),
    }
}

#[test]
fn json_has_the_documented_names_in_their_order() {
    assert_eq!(
        line(Format::Json, &full()),
        "{\"ts\":\"2000-02-29T12:34:56.007Z\",\"kind\":\"request\",\"duration_ms\":12.345,\"worker\":1,\
         \"listener\":\"web\",\"protocol\":\"HTTP/1.1\",\"client\":\"192.0.2.1\",\"method\":\"GET\",\"host\":\"api.test\",\
         \"path\":\"/a?b=c\",\"status\":200,\"grpc_status\":0,\"termination\":\"complete\",\"received_bytes\":0,\
         \"sent_bytes\":512,\"route\":\"api\",\"cluster\":\"site\",\"endpoint\":\"127.0.0.1:9000\",\"attempts\":1,\
         \"first_byte_ms\":9.000,\"tls_version\":\"TLSv1.3\",\"tls_cipher\":\"TLS_AES_128_GCM_SHA256\",\
         \"tls_resumed\":false,\"server_name\":\"api.test\",\"alpn\":\"http/1.1\",\"identity\":\"spiffe://td/a\",\
         \"trace_id\":\"0af7651916cd43dd8448eb211c80319c\",\"referer\":\"http://b.test/\",\"user_agent\":\"curl/8\",\
         \"sample_ratio\":0.25}\n"
    );
}

#[test]
fn text_is_the_combined_format_with_more_behind_it() {
    assert_eq!(
        line(Format::Text, &full()),
        "192.0.2.1 - spiffe://td/a [29/Feb/2000:12:34:56 +0000] \"GET /a?b=c HTTP/1.1\" 200 512 \"http://b.test/\" \
         \"curl/8\" kind=request listener=web host=api.test duration_ms=12.345 received_bytes=0 termination=complete \
         route=api cluster=site endpoint=127.0.0.1:9000 tls=TLSv1.3 server_name=api.test \
         trace_id=0af7651916cd43dd8448eb211c80319c\n"
    );
}

#[test]
fn what_is_absent_is_left_out_or_a_dash() {
    let entry = Entry {
        kind: "session",
        listener: "web",
        protocol: "http",
        termination: "first_byte_timeout",
        ..Entry::default()
    };
    assert_eq!(
        line(Format::Json, &entry),
        "{\"ts\":\"1970-01-01T00:00:00.000Z\",\"kind\":\"session\",\"duration_ms\":0.000,\"worker\":0,\"listener\":\"web\",\
         \"protocol\":\"http\",\"termination\":\"first_byte_timeout\",\"received_bytes\":0,\"sent_bytes\":0}\n"
    );
    assert_eq!(
        line(Format::Text, &entry),
        "- - - [01/Jan/1970:00:00:00 +0000] \"-\" - 0 \"-\" \"-\" kind=session listener=web host=- duration_ms=0.000 \
         received_bytes=0 termination=first_byte_timeout route=- cluster=- endpoint=- tls=- server_name=- trace_id=-\n"
    );
}

#[test]
fn what_came_from_the_wire_cannot_forge_a_line() {
    let mut entry = full();
    entry.user_agent = Some(b"a\"\r\n{\"status\":500}\x1b[2J\xc2\x9b \xff\xe2\x80\xa8\xe2\x80\xaeok\\");
    entry.identity = Some("CN=\"a\" b");
    let value: Value = serde_json::from_str(&line(Format::Json, &entry)).unwrap();
    let agent = value["user_agent"].as_str().unwrap();
    assert_eq!(agent, "a\"\r\n{\"status\":500}\u{1b}[2J\u{9b} \u{fffd}\u{2028}\u{202e}ok\\");
    let text = line(Format::Text, &entry);
    assert!(
        text.contains(r#" "a\x22\x0D\x0A{\x22status\x22:500}\x1B[2J\xC2\x9B \xFF\xE2\x80\xA8"#),
        "{text}"
    );
    assert!(text.contains(r#" - "CN=\x22a\x22 b" ["#), "{text}");
}

#[test]
fn a_long_text_is_cut() {
    let long = vec![b'x'; 3 * TEXT_BYTES_MAX];
    let entry = Entry { target: Some(&long), host: Some(&long), method: Some(b"GET"), ..Entry::default() };
    for format in [Format::Json, Format::Text] {
        assert!(line(format, &entry).len() < 2 * TEXT_BYTES_MAX + 400, "{format:?}");
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        prop_oneof![
            any::<u8>(),
            Just(b'\n'),
            Just(b'"'),
            Just(b'\\'),
            Just(0x1b),
            Just(b' '),
            Just(0xc2),
            Just(0x9b)
        ],
        0..80,
    )
}

/// The values of a line of text, quotes taken off; panics where it is not made of such.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut bracketed) = (Vec::new(), String::new(), false, false);
    for char in line.strip_suffix('\n').expect("one line").chars() {
        match char {
            '"' => quoted = !quoted,
            '[' if !quoted => bracketed = true,
            ']' if !quoted => bracketed = false,
            ' ' if !quoted && !bracketed => words.push(std::mem::take(&mut word)),
            _ => word.push(char),
        }
    }
    assert!(!quoted && !bracketed, "{line}");
    words.push(word);
    words
}

proptest! {
    #[test]
    fn any_bytes_stay_within_their_field(
        method in bytes(), host in bytes(), target in bytes(), referer in bytes(), agent in bytes(), name in bytes(),
    ) {
        let entry = Entry {
            method: Some(&method),
            host: Some(&host),
            target: Some(&target),
            referer: Some(&referer),
            user_agent: Some(&agent),
            server_name: Some(&name),
            ..full()
        };
        let json = line(Format::Json, &entry);
        prop_assert_eq!(json.matches('\n').count(), 1);
        prop_assert!(!json.trim_end().chars().any(char::is_control));
        let value: Value = serde_json::from_str(&json).expect("JSON");
        let object = value.as_object().expect("an object");
        prop_assert_eq!(object.len(), 30);
        for (key, bytes) in [("method", &method), ("host", &host), ("path", &target), ("user_agent", &agent)] {
            prop_assert_eq!(object[key].as_str().expect("a string"), String::from_utf8_lossy(bytes));
        }
        let text = line(Format::Text, &entry);
        prop_assert!(text.trim_end_matches('\n').bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        let words = words(&text);
        // Address, dash, identity, time, request, status, bytes, referer, agent, and twelve pairs.
        prop_assert_eq!(words.len(), 21, "{:?}", words);
        prop_assert_eq!(&words[5], "200");
        prop_assert!(words[20].starts_with("trace_id="), "{:?}", words);
    }
}
