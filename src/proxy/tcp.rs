//! A downstream connection relayed byte for byte to an endpoint. Each direction ends by itself; a reset on one side
//! becomes a reset on the other.

use crate::runtime::Socket;

use super::access::Line;
use super::caller::Caller;
use super::context::{Serving, SessionGuard};
use super::facts::Facts;
use super::outcome::Termination;
use super::relay::{self, Direction, Inlet, Meter, Outlet, Way, Ways};
use super::snapshot::Protocol;
use super::stream::Stream;
use super::upstream::{AcquireError, Connection};

/// Relays until both directions have ended.
pub async fn relay(guard: SessionGuard, downstream: Stream, mut facts: Facts) {
    let line = Line::of_relay(&guard, &facts);
    let termination = match connect_to_own(&guard, &line, &mut facts, downstream.socket()).await {
        Ok(connection) => join(&guard, &line, downstream, connection).await,
        Err(termination) => {
            downstream.abort();
            termination
        }
    };
    line.ended(termination);
    guard.ended(termination);
}

/// A connection to an endpoint of the listener's own cluster, as the present configuration names it.
async fn connect_to_own(
    guard: &SessionGuard,
    line: &Line,
    facts: &mut Facts,
    socket: &Socket,
) -> Result<Connection, Termination> {
    let serving = guard.serving();
    match serving.listener(guard.listener()).map(|listener| listener.protocol) {
        Some(Protocol::Tcp { cluster }) => connect(&serving, line, facts, socket, cluster).await,
        // A session goes on only with a listener of its kind.
        _ => Err(Termination::UpstreamConnect),
    }
}

/// A connection to an endpoint of the cluster; else why the session ends.
pub(super) async fn connect(
    serving: &Serving,
    line: &Line,
    facts: &mut Facts,
    socket: &Socket,
    cluster: u16,
) -> Result<Connection, Termination> {
    line.cluster(cluster);
    let upstreams = &serving.upstreams;
    let spec = upstreams.spec(cluster);
    let caller = spec.map_or_else(Caller::default, |spec| Caller::of_connection(spec, facts, Some(socket)));
    let acquired = upstreams.acquire_for_relay(cluster, caller).await;
    let connection = acquired.map_err(|error| match error {
        AcquireError::TimedOut => Termination::UpstreamTimeout,
        AcquireError::Untrusted => Termination::UpstreamTls,
        AcquireError::Unhealthy => Termination::UpstreamUnhealthy,
        AcquireError::Busy | AcquireError::TooMany => Termination::UpstreamOverflow,
        _ => Termination::UpstreamConnect,
    })?;
    line.asked(connection.endpoint());
    upstreams.on_answer(&connection, false);
    Ok(connection)
}

/// Sends what was received from the client before there was a connection to the endpoint.
pub(super) fn send_first(guard: &SessionGuard, line: &Line, connection: &Connection, bytes: &[u8]) {
    Meter::new(guard, line, connection.counts()).moved(Direction::Up, bytes.len() as u64);
    connection.stream.send(bytes, false);
}

/// Relays between the two until both directions have ended.
pub(super) async fn join(
    guard: &SessionGuard,
    line: &Line,
    downstream: Stream,
    connection: Connection,
) -> Termination {
    let ended = {
        let (down, up) = (&downstream, &connection.stream);
        let ways = Ways {
            up: Way::new(Inlet::Stream(down), Outlet::Stream(up), None),
            down: Way::new(Inlet::Stream(up), Outlet::Stream(down), None),
        };
        relay::run(&Meter::new(guard, line, connection.counts()), ways, guard.timeouts().tcp_idle).await
    };
    match ended {
        Ok(()) => Termination::ClientClosed,
        Err(termination) => {
            downstream.abort();
            connection.abort();
            termination
        }
    }
}
