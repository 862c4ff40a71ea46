//! Keys about who a client is and what it gets: PROXY headers, rate limits, hashing.

use super::super::schema::Kind::{Integer, Text, TextList, Word};
use super::super::schema::Preset::{self, Absent, Required};
use super::super::schema::Table;
use super::{DEADLINE, number, row};
use crate::limit::rate::REQUESTS_MAX;

pub(super) static LISTENER_PROXY_PROTOCOL: Table = Table {
    help: "Proxies in front begin each connection with a PROXY header, version 1 or 2, before TLS. The client that it names is the \
           client for everything: X-Forwarded-For, trusted_proxies, rate limits, hashing. The header has handshake_timeout_ms.",
    shown: false,
    rows: &[
        row(
            "trusted",
            TextList,
            Required("[\"10.0.0.0/8\"]"),
            "The proxies: they must begin with a header, else they are reset.",
        ),
        row(
            "untrusted",
            Word(&["refuse", "plain"], &[]),
            Preset::Text("refuse"),
            "Other peers. \"refuse\": reset, as they get past the proxies. \"plain\": clients by themselves; a header of \
             theirs is not one.",
        ),
    ],
};

pub(super) static RATE_LIMIT: Table = Table {
    help: "How often a client may ask on the routes that name it; beyond it 429 with Retry-After. The limit holds for all workers \
           together, however connections are spread over them. A restart forgets what was used.",
    shown: false,
    rows: &[
        row("name", Text, Required("\"per-client\""), "Unique; letters, digits, dot, dash and underscore."),
        row(
            "by",
            Word(&["client_address", "header", "everybody"], &[]),
            Preset::Text("client_address"),
            "Who has a budget of its own: an address (of the connection, or what a PROXY header names; never X-Forwarded-For); a value \
             of `header`, else the address; or nobody.",
        ),
        row(
            "header",
            Text,
            Absent("\"x-api-key\""),
            "For by = \"header\". Limit what clients can invent by address, too.",
        ),
        number(
            "requests",
            Integer { min: 1, max: REQUESTS_MAX as u64 },
            100,
            "",
            "In each period, evenly spread.",
        ),
        number("period_ms", DEADLINE, 1_000, "ms", "The period."),
        row(
            "burst",
            Integer { min: 1, max: REQUESTS_MAX as u64 },
            Absent("20"),
            "At once, after a rest. Absent: as many as in a period.",
        ),
        number(
            "ipv6_prefix_len",
            Integer { min: 32, max: 128 },
            64,
            "",
            "IPv6 clients of one network of this length are one client: who has a network has all its addresses.",
        ),
        number(
            "keys_max",
            Integer { min: 1_024, max: 16_777_216 },
            65_536,
            "",
            "Clients that have used some of their budget lately, remembered at 9 bytes each; what comes beyond shares budgets.",
        ),
    ],
};

pub(super) static HASH: Table = Table {
    help: "Requests of one key go to one endpoint (Maglev), on every worker and on every gateway with the same endpoints. When \
           one is ejected its keys alone go elsewhere; when one comes or goes, a few percent of the others' keys move too. A request \
           without the key goes to the less loaded endpoint.",
    shown: false,
    rows: &[
        row(
            "by",
            Word(&["client_address", "path", "header", "cookie"], &[]),
            Required("\"client_address\""),
            "The key. The path is the client's, without the query. A relay has the address alone.",
        ),
        row("name", Text, Absent("\"x-tenant\""), "Of the header or the cookie."),
    ],
};
