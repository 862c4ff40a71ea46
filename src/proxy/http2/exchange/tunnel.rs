//! A stream that asks for a tunnel: CONNECT, plain or extended. The order of things is that of
//! `http1::exchange::tunnel`.

use std::rc::Rc;

use super::super::super::ask::{self, NotOpened};
use super::super::super::http1::failure::UNANSWERED;
use super::super::super::outcome::Termination;
use super::super::super::tunnel::{Opening, Tunnel};
use super::super::super::upstream::Tried;
use super::Exchange;

impl Exchange<'_> {
    /// Has an endpoint open the tunnel.
    pub(super) async fn open(&self, opening: &Rc<Opening>) {
        let tried = Tried::paced(&self.session.pace, opening.caller.clone());
        match ask::open(self, self.context, opening, tried).await {
            Ok(ask::Opened { side, upward, first_down }) => {
                let tunnel = Tunnel { opening: opening.clone(), upward, first_up: None, first_down };
                self.opened.replace(Some(Box::new((side, tunnel))));
            }
            Err(NotOpened::Failed(failure)) => self.fail(&failure).await,
            Err(NotOpened::Refused) => self.fail(&UNANSWERED).await,
            Err(NotOpened::Broken(termination)) => self.line.ended(termination),
            Err(NotOpened::Gone) => self.line.ended(Termination::ClientAborted),
            // The client has its answer; nobody reads a handshake here.
            Err(NotOpened::Answered | NotOpened::Unanswerable(_)) => {}
        }
    }
}
