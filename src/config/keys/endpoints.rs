//! Keys of the tables of a cluster that say how its endpoints are probed, taken out and tried again.

use super::Kind::{Boolean, Integer, Text, TextList, Word};
use super::{Absent, DEADLINE, Preset, Table, number, row};

pub(super) static RETRY: Table = Table {
    help: "After which failures a request is tried again, and how often beside all others.",
    shown: false,
    rows: &[
        row(
            "on",
            TextList,
            Absent(
                "[\"connect-failure\", \"refused-stream\", \"reset-before-request\", \"timeout\", \"gateway-error\"]",
            ),
            "Those, or \"reset\", \"5xx\", a status or a range. A request with a body only while none of it went. Absent: the first three.",
        ),
        row(
            "non_idempotent",
            Boolean,
            Preset::Boolean(false),
            "Sends POST and its like again, too, where an endpoint may have begun them.",
        ),
        row(
            "per_try_timeout_ms",
            DEADLINE,
            Absent("2000"),
            "From a request without a body sent to the response's head, of one try within request_timeout_ms. Absent: that alone.",
        ),
        number(
            "budget_percent",
            Integer { min: 0, max: 1_000 },
            20,
            "%",
            "Retries for a hundred requests that the worker had in the last ten seconds.",
        ),
        number(
            "budget_min_per_s",
            Integer { min: 0, max: 1_000_000 },
            10,
            "",
            "Retries in a second that are always allowed; each worker has an even part of them, at least one.",
        ),
    ],
};

pub(super) static HEALTH_CHECK: Table = Table {
    help: "Endpoints are probed, once for all workers, and get no requests while they do not pass.",
    shown: false,
    rows: &[
        row(
            "type",
            Word(&["tcp", "tls", "http"], &[]),
            Preset::Text("tcp"),
            "\"tcp\": it takes a connection. \"tls\": a handshake as in [cluster.tls]. \"http\": GET, over TLS where the cluster has it.",
        ),
        number("interval_ms", DEADLINE, 5_000, "ms", "From the end of one probe of an endpoint to the next."),
        number("timeout_ms", DEADLINE, 2_000, "ms", "Of one probe, connecting included."),
        number(
            "jitter_percent",
            Integer { min: 0, max: 100 },
            10,
            "%",
            "By how much of itself the interval varies at random.",
        ),
        number(
            "rise",
            Integer { min: 1, max: 1_000 },
            2,
            "",
            "Probes that pass in a row and bring an endpoint back.",
        ),
        number(
            "fall",
            Integer { min: 1, max: 1_000 },
            3,
            "",
            "Probes that fail in a row and take an endpoint out; of a new one the first is enough.",
        ),
        row("path", Text, Preset::Text("/"), "Of type \"http\": what is asked for, with its query."),
        row(
            "host",
            Text,
            Absent("\"www.api.test\""),
            "Of type \"http\": the Host field. Absent: the endpoint's address.",
        ),
        row(
            "expected_status",
            TextList,
            Absent("[\"200-399\", \"401\"]"),
            "Of type \"http\": statuses and ranges that pass. Absent: \"200-399\".",
        ),
        number(
            "panic_percent",
            Integer { min: 0, max: 100 },
            1,
            "%",
            "Below this share of healthy endpoints all get requests: 1: where none is healthy. 0: never, it is 503.",
        ),
    ],
};

pub(super) static EJECTION: Table = Table {
    help: "An endpoint that fails again and again gets no requests for a while, as each worker sees it.",
    shown: false,
    rows: &[
        number(
            "consecutive_failures",
            Integer { min: 0, max: 10_000 },
            5,
            "",
            "Failures in a row that eject; 0 turns ejection off.",
        ),
        number("base_ms", DEADLINE, 1_000, "ms", "First ejection; each further one lasts twice as long."),
        number("max_ms", DEADLINE, 30_000, "ms", "Longest ejection. Not less than base_ms."),
        number(
            "max_ejected_percent",
            Integer { min: 0, max: 100 },
            50,
            "%",
            "Share of the cluster ejected at once; one of several always may be, the only one never.",
        ),
        row(
            "success_rate",
            Boolean,
            Preset::Boolean(false),
            "Ejects, too, whose requests succeed markedly less often than those of the others; 5xx is no success.",
        ),
        number(
            "success_rate_interval_ms",
            DEADLINE,
            10_000,
            "ms",
            "For how long requests are counted, and the first ejection lasts at least.",
        ),
        number(
            "success_rate_stdev_factor_thousandths",
            Integer { min: 0, max: 10_000 },
            1_900,
            "",
            "Standard deviations below the mean of all endpoints, in thousandths.",
        ),
        number(
            "success_rate_endpoints_min",
            Integer { min: 2, max: 4_096 },
            5,
            "",
            "Endpoints with enough requests that are needed to compare.",
        ),
        number(
            "success_rate_requests_min",
            Integer { min: 1, max: 1_000_000 },
            100,
            "",
            "Requests of one worker that an endpoint is judged by.",
        ),
    ],
};
