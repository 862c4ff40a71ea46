//! A request for a tunnel: asked of an endpoint on a connection or a stream of its own. Opened, the exchange is over
//! and so is HTTP; else the answer is a response like any other.

use std::pin::pin;
use std::rc::Rc;

use crate::http::answer::write_answer;
use crate::http::{Reject, websocket};
use crate::metrics::{ClusterCounter, ListenerCounter};
use crate::runtime::RecvBuf;

use super::super::super::http2::{StreamFault, send_request};
use super::super::super::outcome::{Ending, Termination};
use super::super::super::tunnel::{Behind, Handshake, Opening, Tunnel, Upward};
use super::super::super::upstream::{self, Acquired, Connection, Tried};
use super::super::Next;
use super::super::failure::{Failure, NO_TUNNELS, TIMED_OUT, UNANSWERED, cannot_acquire};
use super::super::judge::Answer;
use super::{Exchange, Gone, Responded, ResponsePlan};

/// CANCEL (RFC 9113 §7).
const CANCEL: u32 = 8;

/// What became of the question.
#[expect(
    clippy::large_enum_variant,
    reason = "one lives at a time, for the moment between asking and relaying"
)]
enum Asked {
    Opened(Upward, Option<RecvBuf>),
    Otherwise(Responded),
    /// The client's handshake is not one that we can answer.
    Unanswerable(Handshake),
}

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
        let upstreams = &self.serving.upstreams;
        let shard = self.serving.upstreams.counts(opening.cluster);
        self.early.set(!rest.is_empty());
        let retries_max = upstreams.spec(opening.cluster).map_or(0, |spec| spec.retries_max);
        let mut tried = Tried::default();
        let mut attempts = 0;
        loop {
            let acquired = {
                let acquire = pin!(opening.acquire(upstreams, &mut tried));
                self.unless_gone(acquire).await
            };
            let asked = match acquired {
                Err(Gone) => Err(Gone),
                Ok(Err(error)) => return self.fail_opening(cannot_acquire(error), rest).await,
                Ok(Ok(Acquired::Connection(connection))) => self.ask_connection(opening, connection).await,
                Ok(Ok(Acquired::Stream(exchange))) => self.ask_stream(opening, exchange, &mut tried).await,
            };
            let responded = match asked {
                Err(Gone) => return Next::End(Ending::Abort(Termination::ClientAborted)),
                Ok(Asked::Opened(upward, first_down)) => {
                    let (opening, first_up) = (opening.clone(), Some(rest));
                    return Next::Tunnel(Box::new(Tunnel { opening, upward, first_up, first_down }));
                }
                Ok(Asked::Unanswerable(handshake)) => return self.refuse_handshake(handshake, rest).await,
                Ok(Asked::Otherwise(responded)) => responded,
            };
            match responded {
                Responded::Complete { .. } => return self.after_response(Some(rest)).await,
                Responded::Broken(termination) => return Next::End(Ending::Abort(termination)),
                Responded::Refused if attempts < retries_max => {}
                Responded::Failed(failure) => return self.fail_opening(failure, rest).await,
                Responded::Refused | Responded::Unanswered | Responded::Opened(_) => {
                    return self.fail_opening(UNANSWERED, rest).await;
                }
            }
            attempts += 1;
            shard.add(ClusterCounter::Retries, 1);
        }
    }

    /// Asks on a connection, which is closed unless it becomes the tunnel: nothing else ever goes over it.
    async fn ask_connection(&self, opening: &Opening, connection: Connection) -> Result<Asked, Gone> {
        let Some(spec) = self.serving.upstreams.spec(opening.cluster) else {
            return Ok(Asked::Otherwise(Responded::Unanswered));
        };
        let shard = self.serving.upstreams.counts(opening.cluster);
        shard.add(ClusterCounter::SentBytes, opening.head.len() as u64);
        connection.stream.send(&opening.head, false);
        self.deadline.set(self.context.runtime.now() + spec.request_timeout);
        let responded = {
            let respond = pin!(self.respond(&connection, opening.cluster, opening.route));
            self.unless_gone(respond).await
        };
        let Ok(responded) = responded else {
            shard.response(None);
            connection.abort();
            return Err(Gone);
        };
        self.judge_endpoint(&connection, opening.cluster, &responded);
        Ok(match responded {
            Responded::Opened(behind) => match *behind {
                Behind::Connection(first) => Asked::Opened(Upward::Connection(connection), Some(first)),
                Behind::Stream(_) => Asked::Otherwise(Responded::Unanswered),
            },
            responded => Asked::Otherwise(responded),
        })
    }

    /// Asks on a stream.
    async fn ask_stream(
        &self,
        opening: &Opening,
        mut exchange: upstream::Exchange,
        tried: &mut Tried,
    ) -> Result<Asked, Gone> {
        let upstreams = &self.serving.upstreams;
        let Some(spec) = upstreams.spec(opening.cluster) else {
            return Ok(Asked::Otherwise(Responded::Unanswered));
        };
        if let Err(handshake) = opening.take_key() {
            return Ok(Asked::Unanswerable(handshake));
        }
        self.deadline.set(self.context.runtime.now() + spec.request_timeout);
        if !opening.is_connect() {
            let takes = {
                let asking = pin!(self.deadline.within(exchange.slot.takes_extended_connect()));
                self.unless_gone(asking).await?
            };
            match takes {
                Ok(true) => {}
                Ok(false) => return Ok(Asked::Otherwise(Responded::Failed(NO_TUNNELS))),
                Err(_) => return Ok(Asked::Otherwise(Responded::Failed(TIMED_OUT))),
            }
        }
        let shard = self.serving.upstreams.counts(opening.cluster);
        shard.add(ClusterCounter::SentBytes, opening.head.len() as u64);
        let scheme = if spec.tls.is_some() { "https" } else { "http" };
        let endpoint = exchange.endpoint();
        let sent = send_request(&mut exchange.slot, &opening.head, endpoint, scheme, false, false);
        let (mut call, mut sender) = match sent {
            Ok(sent) => sent,
            Err(StreamFault::Refused) => return Ok(Asked::Otherwise(Responded::Refused)),
            Err(_) => return Ok(Asked::Otherwise(Responded::Failed(UNANSWERED))),
        };
        let responded = {
            let route = opening.route;
            let respond = pin!(self.respond_from_stream(&exchange, &mut call, opening.cluster, route));
            self.unless_gone(respond).await
        };
        self.judge_stream(&exchange, opening.cluster, responded.as_ref().ok(), tried);
        match responded {
            Ok(Responded::Opened(behind)) => match *behind {
                Behind::Stream(receiver) => {
                    Ok(Asked::Opened(Upward::Stream { exchange, receiver, sender }, None))
                }
                Behind::Connection(_) => Ok(Asked::Otherwise(Responded::Unanswered)),
            },
            otherwise => {
                sender.reset(CANCEL);
                otherwise.map(Asked::Otherwise)
            }
        }
    }

    /// Tells the client that the tunnel is open.
    pub(super) fn tell_opened(&self, plan: ResponsePlan) {
        self.status.set(Some(plan.status));
        self.guard.counts().add(ListenerCounter::SentBytes, plan.out.len() as u64);
        self.stream.send(&plan.out, false);
        self.context.runtime.put_block(plan.out);
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
