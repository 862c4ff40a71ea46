//! What the control thread asks of a worker for its operator, and how the worker answers: in one turn, whose length goes by
//! what there is and what is asked for. How often it is asked is up to who asks: there is no bound here.

use std::net::{IpAddr, SocketAddr};

use tokio::sync::mpsc::UnboundedSender;

use crate::base::time::Instant;
use crate::proxy::context::Context;
pub use crate::proxy::upstream::{ClusterView, EndpointView};

/// Where the answers of all workers go, each with its number.
pub type Replies<T> = UnboundedSender<(u32, T)>;

/// A question. Each worker gets a copy.
#[derive(Clone, Debug)]
pub enum Question {
    /// How many connections there are, and the oldest of them.
    Connections {
        max: usize,
        replies: Replies<(usize, Vec<ConnectionView>)>,
    },
    Clusters(Replies<Vec<ClusterView>>),
    /// Gives an endpoint no more requests, or again; the answer is whether the worker knows it.
    DrainEndpoint {
        cluster: Box<str>,
        address: SocketAddr,
        drains: bool,
        replies: Replies<bool>,
    },
}

/// One downstream connection.
#[derive(Clone, Debug)]
pub struct ConnectionView {
    pub listener: Box<str>,
    pub client: Option<IpAddr>,
    pub since: Instant,
    pub doing: &'static str,
    pub exchanges: u32,
}

pub(super) fn answer(context: &Context, question: Question) {
    let worker = context.shard.worker();
    // Whoever asked may have gone.
    match question {
        Question::Connections { max, replies } => {
            let (count, oldest) = context.connections.oldest(max);
            let view = |it: crate::proxy::connections::Connected| ConnectionView {
                listener: it.listener.counts.name().into(),
                client: it.client,
                since: it.since,
                doing: it.doing.word(),
                exchanges: it.exchanges,
            };
            let _ = replies.send((worker, (count, oldest.into_iter().map(view).collect())));
        }
        Question::Clusters(replies) => drop(replies.send((worker, context.serving().upstreams.view()))),
        Question::DrainEndpoint { cluster, address, drains, replies } => {
            let found = context.serving().upstreams.drain_endpoint(&cluster, address, drains);
            let _ = replies.send((worker, found));
        }
    }
}
