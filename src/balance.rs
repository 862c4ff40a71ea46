//! Which endpoint of a cluster gets a request: by default the less loaded of two drawn at random ("the power of two choices",
//! Mitzenmacher 2001), draws and loads by weight; with a key, the endpoint that the key belongs to. Pure: load and
//! randomness come in. Never knows what an endpoint is.

use crate::base::random::Random;

mod maglev;

use maglev::Maglev;

/// One endpoint as the balancer sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Candidate {
    /// With its requests in flight.
    Ready { load: u32 },
    /// Taken only where no endpoint is ready: if all look broken, the observer may be the broken one, and refusing
    /// everything helps nobody.
    Ejected { load: u32 },
    /// Never taken: tried already for this request, or at its bound.
    Excluded,
}

/// What an endpoint is to the balancer, whatever its state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Member {
    /// The same wherever and whenever the endpoint is named; evenly spread.
    pub identity: u64,
    /// Its share is this of the sum. At most [`WEIGHT_MAX`].
    pub weight: u32,
}

/// Largest weight of an endpoint: as many of them as a cluster may have still add up in 32 bits.
pub const WEIGHT_MAX: u32 = 256;

/// Draws from the whole cluster before the ready ones are counted instead.
const DRAWS_MAX: u32 = 4;

/// Picks among the endpoints of one cluster.
#[derive(Clone, Debug)]
pub struct Balancer {
    count: u32,
    /// Sums of the weights up to each endpoint, itself included. Empty: all weigh the same.
    sums: Vec<u32>,
    /// Where keys belong. `None`: keys do not count.
    maglev: Option<Maglev>,
}

impl Balancer {
    /// `keyed`: requests with a key go where it belongs.
    pub fn new(members: &[Member], keyed: bool) -> Self {
        let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let even = members.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let sum = |sum: &mut u32, member: &Member| {
            *sum = sum.saturating_add(member.weight);
            Some(*sum)
        };
        let sums = if even { Vec::new() } else { members.iter().scan(0, sum).collect() };
        Self { count, sums, maglev: keyed.then(|| Maglev::new(members)) }
    }

    /// Picks; `None` where all are excluded. Equal loads are decided at random, so that workers with the same view do not all
    /// choose the first.
    pub fn pick(
        &self,
        random: &mut Random,
        key: Option<u64>,
        candidate: impl Fn(usize) -> Candidate,
    ) -> Option<usize> {
        let ready = |index: usize| match candidate(index) {
            Candidate::Ready { load } => Some(load),
            _ => None,
        };
        let ejected = |index: usize| match candidate(index) {
            Candidate::Ejected { load } => Some(load),
            _ => None,
        };
        if let (Some(maglev), Some(key)) = (&self.maglev, key) {
            let count = self.count as usize;
            let belongs = maglev.pick(key, count, |index| ready(index).is_some());
            return belongs.or_else(|| maglev.pick(key, count, |index| ejected(index).is_some()));
        }
        self.pick_among(random, ready).or_else(|| self.pick_among(random, ejected))
    }

    fn pick_among(&self, random: &mut Random, load: impl Fn(usize) -> Option<u32>) -> Option<usize> {
        let (first, second) = self.draw_two(random, &load)?;
        let (first_load, second_load) = (load(first)?, load(second)?);
        // Drawn by weight, the first is due; the second only where it has less to do for its weight even with this request.
        let with_it = u64::from(second_load.saturating_add(1)) * u64::from(self.weight(first));
        let without = u64::from(first_load) * u64::from(self.weight(second));
        Some(if with_it <= without { second } else { first })
    }

    fn weight(&self, index: usize) -> u32 {
        match (self.sums.get(index), index.checked_sub(1).and_then(|before| self.sums.get(before))) {
            (None, _) => 1,
            (Some(sum), None) => *sum,
            (Some(sum), Some(before)) => sum - before,
        }
    }

    /// Two different candidates by weight; the same one twice where there is only one.
    fn draw_two(&self, random: &mut Random, load: &impl Fn(usize) -> Option<u32>) -> Option<(usize, usize)> {
        let first = self.draw_one(random, |index| load(index).is_some())?;
        let second = self.draw_one(random, |index| index != first && load(index).is_some());
        Some((first, second.unwrap_or(first)))
    }

    fn draw_one(&self, random: &mut Random, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        // Nearly always everything is ready: no pass over the cluster.
        if self.count > 2 {
            for _ in 0..DRAWS_MAX {
                let drawn = self.draw(random);
                if eligible(drawn) {
                    return Some(drawn);
                }
            }
        }
        self.draw_among(random, eligible)
    }

    fn draw(&self, random: &mut Random) -> usize {
        match self.sums.last() {
            Some(total) if *total > 0 => {
                let at = random.below(*total);
                self.sums.partition_point(|sum| *sum <= at)
            }
            _ => random.below(self.count) as usize,
        }
    }

    fn draw_among(&self, random: &mut Random, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let all = || (0..self.count as usize).filter(|index| eligible(*index));
        let total = all().map(|index| self.weight(index)).sum();
        let mut at = if total > 0 { random.below(total) } else { 0 };
        let mut last = None;
        for index in all() {
            last = Some(index);
            match at.checked_sub(self.weight(index)) {
                Some(less) => at = less,
                None => break,
            }
        }
        last
    }
}

#[cfg(test)]
mod tests;
