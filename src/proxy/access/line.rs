//! What becomes one line of the access log: gathered while it happens, written when the last who knows of it lets go,
//! also where a session is cut off. Records are used again: a request allocates nothing. Never keeps a configuration for
//! longer than a request: what may go on for days keeps the names that its line has.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::connections::Doing;
use super::super::context::{Context, Served, Serving, SessionGuard};
use super::super::facts::{Facts, TlsFacts};
use super::super::http1::judge::{Answer, trace_id};
use super::super::outcome::Termination;
use super::super::snapshot::Protocol;
use super::RECORDS_KEPT_MAX;
use super::format::{Entry, TEXT_BYTES_MAX};
use super::spec::{AccessLogSpec, Sampled};
use crate::base::time::Instant;
use crate::h1::{RequestHead, Target};
use crate::http::Version;
use crate::metrics::HandshakeFailure;

/// Memory for texts that a record keeps between two exchanges.
const TEXT_BYTES_KEPT_MAX: usize = 16 * 1024;

/// A line to be. Clones are of the same line; without a log there is none.
#[derive(Clone, Default)]
pub struct Line(Option<Rc<Record>>);

/// What a line is about.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Kind {
    #[default]
    Request,
    Tunnel,
    Session,
}

/// Texts that came from the wire, by number.
#[derive(Clone, Copy)]
enum Text {
    Method,
    Host,
    Target,
    Referer,
    UserAgent,
    ServerName,
    Alpn,
}

const TEXTS: usize = Text::Alpn as usize + 1;

#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    /// First and behind the last.
    spans: [Option<(u32, u32)>; TEXTS],
}

impl Texts {
    fn put(&mut self, text: Text, bytes: &[u8]) {
        let first = self.bytes.len() as u32;
        self.spans[text as usize] = Some((first, first));
        self.go_on(text, bytes);
    }

    /// Adds to the text that was put last. What would not be shown is not kept.
    fn go_on(&mut self, text: Text, bytes: &[u8]) {
        let Some((first, end)) = &mut self.spans[text as usize] else { return };
        let room = TEXT_BYTES_MAX - (*end - *first) as usize;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        *end = self.bytes.len() as u32;
    }

    fn get(&self, text: Text) -> Option<&[u8]> {
        let (first, end) = self.spans[text as usize]?;
        self.bytes.get(first as usize..end as usize)
    }
}

/// What the positions in a record stand for.
enum Meaning {
    /// The configuration that it began under.
    Of(Rc<Serving>),
    /// Looked up, as that configuration may be gone.
    Kept(Box<Kept>),
}

struct Kept {
    spec: Arc<AccessLogSpec>,
    listener: Box<str>,
    protocol: &'static str,
    route: Option<Box<str>>,
    cluster: Option<Box<str>>,
}

struct Names<'a> {
    listener: &'a str,
    protocol: &'static str,
    route: Option<&'a str>,
    cluster: Option<&'a str>,
}

impl Meaning {
    fn spec(&self) -> Option<&Arc<AccessLogSpec>> {
        match self {
            Self::Of(serving) => serving.snapshot.access_log.as_ref(),
            Self::Kept(kept) => Some(&kept.spec),
        }
    }

    fn names(&self, record: &Record) -> Names<'_> {
        let serving = match self {
            Self::Of(serving) => serving,
            Self::Kept(kept) => {
                let Kept { listener, protocol, route, cluster, .. } = &**kept;
                return Names { listener, protocol, route: route.as_deref(), cluster: cluster.as_deref() };
            }
        };
        let (routes, clusters) = (serving.snapshot.routes.routes(), &serving.snapshot.clusters);
        let listener = serving.listener(record.listener);
        let route = record.route.get().and_then(|route| routes.get(usize::from(route)));
        let cluster = record.cluster.get().and_then(|cluster| clusters.get(usize::from(cluster)));
        Names {
            listener: listener.map_or("", |listener| &listener.name),
            protocol: listener.map_or("", |listener| word_of(listener.protocol)),
            route: route.map(|route| &*route.name),
            cluster: cluster.map(|cluster| &*cluster.name),
        }
    }

    fn kept(&self, record: &Record) -> Option<Self> {
        let Names { listener, protocol, route, cluster } = self.names(record);
        let (listener, route, cluster) = (listener.into(), route.map(Into::into), cluster.map(Into::into));
        Some(Self::Kept(Box::new(Kept { spec: self.spec()?.clone(), listener, protocol, route, cluster })))
    }
}

#[derive(Default)]
pub(super) struct Record {
    /// Both are there from the beginning to the end of a line.
    context: Option<Rc<Context>>,
    meaning: RefCell<Option<Meaning>>,
    listener: u16,
    started: Instant,
    kind: Cell<Kind>,
    protocol: Cell<&'static str>,
    client: Cell<Option<IpAddr>>,
    tls: RefCell<Option<Rc<TlsFacts>>>,
    texts: RefCell<Texts>,
    /// What the worker's budget knows of them.
    charged_bytes: Cell<usize>,
    route: Cell<Option<u16>>,
    cluster: Cell<Option<u16>>,
    endpoint: Cell<Option<SocketAddr>>,
    attempts: Cell<u32>,
    first_byte: Cell<Option<Duration>>,
    status: Cell<Option<u16>>,
    grpc_status: Cell<Option<u8>>,
    /// The first cause wins.
    termination: Cell<Option<Termination>>,
    is_complete: Cell<bool>,
    tls_failure: Cell<Option<HandshakeFailure>>,
    received: Cell<u64>,
    sent: Cell<u64>,
    trace_id: Cell<Option<[u8; 32]>>,
}

impl Line {
    /// The line of a request that began at `started`.
    pub fn of_request(guard: &SessionGuard, serving: &Rc<Serving>, started: Instant) -> Self {
        guard.count_exchange();
        Self::begin(guard, serving, started, Kind::Request)
    }

    /// The line of a connection that is relayed.
    pub fn of_relay(guard: &SessionGuard, facts: &Facts) -> Self {
        guard.count_exchange();
        guard.does(Doing::Relay);
        let serving = guard.serving();
        let line = Self::begin(guard, &serving, guard.since(), Kind::Session);
        line.with(|record| drop(record.tls.replace(facts.tls.clone())));
        line
    }

    /// Logs a connection that ends, where no line told of it: it carried nothing, or broke between its streams.
    pub fn of_session(guard: &SessionGuard, termination: Termination, failure: Option<HandshakeFailure>) {
        let broke = matches!(termination, Termination::ProtocolError | Termination::Flooded);
        if guard.exchanges() > 0 && !broke {
            return;
        }
        let serving = guard.serving();
        let line = Self::begin(guard, &serving, guard.since(), Kind::Session);
        line.with(|record| record.tls_failure.set(failure));
        line.ended(termination);
    }

    /// Logs a connection that was refused before it became a session.
    pub fn of_refused(context: &Rc<Context>, served: &Served, termination: Termination) {
        let (serving, now) = (served.last().unwrap_or_else(|| context.serving()), context.runtime.now());
        Self::make(context, &serving, (served.position(), None), now, Kind::Session).ended(termination);
    }

    fn begin(guard: &SessionGuard, serving: &Rc<Serving>, started: Instant, kind: Kind) -> Self {
        Self::make(guard.context(), serving, (guard.listener(), guard.client()), started, kind)
    }

    fn make(
        context: &Rc<Context>,
        serving: &Rc<Serving>,
        (listener, client): (u16, Option<IpAddr>),
        started: Instant,
        kind: Kind,
    ) -> Self {
        if serving.snapshot.access_log.is_none() {
            return Self(None);
        }
        let mut record = context.access.free.borrow_mut().pop().unwrap_or_default();
        // Only records that nobody else holds are kept.
        let Some(fresh) = Rc::get_mut(&mut record) else { return Self(None) };
        (fresh.context, *fresh.meaning.get_mut()) =
            (Some(context.clone()), Some(Meaning::Of(serving.clone())));
        (fresh.listener, fresh.started) = (listener, started);
        fresh.kind.set(kind);
        fresh.client.set(client);
        Self(Some(record))
    }

    fn with(&self, note: impl FnOnce(&Record)) {
        if let Some(record) = &self.0 {
            note(record);
        }
    }

    /// What the request asks for, once its head was taken. `over_stream`: it came in HTTP/2.
    pub fn head(&self, head: &RequestHead<'_, '_>, facts: &Facts, over_stream: bool) {
        self.with(|record| {
            record.protocol.set(match head.version {
                _ if over_stream => "HTTP/2",
                Version::Http11 => "HTTP/1.1",
                Version::Http10 => "HTTP/1.0",
            });
            record.tls.replace(facts.tls.clone());
            if facts.peer.is_some() {
                record.client.set(facts.peer);
            }
            record.trace_id.set(trace_id(head));
            let mut texts = record.texts.borrow_mut();
            texts.put(Text::Method, head.method.as_bytes());
            texts.put(Text::Host, head.authority.as_bytes());
            match head.target {
                Target::Origin { path, query } | Target::Absolute { path, query, .. } => {
                    texts.put(Text::Target, path.as_bytes());
                    if let Some(query) = query {
                        texts.go_on(Text::Target, b"?");
                        texts.go_on(Text::Target, query.as_bytes());
                    }
                }
                Target::Asterisk => texts.put(Text::Target, b"*"),
                Target::Authority(_) => texts.put(Text::Target, head.authority.as_bytes()),
            }
            for (text, name) in [(Text::Referer, "referer"), (Text::UserAgent, "user-agent")] {
                if let Some(value) = head.field(name) {
                    texts.put(text, value);
                }
            }
            drop(texts);
            record.charge();
        });
    }

    /// What is to be done about it.
    pub(in crate::proxy) fn judged(&self, answer: &Answer) {
        self.with(|record| match answer {
            Answer::Forward { cluster, route, .. } => {
                record.route.set(Some(*route));
                record.cluster.set(Some(*cluster));
            }
            Answer::Tunnel(opening) => {
                record.route.set(Some(opening.route));
                record.cluster.set(Some(opening.cluster));
            }
            Answer::Prepared { route } | Answer::Redirect { route, .. } | Answer::Limited { route, .. } => {
                record.route.set(Some(*route));
            }
            Answer::Shed { .. } => record.termination.set(Some(Termination::Shed)),
            Answer::Gone | Answer::Own { .. } => {}
        });
    }

    /// What a ClientHello that is passed on asks for.
    pub fn hello(&self, server_name: Option<&str>, alpn: Option<&[u8]>) {
        self.with(|record| {
            let mut texts = record.texts.borrow_mut();
            server_name.into_iter().for_each(|name| texts.put(Text::ServerName, name.as_bytes()));
            alpn.into_iter().for_each(|alpn| texts.put(Text::Alpn, alpn));
            drop(texts);
            record.charge();
        });
    }

    pub fn tls_failed(&self, failure: HandshakeFailure) {
        self.with(|record| record.tls_failure.set(Some(failure)));
    }

    /// A relay goes to this cluster.
    pub fn cluster(&self, cluster: u16) {
        self.with(|record| record.cluster.set(Some(cluster)));
    }

    pub fn route(&self, route: u16) {
        self.with(|record| record.route.set(Some(route)));
    }

    /// An endpoint is asked.
    pub fn asked(&self, endpoint: SocketAddr) {
        self.with(|record| {
            record.endpoint.set(Some(endpoint));
            record.attempts.set(record.attempts.get() + 1);
        });
    }

    /// The endpoint began to answer.
    pub fn first_byte(&self, after: Duration) {
        self.with(|record| record.first_byte.set(Some(after)));
    }

    /// Payload came from the client.
    pub fn received(&self, bytes: u64) {
        self.with(|record| record.received.set(record.received.get() + bytes));
    }

    /// Payload went to the client.
    pub fn sent(&self, bytes: u64) {
        self.with(|record| record.sent.set(record.sent.get() + bytes));
    }

    /// A whole message of ours went to the client: its payload is what stands behind its head.
    pub fn sent_message(&self, message: &[u8]) {
        self.with(|record| {
            let head = message.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
            record.sent.set(record.sent.get() + (message.len() - head) as u64);
        });
    }

    pub fn status(&self, status: Option<u16>) {
        self.with(|record| record.status.set(status));
    }

    pub fn grpc_status(&self, code: Option<u8>) {
        self.with(|record| record.grpc_status.set(code));
    }

    /// Of the request, as it is passed on: 32 digits.
    pub fn trace_id(&self, id: Option<[u8; 32]>) {
        self.with(|record| record.trace_id.set(id));
    }

    /// The request became a tunnel.
    pub fn is_tunnel(&self) {
        self.with(|record| record.kind.set(Kind::Tunnel));
        self.goes_on();
    }

    /// From now on bytes are passed on, maybe for days: nothing more is chosen by the configuration, which is let go.
    pub fn goes_on(&self) {
        self.with(|record| {
            let kept = record.meaning.borrow().as_ref().and_then(|meaning| meaning.kept(record));
            record.meaning.replace(kept);
            record.texts.borrow_mut().bytes.shrink_to_fit();
            record.charge();
        });
    }

    /// All went well, and the connection may go on.
    pub fn complete(&self) {
        self.with(|record| record.is_complete.set(true));
    }

    pub fn ended(&self, termination: Termination) {
        self.with(|record| {
            if record.termination.get().is_none() {
                record.termination.set(Some(termination));
            }
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(mut record) = self.0.take() else { return };
        let Some(last) = Rc::get_mut(&mut record) else { return };
        let (Some(context), Some(meaning)) = (last.context.take(), last.meaning.take()) else { return };
        last.write(&context, &meaning);
        context.runtime.discharge(last.charged_bytes.get());
        let mut bytes = std::mem::take(&mut last.texts.get_mut().bytes);
        bytes.clear();
        bytes.shrink_to(TEXT_BYTES_KEPT_MAX);
        *last = Record::default();
        last.texts.get_mut().bytes = bytes;
        let mut free = context.access.free.borrow_mut();
        if free.len() < RECORDS_KEPT_MAX {
            free.push(record);
        }
    }
}

impl Record {
    /// Counts the memory of the texts against the worker's budget: a client says how long they are, and for how long.
    fn charge(&self) {
        if let Some(context) = &self.context {
            let bytes = self.texts.borrow().bytes.capacity();
            context.runtime.charge(bytes);
            context.runtime.discharge(self.charged_bytes.replace(bytes));
        }
    }

    /// Writes the line, unless its rule leaves it out.
    fn write(&self, context: &Rc<Context>, meaning: &Meaning) {
        let Some(spec) = meaning.spec() else { return };
        let now = context.runtime.now();
        let (status, duration) = (self.status.get(), now.since(self.started));
        let termination = self.termination.get();
        // What is dropped without a word was cut off at the end of a drain.
        let ended = termination.unwrap_or(Termination::Drained);
        let complete = self.is_complete.get() && termination.is_none();
        let failed = status.is_some_and(|status| status >= 500)
            || self.grpc_status.get().is_some_and(|code| code != 0)
            || !(complete || ended.is_usual());
        let (listener, route) = (self.listener, self.route.get());
        let sampled = Sampled { listener, route, status, failed, duration };
        let Some(ratio) = spec.sample(&sampled, || context.random_u32()) else { return };
        let texts = self.texts.borrow();
        let tls = self.tls.borrow();
        let names = meaning.names(self);
        let identity = tls.as_ref().and_then(|tls| tls.identity.as_deref());
        let trace_id = self.trace_id.get();
        let entry = Entry {
            kind: match self.kind.get() {
                Kind::Request => "request",
                Kind::Tunnel => "tunnel",
                Kind::Session => "session",
            },
            started_unix_ms: context.access.unix_ms(now, self.started),
            duration,
            worker: context.shard.worker(),
            listener: names.listener,
            protocol: match self.protocol.get() {
                "" => names.protocol,
                spoken => spoken,
            },
            client: self.client.get(),
            method: texts.get(Text::Method),
            host: texts.get(Text::Host),
            target: texts.get(Text::Target),
            status,
            grpc_status: self.grpc_status.get(),
            termination: if complete { "complete" } else { ended.word() },
            tls_failure: self.tls_failure.get().map(HandshakeFailure::word),
            received_bytes: self.received.get(),
            sent_bytes: self.sent.get(),
            route: names.route,
            cluster: names.cluster,
            endpoint: self.endpoint.get(),
            attempts: self.attempts.get(),
            first_byte: self.first_byte.get(),
            tls_version: tls.as_ref().map(|tls| tls.version),
            tls_cipher: tls.as_ref().map(|tls| tls.cipher),
            tls_resumed: tls.as_ref().map(|tls| tls.resumed),
            server_name: match tls.as_ref().and_then(|tls| tls.server_name.as_deref()) {
                Some(name) => Some(name.as_bytes()),
                None => texts.get(Text::ServerName),
            },
            alpn: tls.as_ref().and_then(|tls| tls.alpn.as_deref()).or_else(|| texts.get(Text::Alpn)),
            identity: identity.map(|identity| identity.spiffe.as_deref().unwrap_or(&identity.subject)),
            trace_id: trace_id.as_ref().and_then(|id| std::str::from_utf8(id).ok()),
            referer: texts.get(Text::Referer),
            user_agent: texts.get(Text::UserAgent),
            sample_ratio: Some(ratio).filter(|ratio| *ratio < 1.0),
        };
        context.access.write(&context.shard, spec, &entry);
    }
}

const fn word_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Tcp { .. } => "tcp",
        Protocol::TlsPassthrough => "tls-passthrough",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::byte_ring::{Consumer, byte_ring};
    use crate::config;
    use crate::h1::{FieldSlots, HeadLimits, Parsed, parse_request};
    use crate::metrics::Shard;
    use crate::metrics::shard::Share;
    use crate::proxy::context::{Compiled, Next};
    use crate::proxy::snapshot::change::Change;
    use crate::proxy::tls::TlsMaterials;
    use crate::runtime::{EngineChoice, RingSizes, Runtime};

    const LOGGED: &str = "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\n\
        [[route]]\nname = \"first\"\ncluster = \"site\"\n\
        [[cluster]]\nname = \"site\"\nendpoints = [\"192.0.2.1:9\"]\n[access_log]\n";

    fn compiled(text: &str) -> Arc<Compiled> {
        let (config, _) = config::parse("test.toml", text).expect("a configuration");
        Compiled::new(Arc::new(config.snapshot))
    }

    fn share(shard: &Arc<Shard>, compiled: &Compiled) -> Share {
        let clusters = compiled.snapshot.clusters.iter().map(|cluster| &*cluster.name);
        shard.share(["web"].into_iter(), clusters)
    }

    /// Changes to a configuration of other names that logs nothing.
    fn reload(context: &Context, shard: &Arc<Shard>) {
        let text = LOGGED.replace("first", "second").replace("[access_log]\n", "");
        let (old, compiled) = (context.serving(), compiled(&text.replace("site", "other")));
        let change = Arc::new(Change::between(&old.snapshot, &compiled.snapshot));
        let tls = Arc::new(TlsMaterials::plaintext(&compiled.snapshot).expect("randomness"));
        let share = share(shard, &compiled);
        context.change(&Next { compiled, change, tls, addresses: Arc::new(vec![None]), share });
    }

    /// A worker that logs, its shard, and where its lines go.
    fn logged() -> (Rc<Context>, Arc<Shard>, Consumer) {
        let (runtime, _) = Runtime::new(EngineChoice::Epoll, RingSizes::default()).expect("epoll");
        let shard = Arc::new(Shard::new(0, &[], &[], Termination::WORDS));
        let compiled = compiled(LOGGED);
        let tls = TlsMaterials::plaintext(&compiled.snapshot).expect("randomness");
        let share = share(&shard, &compiled);
        let context = Context::new(runtime, shard.clone(), compiled, &share, &tls, 1);
        let (producer, lines) = byte_ring(65_536);
        context.access.connect(producer);
        (context, shard, lines)
    }

    fn written(lines: &mut Consumer) -> String {
        let mut line = Vec::new();
        assert!(lines.pop(&mut line));
        String::from_utf8(line).expect("text")
    }

    #[test]
    fn what_goes_on_keeps_its_names_and_no_configuration() {
        let (context, shard, mut lines) = logged();
        let old = Rc::downgrade(&context.serving());
        let guard = context.enter_session(&context.serving().served()[0].clone(), None);
        let line = Line::of_relay(&guard, &Facts::default());
        line.route(0);
        line.cluster(0);
        reload(&context, &shard);
        assert!(old.upgrade().is_some(), "a request ends under what it began with");
        line.goes_on();
        assert!(old.upgrade().is_none());
        line.ended(Termination::ClientClosed);
        drop(line);
        let line = written(&mut lines);
        for part in
            ["\"listener\":\"web\"", "\"protocol\":\"http\"", "\"route\":\"first\"", "\"cluster\":\"site\""]
        {
            assert!(line.contains(part), "{line}");
        }
    }

    #[test]
    fn texts_are_cut_to_what_is_shown_and_charged_while_they_are_kept() {
        let (context, _, _lines) = logged();
        let guard = context.enter_session(&context.serving().served()[0].clone(), None);
        let before = context.runtime.charged();
        let long = "x".repeat(3_000);
        let head = format!("GET /{long}?{long} HTTP/1.1\r\nHost: a.test\r\nReferer: {long}{long}\r\n\r\n");
        let mut slots = FieldSlots::new();
        let Ok(Parsed::Complete(head)) = parse_request(head.as_bytes(), &mut slots, &HeadLimits::default())
        else {
            panic!("a head")
        };
        let line = Line::of_request(&guard, &context.serving(), context.runtime.now());
        line.head(&head, &Facts::default(), false);
        let kept = line.0.as_ref().expect("a log").texts.borrow().bytes.len();
        assert_eq!(kept, "GET".len() + "a.test".len() + 2 * TEXT_BYTES_MAX);
        assert!(context.runtime.charged() - before >= kept);
        line.is_tunnel();
        assert_eq!(context.runtime.charged() - before, kept, "for days, and no more than needed");
        drop(line);
        assert_eq!(context.runtime.charged(), before);
    }
}
