//! Whether and how lost CPU time is sampled, over reloads. Holds a copy of a socket of each listener, by which new
//! connections are led to workers.

use std::net::TcpListener;
use std::sync::Arc;

use crate::config::HostSpec;
use crate::control::admin::State;
use crate::control::steal::{Sampler, Steering};
use crate::metrics::Shard;
use crate::proxy::snapshot::Snapshot;
use crate::proxy::snapshot::change::Change;
use crate::steal::{Mode, Spec};
use crate::worker::Handle;

pub(super) struct Sampling {
    host: HostSpec,
    /// CPU, thread and shard of each worker.
    workers: Vec<(usize, u32, Arc<Shard>)>,
    /// One of each listener's, where it could be copied.
    listeners: Vec<Option<TcpListener>>,
    /// Whether some listener has more sockets than there are workers.
    spares: bool,
    /// `None` where lost CPU time is not measured.
    sampler: Option<Sampler>,
    /// Where it is not: connections go evenly all the same.
    even: Option<Steering>,
}

impl Sampling {
    pub(super) fn new(
        host: HostSpec,
        workers: Vec<(usize, u32, Arc<Shard>)>,
        (listeners, spares): (Vec<Option<TcpListener>>, bool),
        spec: Spec,
        snapshot: &Snapshot,
    ) -> Self {
        let mut sampling = Self { host, workers, listeners, spares, sampler: None, even: None };
        sampling.begin(spec, snapshot);
        sampling
    }

    fn begin(&mut self, spec: Spec, snapshot: &Snapshot) {
        let steering = Steering::new(&self.listeners, self.workers.len(), self.spares);
        let handshakes_max = snapshot.limits.handshakes_per_turn_max;
        (self.sampler, self.even) = match spec.mode {
            Mode::Off => (None, Some(steering)),
            _ => (Some(Sampler::new(spec, &self.host, self.workers.clone(), steering, handshakes_max)), None),
        };
    }

    /// To be called now and then: a data process that leaves takes off what makes connections go evenly, and one that is given
    /// up leaves what is meant for its own workers.
    pub(super) fn look(&mut self) {
        self.even.iter_mut().for_each(Steering::assert);
    }

    pub(super) const fn is_on(&self) -> bool {
        self.sampler.is_some()
    }

    pub(super) fn sample(&mut self, state: &State, handles: &[Handle]) {
        if let Some(sampler) = &mut self.sampler {
            sampler.sample(state, handles);
        }
    }

    /// Whether optional work of the control thread is to wait for another time.
    pub(super) fn postpones(&mut self) -> bool {
        self.sampler.as_mut().is_some_and(Sampler::postpones)
    }

    /// Goes on with another configuration. `opened`: by listener, the first worker's socket where it is new. What is
    /// turned off ends at once: connections go evenly again.
    pub(super) fn change(
        &mut self,
        spec: Spec,
        change: &Change,
        opened: Vec<Option<TcpListener>>,
        snapshot: &Snapshot,
        state: &State,
    ) {
        let mut had = std::mem::take(&mut self.listeners);
        let stood = |at: &Option<u16>| had.get_mut(usize::from((*at)?)).and_then(Option::take);
        let kept: Vec<Option<TcpListener>> = change.sockets.iter().map(stood).collect();
        self.listeners = opened.into_iter().zip(kept).map(|(opened, kept)| opened.or(kept)).collect();
        match &mut self.sampler {
            Some(sampler) if spec.mode != Mode::Off => {
                sampler.change(spec, &self.listeners, snapshot.limits.handshakes_per_turn_max);
            }
            _ => {
                // The one that is dropped has its own copies: it takes its program off them.
                self.sampler = None;
                self.begin(spec, snapshot);
                state.steal().turn(spec.mode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::embedded_default;
    use crate::proxy::context::tests::embedded;
    use crate::sys::listeners;
    use crate::sys::reuseport::{self, tests::spread};

    #[test]
    fn where_nothing_is_measured_connections_still_go_evenly_after_another_process_left() {
        let sockets = listeners::open("127.0.0.1:0".parse().unwrap(), 3, 1_024).unwrap();
        let context = embedded();
        let spec = Spec { mode: Mode::Off, ..Spec::default() };
        let group = (vec![None, sockets[0].try_clone().ok()], true);
        let (host, workers) = (embedded_default().host, vec![(0, 0, context.shard.clone())]);
        let mut sampling = Sampling::new(host, workers, group, spec, &context.serving().snapshot);
        reuseport::unsteer(&sockets[1]).unwrap();
        sampling.look();
        let got = spread(&sockets, 60);
        assert_eq!((got[1], got[2]), (0, 0), "{got:?}");
    }
}
