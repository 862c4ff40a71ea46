//! How a connection ends with its last response, and whether this one is the last. Never ends one in a response.

use crate::metrics::Drained;

use super::super::super::outcome::{Ending, Termination};
use super::super::Next;
use super::super::judge::Answer;
use super::Exchange;

impl Exchange<'_> {
    /// Whether the client is to take its next request to another worker. Not where more came already, which it would have
    /// to send anew. Asked once for each response, as it begins.
    pub(super) fn moves(&self) -> bool {
        let context = self.context;
        if self.keep_alive.get() && !self.has_more && context.door.drains(&context.runtime, 1) {
            self.moved.set(true);
        }
        self.moved.get()
    }

    /// Ends the connection behind its last response. `nothing_behind`: no byte came behind the request.
    pub(super) fn close_after_response(&self, nothing_behind: bool) -> Next {
        let request = self.request;
        Next::End(if request.framing.has_body() && matches!(request.answer, Answer::Limited { .. }) {
            Ending::Graceful(Termination::RateLimited)
        } else if request.framing.has_body() {
            Ending::Graceful(Termination::EarlyResponse)
        } else {
            self.ending(nothing_behind)
        })
    }

    /// How a connection ends that was told so with a complete response to a complete request.
    pub(super) fn ending(&self, nothing_behind: bool) -> Ending {
        let request = self.request;
        if self.unframed.get() && request.keep_alive {
            return Ending::Graceful(Termination::ResponseUnframed);
        }
        if request.keep_alive {
            return Ending::Graceful(match self.opening() {
                _ if self.guard.is_draining() => {
                    self.context.shard.drained(Drained::Shutdown);
                    Termination::Drained
                }
                _ if self.moved.get() => Termination::Moved,
                Some(_) => Termination::TunnelRefused,
                None => Termination::RequestsMax,
            });
        }
        // RFC 9112 §9.6: after a request with "close" the client sends nothing. One that does anyway makes the kernel
        // answer with RST, which overtakes and destroys what of a long response is still unsent.
        if nothing_behind && self.at_once.get() && !request.framing.has_body() && !self.stream.has_input() {
            return Ending::Close(Termination::ClientClosing);
        }
        Ending::Graceful(Termination::ClientClosing)
    }
}
