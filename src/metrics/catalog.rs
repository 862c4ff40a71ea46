//! Every metric of the product, declared once: the enums that code counts with and the table that `/metrics`
//! and the documentation are printed from come from the same lines. Holds no values.

/// What kind of value a metric is, in Prometheus' words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What one unit of the stored integer means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    One,
    Bytes,
    /// Stored in nanoseconds, shown in seconds.
    Seconds,
}

/// How the workers' values of one metric become samples.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Across {
    /// One sample: the sum over workers.
    Sum,
    /// One sample a worker, with a `worker` label.
    PerWorker,
}

/// A label whose values are fixed, one cell of the shard each. Several labels at once have names and values joined by
/// commas.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    pub values: &'static [&'static str],
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub across: Across,
    pub label: Option<Label>,
    pub help: &'static str,
}

impl Metric {
    /// Cells of a shard that this metric takes.
    pub const fn width(&self) -> usize {
        match (self.kind, self.label) {
            (Kind::Histogram, _) => HISTOGRAM_CELLS,
            (_, Some(label)) => label.values.len(),
            (_, None) => 1,
        }
    }
}

/// Upper bounds of the histogram buckets, in nanoseconds: 100 µs to 60 s, then everything above.
pub const BUCKET_BOUNDS_NS: [u64; 18] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];
/// One cell a bucket, one for what lies above the last bound, one for the sum in nanoseconds.
pub const HISTOGRAM_CELLS: usize = BUCKET_BOUNDS_NS.len() + 2;

/// Classes of an HTTP status. `none`: the exchange ended with no status sent or received.
pub const CLASS: Label = Label { name: "class", values: &["1xx", "2xx", "3xx", "4xx", "5xx", "none"] };

/// What a tunnel is opened for; positions in [`TUNNEL`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TunnelProtocol {
    Websocket,
    Connect,
    Other,
}

pub const TUNNEL: Label = Label { name: "protocol", values: &["websocket", "connect", "other"] };

/// Status codes of gRPC by their numbers. `none`: the response ended without one.
pub const GRPC_STATUS: Label = Label {
    name: "status",
    values: &[
        "ok",
        "cancelled",
        "unknown",
        "invalid_argument",
        "deadline_exceeded",
        "not_found",
        "already_exists",
        "permission_denied",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal",
        "unavailable",
        "data_loss",
        "unauthenticated",
        "none",
    ],
};

/// Position of a status in [`CLASS`].
pub const fn class_index(status: Option<u16>) -> usize {
    match status {
        Some(status @ 100..=599) => status as usize / 100 - 1,
        _ => CLASS.values.len() - 1,
    }
}

/// First cell of each metric of `table` when the table's own cells begin at `start`.
pub const fn offsets<const N: usize>(table: &[Metric; N], start: usize) -> [usize; N] {
    let mut offsets = [0; N];
    let (mut next, mut index) = (start, 0);
    while index < N {
        offsets[index] = next;
        next += table[index].width();
        index += 1;
    }
    offsets
}

/// Cells that all metrics of `table` take together.
pub const fn width(table: &[Metric]) -> usize {
    let (mut sum, mut index) = (0, 0);
    while index < table.len() {
        sum += table[index].width();
        index += 1;
    }
    sum
}

macro_rules! family {
    ($(#[$doc:meta])* $family:ident $kind:ident {
        $($variant:ident: $name:literal $unit:ident $across:ident $label:expr, $help:literal;)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $family {
            $(#[doc = $help] $variant),+
        }

        impl $family {
            pub const NAMES: &'static [&'static str] = &[$(stringify!($variant)),+];
            pub const TABLE: [Metric; Self::NAMES.len()] = [$(Metric {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                across: Across::$across,
                label: $label,
                help: $help,
            }),+];
        }
    };
}

macro_rules! causes {
    ($(#[$doc:meta])* $enum:ident, $label:ident, $name:literal { $($variant:ident: $word:literal, $help:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $enum {
            $(#[doc = $help] $variant),+
        }

        impl $enum {
            pub const NAMES: &'static [&'static str] = &[$(stringify!($variant)),+];
            const WORDS: &'static [&'static str] = &[$($word),+];

            /// As the label has it.
            pub const fn word(self) -> &'static str {
                Self::WORDS[self as usize]
            }
        }

        pub const $label: Label = Label { name: $name, values: &[$($word),+] };
    };
}

causes! {
    /// Why new work was refused at the door.
    Shed, SHED, "stage,proto,reason" {
        Connections: "accept,tcp,connections", "The count of connections reached its limit.";
        Memory: "accept,tcp,memory", "The worker's byte budget is spent.";
        Descriptors: "accept,tcp,descriptors", "The process has no file descriptor left.";
        Handshake: "handshake,tls,age", "The handshake waited too long for its turn.";
        Http1: "request,http1,age", "The request had waited too long in a queue that stands.";
        Http2: "request,http2,age", "The same of a stream of HTTP/2.";
    }
}

causes! {
    /// Why a connection was asked to end with a response.
    Drained, DRAINED, "reason" {
        Steal: "steal", "The worker has too many for the time that it loses; others have less to do.";
        Shutdown: "shutdown", "The gateway drains, or a reload took the listener away.";
    }
}

causes! {
    /// What `accept` failed with.
    AcceptError, ACCEPT_ERROR, "cause" {
        ProcessFiles: "emfile", "EMFILE: the process has no file descriptor left.";
        SystemFiles: "enfile", "ENFILE: the system has no file left.";
        Memory: "memory", "ENOMEM or ENOBUFS: the kernel has no memory for the socket.";
        Watches: "watches", "ENOSPC: epoll may watch no further socket (fs.epoll.max_user_watches).";
        Aborted: "aborted", "ECONNABORTED: the client left before it was accepted.";
        Other: "other", "Any other error.";
    }
}

causes! {
    /// Why a line of the access log was lost.
    LogDrop, LOG_DROP, "reason" {
        Full: "full", "The writer did not take the worker's lines fast enough: its buffer was full.";
        Unwritten: "unwritten", "It could not be written: the disk is full, or its reader is gone.";
    }
}

causes! {
    /// Why a client's TLS handshake failed.
    HandshakeFailure, HANDSHAKE_FAILURE, "cause" {
        Plaintext: "plaintext", "The client sent no TLS; it was reset.";
        NoCertificate: "no_certificate", "The client presented no certificate, and one is required.";
        BadCertificate: "bad_certificate", "The client's certificate is untrusted, expired, revoked or not for clients.";
        NothingShared: "nothing_shared", "No version, suite, group or protocol that both sides know.";
        UnknownName: "unknown_name", "No route of a passthrough listener has the server name.";
        Malformed: "malformed", "The client broke the protocol.";
        TimedOut: "timed_out", "The handshake was not done by its deadline.";
        Shed: "shed", "It waited too long for its turn, and was refused before it cost anything.";
        Closed: "closed", "The client left before the handshake was done, or refused our certificate.";
        Other: "other", "Any other cause.";
    }
}

causes! {
    /// What a connection began with on a listener that expects a PROXY header.
    ProxyHeader, PROXY_HEADER, "outcome" {
        V1: "v1", "A header of version 1 that names the client.";
        V2: "v2", "One of version 2.";
        Unnamed: "unnamed", "A header that names nobody (LOCAL, UNKNOWN, UNSPEC): the peer's own address counts.";
        Malformed: "malformed", "No header, or a broken one; it was reset.";
        TimedOut: "timed_out", "The header was not whole by its deadline.";
        Untrusted: "untrusted", "The peer is none of the trusted proxies; it was reset.";
    }
}

causes! {
    /// Which limit of a cluster was reached.
    Overflow, OVERFLOW, "limit" {
        Connections: "connections", "No connection became free in time, or none may be waited for.";
        Pending: "pending", "Too many requests wait for a connection.";
        Requests: "requests", "Too many requests are under way.";
        Retries: "retries", "Too many requests were tried again.";
    }
}

causes! {
    /// Whose budget a request was refused under.
    RateLimited, RATE_LIMITED, "budget" {
        Own: "own", "The key's own.";
        Shared: "shared", "That of all keys for which the limit's table has no room: raise keys_max.";
    }
}

causes! {
    /// What a probe of an endpoint showed.
    ProbeResult, PROBE_RESULT, "result" {
        Passed: "passed", "The endpoint did what is asked of it.";
        Failed: "failed", "It did not.";
        Excused: "excused", "The prober itself stood still: it shows nothing.";
    }
}

family! {
    /// Counters of one worker.
    Counter Counter {
        LoopTurns: "ringfort_worker_loop_turns_total" One PerWorker None,
            "Turns of the worker's loop.";
        BuffersStarved: "ringfort_worker_buffers_starved_total" One PerWorker None,
            "Receives put off because the buffer pool was empty (ENOBUFS).";
        CompletionOverflows: "ringfort_worker_completion_overflows_total" One PerWorker None,
            "Times the completion queue overflowed into the kernel's backlog.";
        CompletionsStale: "ringfort_worker_completions_stale_total" One PerWorker None,
            "Completions that named a socket which was gone. Anything but 0 is a bug of ours.";
        ConnectionsAccepted: "ringfort_worker_connections_accepted_total" One PerWorker None,
            "Downstream connections that the worker accepted.";
        ConnectionsRelieved: "ringfort_worker_connections_relieved_total" One PerWorker None,
            "Those of them that the worker took from the queue of another, while new connections were steered.";
        RequestsInTime: "ringfort_requests_in_time_total" One PerWorker None,
            "Requests answered within steal.latency_objective_ms with a status below 500.";
        LoopGaps: "ringfort_worker_loop_gap_seconds_total" Seconds PerWorker None,
            "Time in which the loop stood still without a reason of its own: the thread was ready and did not run.";
        Shed: "ringfort_shed_total" One PerWorker Some(SHED),
            "New work refused: connections, TLS handshakes, requests.";
        Drained: "ringfort_drain_total" One PerWorker Some(DRAINED),
            "Connections in HTTP that were asked to end with a response (Connection: close, GOAWAY), by reason.";
        AccessLogLines: "ringfort_access_log_lines_total" One Sum None,
            "Lines of the access log that workers handed to its writer.";
        AccessLogDropped: "ringfort_access_log_dropped_total" One Sum Some(LOG_DROP),
            "Lines of the access log that were lost, by reason.";
        AcceptErrors: "ringfort_accept_errors_total" One Sum Some(ACCEPT_ERROR),
            "Errors of accept, by cause.";
    }
}

family! {
    /// Gauges of one worker.
    Gauge Gauge {
        LoopGapMax: "ringfort_worker_loop_gap_max_seconds" Seconds PerWorker None,
            "Longest time between two turns of the loop while there was work, since start.";
        QueueStanding: "ringfort_worker_queue_standing_seconds" Seconds PerWorker None,
            "For how long the worker has had no moment without work; from 0.1 on it is overloaded.";
        HandshakesActive: "ringfort_worker_tls_handshakes_active" One PerWorker None,
            "TLS handshakes of clients under way, from accept on.";
        HandshakesWaiting: "ringfort_worker_tls_handshakes_waiting" One PerWorker None,
            "TLS handshakes that wait for their turn.";
        BuffersInUse: "ringfort_worker_buffers_in_use" One PerWorker None,
            "Receive buffers held by sessions.";
        MemoryBytes: "ringfort_worker_memory_bytes" Bytes PerWorker None,
            "Bytes of the worker's budget in use: sessions and buffers.";
    }
}

family! {
    /// Latency histograms of one worker.
    Histogram Histogram {
        LoopGap: "ringfort_worker_loop_gap_seconds" Seconds Sum None,
            "Each time in which a worker's loop stood still without a reason of its own.";
        QueueAge: "ringfort_worker_queue_age_seconds" Seconds PerWorker None,
            "How long each request may have waited before the worker saw it, a stall included.";
        HandshakeWait: "ringfort_handshake_wait_seconds" Seconds PerWorker None,
            "How long each TLS handshake of a client waited for its turn.";
        RequestDuration: "ringfort_request_duration_seconds" Seconds Sum None,
            "From the first byte of a request to the last byte of its response.";
        TlsHandshakeDuration: "ringfort_tls_handshake_duration_seconds" Seconds Sum None,
            "From accept to the end of a client's TLS handshake.";
        UpstreamFirstByte: "ringfort_upstream_first_byte_seconds" Seconds Sum None,
            "From the request sent upstream to the first byte of the response.";
    }
}

family! {
    /// Counters of one listener in one worker.
    ListenerCounter Counter {
        ConnectionsAccepted: "ringfort_connections_accepted_total" One Sum None,
            "Downstream connections accepted.";
        Requests: "ringfort_requests_total" One Sum Some(CLASS),
            "Requests answered, by class of the status sent downstream.";
        TlsHandshakes: "ringfort_tls_handshakes_total" One Sum None,
            "TLS handshakes that succeeded, resumed ones included.";
        TlsResumed: "ringfort_tls_resumed_total" One Sum None,
            "TLS handshakes that resumed a session.";
        TlsFailures: "ringfort_tls_handshake_failures_total" One Sum Some(HANDSHAKE_FAILURE),
            "TLS handshakes that failed, by cause.";
        TlsPassedOn: "ringfort_tls_passed_on_connections_total" One Sum None,
            "TLS connections that a passthrough listener passed on undecrypted.";
        RateLimited: "ringfort_rate_limited_requests_total" One Sum Some(RATE_LIMITED),
            "Requests refused with 429, by whose budget was used up.";
        ProxyHeaders: "ringfort_proxy_protocol_headers_total" One Sum Some(PROXY_HEADER),
            "Connections to a listener that expects a PROXY header, by what they began with.";
        Plaintext: "ringfort_tls_plaintext_connections_total" One Sum None,
            "Plaintext connections that a permissive listener took.";
        Misdirected: "ringfort_tls_misdirected_requests_total" One Sum None,
            "Requests answered 421: their host is none of the certificate's.";
        ReceivedBytes: "ringfort_downstream_received_bytes_total" Bytes Sum None,
            "Bytes received from clients.";
        SentBytes: "ringfort_downstream_sent_bytes_total" Bytes Sum None,
            "Bytes sent to clients.";
        Http2Connections: "ringfort_http2_connections_total" One Sum None,
            "Downstream connections that spoke HTTP/2.";
        Http2Streams: "ringfort_http2_streams_total" One Sum None,
            "Requests that came as a stream of HTTP/2.";
        Http2Glitches: "ringfort_http2_glitches_total" One Sum None,
            "HTTP/2 frames that cost and brought no work, of connections that ended.";
        Tunnels: "ringfort_tunnels_opened_total" One Sum Some(TUNNEL),
            "Tunnels opened, by protocol.";
        Http2GoawaysSent: "ringfort_http2_goaways_sent_total" One Sum None,
            "GOAWAY frames sent to clients, on connections that ended.";
    }
}

family! {
    /// Gauges of one listener in one worker.
    ListenerGauge Gauge {
        ConnectionsActive: "ringfort_connections_active" One Sum None,
            "Downstream connections open now.";
        Http2StreamsActive: "ringfort_http2_streams_active" One Sum None,
            "Streams of downstream HTTP/2 connections being served now.";
        TunnelsActive: "ringfort_tunnels_active" One Sum None,
            "Tunnels open now.";
    }
}

family! {
    /// Counters of one cluster in one worker.
    ClusterCounter Counter {
        Requests: "ringfort_upstream_requests_total" One Sum Some(CLASS),
            "Requests sent upstream, by class of the status received.";
        ConnectFailures: "ringfort_upstream_connect_failures_total" One Sum None,
            "Connections to endpoints that failed or timed out.";
        TlsHandshakes: "ringfort_upstream_tls_handshakes_total" One Sum None,
            "TLS handshakes with endpoints that succeeded.";
        TlsFailures: "ringfort_upstream_tls_failures_total" One Sum None,
            "TLS handshakes with endpoints that failed: the log says why.";
        ConnectionsOpened: "ringfort_upstream_connections_opened_total" One Sum None,
            "Connections to endpoints that were established.";
        ConnectionsReused: "ringfort_upstream_connections_reused_total" One Sum None,
            "Requests that took an idle connection of the pool.";
        Retries: "ringfort_upstream_retries_total" One Sum None,
            "Requests tried again on another connection or endpoint.";
        Http2Streams: "ringfort_upstream_http2_streams_total" One Sum None,
            "Requests sent as a stream of HTTP/2.";
        Http2Floods: "ringfort_upstream_http2_floods_total" One Sum None,
            "HTTP/2 connections left because the endpoint sent more frames that cost than work.";
        GrpcStatus: "ringfort_upstream_grpc_responses_total" One Sum Some(GRPC_STATUS),
            "Calls of gRPC to the cluster, by the status that ended them, also where the gateway gave it.";
        Overflows: "ringfort_upstream_overflows_total" One Sum Some(OVERFLOW),
            "Requests refused because a limit of the cluster was reached, and retries that were not made.";
        FailuresExcused: "ringfort_upstream_failures_excused_total" One Sum None,
            "Deadlines of endpoints that passed while the worker itself stood still: not held against them.";
        Ejections: "ringfort_upstream_ejections_total" One Sum None,
            "Endpoints taken out of balancing for consecutive failures or their rate of success.";
        ReceivedBytes: "ringfort_upstream_received_bytes_total" Bytes Sum None,
            "Bytes received from endpoints.";
        SentBytes: "ringfort_upstream_sent_bytes_total" Bytes Sum None,
            "Bytes sent to endpoints.";
    }
}

family! {
    /// Gauges of one cluster in one worker.
    ClusterGauge Gauge {
        ConnectionsIdle: "ringfort_upstream_connections_idle" One Sum None,
            "Connections to endpoints kept idle in the pool.";
        ConnectionsActive: "ringfort_upstream_connections_active" One Sum None,
            "Connections to endpoints carrying work now.";
        RequestsActive: "ringfort_upstream_requests_active" One Sum None,
            "Requests, relays and tunnels under way to the cluster, those that wait or connect among them.";
        RequestsPending: "ringfort_upstream_requests_pending" One Sum None,
            "Requests that wait for a connection, as all are in use.";
    }
}

family! {
    /// Latency histograms of one cluster in one worker.
    ClusterHistogram Histogram {
        ConnectDuration: "ringfort_upstream_connect_duration_seconds" Seconds Sum None,
            "Time to establish a connection to an endpoint.";
    }
}

family! {
    /// Facts of the whole process, set by the control thread when metrics are asked for.
    Process Gauge {
        Ready: "ringfort_ready" One Sum None,
            "1 while the gateway takes new work, 0 while it starts or drains.";
        StartTime: "ringfort_process_start_time_seconds" One Sum None,
            "Unix time at which the data process started.";
        ReloadSucceeded: "ringfort_config_last_reload_successful" One Sum None,
            "1 if the configuration in use is what was read last, 0 if what was read last was refused.";
        ReloadTime: "ringfort_config_last_reload_success_timestamp_seconds" One Sum None,
            "Unix time at which the configuration in use was taken into use.";
        Upgrades: "ringfort_process_upgrades" One Sum None,
            "Binary upgrades since the gateway was started.";
        UpgradeSucceeded: "ringfort_last_upgrade_successful" One Sum None,
            "0 if the upgrade that was tried last did not come about, else 1.";
        Restarts: "ringfort_process_restarts" One Sum None,
            "Times the supervisor restarted the data process after a crash.";
        ResidentBytes: "ringfort_process_resident_memory_bytes" Bytes Sum None,
            "Resident memory of the data process.";
        DescriptorsOpen: "ringfort_process_open_fds" One Sum None,
            "File descriptors the data process has open.";
        DescriptorsMax: "ringfort_process_max_fds" One Sum None,
            "File descriptors the data process may open.";
        LogLinesDropped: "ringfort_log_lines_dropped" One Sum None,
            "Log lines dropped since start because the log's reader was too slow, or had no room for them.";
    }
}

/// Sessions ended, by termination reason. The reasons are the caller's, given when a shard is made.
pub const SESSIONS_ENDED: Metric = Metric {
    name: "ringfort_sessions_ended_total",
    kind: Kind::Counter,
    unit: Unit::One,
    across: Across::Sum,
    label: None,
    help: "Sessions ended, by termination reason.",
};

/// Tunnels ended, by the same reasons.
pub const TUNNELS_ENDED: Metric = Metric {
    name: "ringfort_tunnels_ended_total",
    kind: Kind::Counter,
    unit: Unit::One,
    across: Across::Sum,
    label: None,
    help: "Tunnels ended, by termination reason.",
};

/// End of what TLS is done with. Names and files are those of the configuration.
pub const CERTIFICATE_NOT_AFTER: Metric = Metric {
    name: "ringfort_certificate_not_after_seconds",
    kind: Kind::Gauge,
    unit: Unit::One,
    across: Across::Sum,
    label: None,
    help: "Unix time at which the certificate in use ends; for a bundle of authorities, the last of them.",
};

/// Counted by the control thread.
pub const RELOADS: Metric = Metric {
    name: "ringfort_reloads_total",
    kind: Kind::Counter,
    unit: Unit::One,
    across: Across::Sum,
    label: Some(RELOAD_RESULT),
    help: "Times that the configuration was to be read anew: taken into use, or refused while the old one stayed.",
};

/// How a reload ended.
pub const RELOAD_RESULT: Label = Label { name: "result", values: &["ok", "refused"] };

/// Counted by the control thread.
pub const CERTIFICATE_RELOADS: Metric = Metric {
    name: "ringfort_certificate_reloads_total",
    kind: Kind::Counter,
    unit: Unit::One,
    across: Across::Sum,
    label: None,
    help: "Times that changed files of certificates were taken into use.",
};

/// Counted by the control thread.
pub const CERTIFICATE_RELOAD_FAILURES: Metric = Metric {
    name: "ringfort_certificate_reload_failures_total",
    kind: Kind::Counter,
    unit: Unit::One,
    across: Across::Sum,
    label: None,
    help: "Times that changed files of certificates could not be used and the last good ones stayed.",
};

/// Known to the control thread.
pub const CPU_STEAL: Metric = whole(
    "ringfort_cpu_steal_seconds_total",
    Kind::Counter,
    Unit::Seconds,
    "Time that the hypervisor took from the CPU since the start, as far as it reports it.",
);

/// Known to the control thread.
pub const CPU_STEAL_RATIO: Metric = whole(
    "ringfort_cpu_steal_ratio",
    Kind::Gauge,
    Unit::One,
    "Share of the CPU that the hypervisor takes now, smoothed; absent where it does not report it.",
);

/// Known to the control thread.
pub const CPU_LOST_RATIO: Metric = whole(
    "ringfort_cpu_lost_ratio",
    Kind::Gauge,
    Unit::One,
    "Share of the CPU that its worker loses now to the hypervisor, to other threads or to a quota, smoothed.",
);

/// Known to the control thread.
pub const RUN_QUEUE_WAIT: Metric = whole(
    "ringfort_worker_runqueue_wait_seconds_total",
    Kind::Counter,
    Unit::Seconds,
    "Time in which the worker was ready and other threads of this machine ran.",
);

/// Known to the control thread.
pub const THROTTLE_LEVEL: Metric = whole(
    "ringfort_throttle_level",
    Kind::Gauge,
    Unit::One,
    "Level of the worker by what it loses: 0 normal, 1 elevated, 2 stolen; 3: its queue stands, whatever it loses.",
);

/// Known to the control thread.
pub const ACCEPT_WEIGHT: Metric = whole(
    "ringfort_accept_weight",
    Kind::Gauge,
    Unit::One,
    "The share of new connections that the worker gets against an even one; 1 is even.",
);

/// Known to the control thread.
pub const THROTTLE_TRANSITIONS: Metric = whole(
    "ringfort_throttle_transitions_total",
    Kind::Counter,
    Unit::One,
    "Changes of level, of all workers.",
);

/// Known to the control thread.
pub const IN_TIME_RATIO: Metric = whole(
    "ringfort_requests_in_time_ratio",
    Kind::Gauge,
    Unit::One,
    "Share of the last minute's requests that were answered within steal.latency_objective_ms with a status below 500.",
);

/// Known to the control thread.
pub const STEAL_SOURCE: Metric = whole(
    "ringfort_steal_source",
    Kind::Gauge,
    Unit::One,
    "Where steal is read from and whether it is believed, as labels; always 1. gap: it is not reported.",
);

/// Known to the control thread.
pub const CGROUP_THROTTLED: Metric = whole(
    "ringfort_cgroup_throttled_seconds_total",
    Kind::Counter,
    Unit::Seconds,
    "Time for which a quota of its control group held the process, over all CPUs; absent where none counts it.",
);

/// Known to the control thread.
pub const STEAL_SAMPLE_AGE: Metric = whole(
    "ringfort_steal_sample_age_seconds",
    Kind::Gauge,
    Unit::Seconds,
    "Time since lost CPU time was last sampled.",
);

/// Known to the control thread.
pub const STEAL_SAMPLER_CPU: Metric = whole(
    "ringfort_steal_sampler_cpu_seconds_total",
    Kind::Counter,
    Unit::Seconds,
    "CPU time that sampling lost time and judging it took.",
);

/// Counted by the control thread, by cluster and [`PROBE_RESULT`].
pub const HEALTH_PROBES: Metric = whole(
    "ringfort_health_probes_total",
    Kind::Counter,
    Unit::One,
    "Probes of endpoints, by what they showed.",
);

/// Known to the control thread, by cluster.
pub const HEALTH_ENDPOINTS: Metric =
    whole("ringfort_health_endpoints", Kind::Gauge, Unit::One, "Endpoints of the cluster that are probed.");

/// Known to the control thread, by cluster.
pub const HEALTH_ENDPOINTS_HEALTHY: Metric = whole(
    "ringfort_health_endpoints_healthy",
    Kind::Gauge,
    Unit::One,
    "Endpoints of the cluster whose probes pass.",
);

/// A metric that is no cell of a shard.
const fn whole(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind, unit, across: Across::Sum, label: None, help }
}

/// Which I/O engine a worker runs; always 1.
pub const WORKER_ENGINE: Metric = Metric {
    name: "ringfort_worker_engine",
    kind: Kind::Gauge,
    unit: Unit::One,
    across: Across::PerWorker,
    label: None,
    help: "The I/O engine of the worker, as a label; always 1.",
};

/// Version of the binary; always 1.
pub const BUILD_INFO: Metric = Metric {
    name: "ringfort_build_info",
    kind: Kind::Gauge,
    unit: Unit::One,
    across: Across::Sum,
    label: None,
    help: "Version of the binary, as a label; always 1.",
};

#[cfg(test)]
mod tests;
