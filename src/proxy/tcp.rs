//! A downstream connection relayed byte for byte to an endpoint. Each direction ends by itself; a reset on one side
//! becomes a reset on the other.

use super::context::SessionGuard;
use super::outcome::Termination;
use super::relay::{self, Direction, Inlet, Meter, Outlet, Way, Ways};
use super::stream::Stream;
use super::upstream::{AcquireError, Connection};

/// Relays until both directions have ended.
pub async fn relay(guard: SessionGuard, downstream: Stream, cluster: u16) {
    let termination = match connect(&guard, cluster).await {
        Ok(connection) => join(&guard, downstream, connection, cluster).await,
        Err(termination) => {
            downstream.abort();
            termination
        }
    };
    guard.ended(termination);
}

/// A connection to an endpoint of the cluster; else why the session ends.
pub(super) async fn connect(guard: &SessionGuard, cluster: u16) -> Result<Connection, Termination> {
    let upstreams = &guard.context().upstreams;
    let acquired = upstreams.acquire_for_relay(cluster).await;
    let connection = acquired.map_err(|error| match error {
        AcquireError::TimedOut => Termination::UpstreamTimeout,
        AcquireError::Untrusted => Termination::UpstreamTls,
        AcquireError::Unhealthy => Termination::UpstreamUnhealthy,
        AcquireError::Busy | AcquireError::TooMany => Termination::UpstreamOverflow,
        _ => Termination::UpstreamConnect,
    })?;
    upstreams.on_answer(&connection, false);
    Ok(connection)
}

/// Sends what was received from the client before there was a connection to the endpoint.
pub(super) fn send_first(guard: &SessionGuard, connection: &Connection, cluster: u16, bytes: &[u8]) {
    Meter::new(guard, cluster).moved(Direction::Up, bytes.len() as u64);
    connection.stream.send(bytes, false);
}

/// Relays between the two until both directions have ended.
pub(super) async fn join(
    guard: &SessionGuard,
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
        relay::run(&Meter::new(guard, cluster), ways, guard.timeouts().tcp_idle).await
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
