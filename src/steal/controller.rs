//! What follows from lost time: a level for each worker, with hysteresis, and what the levels ask for. A function of the
//! samples alone; never cuts off what has begun, never takes a worker's last share of connections.
//!
//! Binary gating, which stops accepting on a stolen CPU, is wrong on small machines: it throws away 70 % of a core to
//! save 30 % (`tests/simulation.rs` shows the harm). So a stolen worker gets fewer connections, in proportion, and only while
//! the CPUs differ: where all lose alike there is nowhere better to go.

use std::time::Duration;

use super::meter::{Mean, Smooth};
use super::{Mode, SAMPLE_INTERVAL, Spec};
use crate::base::time::Instant;

/// Samples in a row above a threshold that raise the level.
const ENTER_SAMPLES: u32 = 2;
/// Samples in a row below the threshold that lower it by one.
const LEAVE_SAMPLES: u32 = 20;
/// Level changes of one worker within [`CHANGES_WITHIN`]. The last two are kept for rises, of which no more can come
/// before a fall.
const CHANGES_MAX: usize = 6;
const FALLS_UP_TO: usize = CHANGES_MAX - 2;
const CHANGES_WITHIN: Duration = Duration::from_secs(60);
/// Between two changes of accept weights.
const WEIGHTS_INTERVAL: Duration = Duration::from_millis(100);
/// Workers differ when one loses so much more than the one that loses least.
const ASYMMETRY_RATIO: f64 = 0.08;
/// How long they count as different after they did.
const ASYMMETRY_HOLD: Duration = Duration::from_secs(2);
/// No worker's share of new connections falls below it: its sample stays live and its queue moves.
const SHARE_MIN: f64 = 0.02;
/// How fast the share of a worker that was spared returns, in one second.
const SHARE_RETURN_PER_S: f64 = 0.10;
/// Below it a change of a share is not worth a system call.
const SHARE_STEP: f64 = 0.01;
/// How strongly connections that a worker has beyond its share count against it, where there are many.
const CORRECTION: f64 = 4.0;
/// Connections of a worker from which their spread says more than chance.
const CONNECTIONS_TELL: f64 = 20.0;
/// A worker has too many connections when its part of them is so much beyond its share.
const SURPLUS_RATIO: f64 = 0.02;
/// Of its connections a worker asks no more than this part to go elsewhere, in one second.
const DRAINED_PER_S: f64 = 0.01;
/// Without a sample for so long, nothing that was known counts.
pub const STALE_AFTER: Duration = Duration::from_secs(1);

/// How much a worker loses, and whether it keeps up.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    #[default]
    Normal,
    /// Optional work waits.
    Elevated,
    /// Expensive new work is limited, and goes elsewhere where that is better.
    Stolen,
    /// Its queue stands, whatever it loses: new work that has waited too long is refused.
    Overloaded,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Normal, Self::Elevated, Self::Stolen, Self::Overloaded];

    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// What one worker met since the last step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Share of its time that it lost; `None` where nothing could be read.
    pub lost_ratio: Option<f64>,
    /// Its open connections.
    pub connections: u64,
    /// Its queue has not been empty for a while.
    pub stands: bool,
}

/// What is to be done after a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actions {
    pub changes: Vec<Change>,
    pub weights: Weights,
    /// By worker: connections that it may ask to go elsewhere, in a second. Empty: none of anybody's.
    pub drains_per_s: Vec<f64>,
}

/// One worker's level changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub worker: usize,
    pub from: Level,
    pub to: Level,
}

/// What becomes of the accept weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Weights {
    #[default]
    Unchanged,
    /// Back to the kernel's own even choice.
    Even,
    /// Shares of new connections by worker: they add up to 1.
    Shares(Vec<f64>),
}

/// The state of the control loop.
#[derive(Clone, Debug)]
pub struct Controller {
    spec: Spec,
    workers: Vec<Worker>,
    /// Shares in effect; `None` while the kernel chooses.
    shares: Option<Vec<f64>>,
    /// What they are meant to be in the long run: in proportion to what each worker has left.
    targets: Vec<f64>,
    shares_changed: Option<Instant>,
    stepped: Option<Instant>,
    /// When something could last be read.
    read: Option<Instant>,
    steers_until: Option<Instant>,
    /// Until when the worker that is the refuge is one.
    refuge_until: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Worker {
    /// By what it loses.
    level: Level,
    is_overloaded: bool,
    /// Samples in a row in which its queue was empty now and then.
    kept_up: u32,
    /// Lost share, smoothed; levels are made from it.
    smooth: Smooth,
    /// The same without haste: shares are made from it. What rises fast and falls slowly is more than the mean of whatever
    /// fluctuates, and a worker that loses little by little would seem to lose much.
    mean: Mean,
    /// Samples in a row that asked for at least `Elevated`, and for `Stolen`.
    above: [u32; 2],
    below: u32,
    /// When the level last changed, the latest behind.
    changed: [Option<Instant>; CHANGES_MAX],
    /// It loses least, and another much more: it is where connections are to go, whatever it loses itself.
    is_refuge: bool,
}

impl Controller {
    pub fn new(spec: Spec, workers: usize) -> Self {
        Self {
            spec,
            workers: vec![Worker::default(); workers],
            shares: None,
            targets: vec![1.0 / workers.max(1) as f64; workers],
            shares_changed: None,
            stepped: None,
            read: None,
            steers_until: None,
            refuge_until: None,
        }
    }

    /// Changes what is done about levels. Anything but `Act` takes back what was done with the next step.
    pub const fn set_mode(&mut self, mode: Mode) {
        self.spec.mode = mode;
    }

    pub fn level(&self, worker: usize) -> Level {
        self.workers.get(worker).map_or(Level::Normal, Worker::shown)
    }

    /// Whether the worker's optional work is to wait.
    pub fn postpones(&self, worker: usize) -> bool {
        self.spec.mode == Mode::Act && self.level(worker) >= Level::Elevated
    }

    /// The smoothed lost share that levels are made from.
    pub fn lost_ratio(&self, worker: usize) -> f64 {
        self.workers.get(worker).map_or(0.0, |worker| worker.smooth.value())
    }

    /// The worker's share of new connections against an even one: 1 is even.
    pub fn accept_weight(&self, worker: usize) -> f64 {
        let share = self.shares.as_ref().and_then(|shares| shares.get(worker));
        share.map_or(1.0, |share| share * self.workers.len() as f64)
    }

    /// Whether shares other than even ones are in effect.
    pub const fn is_steering(&self) -> bool {
        self.shares.is_some()
    }

    /// Share of its TLS handshakes that the worker is to begin.
    pub fn handshake_share(&self, worker: usize) -> f64 {
        match self.workers.get(worker) {
            Some(worker) if self.spec.mode == Mode::Act && worker.level == Level::Stolen => worker.left(),
            _ => 1.0,
        }
    }

    /// Takes one sample. Readings of workers that are not there are dropped; missing ones read as nothing.
    pub fn step(&mut self, now: Instant, readings: &[Reading]) -> Actions {
        let mut actions = Actions::default();
        let pause = self.stepped.replace(now).map_or(SAMPLE_INTERVAL, |stepped| now.since(stepped));
        if pause.is_zero() {
            return actions;
        }
        let reads = readings.iter().any(|reading| reading.lost_ratio.is_some());
        let last_read = self.read.unwrap_or(now);
        self.read = if reads { Some(now) } else { Some(last_read) };
        let is_stale = pause > STALE_AFTER || now.since(last_read) > STALE_AFTER;
        self.choose_refuge(now);
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let lost = readings.get(index).and_then(|reading| reading.lost_ratio).unwrap_or(0.0);
            let lost = if lost.is_nan() { 0.0 } else { lost.clamp(0.0, 1.0) };
            if is_stale {
                worker.forget();
            }
            let stands = readings.get(index).is_some_and(|reading| reading.stands);
            let from = worker.shown();
            if let Some(to) = worker.step(now, pause, lost, stands, &self.spec) {
                actions.changes.push(Change { worker: index, from, to });
            }
        }
        let steers = self.steers(now) && !is_stale && self.spec.mode == Mode::Act;
        actions.weights = self.weigh(now, pause, readings, steers, is_stale);
        if steers {
            actions.drains_per_s = self.drains(readings);
        }
        actions
    }

    /// The worker that loses least is at most at level 1 while another loses much more. By its own loss alone it could be
    /// at level 2 for long, after a burst or beside other busy threads of the machine, and then nobody would be spared.
    fn choose_refuge(&mut self, now: Instant) {
        let lost = |worker: &Worker| worker.smooth.value();
        let least = self.workers.iter().map(lost).enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((least, ratio)) = least else { return };
        let differs =
            |worker: &Worker| worker.level == Level::Stolen && lost(worker) - ratio >= ASYMMETRY_RATIO;
        if self.workers.iter().any(differs) {
            self.refuge_until = Some(now + ASYMMETRY_HOLD);
            self.workers.iter_mut().enumerate().for_each(|(index, worker)| worker.is_refuge = index == least);
        } else if self.refuge_until.is_none_or(|until| now >= until) {
            self.workers.iter_mut().for_each(|worker| worker.is_refuge = false);
        }
    }

    /// Long-lived connections outlast any choice of where new ones go: who has too many lets some go, slowly, as all of
    /// them come back at once as new ones.
    fn drains(&self, readings: &[Reading]) -> Vec<f64> {
        let of = |index: usize| readings.get(index).map_or(0, |reading| reading.connections) as f64;
        let all: f64 = (0..self.workers.len()).map(of).sum();
        let drain = |index: usize| {
            let surplus = of(index) - self.target(index) * all;
            let is_too_many = surplus >= 1.0 && surplus > SURPLUS_RATIO * all;
            if is_too_many { (DRAINED_PER_S * of(index)).min(surplus) } else { 0.0 }
        };
        let drains: Vec<f64> = (0..self.workers.len()).map(drain).collect();
        if drains.iter().any(|drain| *drain > 0.0) { drains } else { Vec::new() }
    }

    /// The worker's part of all that the workers have left.
    fn target(&self, worker: usize) -> f64 {
        self.workers[worker].left() / self.workers.iter().map(Worker::left).sum::<f64>()
    }

    /// Whether the workers differ, or did a moment ago.
    fn steers(&mut self, now: Instant) -> bool {
        let least = self.workers.iter().map(|worker| worker.smooth.value()).fold(f64::INFINITY, f64::min);
        let differs = |worker: &Worker| {
            worker.level == Level::Stolen && worker.smooth.value() - least >= ASYMMETRY_RATIO
        };
        let has_refuge = self.workers.iter().any(|worker| worker.level < Level::Stolen);
        if !has_refuge {
            self.steers_until = None;
        } else if self.workers.iter().any(differs) {
            self.steers_until = Some(now + ASYMMETRY_HOLD);
        }
        self.steers_until.is_some_and(|until| now < until)
    }

    fn weigh(
        &mut self,
        now: Instant,
        pause: Duration,
        readings: &[Reading],
        steers: bool,
        is_stale: bool,
    ) -> Weights {
        let even = 1.0 / self.workers.len().max(1) as f64;
        let all_stolen = self.workers.iter().all(|worker| worker.level == Level::Stolen);
        // At once, whatever was done a moment ago: there is no reason left to treat workers differently.
        if self.spec.mode != Mode::Act || is_stale || all_stolen {
            self.shares_changed = Some(now);
            self.targets.fill(even);
            return if self.shares.take().is_some() { Weights::Even } else { Weights::Unchanged };
        }
        let is_early = self.shares_changed.is_some_and(|changed| now.since(changed) < WEIGHTS_INTERVAL);
        if is_early || (!steers && self.shares.is_none()) {
            return Weights::Unchanged;
        }
        let since = self.shares_changed.map_or(pause, |changed| now.since(changed)).min(3 * SAMPLE_INTERVAL);
        let count = self.workers.len();
        let wanted =
            if steers { (0..count).map(|worker| self.target(worker)).collect() } else { vec![even; count] };
        self.targets = approach(&self.targets, wanted, SHARE_RETURN_PER_S * since.as_secs_f64());
        let is_even = !steers && self.targets.iter().all(|target| (target - even).abs() < SHARE_STEP);
        if is_even {
            self.shares_changed = Some(now);
            self.targets.fill(even);
            self.shares = None;
            return Weights::Even;
        }
        let shares = self.corrected(readings);
        let current = self.shares.get_or_insert_with(|| vec![even; count]);
        let moved =
            shares.iter().zip(&*current).any(|(share, current)| (share - current).abs() >= SHARE_STEP);
        if !moved {
            return Weights::Unchanged;
        }
        self.shares_changed = Some(now);
        current.clone_from(&shares);
        Weights::Shares(shares)
    }

    /// The targets, corrected by the connections that each worker has already. The correction knows no haste limit: chance and
    /// slow answers move connections by several percent within a second, and a worker that is always near its capacity has no
    /// room for them. Nor does it give a worker that has less left than others more than its target: it lacks connections where
    /// others had time to take them.
    fn corrected(&self, readings: &[Reading]) -> Vec<f64> {
        let connections = |index: usize| readings.get(index).map_or(0, |reading| reading.connections) as f64;
        let all: f64 = (0..self.workers.len()).map(connections).sum();
        let correction = CORRECTION * all / (all + CONNECTIONS_TELL * self.workers.len() as f64);
        let share = |(index, target): (usize, &f64)| {
            let present = if all > 0.0 { connections(index) / all } else { *target };
            target + correction * (target - present)
        };
        let mut shares = normalized(self.targets.iter().enumerate().map(share).collect());
        let even = 1.0 / self.workers.len().max(1) as f64;
        let (mut freed, mut of_others) = (0.0, 0.0);
        for (share, target) in shares.iter_mut().zip(&self.targets) {
            if *target < even {
                let most = target.max(share_min(self.workers.len()));
                freed += (*share - most).max(0.0);
                *share = share.min(most);
            } else {
                of_others += *share;
            }
        }
        for (share, target) in shares.iter_mut().zip(&self.targets) {
            if *target >= even {
                *share += freed * *share / of_others;
            }
        }
        shares
    }
}

impl Worker {
    /// Share of its time that the worker keeps; never nothing, so that shares can be made of it.
    fn left(&self) -> f64 {
        (1.0 - self.mean.value()).max(0.01)
    }

    fn forget(&mut self) {
        self.smooth = Smooth::default();
        self.mean = Mean::default();
        self.above = [0; 2];
        self.below = 0;
    }

    /// The level by all that is known.
    const fn shown(&self) -> Level {
        if self.is_overloaded { Level::Overloaded } else { self.level }
    }

    /// Takes one sample; the new level, if it changed.
    fn step(&mut self, now: Instant, pause: Duration, lost: f64, stands: bool, spec: &Spec) -> Option<Level> {
        let recent = self.changed.iter().flatten().filter(|changed| now.since(**changed) < CHANGES_WITHIN);
        let recent = recent.count();
        let from = self.shown();
        self.follow_loss(pause, lost, spec, recent);
        self.follow_queue(stands, recent);
        let to = self.shown();
        if to == from {
            return None;
        }
        self.changed.rotate_left(1);
        self.changed[CHANGES_MAX - 1] = Some(now);
        Some(to)
    }

    fn follow_loss(&mut self, pause: Duration, lost: f64, spec: &Spec, recent: usize) {
        let smooth = self.smooth.follow(lost, pause);
        self.mean.follow(lost, pause);
        // The average remembers one burst for a second: only a sample that shows theft itself may confirm it.
        let is_fresh = lost >= spec.calm_ratio;
        for (above, threshold) in self.above.iter_mut().zip([spec.elevated_ratio, spec.stolen_ratio]) {
            *above = if is_fresh && smooth >= threshold { above.saturating_add(1) } else { 0 };
        }
        let calm = if self.level == Level::Stolen { spec.elevated_ratio } else { spec.calm_ratio };
        self.below = if smooth < calm { self.below.saturating_add(1) } else { 0 };
        let Some(to) = self.wanted() else { return };
        // Unseen beneath an overload: only rises, so that its end never leads to less than it began from.
        let may = match (self.is_overloaded, to < self.level) {
            (true, falls) => !falls || self.is_refuge,
            (false, true) => recent < FALLS_UP_TO,
            (false, false) => recent < CHANGES_MAX,
        };
        if may {
            self.level = to;
            self.below = 0;
        }
    }

    fn follow_queue(&mut self, stands: bool, recent: usize) {
        self.kept_up = if stands { 0 } else { self.kept_up.saturating_add(1) };
        if self.is_overloaded {
            self.is_overloaded = self.kept_up < LEAVE_SAMPLES;
        } else {
            // Kept for what must follow: the end of the overload, and a rise to each level of loss; a refuge may have
            // come down from level 2 meanwhile.
            let kept = 2 + Level::Stolen as usize - self.level.min(Level::Elevated) as usize;
            self.is_overloaded = stands && recent + kept <= CHANGES_MAX;
        }
    }

    fn wanted(&self) -> Option<Level> {
        let [elevated, stolen] = self.above.map(|samples| samples >= ENTER_SAMPLES);
        match self.level {
            Level::Stolen if self.is_refuge => Some(Level::Elevated),
            Level::Normal | Level::Elevated if stolen && !self.is_refuge => Some(Level::Stolen),
            Level::Normal if elevated => Some(Level::Elevated),
            Level::Stolen if self.below >= LEAVE_SAMPLES => Some(Level::Elevated),
            Level::Elevated if self.below >= LEAVE_SAMPLES => Some(Level::Normal),
            _ => None,
        }
    }
}

/// A worker's least share.
fn share_min(workers: usize) -> f64 {
    SHARE_MIN.min(0.5 / workers.max(1) as f64)
}

/// Shares that add up to 1, none below the least one.
fn normalized(mut shares: Vec<f64>) -> Vec<f64> {
    let least = share_min(shares.len());
    shares.iter_mut().for_each(|share| *share = (*share - least).max(0.0));
    let sum: f64 = shares.iter().sum();
    let (count, rest) = (shares.len() as f64, 1.0 - least * shares.len() as f64);
    let scaled = |share: f64| if sum > 0.0 { share / sum * rest } else { rest / count };
    shares.iter().map(|share| least + scaled(*share)).collect()
}

/// One move from the shares in effect towards the wanted ones: a share below its even part grows by at most `rise`; the
/// others divide what is left in the wanted proportion.
fn approach(current: &[f64], wanted: Vec<f64>, rise: f64) -> Vec<f64> {
    let even = 1.0 / current.len().max(1) as f64;
    let is_held = |index: usize| current[index] < even && wanted[index] > current[index] + rise;
    let held: f64 =
        (0..current.len()).filter(|index| is_held(*index)).map(|index| current[index] + rise).sum();
    let free: f64 = (0..current.len()).filter(|index| !is_held(*index)).map(|index| wanted[index]).sum();
    if held == 0.0 || free <= 0.0 {
        return wanted;
    }
    let share = |index: usize| {
        if is_held(index) { current[index] + rise } else { wanted[index] * (1.0 - held) / free }
    };
    (0..current.len()).map(share).collect()
}

#[cfg(test)]
mod tests;
