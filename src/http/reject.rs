//! Why a message is not taken, with the status it gets. Declared once, here; `proxy` counts by `reason` and answers.

/// A refusal of a message. `Copy` and without owned text, so that hostile input costs no allocation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reject {
    /// The status towards the client: 4xx/5xx for its request, 502 for what an upstream sent.
    pub status: u16,
    /// A snake_case word for metrics and logs. Stable.
    pub reason: &'static str,
    /// One short sentence for the body of the answer.
    pub text: &'static str,
}

impl Reject {
    /// The same fault, found in what an upstream sent: the client did nothing wrong.
    pub const fn by_upstream(self) -> Self {
        Self { status: 502, reason: self.reason, text: "The upstream server sent an invalid response." }
    }
}

macro_rules! rejects {
    ($($name:ident: $status:literal, $reason:literal, $text:literal;)*) => {
        impl Reject {
            $(pub const $name: Self = Self { status: $status, reason: $reason, text: $text };)*
            /// Every refusal this module can express, for the metrics catalog.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

rejects! {
    BAD_METHOD: 400, "bad_method", "The request method is not a valid token.";
    BAD_REQUEST_LINE: 400, "bad_request_line", "The request line is not valid.";
    BAD_STATUS_LINE: 400, "bad_status_line", "The status line is not valid.";
    BAD_TARGET: 400, "bad_target", "The request target is not valid.";
    BAD_VERSION: 400, "bad_version", "The HTTP version is not valid.";
    BAD_LINE_END: 400, "bad_line_end", "A line does not end in CRLF.";
    BAD_FIELD_NAME: 400, "bad_field_name", "A header field name is not valid.";
    BAD_FIELD_VALUE: 400, "bad_field_value", "A header field value is not valid.";
    BAD_HOST: 400, "bad_host", "The Host header field is not valid.";
    MISSING_HOST: 400, "missing_host", "The request has no Host header field.";
    DUPLICATE_HOST: 400, "duplicate_host", "The request has more than one Host header field.";
    AMBIGUOUS_LENGTH: 400, "ambiguous_length", "Content-Length and Transfer-Encoding are both present.";
    BAD_CONTENT_LENGTH: 400, "bad_content_length", "The Content-Length is not valid.";
    DUPLICATE_CONTENT_LENGTH: 400, "duplicate_content_length", "There is more than one Content-Length.";
    BAD_TRANSFER_ENCODING: 400, "bad_transfer_encoding", "The Transfer-Encoding is not valid.";
    TRANSFER_ENCODING_IN_HTTP10: 400, "transfer_encoding_in_http10", "HTTP/1.0 has no Transfer-Encoding.";
    UNDERSCORED_FRAMING: 400, "underscored_framing", "A header field imitates a message length.";
    BAD_MAX_FORWARDS: 400, "bad_max_forwards", "The Max-Forwards header field is not valid.";
    CONNECTION_OPTIONS: 400, "connection_options", "The Connection header field lists too many names.";
    TRACE_WITH_BODY: 400, "trace_with_body", "A TRACE request carries a body.";
    BAD_CHUNK_SIZE: 400, "bad_chunk_size", "A chunk size is not valid.";
    BAD_CHUNK_EXTENSION: 400, "bad_chunk_extension", "A chunk extension is not valid.";
    CHUNK_EXTENSION_TOO_LARGE: 400, "chunk_extension_too_large", "The chunk extensions are too large.";
    BAD_CHUNK_END: 400, "bad_chunk_end", "A chunk does not end where its size says.";
    BAD_TRAILER: 400, "bad_trailer", "The trailer section is not valid.";
    TARGET_TOO_LONG: 414, "target_too_long", "The request target is too long.";
    EXPECTATION: 417, "expectation", "The only expectation known here is 100-continue.";
    HEAD_TOO_LARGE: 431, "head_too_large", "The header section is too large.";
    TOO_MANY_FIELDS: 431, "too_many_fields", "There are too many header fields.";
    TRAILER_TOO_LARGE: 431, "trailer_too_large", "The trailer section is too large.";
    BAD_WEBSOCKET_KEY: 400, "bad_websocket_key", "The Sec-WebSocket-Key is not valid.";
    CONNECT_WITH_BODY: 400, "connect_with_body", "A CONNECT request carries a body.";
    NOT_SWITCHED: 502, "not_switched", "The upstream server did not change to the protocol asked for.";
    UNKNOWN_TRANSFER_CODING: 501, "unknown_transfer_coding", "This transfer coding is not implemented here.";
    VERSION_NOT_SUPPORTED: 505, "version_not_supported", "Only HTTP/1.1 and HTTP/1.0 are spoken here.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_unique_snake_case_words() {
        for (index, reject) in Reject::ALL.iter().enumerate() {
            let word = reject.reason.bytes();
            assert!(word.clone().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            assert!(Reject::ALL[..index].iter().all(|earlier| earlier.reason != reject.reason));
            assert!(reject.text.ends_with('.'));
        }
    }

    #[test]
    fn a_fault_of_an_upstream_is_502_with_its_own_reason() {
        let reject = Reject::BAD_CONTENT_LENGTH.by_upstream();
        assert_eq!((reject.status, reject.reason), (502, "bad_content_length"));
    }
}
