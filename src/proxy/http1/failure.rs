//! What the client is told when an endpoint does not answer: one place from cause to status, text and reason.

use crate::http::Reject;

use super::super::body::BodyError;
use super::super::outcome::Termination;
use super::super::upstream::AcquireError;

/// An answer in place of the endpoint's.
pub(in crate::proxy) struct Failure {
    pub(in crate::proxy) status: u16,
    pub(in crate::proxy) text: &'static str,
    pub(in crate::proxy) termination: Termination,
}

pub(in crate::proxy) const UNANSWERED: Failure = Failure {
    status: 502,
    text: "The upstream server closed the connection without answering.",
    termination: Termination::UpstreamFailed,
};

pub(in crate::proxy) const NO_TUNNELS: Failure = Failure {
    status: 502,
    text: "The upstream server opens no tunnels over HTTP/2.",
    termination: Termination::UpstreamFailed,
};

pub(in crate::proxy) const TIMED_OUT: Failure =
    Failure { status: 504, text: "", termination: Termination::UpstreamTimeout };

/// A request that was taken in HTTP/1.1 and that HTTP/2 has no form for.
pub(in crate::proxy) const UNSENDABLE: Failure = Failure {
    status: 400,
    text: "The request has no form in HTTP/2, which the upstream server speaks.",
    termination: Termination::BadRequest,
};

/// A request that has as many fields as are taken, and more with ours: they go to HTTP/1.1 only.
pub(in crate::proxy) const TOO_MANY_FIELDS: Failure = Failure {
    status: Reject::TOO_MANY_FIELDS.status,
    text: Reject::TOO_MANY_FIELDS.text,
    termination: Termination::BadRequest,
};

impl Failure {
    /// Whether the endpoint broke its word.
    pub(in crate::proxy) const fn is_endpoints_fault(&self) -> bool {
        matches!(self.termination, Termination::UpstreamFailed | Termination::UpstreamTimeout)
    }
}

pub(in crate::proxy) const fn invalid(reject: Reject) -> Failure {
    Failure { status: reject.status, text: reject.text, termination: Termination::UpstreamFailed }
}

pub(in crate::proxy) const fn cannot_acquire(error: AcquireError) -> Failure {
    let (status, text) = match error {
        AcquireError::NoEndpoint => (503, "The gateway knows no upstream server for this."),
        AcquireError::Unhealthy => (503, "No upstream server for this is healthy."),
        AcquireError::Busy => (503, "All connections to the upstream server are in use."),
        AcquireError::TooMany => (503, "Too many requests are under way to the upstream server."),
        AcquireError::Refused => (502, "The upstream server refused the connection."),
        AcquireError::Untrusted => (502, "The TLS handshake with the upstream server failed."),
        AcquireError::Local => (503, "The gateway has no descriptor or port left for another connection."),
        AcquireError::TimedOut => (504, "The upstream server did not accept a connection in time."),
    };
    let termination = match error {
        AcquireError::Untrusted => Termination::UpstreamTls,
        AcquireError::Unhealthy => Termination::UpstreamUnhealthy,
        AcquireError::Busy | AcquireError::TooMany => Termination::UpstreamOverflow,
        _ => Termination::UpstreamConnect,
    };
    Failure { status, text, termination }
}

pub(in crate::proxy) const fn is_clients_fault(error: BodyError) -> bool {
    match error {
        BodyError::Truncated
        | BodyError::SourceBroken
        | BodyError::Malformed(_)
        | BodyError::SourceTimedOut => true,
        // The endpoint stopped reading; it may have answered early.
        BodyError::SinkBroken | BodyError::SinkStalled => false,
    }
}
