//! Random numbers of a fixed seed (splitmix64, Steele et al., OOPSLA 2014): a run can be repeated.

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least 0, less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Time to the next arrival of a Poisson process.
    pub fn pause(&mut self, per_second: f64) -> f64 {
        -(1.0 - self.unit()).ln() / per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_average_to_the_rate_and_repeat() {
        let (mut first, mut second) = (Random::new(5), Random::new(5));
        let sum: f64 = (0..100_000).map(|_| first.pause(200.0)).sum();
        assert!((sum / 500.0 - 1.0).abs() < 0.02, "{sum}");
        second.unit();
        assert!((0..1_000).all(|_| (0.0..1.0).contains(&second.unit())));
    }
}
