//! Medians and spreads of few, noisy samples. Never a mean: one disturbed round must not move a result.

use serde::Serialize;

/// The middle of some samples and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Median absolute deviation from the median.
    pub mad: f64,
    pub count: usize,
}

impl Spread {
    /// `None` when there are no samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples.to_vec());
        let median = middle(&sorted)?;
        let mad = middle(&self::sorted(sorted.iter().map(|sample| (sample - median).abs()).collect()))?;
        Some(Self { median, min: *sorted.first()?, max: *sorted.last()?, mad, count: sorted.len() })
    }
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_moves_neither_median_nor_deviation() {
        let spread = Spread::of(&[10.0, 1000.0, 11.0, 9.0, 10.0]).expect("five samples");
        assert_eq!((spread.median, spread.mad), (10.0, 1.0));
        assert_eq!((spread.min, spread.max, spread.count), (9.0, 1000.0, 5));
    }

    #[test]
    fn an_even_count_takes_the_mean_of_the_two_middle_samples() {
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(Spread::of(&[]), None);
    }
}
