//! Keys of `[access_log]`. This file is one table.

use super::super::schema::Kind::{Boolean, Integer, Ratio, Text, TextList, Word};
use super::super::schema::Preset::{self, Absent};
use super::super::schema::Table;
use super::{DAY_MS, number, row, tables};

pub(super) static ACCESS_LOG: Table = Table {
    help: "One line for each request, tunnel and relay, and for each connection that carried none. What cannot be written is \
           dropped and counted: no request waits for its line. Without this table nothing is logged of them.",
    shown: false,
    rows: &[
        row(
            "path",
            Text,
            Preset::Text("stdout"),
            "\"stdout\", or a file or pipe that is appended to; SIGUSR1 opens it anew.",
        ),
        row(
            "format",
            Word(&["json", "text"], &[]),
            Preset::Text("json"),
            "\"json\": one object a line. \"text\": the combined format of Apache and nginx, then name=value.",
        ),
        number(
            "buffer_bytes",
            Integer { min: 65_536, max: 64 << 20 },
            1_048_576,
            "bytes",
            "Lines of one worker that may wait to be written; the next ones are dropped. Takes effect when a worker starts.",
        ),
        tables("rules", &ACCESS_LOG_RULES),
    ],
};

static ACCESS_LOG_RULES: Table = Table {
    help: "Which share of some lines is written. The first rule that matches decides; a line that none matches is written.",
    shown: false,
    rows: &[
        row("listeners", TextList, Absent("[\"web\"]"), "Absent: any."),
        row("routes", TextList, Absent("[\"api\"]"), "Absent: any, also none."),
        row(
            "statuses",
            TextList,
            Absent("[\"2xx\", \"404\", \"none\"]"),
            "Codes, classes, and \"none\" for what ended without a status. Absent: any.",
        ),
        row(
            "failed",
            Boolean,
            Absent("true"),
            "true: only what went wrong: 5xx, a gRPC status that is not 0, cut off or refused. false: only what did not.",
        ),
        number(
            "duration_min_ms",
            Integer { min: 0, max: DAY_MS },
            0,
            "ms",
            "Only what took at least as long.",
        ),
        row(
            "ratio",
            Ratio { min: 0.0, max: 1.0 },
            Preset::Ratio(1.0),
            "The share that is written, at random; 0.0: none.",
        ),
    ],
};
