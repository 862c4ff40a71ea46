//! From the bytes of a request head to what is to be done about it: refused, answered here, or forwarded with the
//! head that goes up. Runs once per request, in one piece, and keeps no reference to the bytes.

use std::net::IpAddr;
use std::rc::Rc;

use crate::h1::{FieldSlots, Parsed, RequestHead, Target, parse_request, write_request};
use crate::http::{
    BodyFraming, Forwarded, Reject, TracePolicy, Traceparent, Version, normalize_path, traceparent,
};
use crate::metrics::shard::ListenerShard;
use crate::metrics::{ListenerCounter, RateLimited, Shed};
use crate::route::{self, Action, Route};

use super::super::access::Line;
use super::super::caller::Caller;
use super::super::context::{Context, Serving};
use super::super::facts::Facts;
use super::super::stream::Stream;
use super::super::tunnel::{Kind, Opening};

/// Whose head it is.
pub(in crate::proxy) struct Asker<'a> {
    pub(in crate::proxy) listener: u16,
    /// Where the listener counts.
    pub(in crate::proxy) counts: &'a ListenerShard,
    pub(in crate::proxy) facts: &'a mut Facts,
    /// The connection, where the facts of it are not all known yet.
    pub(in crate::proxy) stream: Option<&'a Stream>,
    /// Of the request, for the access log.
    pub(in crate::proxy) line: &'a Line,
}

/// What a head asks for, once it is whole and valid.
pub(in crate::proxy) struct Request {
    pub(in crate::proxy) head_len: usize,
    pub(in crate::proxy) version: Version,
    pub(in crate::proxy) framing: BodyFraming,
    pub(in crate::proxy) is_head: bool,
    pub(in crate::proxy) idempotent: bool,
    /// As far as the client and its head are concerned.
    pub(in crate::proxy) keep_alive: bool,
    pub(in crate::proxy) expect_continue: bool,
    /// The client reads trailer fields.
    pub(in crate::proxy) te_trailers: bool,
    pub(in crate::proxy) answer: Answer,
}

pub(in crate::proxy) enum Answer {
    /// Forwarded: the head to send, for an endpoint of this cluster under this route.
    Forward { cluster: u16, route: u16, head: Vec<u8>, caller: Caller },
    /// Asked of an endpoint.
    Tunnel(Rc<Opening>),
    /// None: the client is gone.
    Gone,
    /// The fixed answer of a route.
    Prepared { route: u16 },
    /// Elsewhere.
    Redirect { status: u16, location: String, route: u16 },
    /// Refused, as it waited too long: one of the door's answers. `tunnel` as in `Own`.
    Shed { random: u32, tunnel: bool },
    /// Refused, as the client has used a rate limit up. `tunnel` as in `Own`.
    Limited { after_s: u64, route: u16, tunnel: bool },
    /// An answer of our own. After one to `tunnel` the client may go on in another protocol: what follows is not HTTP.
    Own { status: u16, text: &'static str, fields: &'static [(&'static str, &'static str)], tunnel: bool },
}

pub(in crate::proxy) fn judge(
    context: &Context,
    serving: &Rc<Serving>,
    asker: &mut Asker<'_>,
    bytes: &[u8],
) -> Result<Parsed<Request>, Reject> {
    let mut slots = FieldSlots::new();
    let mut head = match parse_request(bytes, &mut slots, &serving.head_limits)? {
        Parsed::Complete(head) => head,
        Parsed::Partial => return Ok(Parsed::Partial),
    };
    asker.line.head(&head, asker.facts, asker.stream.is_none());
    // A stream of HTTP/2 has passed the door already.
    let answer = if asker.stream.is_some() && !context.door.admits(&context.runtime, Shed::Http1) {
        Answer::Shed { random: context.random_u32(), tunnel: matches!(head.target, Target::Authority(_)) }
    } else {
        answer(context, serving, asker, &mut head)?
    };
    asker.line.judged(&answer);
    Ok(Parsed::Complete(Request {
        head_len: head.head_len,
        version: head.version,
        framing: head.framing,
        is_head: head.is_head,
        idempotent: head.idempotent,
        keep_alive: head.keep_alive,
        expect_continue: head.expect_continue,
        te_trailers: head.te_trailers,
        answer,
    }))
}

const fn own(status: u16) -> Answer {
    Answer::Own { status, text: "", fields: &[], tunnel: false }
}

fn answer(
    context: &Context,
    serving: &Rc<Serving>,
    asker: &mut Asker<'_>,
    head: &mut RequestHead<'_, '_>,
) -> Result<Answer, Reject> {
    let mut normalized = String::new();
    let (path, query) = match head.target {
        Target::Origin { path, query } | Target::Absolute { path, query, .. } => {
            (normalize_path(path, &mut normalized)?, query)
        }
        Target::Asterisk => ("*", None),
        Target::Authority(_) => return connect(context, serving, asker, head),
    };
    #[cfg(debug_assertions)]
    if context.panics_on_request && path == "/__panic_worker" {
        panic!("asked to by the request");
    }
    // RFC 9110 §15.5.20: under a name that this handshake was not for, a request would get past what another listener
    // asks of clients. HTTP/1.0 may name no host: then none is wrong.
    if !head.host.is_empty() && !asker.facts.may_answer(head.host) {
        asker.counts.add(ListenerCounter::Misdirected, 1);
        return Ok(own(421));
    }
    // RFC 9110 §7.6.2: the last hop allowed answers itself.
    if head.max_forwards == Some(0) {
        return Ok(if head.method == "OPTIONS" { own(200) } else { own(405) });
    }
    let listener = asker.listener;
    let (method, host, identity) = (head.method, head.host, asker.facts.spiffe());
    let asked = route::Request { listener, method, host, path, identity };
    let lookup = |name: &str| head.field(name);
    let Some((index, route)) = serving.snapshot.routes.find(&asked, &lookup) else {
        return Ok(if path == "*" { own(200) } else { own(404) });
    };
    if let Some(refusal) = limited(context, serving, asker, head, (index, route)) {
        return Ok(refusal);
    }
    let cluster = match &route.action {
        Action::Respond(_) => return Ok(Answer::Prepared { route: index }),
        Action::Redirect(redirect) => {
            let mut rewritten = String::new();
            let path = rewrite(route, path, &mut rewritten)?;
            let mut location = String::new();
            redirect.write_location(&mut location, asker.facts.scheme(), head.authority, path, query);
            return Ok(Answer::Redirect { status: redirect.status, location, route: index });
        }
        Action::Cluster(cluster) => *cluster,
        weighted => weighted.cluster(context.random_u32()).unwrap_or(u16::MAX),
    };
    // Where the route does not name the protocol, the request is served as if it had not asked (RFC 9110 §7.8).
    head.upgrade = head.upgrade.filter(|protocol| route.tunnels.upgrade(protocol));
    let mut rewritten = String::new();
    let asked_path = path;
    let path = rewrite(route, path, &mut rewritten)?;
    let Some(upstream_head) = forwarded_head(context, serving, asker, head, route, (path, query)) else {
        return Ok(Answer::Gone);
    };
    let caller = caller(serving, asker, cluster, head, asked_path);
    Ok(match head.upgrade {
        None => Answer::Forward { cluster, route: index, head: upstream_head, caller },
        Some(protocol) => {
            let kind = Kind::Upgrade(protocol.into());
            Answer::Tunnel(Opening::new(kind, (cluster, index), upstream_head, caller, asker.line))
        }
    })
}

/// The answer to a client that a limit of the route refuses.
fn limited(
    context: &Context,
    serving: &Serving,
    asker: &mut Asker<'_>,
    head: &RequestHead<'_, '_>,
    (index, route): (u16, &Route),
) -> Option<Answer> {
    if route.rate_limits.is_empty() {
        return None;
    }
    let Some(client) = peer(asker) else { return Some(Answer::Gone) };
    let (limits, now) = (&route.rate_limits, context.runtime.now());
    let refused = serving.rate_limits.admit(&serving.snapshot, limits, client, head, now).err()?;
    let budget = if refused.shares { RateLimited::Shared } else { RateLimited::Own };
    asker.counts.rate_limited(budget);
    let tunnel = matches!(head.target, Target::Authority(_));
    Some(Answer::Limited { after_s: refused.after_s, route: index, tunnel })
}

/// RFC 9110 §9.3.6: a tunnel only where a route allows one. What it names is its target, about which no certificate of
/// ours says anything, so 421 has no part in it. It has no path: only routes without a condition on the path
/// are for it.
fn connect(
    context: &Context,
    serving: &Rc<Serving>,
    asker: &mut Asker<'_>,
    head: &mut RequestHead<'_, '_>,
) -> Result<Answer, Reject> {
    if head.framing.has_body() {
        return Err(Reject::CONNECT_WITH_BODY);
    }
    let (listener, identity) = (asker.listener, asker.facts.spiffe());
    let asked = route::Request { listener, method: head.method, host: head.host, path: "", identity };
    let lookup = |name: &str| head.field(name);
    let found = serving.snapshot.routes.find(&asked, &lookup);
    let Some((index, route)) = found.filter(|(_, route)| route.tunnels.connect()) else {
        let (text, fields) = ("CONNECT is not served here.", &[("Allow", "GET, HEAD, POST")]);
        return Ok(Answer::Own { status: 405, text, fields, tunnel: true });
    };
    if let Some(refusal) = limited(context, serving, asker, head, (index, route)) {
        return Ok(refusal);
    }
    let Some(cluster) = route.action.cluster(context.random_u32()) else {
        return Ok(Answer::Own { status: 405, text: "", fields: &[], tunnel: true });
    };
    let target = (head.authority, None);
    Ok(match forwarded_head(context, serving, asker, head, route, target) {
        Some(upstream_head) => {
            let caller = caller(serving, asker, cluster, head, "");
            let to = (cluster, index);
            Answer::Tunnel(Opening::new(Kind::Connect, to, upstream_head, caller, asker.line))
        }
        None => Answer::Gone,
    })
}

/// `path`: as the client asked for it.
fn caller(
    serving: &Serving,
    asker: &mut Asker<'_>,
    cluster: u16,
    head: &RequestHead<'_, '_>,
    path: &str,
) -> Caller {
    let spec = serving.snapshot.clusters.get(usize::from(cluster));
    let socket = asker.stream.map(Stream::socket);
    spec.map_or_else(Caller::default, |spec| Caller::of_request(spec, asker.facts, socket, head, path))
}

/// The head as the endpoint gets it. `None`: the client is gone.
fn forwarded_head(
    context: &Context,
    serving: &Serving,
    asker: &mut Asker<'_>,
    head: &mut RequestHead<'_, '_>,
    route: &Route,
    (path, query): (&str, Option<&str>),
) -> Option<Vec<u8>> {
    let client_ip = peer(asker)?;
    let listener = serving.listener(asker.listener);
    let traceparent =
        trace(context, listener.map_or(TracePolicy::Pass, |at| at.traceparent), head, asker.line);
    let forwarded = Forwarded {
        traceparent: traceparent.as_ref(),
        policy: listener.map_or_else(Default::default, |at| at.forwarded_for(client_ip)),
        client_ip,
        proto: asker.facts.scheme(),
        client_cert: asker.facts.identity().map(|identity| &*identity.forwarded),
    };
    // 100 is answered here, once an endpoint is connected: no endpoint can keep the client waiting for it.
    let expect_continue = std::mem::replace(&mut head.expect_continue, false);
    let mut out = context.runtime.take_block();
    write_request(&mut out, head, (path, query), head.authority, &forwarded, &route.request_edits);
    head.expect_continue = expect_continue;
    Some(out)
}

/// The trace that begins with this request, where one is to.
fn trace(
    context: &Context,
    policy: TracePolicy,
    head: &RequestHead<'_, '_>,
    line: &Line,
) -> Option<Traceparent> {
    let goes_on = match policy {
        TracePolicy::Pass => true,
        TracePolicy::Begin => trace_id(head).is_some(),
        TracePolicy::Replace => false,
    };
    if goes_on {
        return None;
    }
    let begun = traceparent::begin([(); 3].map(|()| context.random_u64()));
    line.trace_id(traceparent::trace_id(&begun));
    Some(begun)
}

/// Of the trace that came with the request.
pub(in crate::proxy) fn trace_id(head: &RequestHead<'_, '_>) -> Option<[u8; traceparent::TRACE_ID_LEN]> {
    traceparent::of_fields(head.fields().iter().map(|field| (field.name, field.value)))
}

/// The path with the route's prefix replaced. A replacement must not make a dot segment out of what had none: rules
/// saw the path without it.
fn rewrite<'p>(route: &Route, path: &'p str, rewritten: &'p mut String) -> Result<&'p str, Reject> {
    let replaced = route.rewrite_path(path, rewritten);
    let mut scratch = String::new();
    if !std::ptr::eq(replaced, path) && normalize_path(replaced, &mut scratch)? != replaced {
        return Err(Reject::BAD_TARGET);
    }
    Ok(replaced)
}

/// The client's address, asked of the kernel once a connection. `None`: the client is gone, and nothing is to be done
/// in its name.
fn peer(asker: &mut Asker<'_>) -> Option<IpAddr> {
    match asker.stream {
        Some(stream) => asker.facts.learn_peer(stream.socket()),
        None => asker.facts.peer,
    }
}
