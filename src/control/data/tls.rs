//! TLS while workers serve: what they begin with, and what they are told when a file has changed or the secrets of
//! tickets are due. Never touches a connection.

use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::control::admin::State;
use crate::control::certificates::{Certificates, TlsChange};
use crate::control::health::Health;
use crate::control::requests::{KeptTicketKeys, Supervisor};
use crate::proxy::snapshot::Snapshot;
use crate::sys::{clock, cpu};
use crate::tls::{ROTATION_S, TicketKeys};
use crate::worker::{Handle, Message, TlsMaterials};

/// Who watches the files and the age of the secrets.
pub(super) struct LiveTls {
    certificates: Certificates,
    ticket_keys: Arc<TicketKeys>,
    /// When the secrets were last replaced.
    rotated: Instant,
    /// Keeps them for a data process that follows.
    supervisor: Arc<Supervisor>,
}

impl LiveTls {
    /// With what every worker begins with.
    ///
    /// # Errors
    /// Every file that cannot be used, a line each, with the cure.
    pub(super) fn open(
        snapshot: &Snapshot,
        state: &State,
        supervisor: &Arc<Supervisor>,
        kept: Option<&KeptTicketKeys>,
    ) -> Result<(Self, TlsMaterials), String> {
        let (ticket_keys, rotated) = match kept.and_then(KeptTicketKeys::keys) {
            Some(kept) => kept,
            None => {
                let new = TicketKeys::new().map_err(|_| "the system gives no randomness".to_owned())?;
                (new, clock::now())
            }
        };
        let (certificates, _) = Certificates::open(snapshot, unix_s())
            .map_err(|failures| failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        state.set_certificates(certificates.facts(), certificates.problems());
        let (ticket_keys, supervisor) = (Arc::new(ticket_keys), supervisor.clone());
        let live = Self { certificates, ticket_keys, rotated, supervisor };
        let materials = live.materials(snapshot);
        Ok((live, materials))
    }

    /// Has the supervisor keep the secrets of tickets for the next data process. Not before this one serves: nobody listens
    /// for it where one process is to take another's place.
    pub(super) fn tell_ticket_keys(&self) {
        self.supervisor.keep_ticket_keys(&self.ticket_keys, self.rotated);
    }

    fn materials(&self, snapshot: &Snapshot) -> TlsMaterials {
        materials(&self.certificates, &self.ticket_keys, snapshot)
    }

    pub(super) const fn ticket_keys(&self) -> &Arc<TicketKeys> {
        &self.ticket_keys
    }

    /// Goes on with the files of another snapshot, as read a moment ago. With what workers are to serve it with.
    pub(super) fn succeed(
        &mut self,
        mut certificates: Certificates,
        snapshot: &Snapshot,
        state: &State,
    ) -> TlsMaterials {
        certificates.succeed(&self.certificates, unix_s());
        self.certificates = certificates;
        state.set_certificates(self.certificates.facts(), self.certificates.problems());
        self.materials(snapshot)
    }

    /// Tells the workers, and who probes endpoints, of changed files, and of new secrets when they are due. `always`:
    /// reads unchanged files too.
    pub(super) fn look(&mut self, state: &State, handles: &[Handle], health: &mut Health, always: bool) {
        for change in self.certificates.look(unix_s(), always) {
            if let TlsChange::Cluster(cluster, material) = &change {
                health.set_tls(*cluster, material);
            }
            for handle in handles {
                handle.send(match change.clone() {
                    TlsChange::Listener(listener, material) => Message::ServerTls { listener, material },
                    TlsChange::Cluster(cluster, material) => Message::ClientTls { cluster, material },
                });
            }
        }
        state.set_certificates(self.certificates.facts(), self.certificates.problems());
        let now = clock::now();
        if now.since(self.rotated) < Duration::from_secs(ROTATION_S.into()) {
            return;
        }
        self.rotated = now;
        // Without randomness the present ones stay good, and the next period brings another try.
        if let Ok(keys) = self.ticket_keys.rotated() {
            self.supervisor.keep_ticket_keys(&keys, now);
            self.ticket_keys = Arc::new(keys);
            for handle in handles {
                handle.send(Message::TicketKeys(self.ticket_keys.clone()));
            }
        }
    }
}

/// What workers do the TLS of a snapshot with.
pub(super) fn materials(
    certificates: &Certificates,
    ticket_keys: &Arc<TicketKeys>,
    snapshot: &Snapshot,
) -> TlsMaterials {
    let mut materials = TlsMaterials {
        listeners: vec![None; snapshot.listeners.len()],
        clusters: vec![None; snapshot.clusters.len()],
        ticket_keys: ticket_keys.clone(),
        aes_is_fast: cpu::has_aes(),
    };
    for material in certificates.materials() {
        match material {
            TlsChange::Listener(listener, material) => {
                materials.listeners[usize::from(listener)] = Some(material);
            }
            TlsChange::Cluster(cluster, material) => {
                materials.clusters[usize::from(cluster)] = Some(material)
            }
        }
    }
    materials
}

pub(super) fn unix_s() -> i64 {
    clock::unix_seconds().cast_signed()
}
