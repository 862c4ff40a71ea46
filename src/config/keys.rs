//! Every key of the configuration file, declared once. This file is one table.

mod access_log;
mod clients;
mod endpoints;

use super::schema::Kind::{Boolean, Fields, Integer, Ratio, Text, TextList, TextOrList, Word};
use super::schema::Preset::{Absent, Required, Shown};
use super::schema::{Kind, Preset, Row, Table};
use crate::limits::{
    FIELDS_CEILING, FIELDS_MAX_DEFAULT, HEAD_BYTES_CEILING, HEAD_BYTES_MAX_DEFAULT,
    HTTP2_GLITCHES_MAX_DEFAULT, HTTP2_STREAMS_MAX_DEFAULT, TARGET_BYTES_MAX_DEFAULT,
    WORKER_MEMORY_BYTES_MAX_DEFAULT,
};

use access_log::ACCESS_LOG;
use clients::{HASH, LISTENER_PROXY_PROTOCOL, RATE_LIMIT};
use endpoints::{EJECTION, HEALTH_CHECK, RETRY};

const DAY_MS: u64 = 86_400_000;
/// A deadline: never 0, never without end.
const DEADLINE: Kind = Integer { min: 1, max: DAY_MS };

const fn row(key: &'static str, kind: Kind, preset: Preset, help: &'static str) -> Row {
    Row { key, kind, preset, unit: "", help }
}

const fn number(key: &'static str, kind: Kind, default: u64, unit: &'static str, help: &'static str) -> Row {
    Row { key, kind, preset: Preset::Integer(default), unit, help }
}

const fn table(key: &'static str, of: &'static Table) -> Row {
    row(key, Kind::Table(of), Absent(""), "")
}

const fn choice(key: &'static str, of: &'static Table) -> Row {
    row(key, Kind::Choice(of), Absent(""), "")
}

const fn tables(key: &'static str, of: &'static Table) -> Row {
    row(key, Kind::Tables(of), Absent(""), "")
}

pub(super) static ROOT: Table = Table {
    help: "",
    shown: true,
    rows: &[
        table("workers", &WORKERS),
        table("admin", &ADMIN),
        table("host", &HOST),
        table("limits", &LIMITS),
        table("timeouts", &TIMEOUTS),
        table("drain", &DRAIN),
        table("steal", &STEAL),
        choice("access_log", &ACCESS_LOG),
        tables("listener", &LISTENER),
        tables("route", &ROUTE),
        tables("cluster", &CLUSTER),
        tables("rate_limit", &RATE_LIMIT),
    ],
};

static WORKERS: Table = Table {
    help: "Threads that serve, one pinned to each CPU.",
    shown: true,
    rows: &[
        row(
            "cpus",
            Text,
            Preset::Text("all"),
            "\"all\": every CPU that affinity and cgroup allow; or a list with ranges, such as \"0-3,6\".",
        ),
        row(
            "engine",
            Word(&["auto", "io_uring", "epoll"], &[]),
            Preset::Text("auto"),
            "\"auto\": io_uring where the kernel allows it and a self-test passes, else epoll.",
        ),
        table("ring", &RING),
    ],
};

static RING: Table = Table {
    help: "Advanced: sizes of one worker's ring. The defaults suit all but tests, which make them tiny.",
    shown: true,
    rows: &[
        number("entries", Integer { min: 8, max: 4_096 }, 256, "", "Submission queue entries."),
        number(
            "recv_buffers",
            Integer { min: 2, max: 16_384 },
            128,
            "",
            "Receive buffers of 16 KiB provided to the kernel; a power of two.",
        ),
    ],
};

static ADMIN: Table = Table {
    help: "Health, metrics and pages. Over TCP it only reads; what changes state needs the Unix socket.",
    shown: true,
    rows: &[
        row(
            "listen",
            Text,
            Preset::Text("127.0.0.1:9901"),
            "A loopback address and port; port 0 lets the kernel choose.",
        ),
        row(
            "socket",
            Text,
            Absent("\"/run/ringfort/admin.sock\""),
            "Unix socket. Absent: /run/ringfort/admin.sock, else under $XDG_RUNTIME_DIR.",
        ),
    ],
};

static HOST: Table = Table {
    help: "Roots of the kernel's file systems, for containers that see them elsewhere.",
    shown: true,
    rows: &[
        row("procfs", Text, Preset::Text("/proc"), "Where procfs is mounted."),
        row("sysfs", Text, Preset::Text("/sys"), "Where sysfs is mounted."),
        row("cgroupfs", Text, Preset::Text("/sys/fs/cgroup"), "Where the cgroup hierarchy is mounted."),
    ],
};

static LIMITS: Table = Table {
    help: "Bounds. What goes beyond one is refused early and cheaply.",
    shown: true,
    rows: &[
        number(
            "head_bytes_max",
            Integer { min: 1_024, max: HEAD_BYTES_CEILING as u64 },
            HEAD_BYTES_MAX_DEFAULT as u64,
            "bytes",
            "Request line and fields of one head together; beyond it 431.",
        ),
        number(
            "target_bytes_max",
            Integer { min: 256, max: HEAD_BYTES_CEILING as u64 - 1 },
            TARGET_BYTES_MAX_DEFAULT as u64,
            "bytes",
            "Request target; beyond it 414. Less than head_bytes_max.",
        ),
        number(
            "fields_max",
            Integer { min: 8, max: FIELDS_CEILING as u64 },
            FIELDS_MAX_DEFAULT as u64,
            "",
            "Fields (headers) of one head; beyond it 431.",
        ),
        number(
            "requests_per_connection_max",
            Integer { min: 1, max: u32::MAX as u64 },
            10_000,
            "",
            "The connection is closed with the response to this many requests.",
        ),
        number(
            "http2_streams_max",
            Integer { min: 1, max: 10_000 },
            HTTP2_STREAMS_MAX_DEFAULT as u64,
            "",
            "Streams of one HTTP/2 connection at once; the next one is refused.",
        ),
        number(
            "http2_glitches_max",
            Integer { min: 10, max: 1_000_000 },
            HTTP2_GLITCHES_MAX_DEFAULT as u64,
            "",
            "Frames of one HTTP/2 connection that cost and bring no work, such as resets; beyond it GOAWAY.",
        ),
        number(
            "connections_max",
            Integer { min: 1, max: 4_000_000 },
            32_768,
            "",
            "Open downstream connections of one worker.",
        ),
        number(
            "memory_bytes_max",
            Integer { min: 1 << 20, max: 1 << 40 },
            WORKER_MEMORY_BYTES_MAX_DEFAULT as u64,
            "bytes",
            "Sessions, buffers and pools of one worker.",
        ),
        number(
            "handshakes_per_turn_max",
            Integer { min: 1, max: 4_096 },
            16,
            "",
            "TLS handshakes begun in one turn of a worker's loop; the next ones wait in order.",
        ),
    ],
};

const HEADER_TIMEOUT: Row = number(
    "header_timeout_ms",
    DEADLINE,
    10_000,
    "ms",
    "Until a request's head is complete: a total, from its first byte or from accept.",
);
const IDLE_TIMEOUT: Row =
    number("idle_timeout_ms", DEADLINE, 60_000, "ms", "A keep-alive connection between requests.");
const BODY_IDLE_TIMEOUT: Row =
    number("body_idle_timeout_ms", DEADLINE, 30_000, "ms", "Between two reads of a request's body.");
const BODY_RATE_MIN: Row = number(
    "body_rate_min_bytes_per_s",
    Integer { min: 0, max: 1 << 30 },
    240,
    "bytes/s",
    "Least average rate of a request's body; 0 turns it off.",
);
const WRITE_STALL_TIMEOUT: Row = number(
    "write_stall_timeout_ms",
    DEADLINE,
    30_000,
    "ms",
    "No progress while bytes wait to be written to a peer.",
);
const TCP_IDLE_TIMEOUT: Row = number(
    "tcp_idle_timeout_ms",
    DEADLINE,
    600_000,
    "ms",
    "A TCP relay with no byte in either direction, or one direction of a gRPC call.",
);
const TUNNEL_IDLE_TIMEOUT: Row = number(
    "tunnel_idle_timeout_ms",
    DEADLINE,
    600_000,
    "ms",
    "A tunnel (WebSocket, CONNECT) with no byte in either direction.",
);
const HANDSHAKE_TIMEOUT: Row = number(
    "handshake_timeout_ms",
    DEADLINE,
    10_000,
    "ms",
    "From accept to the end of the TLS handshake; for passthrough, of the ClientHello.",
);
const CONNECT_TIMEOUT: Row = number(
    "connect_timeout_ms",
    DEADLINE,
    5_000,
    "ms",
    "Connecting to an endpoint; beyond it another one is tried, else 504.",
);
const REQUEST_TIMEOUT: Row = number(
    "request_timeout_ms",
    DEADLINE,
    60_000,
    "ms",
    "From the end of a request to the end of the response's head; beyond it 504.",
);
const POOL_IDLE_TIMEOUT: Row =
    number("pool_idle_timeout_ms", DEADLINE, 30_000, "ms", "A pooled upstream connection without a request.");

static TIMEOUTS: Table = Table {
    help: "Deadlines. Listeners and clusters may set their own. A client that closes its sending side before the \
           response has left: its request is given up without waiting for a deadline.",
    shown: true,
    rows: &[
        HEADER_TIMEOUT,
        IDLE_TIMEOUT,
        BODY_IDLE_TIMEOUT,
        BODY_RATE_MIN,
        WRITE_STALL_TIMEOUT,
        TCP_IDLE_TIMEOUT,
        TUNNEL_IDLE_TIMEOUT,
        HANDSHAKE_TIMEOUT,
        CONNECT_TIMEOUT,
        REQUEST_TIMEOUT,
        POOL_IDLE_TIMEOUT,
    ],
};

static DRAIN: Table = Table {
    help: "Ending without breaking a request: on SIGTERM, SIGINT and POST /drain.",
    shown: true,
    rows: &[
        number(
            "idle_grace_ms",
            Integer { min: 0, max: DAY_MS },
            1_000,
            "ms",
            "How long an idle connection may still bring a request; it is closed then. A relay lives on.",
        ),
        number(
            "deadline_ms",
            DEADLINE,
            30_000,
            "ms",
            "Everything ends by then: what is left, such as relays, is reset. Not less than idle_grace_ms.",
        ),
    ],
};

/// A share that something begins at: never all, never nothing.
const SHARE: Kind = Ratio { min: 0.001, max: 0.99 };

static STEAL: Table = Table {
    help: "CPU time that the hypervisor and other processes of this machine take from the workers. GET /steal shows it.",
    shown: true,
    rows: &[
        row(
            "mode",
            Word(&["off", "observe", "act"], &[]),
            Preset::Text("observe"),
            "\"observe\": measured, shown, logged when a level changes. \"act\": a worker that loses time gets fewer new \
             connections and handshakes while it does; and every worker keeps its queue short.",
        ),
        row("elevated_ratio", SHARE, Preset::Ratio(0.05), "Lost share of a CPU that is level 1."),
        row("stolen_ratio", SHARE, Preset::Ratio(0.1), "Lost share of a CPU that is level 2."),
        row(
            "calm_ratio",
            SHARE,
            Preset::Ratio(0.02),
            "Lost share below which a CPU is calm; two seconds of it end a level.",
        ),
        number(
            "latency_objective_ms",
            Integer { min: 1, max: 60_000 },
            25,
            "ms",
            "What users should be answered within. In \"act\", a request that waited for 2/5 of it in a queue that stood for 100 ms \
             is refused with 503, or REFUSED_STREAM.",
        ),
    ],
};

/// The row of `[timeouts]` as a listener or cluster may have it too.
const fn own(all: Row) -> Row {
    let preset = match all.preset {
        Preset::Integer(default) => Preset::Inherited(default),
        other => other,
    };
    Row { preset, ..all }
}

const CONGESTION_CONTROL: Row = row(
    "congestion_control",
    Text,
    Absent("\"bbr\""),
    "The TCP congestion control of connections. Absent: net.ipv4.tcp_congestion_control. One that the kernel has not: a \
     warning at start, and the kernel's own.",
);

const fn notsent_lowat(default: u64) -> Row {
    number(
        "notsent_lowat_bytes",
        Integer { min: 0, max: 1 << 30 },
        default,
        "bytes",
        "What may wait in the kernel without being on its way: memory of slow peers, and what no urgent stream overtakes. \
         0: net.ipv4.tcp_notsent_lowat.",
    )
}

const USER_TIMEOUT: Row = number(
    "user_timeout_ms",
    Integer { min: 0, max: DAY_MS },
    0,
    "ms",
    "How long sent bytes may stay unacknowledged, or the peer's window closed, until the connection is given up. 0: \
     net.ipv4.tcp_retries2, about a quarter of an hour.",
);

static LISTENER: Table = Table {
    help: "An address that is accepted on. At least one.",
    shown: true,
    rows: &[
        row("name", Text, Required("\"web\""), "Unique; letters, digits, dot, dash and underscore."),
        row(
            "listen",
            Text,
            Required("\"127.0.0.1:8080\""),
            "IP address and port; port 0 lets the kernel choose.",
        ),
        row(
            "protocol",
            Word(&["http", "tcp", "tls-passthrough"], &[]),
            Preset::Text("http"),
            "\"http\": HTTP/1.1 and HTTP/2, by routes. \"tcp\": relayed to `cluster`. \"tls-passthrough\": TLS relayed undecrypted, by \
             routes; a name that none has is refused with the alert unrecognized_name.",
        ),
        row("cluster", Text, Absent("\"site\""), "Where a \"tcp\" listener relays to."),
        number(
            "backlog",
            Integer { min: 1, max: 65_535 },
            4_096,
            "",
            "Accept queue of one worker's socket; the kernel caps it at net.core.somaxconn.",
        ),
        row(
            "connections_max",
            Integer { min: 1, max: 4_000_000 },
            Absent("10000"),
            "Open connections of one worker here. Absent: only limits.connections_max counts.",
        ),
        row(
            "forwarded",
            Word(&["replace", "append", "off"], &[]),
            Preset::Text("replace"),
            "X-Forwarded-For, -Proto and -Host: set from the connection, appended to, or passed on as received.",
        ),
        row(
            "trusted_proxies",
            TextList,
            Absent("[\"10.0.0.0/8\", \"fd00::/8\"]"),
            "Peers whose forwarded fields are appended to rather than replaced.",
        ),
        row(
            "traceparent",
            Word(&["pass", "begin", "replace"], &[]),
            Preset::Text("pass"),
            "W3C trace context. \"pass\": as it came. \"begin\": where no valid one came, a trace begins here. \"replace\": it always does, \
             for clients that are not to say what is traced.",
        ),
        CONGESTION_CONTROL,
        notsent_lowat(131_072),
        USER_TIMEOUT,
        choice("proxy_protocol", &LISTENER_PROXY_PROTOCOL),
        choice("timeouts", &LISTENER_TIMEOUTS),
        choice("tls", &LISTENER_TLS),
    ],
};

static LISTENER_TLS: Table = Table {
    help: "Serves TLS here, 1.3 and 1.2. Files are PEM; a change of one is taken over within seconds, and at once on SIGHUP, \
           without closing a connection; one that cannot be used is told, and the last good one stays.",
    shown: false,
    rows: &[
        row(
            "mtls",
            Word(&["disable", "permissive", "strict"], &[]),
            Preset::Text("disable"),
            "Client certificates: not asked for; plaintext, TLS and mutual TLS on one port; or mutual TLS alone.",
        ),
        row(
            "client_ca",
            Text,
            Absent("\"client-ca.pem\""),
            "Authorities that client certificates must lead to.",
        ),
        row(
            "client_crl",
            Text,
            Absent("\"client-crl.pem\""),
            "Their revocation lists. A certificate whose issuer has no list here counts as not revoked.",
        ),
        row(
            "session_tickets",
            Boolean,
            Preset::Boolean(true),
            "Lets a returning client resume its session. false: every connection is a full handshake.",
        ),
        VERSION_MIN,
        tables("certificates", &CERTIFICATES),
    ],
};

static CERTIFICATES: Table = Table {
    help: "What is served, chosen by the client's server name: exact names, then wildcards, then the first. Where several \
           are for the name, by what the client can verify, ECDSA before RSA. At least one.",
    shown: false,
    rows: &[
        row(
            "cert",
            Text,
            Required("\"server.pem\""),
            "The server's certificate, then those that lead to its authority.",
        ),
        row("key", Text, Required("\"server.key\""), "Its private key, without a passphrase."),
    ],
};

const VERSION_MIN: Row =
    row("version_min", Word(&["1.2", "1.3"], &[]), Preset::Text("1.2"), "The oldest version of TLS spoken.");

static LISTENER_TIMEOUTS: Table = Table {
    help: "Deadlines of this listener.",
    shown: false,
    rows: &[
        own(HEADER_TIMEOUT),
        own(IDLE_TIMEOUT),
        own(BODY_IDLE_TIMEOUT),
        own(BODY_RATE_MIN),
        own(WRITE_STALL_TIMEOUT),
        own(TCP_IDLE_TIMEOUT),
        own(TUNNEL_IDLE_TIMEOUT),
        own(HANDSHAKE_TIMEOUT),
    ],
};

static ROUTE: Table = Table {
    help: "Which requests go where. The most specific route wins: exact host, then longest wildcard, then any; exact \
           path, then longest prefix, then regex, then any; then the number of conditions; then the order here. One \
           action each: cluster, clusters, respond or redirect. Dot segments, also as %2e, are removed before a path is compared and \
           forwarded; %00 is refused; // and %2f stay as received. The query takes no part.",
    shown: true,
    rows: &[
        row("name", Text, Absent("\"api\""), "Unique. Absent: route-1 for the first, and so on."),
        row(
            "listener",
            TextOrList,
            Absent("\"web\""),
            "One name or several. Absent: every HTTP listener, and none of another protocol.",
        ),
        row(
            "hosts",
            TextList,
            Absent("[\"api.test\", \"*.api.test\"]"),
            "Names without port; \"*.\" stands for one or more labels. Absent: any host, also none. For passthrough, the \
             server name that the client sends.",
        ),
        row(
            "alpn",
            TextList,
            Absent("[\"h2\"]"),
            "Only for passthrough: protocols, one of which the client must offer. Absent: any client.",
        ),
        row("path", Text, Absent("\"/v1/users\""), "The whole path."),
        row("path_prefix", Text, Absent("\"/v1/\""), "The beginning of the path, as a plain string."),
        row("path_regex", Text, Absent("\"/v[0-9]+/.*\""), "A regular expression for the whole path."),
        row("methods", TextList, Absent("[\"GET\", \"HEAD\"]"), "Absent: any method."),
        row(
            "client_identities",
            TextList,
            Absent("[\"spiffe://cluster.local/ns/production/sa/shop\", \"cluster.local/*\"]"),
            "SPIFFE ids, or whole trust domains: whom the client's certificate names. Absent: anybody.",
        ),
        row("cluster", Text, Absent("\"site\""), "Forwards to this cluster."),
        row(
            "rate_limits",
            TextList,
            Absent("[\"per-client\"]"),
            "Each request takes a token of each [[rate_limit]] named here; one that finds none in one of them is answered 429 \
             and takes none.",
        ),
        row(
            "tunnels",
            TextList,
            Absent("[\"websocket\", \"connect\"]"),
            "Protocols that clients may change to (Upgrade; in HTTP/2 extended CONNECT), and \"connect\" for the method \
             CONNECT, which has no path. The endpoint decides; what follows is passed on unread. Absent: websocket; \
             []: none.",
        ),
        row(
            "rewrite_prefix",
            Text,
            Absent("\"/\""),
            "Replaces the part of the path that path_prefix matched.",
        ),
        tables("headers", &HEADER_MATCH),
        tables("clusters", &WEIGHTED),
        choice("respond", &RESPOND),
        choice("redirect", &REDIRECT),
        choice("request_headers", &REQUEST_EDITS),
        choice("response_headers", &RESPONSE_EDITS),
    ],
};

static HEADER_MATCH: Table = Table {
    help: "Conditions on the request's fields; all must hold. The first field of the name counts. One test each.",
    shown: false,
    rows: &[
        row("name", Text, Required("\"x-canary\""), "Field name, in any case."),
        row("exact", Text, Absent("\"yes\""), "The whole value."),
        row("prefix", Text, Absent("\"v2\""), "The beginning of the value."),
        row("regex", Text, Absent("\"v[0-9]+\""), "A regular expression for the whole value."),
        row("present", Boolean, Absent("true"), "true: it must be there; false: it must not."),
    ],
};

static WEIGHTED: Table = Table {
    help: "Forwards to one of several clusters, at random by weight.",
    shown: false,
    rows: &[
        row("name", Text, Required("\"site\""), "A cluster."),
        number("weight", Integer { min: 0, max: 1_000_000 }, 1, "", "Its share of the sum of weights."),
    ],
};

static RESPOND: Table = Table {
    help: "Answers from here. Content-Length follows from the body.",
    shown: true,
    rows: &[
        number("status", Integer { min: 200, max: 599 }, 200, "", "Status code."),
        row("body", Text, Shown("\"ok\\n\""), "Absent: empty."),
        row(
            "headers",
            Fields,
            Shown("{ \"content-type\" = \"text/plain\" }"),
            "Further fields of the answer.",
        ),
    ],
};

static REDIRECT: Table = Table {
    help: "Sends the client elsewhere. What is absent is taken from the request.",
    shown: false,
    rows: &[
        number("status", Integer { min: 301, max: 308 }, 308, "", "301, 302, 303, 307 or 308."),
        row(
            "scheme",
            Word(&["http", "https"], &[]),
            Absent("\"https\""),
            "With it the request's port is left out.",
        ),
        row("host", Text, Absent("\"www.api.test\""), "Host, or host:port."),
        row("path", Text, Absent("\"/moved\""), "The query is kept unless this has one."),
    ],
};

const SET: &str = "Replaces fields of these names, or adds them.";
const ADD: &str = "Adds fields, beside those of the same name.";
const REMOVE: &str = "Removes fields of these names.";

static REQUEST_EDITS: Table = Table {
    help: "Changes to the fields sent to the endpoint, after those of the connection are taken away.",
    shown: false,
    rows: &[
        row("set", Fields, Absent("{ \"x-edge\" = \"ringfort\" }"), SET),
        row("add", Fields, Absent("{ \"x-via\" = \"edge\" }"), ADD),
        row("remove", TextList, Absent("[\"x-debug\"]"), REMOVE),
    ],
};

static RESPONSE_EDITS: Table = Table {
    help: "Changes to the fields sent to the client.",
    shown: false,
    rows: &[
        row("set", Fields, Absent("{ \"x-frame-options\" = \"DENY\" }"), SET),
        row("add", Fields, Absent("{ \"x-served-by\" = \"edge\" }"), ADD),
        row("remove", TextList, Absent("[\"server\"]"), REMOVE),
    ],
};

static CLUSTER: Table = Table {
    help: "A named set of endpoints. The less loaded of two drawn at random, for its weight, gets the request.",
    shown: false,
    rows: &[
        row("name", Text, Required("\"site\""), "Unique; letters, digits, dot, dash and underscore."),
        row(
            "endpoints",
            TextList,
            Required("[\"127.0.0.1:9000\", \"origin.internal:9000\"]"),
            "Address or name, with port. Names are looked up again in the background. An address may have a weight from 1 to \
             256, \"127.0.0.1:9000 weight=3\": its share beside the others, which have 1.",
        ),
        row(
            "protocol",
            Word(&["http1", "h2", "auto"], &[]),
            Preset::Text("http1"),
            "\"h2\": HTTP/2, also in plaintext. \"auto\": what the endpoint chooses by ALPN in TLS, else HTTP/1.1.",
        ),
        row(
            "proxy_protocol",
            Word(&["off", "v1", "v2"], &[]),
            Preset::Text("off"),
            "Begins each connection, before TLS, with a PROXY header that names the client; for health probes it names \
             nobody. As clients must not share such a connection, each request has its own.",
        ),
        own(CONNECT_TIMEOUT),
        own(REQUEST_TIMEOUT),
        own(POOL_IDLE_TIMEOUT),
        number(
            "http2_connections_max",
            Integer { min: 1, max: 1_024 },
            16,
            "",
            "HTTP/2 connections of one worker to one endpoint; beyond what they carry requests wait, as pending_max says.",
        ),
        number(
            "http2_streams_max",
            Integer { min: 1, max: 10_000 },
            100,
            "",
            "Requests on one HTTP/2 connection at once, where the endpoint takes as many.",
        ),
        number(
            "pool_idle_per_worker_max",
            Integer { min: 0, max: 65_535 },
            1_024,
            "",
            "Connections without a request that one worker keeps; 0 turns pooling off.",
        ),
        number(
            "connections_max",
            Integer { min: 1, max: 4_000_000 },
            16_384,
            "",
            "Connections of one worker to the cluster, busy and idle; beyond it requests wait for one.",
        ),
        number(
            "pending_max",
            Integer { min: 0, max: 1_000_000 },
            1_024,
            "",
            "Requests of one worker that wait for a connection, for connect_timeout_ms at most; beyond it 503.",
        ),
        number(
            "requests_max",
            Integer { min: 1, max: 4_000_000 },
            65_536,
            "",
            "Requests, relays and tunnels under way to the cluster at once, over all workers; beyond it 503.",
        ),
        number(
            "retries_max",
            Integer { min: 0, max: 8 },
            1,
            "",
            "Further endpoints tried where one cannot be connected to, and as often where [cluster.retry] says so.",
        ),
        number(
            "resolve_interval_ms",
            Integer { min: 100, max: DAY_MS },
            10_000,
            "ms",
            "How often the names among the endpoints are looked up.",
        ),
        CONGESTION_CONTROL,
        notsent_lowat(0),
        USER_TIMEOUT,
        row(
            "source_ports",
            Text,
            Absent("\"40000-49999\""),
            "Ports that connections come from, within net.ipv4.ip_local_port_range. Absent: all of that. Needs Linux 6.3.",
        ),
        number(
            "slow_start_ms",
            Integer { min: 0, max: DAY_MS },
            0,
            "ms",
            "An endpoint that probes bring back, or that a name newly has, gets its share little by little; 0: at once.",
        ),
        number(
            "slow_start_floor_percent",
            Integer { min: 1, max: 100 },
            10,
            "%",
            "What of its share it begins with.",
        ),
        table("retry", &RETRY),
        choice("health_check", &HEALTH_CHECK),
        table("ejection", &EJECTION),
        choice("hash", &HASH),
        choice("tls", &CLUSTER_TLS),
    ],
};

static CLUSTER_TLS: Table = Table {
    help: "Speaks TLS to the endpoints, 1.3 and 1.2. Files are PEM and are taken over anew when they change.",
    shown: false,
    rows: &[
        row(
            "ca",
            Text,
            Absent("\"mesh-ca.pem\""),
            "Authorities that the endpoints' certificates must lead to. Absent: those that this machine trusts.",
        ),
        row("cert", Text, Absent("\"gateway.pem\""), "Presented to an endpoint that asks for a certificate."),
        row("key", Text, Absent("\"gateway.key\""), "Its private key, without a passphrase."),
        row(
            "server_name",
            Text,
            Absent("\"origin.internal\""),
            "Sent, and looked for in the endpoint's certificate. Absent: the host name of the endpoints, or their addresses.",
        ),
        row(
            "expect_identity",
            TextList,
            Absent("[\"spiffe://cluster.local/ns/shop/sa/web\", \"cluster.local/*\"]"),
            "SPIFFE ids, one of which the endpoint must have, or a trust domain; looked for instead of the name.",
        ),
        VERSION_MIN,
    ],
};
