//! A downstream connection relayed byte for byte to an endpoint. Each direction ends by itself; a reset on one side
//! becomes a reset on the other.

use super::access::Line;
use super::context::SessionGuard;
use super::outcome::Termination;
use super::relay::{self, Direction, Inlet, Meter, Outlet, Way, Ways};
use super::stream::Stream;
use super::upstream::{AcquireError, Connection};

/// Relays until both directions have ended.
pub async fn relay(guard: SessionGuard, line: Line, downstream: Stream, cluster: u16) {
    let termination = match connect(&guard, &line, cluster).await {
        Ok(connection) => join(&guard, &line, downstream, connection, cluster).await,
        Err(termination) => {
            downstream.abort();
            termination
        }
    };
    line.ended(termination);
    guard.ended(termination);
}

/// A connection to an endpoint of the cluster; else why the session ends.
pub(super) async fn connect(
    guard: &SessionGuard,
    line: &Line,
    cluster: u16,
) -> Result<Connection, Termination> {
    line.cluster(cluster);
    let upstreams = &guard.context().upstreams;
    let acquired = upstreams.acquire_for_relay(cluster).await;
    let connection = acquired.map_err(|error| match error {
        AcquireError::TimedOut => Termination::UpstreamTimeout,
        AcquireError::Untrusted => Termination::UpstreamTls,
        _ => Termination::UpstreamConnect,
    })?;
    line.asked(connection.endpoint());
    upstreams.on_answer(&connection);
    Ok(connection)
}

/// Sends what was received from the client before there was a connection to the endpoint.
pub(super) fn send_first(
    guard: &SessionGuard,
    line: &Line,
    connection: &Connection,
    cluster: u16,
    bytes: &[u8],
) {
    Meter::new(guard, line, cluster).moved(Direction::Up, bytes.len() as u64);
    connection.stream.send(bytes, false);
}

/// Relays between the two until both directions have ended.
pub(super) async fn join(
    guard: &SessionGuard,
    line: &Line,
    downstream: Stream,
    connection: Connection,
    cluster: u16,
) -> Termination {
    let ended = {
        let (down, up) = (&downstream, &connection.stream);
        let ways = Ways {
            up: Way::new(Inlet::Stream(down), Outlet::Stream(up), None),
            down: Way::new(Inlet::Stream(up), Outlet::Stream(down), None),
        };
        relay::run(&Meter::new(guard, line, cluster), ways, guard.timeouts().tcp_idle).await
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
