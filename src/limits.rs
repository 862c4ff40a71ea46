//! Every bound of the product, in one place, with the relations between them proven at compile time.
//! Values an operator may change are defaults here (`*_DEFAULT`); the rest are fixed.

use crate::base::units::{KIB, MIB};

/// Longest request or response head the parser can be asked to take. Ceiling of `limits.head_bytes_max`.
pub const HEAD_BYTES_CEILING: usize = 64 * KIB;
/// Default of `limits.head_bytes_max`: request line and fields together (HAProxy 15 kB, Envoy 60 KiB).
pub const HEAD_BYTES_MAX_DEFAULT: usize = 16 * KIB;
/// Default of `limits.target_bytes_max`. RFC 9112 §3 asks for at least 8,000.
pub const TARGET_BYTES_MAX_DEFAULT: usize = 8 * KIB;
/// Most fields the parser has room for. Ceiling of `limits.fields_max`.
pub const FIELDS_CEILING: usize = 256;
/// Default of `limits.fields_max` (HAProxy 101, Envoy 100).
pub const FIELDS_MAX_DEFAULT: usize = 128;
/// Longest method token taken. The longest registered one has 17 bytes (`UPDATEREDIRECTREF`).
pub const METHOD_BYTES_MAX: usize = 64;
/// Most names one message may list in `Connection` beside the options of RFC 9110: each costs a look at every field.
pub const CONNECTION_OPTIONS_MAX: usize = 32;
/// Longest chunk extension tolerated for one chunk, in bytes. They are read and dropped (RFC 9112 §7.1.1).
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 256;
/// Chunk-extension bytes tolerated over a whole body (CVE-2023-39326 is unbounded overhead).
pub const CHUNK_EXTENSION_BYTES_TOTAL_MAX: usize = 16 * KIB;
/// Longest trailer section, in bytes.
pub const TRAILER_BYTES_MAX: usize = 8 * KIB;
/// Most fields of a trailer section.
pub const TRAILER_FIELDS_MAX: usize = 64;
/// Interim (1xx) responses accepted from an endpoint before one final response.
pub const INTERIM_RESPONSES_MAX: u32 = 100;

/// Longest ClientHello that is read for its names, in bytes, its header included. With keys after quantum computers it
/// has about 2,000.
pub const HELLO_BYTES_MAX: usize = 64 * KIB;
/// Most records that one ClientHello may be spread over. They may hold a byte each, or none: a bound on what is kept.
pub const HELLO_RECORDS_MAX: usize = 8 * KIB;
/// A header of the PROXY protocol with its TLVs.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 * KIB;

/// Probes of endpoints under way at once, over all clusters: the control thread may share a CPU with a worker.
pub const HEALTH_PROBES_AT_ONCE: usize = 64;

/// One receive buffer of a worker's pool.
pub const RECV_BUF_BYTES: usize = 16 * KIB;
/// One receive buffer for long bodies.
pub const BULK_BUF_BYTES: usize = 128 * KIB;
/// A body with at least this much left is received in bulk buffers.
pub const BULK_FROM_BYTES: u64 = 48 * KIB as u64;

/// Bytes of a TLS message that is not whole yet: the longest one rustls takes (64 KiB) in records, and one receive.
pub const TLS_MESSAGE_BYTES_MAX: usize = 128 * KIB;

/// Bytes received over TLS without any plaintext in them, after which the session ends: a peer that only updates keys,
/// or sends empty records, is up to no good.
pub const TLS_BARREN_BYTES_MAX: usize = 256 * KIB;
/// What an established TLS session is taken to hold, for the worker's byte budget.
pub const TLS_SESSION_BYTES: usize = 6 * KIB;

/// Request body bytes read and dropped after an early answer, so that the connection can be kept (RFC 9112 §9.3).
pub const DRAIN_BODY_BYTES_MAX: u64 = 64 * KIB as u64;

/// URI names kept of a peer's certificate, and DNS names as many.
pub const PEER_NAMES_MAX: usize = 64;
/// Bytes of all those names together.
pub const PEER_NAMES_BYTES_MAX: usize = 8 * KIB;
/// Longest subject kept of a peer's certificate.
pub const PEER_SUBJECT_BYTES_MAX: usize = KIB;
/// Bytes that names take in one element of `X-Forwarded-Client-Cert`. Endpoints bound a line of a head, some by 8 KiB.
pub const FORWARDED_CLIENT_CERT_BYTES_MAX: usize = 2 * KIB;

/// Default of `limits.http2_streams_max` (nginx 128, HAProxy and Envoy 100).
pub const HTTP2_STREAMS_MAX_DEFAULT: u32 = 128;
/// Default of `limits.http2_glitches_max`. Browsers and gRPC stay below a tenth.
pub const HTTP2_GLITCHES_MAX_DEFAULT: u32 = 1_000;
/// Bytes that one HTTP/2 stream may send ahead of what was passed on.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * KIB as u32;
/// Bytes that all streams of a client's HTTP/2 connection together may send ahead of what was passed on.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = MIB as u32;
/// Bytes of one HTTP/2 stream that wait for its peer beside the piece on its way.
pub const HTTP2_STREAM_SEND_BYTES_MAX: usize = 16 * KIB;
/// What small DATA frames that wait to be taken may lack to 256 bytes each, all of a connection together, before the crate
/// ends it: 8,000 of one byte, of about 300 bytes in memory each. Those that wait for their receiver are made one.
pub const HTTP2_SMALL_FRAMES_BYTES_MAX: usize = 2 * MIB;
/// Connections to endpoints that the streams of one client's HTTP/2 connection make in a turn of the loop: each costs as
/// much as several requests.
pub const HTTP2_CONNECTS_PER_TURN_MAX: u32 = 4;
/// Reset HTTP/2 streams whose late frames are known for such.
pub const HTTP2_RESET_STREAMS_REMEMBERED_MAX: usize = 50;

/// Threads that look up names, those among them that nobody waits for any more.
pub const LOOKUP_THREADS_MAX: usize = 16;

/// Default of `limits.memory_bytes_max`, the byte budget of one worker.
pub const WORKER_MEMORY_BYTES_MAX_DEFAULT: usize = 512 * MIB;

/// Samples of the CPUs' counters that are kept: a quarter of an hour at ten a second.
pub const STEAL_TRACE_SAMPLES_MAX: usize = 9_000;
/// Bytes they may take; with more than some twenty CPUs they reach less far back.
pub const STEAL_TRACE_BYTES_MAX: usize = 4 * MIB;

/// Log lines waiting for the log's writer. A line more is dropped and counted.
pub const LOG_LINES_MAX: usize = 4096;
/// Connections to the admin endpoints served at once; as many more wait in the kernel.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

const _: () = assert!(HEAD_BYTES_MAX_DEFAULT <= HEAD_BYTES_CEILING);
const _: () = assert!(TARGET_BYTES_MAX_DEFAULT < HEAD_BYTES_MAX_DEFAULT);
const _: () = assert!(FIELDS_MAX_DEFAULT <= FIELDS_CEILING);
const _: () = assert!(TRAILER_BYTES_MAX <= RECV_BUF_BYTES);
const _: () = assert!(RECV_BUF_BYTES < BULK_BUF_BYTES);
const _: () = assert!(PROXY_HEADER_BYTES_MAX <= RECV_BUF_BYTES);
