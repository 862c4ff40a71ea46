//! Why a session ended: one word of a fixed list, shared by metrics and logs. The first cause wins.

/// Declares the reasons once: the enum and its words.
macro_rules! terminations {
    ($($variant:ident: $word:literal, $help:literal;)*) => {
        /// Why a session ended.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Termination { $(#[doc = $help] $variant,)* }

        impl Termination {
            /// The words, by position; what metrics and logs show.
            pub const WORDS: &'static [&'static str] = &[$($word),*];
        }
    };
}

terminations! {
    ClientClosed: "client_closed", "The client closed between requests, or both sides of a relay ended.";
    ClientAborted: "client_aborted", "The client left or reset in the middle of an exchange.";
    ClientClosing: "client_closing", "Closed with the response, as the client asked for.";
    BadRequest: "bad_request", "The client's message was refused; the answer said why.";
    ProtocolError: "protocol_error", "The client broke the rules of HTTP/2; GOAWAY said how.";
    Flooded: "flooded", "The client sent more frames that cost than work (ENHANCE_YOUR_CALM).";
    FirstByteTimeout: "first_byte_timeout", "The client connected and sent nothing.";
    HandshakeTimeout: "handshake_timeout", "The client did not finish its TLS handshake in time.";
    TlsFailed: "tls_failed", "The TLS handshake failed; the alert said why.";
    NameUnknown: "name_unknown", "No route has the server name that the client asked for; an alert said so.";
    PlaintextRefused: "plaintext_refused", "The client sent no TLS to a listener that takes nothing else.";
    ProxyUntrusted: "proxy_untrusted", "The peer is none of the proxies that the listener is for.";
    ProxyHeader: "proxy_header", "A trusted proxy did not begin with a valid PROXY header.";
    HeaderTimeout: "header_timeout", "The client did not finish its request head in time.";
    RateLimited: "rate_limited", "Closed with the 429 to a request whose body was not worth reading.";
    BodyTimeout: "body_timeout", "The client sent its request body too slowly.";
    IdleTimeout: "idle_timeout", "No request, or no byte of a relay or tunnel, came in time.";
    WriteStalled: "write_stalled", "The client did not take what was sent to it.";
    RequestsMax: "requests_max", "Closed with the response to the last request a connection may carry.";
    EarlyResponse: "early_response", "Closed with a response that came before the request body ended.";
    ResponseUnframed: "response_unframed", "Closed to end a response whose length the client cannot know otherwise.";
    UpstreamConnect: "upstream_connect", "No endpoint could be connected to.";
    UpstreamOverflow: "upstream_overflow", "A limit of the cluster was reached: connections, waiting requests or all requests.";
    UpstreamUnhealthy: "upstream_unhealthy", "Active checks took out every endpoint.";
    UpstreamTls: "upstream_tls", "No endpoint passed the TLS handshake, or none took our certificate.";
    UpstreamFailed: "upstream_failed", "The endpoint broke its response off, or sent an invalid one.";
    UpstreamReset: "upstream_reset", "The endpoint reset a relayed connection or tunnel.";
    UpstreamTimeout: "upstream_timeout", "The endpoint did not answer or take the request in time.";
    TunnelRefused: "tunnel_refused", "The client asked for a tunnel and got none: what it sent on is not HTTP.";
    TunnelClosed: "tunnel_closed", "Both sides of a tunnel ended.";
    Drained: "drained", "Closed because the gateway drains.";
    Moved: "moved", "Closed with a response: the worker loses CPU time and has more connections than its share.";
    Shed: "shed", "Refused to keep the worker within its limits.";
}

impl Termination {
    pub const fn word(self) -> &'static str {
        Self::WORDS[self as usize]
    }

    /// Whether nothing went wrong.
    pub const fn is_usual(self) -> bool {
        matches!(
            self,
            Self::ClientClosed
                | Self::ClientClosing
                | Self::FirstByteTimeout
                | Self::IdleTimeout
                | Self::RequestsMax
                | Self::EarlyResponse
                | Self::ResponseUnframed
                | Self::TunnelClosed
                | Self::Drained
                | Self::Moved
        )
    }
}

/// How the connection is to be left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// With what was sent delivered: our FIN, then the client's.
    Graceful(Termination),
    /// At once behind what was sent: the client said that it sends no more, or has ended its stream.
    Close(Termination),
    /// With RST: the client must not take what it got for the whole.
    Abort(Termination),
}

impl Ending {
    pub const fn termination(self) -> Termination {
        match self {
            Self::Graceful(termination) | Self::Close(termination) | Self::Abort(termination) => termination,
        }
    }
}
