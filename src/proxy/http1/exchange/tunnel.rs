//! A request for a tunnel: asked of an endpoint on a connection or a stream of its own. Opened, the exchange is over
//! and so is HTTP; else the answer is a response like any other.

use std::rc::Rc;

use crate::http::answer::write_answer;
use crate::http::{Reject, websocket};
use crate::runtime::RecvBuf;

use super::super::super::ask::{self, NotOpened};
use super::super::super::outcome::{Ending, Termination};
use super::super::super::tunnel::{Handshake, Opening, Tunnel};
use super::super::super::upstream::Tried;
use super::super::Next;
use super::super::failure::{Failure, UNANSWERED};
use super::super::judge::Answer;
use super::Exchange;

impl Exchange<'_> {
    /// The tunnel asked for, if that is what the request is for.
    pub(super) fn opening(&self) -> Option<&Opening> {
        match &self.request.answer {
            Answer::Tunnel(opening) => Some(opening),
            _ => None,
        }
    }

    /// Has an endpoint open the tunnel.
    pub(super) async fn open(&self, opening: &Rc<Opening>, rest: RecvBuf) -> Next {
        self.early.set(!rest.is_empty());
        match ask::open(self, self.context, opening, Tried::new(opening.caller.clone())).await {
            Ok(ask::Opened { side: (), upward, first_down }) => {
                let (opening, first_up) = (opening.clone(), Some(rest));
                Next::Tunnel(Box::new(Tunnel { opening, upward, first_up, first_down }))
            }
            Err(NotOpened::Gone) => Next::End(Ending::Abort(Termination::ClientAborted)),
            Err(NotOpened::Unanswerable(handshake)) => self.refuse_handshake(handshake, rest).await,
            Err(NotOpened::Answered) => self.after_response(Some(rest)).await,
            Err(NotOpened::Broken(termination)) => Next::End(Ending::Abort(termination)),
            Err(NotOpened::Failed(failure)) => self.fail_opening(failure, rest).await,
            Err(NotOpened::Refused) => self.fail_opening(UNANSWERED, rest).await,
        }
    }

    /// A client that asked for a tunnel and gets none: what it sent behind the request may be meant for the tunnel and
    /// must not be read as another request. Behind CONNECT it always is.
    pub(super) fn judge_behind(&self) {
        let Some(opening) = self.opening() else { return };
        if opening.is_connect() || self.early.get() || self.stream.has_input() {
            self.keep_alive.set(false);
        }
    }

    async fn fail_opening(&self, failure: Failure, rest: RecvBuf) -> Next {
        self.judge_behind();
        self.fail(failure, Some(rest)).await
    }

    /// RFC 6455 §4.2.1 and §4.4.
    async fn refuse_handshake(&self, handshake: Handshake, rest: RecvBuf) -> Next {
        let reject = Reject::BAD_WEBSOCKET_KEY;
        let (status, text, fields): (_, _, &[(&str, &str)]) = match handshake {
            Handshake::BadKey => (reject.status, reject.text, &[]),
            Handshake::OtherVersion => (426, "", &websocket::VERSION_FIELDS),
        };
        self.judge_behind();
        self.status.set(Some(status));
        let connection = match (self.keep_alive.get(), status) {
            (true, 426) => Some("Upgrade"),
            (false, 426) => Some("close, Upgrade"),
            (true, _) => None,
            (false, _) => Some("close"),
        };
        let mut out = self.context.runtime.take_block();
        self.context.with_date(|date| {
            write_answer(&mut out, status, text, connection, self.request.is_head, fields, Some(date));
        });
        self.send_block(out);
        self.after_answer(rest).await
    }
}
