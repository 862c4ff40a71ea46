//! Which share of the last minute's requests was answered in time. Counts nothing itself.

use std::collections::VecDeque;

/// Seconds that are looked back at.
const SECONDS: usize = 60;

/// Totals at the end of each second, the latest last: answered in time, and all.
#[derive(Debug, Default)]
pub(super) struct InTime(VecDeque<(u64, u64)>);

impl InTime {
    pub(super) fn push(&mut self, in_time: u64, all: u64) {
        if self.0.len() > SECONDS {
            self.0.pop_front();
        }
        self.0.push_back((in_time, all));
    }

    /// `None` where there was no request.
    pub(super) fn ratio(&self) -> Option<f64> {
        let ((first, all_first), (last, all_last)) = (self.0.front()?, self.0.back()?);
        let all = all_last.checked_sub(*all_first).filter(|all| *all > 0)?;
        // The two totals are read one after the other.
        Some((last.saturating_sub(*first) as f64 / all as f64).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_minute_counts() {
        let mut in_time = InTime::default();
        in_time.push(0, 0);
        assert_eq!(in_time.ratio(), None);
        in_time.push(0, 100);
        assert_eq!(in_time.ratio(), Some(0.0));
        for n in 1..=60 {
            in_time.push(n * 9, 100 + n * 10);
        }
        assert_eq!(in_time.ratio(), Some(0.9));
        for _ in 0..60 {
            in_time.push(540, 700);
        }
        assert_eq!(in_time.ratio(), None);
    }
}
