//! A stream that asks for a tunnel: CONNECT, plain or extended. The order of things is that of
//! `http1::exchange::tunnel`.

use std::pin::pin;
use std::rc::Rc;

use h2::Reason;

use crate::metrics::ClusterCounter;
use crate::runtime::RecvBuf;

use super::super::super::http1::failure::{NO_TUNNELS, TIMED_OUT, UNANSWERED, cannot_acquire};
use super::super::super::tunnel::{Behind, Opening, Tunnel, Upward};
use super::super::super::upstream::{self, Acquired, Connection, Tried};
use super::super::send_request;
use super::super::stream::{Sender, StreamFault};
use super::{Destination, Exchange, Gone, Responded, ResponsePlan};

/// What became of the question.
enum Asked {
    Opened(Box<(Sender, Upward, Option<RecvBuf>)>),
    Otherwise(Responded),
}

impl Exchange<'_> {
    /// Has an endpoint open the tunnel.
    pub(super) async fn open(&self, opening: &Rc<Opening>) {
        self.opening.replace(Some(opening.clone()));
        let upstreams = &self.serving.upstreams;
        let shard = self.serving.upstreams.counts(opening.cluster);
        let retries_max = upstreams.spec(opening.cluster).map_or(0, |spec| spec.retries_max);
        let mut tried = Tried::default();
        let mut attempts = 0;
        loop {
            let acquired = {
                let acquire = pin!(opening.acquire(upstreams, &mut tried));
                self.unless_gone(acquire).await
            };
            shard.add(ClusterCounter::SentBytes, opening.head.len() as u64);
            let asked = match acquired {
                Err(Gone) => return,
                Ok(Err(error)) => return self.fail(&cannot_acquire(error)).await,
                Ok(Ok(Acquired::Connection(connection))) => self.ask_connection(opening, connection).await,
                Ok(Ok(Acquired::Stream(exchange))) => self.ask_stream(opening, exchange).await,
            };
            let responded = match asked {
                Ok(Asked::Opened(opened)) => {
                    let (sender, upward, first_down) = *opened;
                    let opening = opening.clone();
                    let tunnel = Tunnel { opening, upward, first_up: None, first_down };
                    self.opened.replace(Some((sender, tunnel)));
                    return;
                }
                Ok(Asked::Otherwise(responded)) => Ok(responded),
                Err(Gone) => Err(Gone),
            };
            if !matches!(responded, Ok(Responded::Complete { .. } | Responded::Broken { .. })) {
                shard.response(None);
            }
            match responded {
                Err(Gone) | Ok(Responded::Complete { .. } | Responded::Broken { .. }) => return,
                Ok(Responded::Refused) if attempts < retries_max => {}
                Ok(Responded::Failed(failure)) => return self.fail(&failure).await,
                Ok(Responded::Refused | Responded::Unanswered | Responded::Opened(_)) => {
                    return self.fail(&UNANSWERED).await;
                }
            }
            attempts += 1;
            shard.add(ClusterCounter::Retries, 1);
        }
    }

    /// Asks on a connection, which is closed unless it becomes the tunnel: nothing else ever goes over it.
    async fn ask_connection(&self, opening: &Opening, connection: Connection) -> Result<Asked, Gone> {
        let upstreams = &self.serving.upstreams;
        let Some(spec) = upstreams.spec(opening.cluster) else {
            return Ok(Asked::Otherwise(Responded::Unanswered));
        };
        let head = opening.head_with_key(self.context);
        connection.stream.send(&head, false);
        self.context.runtime.put_block(head);
        self.deadline.set(self.context.runtime.now() + spec.request_timeout);
        let responded = {
            let respond = pin!(self.respond(&connection, opening.cluster, opening.route));
            self.unless_gone(respond).await
        };
        match responded {
            Ok(Responded::Opened(opened)) => {
                upstreams.on_answer(&connection);
                let (sender, behind) = *opened;
                Ok(match behind {
                    Behind::Connection(first) => {
                        Asked::Opened(Box::new((sender, Upward::Connection(connection), Some(first))))
                    }
                    Behind::Stream(_) => Asked::Otherwise(Responded::Unanswered),
                })
            }
            Ok(responded) => {
                match responded {
                    Responded::Complete { .. } => upstreams.on_answer(&connection),
                    Responded::Failed(_) | Responded::Broken { by_endpoint: true } => {
                        upstreams.on_failure(&connection);
                    }
                    _ => {}
                }
                connection.abort();
                Ok(Asked::Otherwise(responded))
            }
            Err(Gone) => {
                connection.abort();
                Err(Gone)
            }
        }
    }

    /// Asks on a stream.
    async fn ask_stream(&self, opening: &Opening, mut exchange: upstream::Exchange) -> Result<Asked, Gone> {
        let upstreams = &self.serving.upstreams;
        let Some(spec) = upstreams.spec(opening.cluster) else {
            return Ok(Asked::Otherwise(Responded::Unanswered));
        };
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
        let scheme = if spec.tls.is_some() { "https" } else { "http" };
        let endpoint = exchange.endpoint();
        let sent = send_request(&mut exchange.slot, &opening.head, endpoint, scheme, false, false);
        let (mut call, mut sender) = match sent {
            Ok(sent) => sent,
            Err(StreamFault::Refused) => return Ok(Asked::Otherwise(Responded::Refused)),
            Err(_) => return Ok(Asked::Otherwise(Responded::Failed(UNANSWERED))),
        };
        let responded = {
            let to = Destination { cluster: opening.cluster, route: opening.route, head: &opening.head };
            let respond = pin!(self.respond_from_stream(&exchange, &mut call, &to));
            self.unless_gone(respond).await
        };
        match responded {
            Ok(Responded::Opened(opened)) => {
                upstreams.on_stream_answer(&exchange);
                if let (to_client, Behind::Stream(receiver)) = *opened {
                    let upward = Upward::Stream { exchange, receiver, sender };
                    return Ok(Asked::Opened(Box::new((to_client, upward, None))));
                }
                Ok(Asked::Otherwise(Responded::Unanswered))
            }
            otherwise => {
                match otherwise {
                    Ok(Responded::Complete { .. }) => upstreams.on_stream_answer(&exchange),
                    Ok(Responded::Failed(_) | Responded::Broken { by_endpoint: true }) => {
                        upstreams.on_stream_failure(&exchange);
                    }
                    _ => {}
                }
                sender.reset(Reason::CANCEL.into());
                otherwise.map(Asked::Otherwise)
            }
        }
    }

    /// Tells the client that the tunnel is open.
    pub(super) fn tell_opened(&self, plan: ResponsePlan, behind: Behind) -> Responded {
        match self.send_head(plan.response, false) {
            Some(sender) => Responded::Opened(Box::new((sender, behind))),
            None => Responded::Broken { by_endpoint: false },
        }
    }
}
