//! Which endpoint of a cluster gets a request: the less loaded of two drawn at random ("the power of two choices",
//! Mitzenmacher 2001). Pure: load and randomness come in. Never knows what an endpoint is.

use crate::base::random::Random;

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

/// Draws against the whole cluster before the ready ones are counted instead.
const DRAWS_MAX: u32 = 4;

/// Picks among `count` endpoints; `None` where all are excluded. Equal loads are decided at random, so that workers
/// with the same view do not all choose the first.
pub fn pick(random: &mut Random, count: usize, candidate: impl Fn(usize) -> Candidate) -> Option<usize> {
    let ready = |index: usize| match candidate(index) {
        Candidate::Ready { load } => Some(load),
        _ => None,
    };
    let ejected = |index: usize| match candidate(index) {
        Candidate::Ejected { load } => Some(load),
        _ => None,
    };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    pick_among(random, count, ready).or_else(|| pick_among(random, count, ejected))
}

fn pick_among(random: &mut Random, count: u32, load: impl Fn(usize) -> Option<u32>) -> Option<usize> {
    let (first, second) = draw_two(random, count, &load)?;
    let (first_load, second_load) = (load(first)?, load(second)?);
    let second_wins = match second_load.cmp(&first_load) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Greater => false,
        std::cmp::Ordering::Equal => random.below(2) == 0,
    };
    Some(if second_wins { second } else { first })
}

/// Two different candidates, uniformly; the same one twice where there is only one.
fn draw_two(random: &mut Random, count: u32, load: &impl Fn(usize) -> Option<u32>) -> Option<(usize, usize)> {
    if count == 0 {
        return None;
    }
    // Nearly always everything is ready: two draws, no pass over the cluster.
    if count > 2 {
        for _ in 0..DRAWS_MAX {
            let first = random.below(count);
            let second = (first + 1 + random.below(count - 1)) % count;
            if load(first as usize).is_some() && load(second as usize).is_some() {
                return Some((first as usize, second as usize));
            }
        }
    }
    let eligible = || (0..count as usize).filter(|&index| load(index).is_some());
    let total = u32::try_from(eligible().count()).unwrap_or(u32::MAX);
    if total < 2 {
        return eligible().next().map(|only| (only, only));
    }
    let first = random.below(total);
    let second = (first + 1 + random.below(total - 1)) % total;
    Some((eligible().nth(first as usize)?, eligible().nth(second as usize)?))
}

#[cfg(test)]
mod tests;
