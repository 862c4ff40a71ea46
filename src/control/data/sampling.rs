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
    /// One of each listener's.
    listeners: Vec<TcpListener>,
    /// Whether some listener has more sockets than there are workers.
    spares: bool,
    /// `None` where lost CPU time is not measured.
    sampler: Option<Sampler>,
}

impl Sampling {
    pub(super) fn new(
        host: HostSpec,
        workers: Vec<(usize, u32, Arc<Shard>)>,
        (listeners, spares): (Vec<TcpListener>, bool),
        spec: Spec,
        snapshot: &Snapshot,
    ) -> Self {
        let mut sampling = Self { host, workers, listeners, spares, sampler: None };
        sampling.begin(spec, snapshot);
        sampling
    }

    fn begin(&mut self, spec: Spec, snapshot: &Snapshot) {
        // Also where nothing is measured: a data process before this one may have left a program.
        let steering = Steering::new(&self.listeners, self.workers.len(), self.spares);
        let handshakes_max = snapshot.limits.handshakes_per_turn_max;
        let sampler = || Sampler::new(spec, &self.host, self.workers.clone(), steering, handshakes_max);
        self.sampler = (spec.mode != Mode::Off).then(sampler);
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
        let mut had: Vec<Option<TcpListener>> =
            std::mem::take(&mut self.listeners).into_iter().map(Some).collect();
        let stood = |at: &Option<u16>| had.get_mut(usize::from((*at)?)).and_then(Option::take);
        let kept: Vec<Option<TcpListener>> = change.sockets.iter().map(stood).collect();
        // A socket that could not be copied is not steered: the kernel's hash does as well.
        self.listeners = opened.into_iter().zip(kept).filter_map(|(opened, kept)| opened.or(kept)).collect();
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
