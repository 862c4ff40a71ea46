//! What clients met, counted. Adds up over threads.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What an answer should come within.
pub const OBJECTIVE: Duration = Duration::from_millis(25);
const LATENCY_NS_MAX: u64 = 60_000_000_000;

pub struct Tally {
    /// Of answers with status 200, from when the request was due.
    served: Histogram<u64>,
    within: u64,
    refused: u64,
    errors: u64,
    first_error: Option<String>,
    pub unanswered: u64,
    pub connections: u64,
    /// CPU time of the thread while it counted.
    pub used_ns: u64,
}

/// A tally in figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Met {
    /// All requests that were due.
    pub asked: u64,
    pub served: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Of all asked: served within the objective.
    pub within_ratio: f64,
    /// Of all asked: answered with 503.
    pub refused_ratio: f64,
    /// Other answers, and connections that failed.
    pub errors: u64,
    pub first_error: Option<String>,
    /// Without an answer when patience ended.
    pub unanswered: u64,
    pub connections: u64,
    /// Served within the objective, a second.
    pub goodput_per_second: f64,
    pub generator_cpu_seconds: f64,
}

impl Tally {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            served: Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3).map_err(io::Error::other)?,
            within: 0,
            refused: 0,
            errors: 0,
            first_error: None,
            unanswered: 0,
            connections: 0,
            used_ns: 0,
        })
    }

    pub fn answer(&mut self, status: u16, after: Duration) {
        match status {
            200 => {
                self.served.saturating_record(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX));
                self.within += u64::from(after <= OBJECTIVE);
            }
            503 => self.refused += 1,
            other => self.fail(1, &format!("status {other}")),
        }
    }

    pub fn fail(&mut self, requests: u64, why: &str) {
        self.errors += requests;
        self.first_error.get_or_insert_with(|| why.to_owned());
    }

    /// Several added up.
    pub fn sum(tallies: Vec<Self>) -> io::Result<Self> {
        let mut sum = Self::new()?;
        tallies.into_iter().try_for_each(|tally| sum.add(tally))?;
        Ok(sum)
    }

    fn add(&mut self, other: Self) -> io::Result<()> {
        self.served.add(&other.served).map_err(io::Error::other)?;
        self.within += other.within;
        self.refused += other.refused;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.unanswered += other.unanswered;
        self.connections += other.connections;
        self.used_ns += other.used_ns;
        Ok(())
    }

    pub fn met(&self, span: Duration) -> Met {
        let served = self.served.len();
        let asked = served + self.refused + self.errors + self.unanswered;
        let of_all = |count: u64| count as f64 / asked.max(1) as f64;
        let ms = |quantile: f64| self.served.value_at_quantile(quantile) as f64 / 1e6;
        Met {
            asked,
            served,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
            max_ms: self.served.max() as f64 / 1e6,
            within_ratio: of_all(self.within),
            refused_ratio: of_all(self.refused),
            errors: self.errors,
            first_error: self.first_error.clone(),
            unanswered: self.unanswered,
            connections: self.connections,
            goodput_per_second: self.within as f64 / span.as_secs_f64().max(1e-9),
            generator_cpu_seconds: self.used_ns as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_served_refused_failed_or_unanswered() {
        let mut tally = Tally::new().expect("bounds");
        let mut other = Tally::new().expect("bounds");
        (0..98).for_each(|_| tally.answer(200, Duration::from_millis(2)));
        tally.answer(200, Duration::from_millis(900));
        tally.answer(503, Duration::from_millis(1));
        other.answer(404, Duration::from_millis(1));
        other.unanswered = 99;
        tally.add(other).expect("the same bounds");
        let met = tally.met(Duration::from_secs(2));
        assert_eq!((met.asked, met.served, met.errors), (200, 99, 1));
        assert_eq!((met.within_ratio, met.refused_ratio, met.goodput_per_second), (0.49, 0.005, 49.0));
        assert!(met.max_ms > 899.0 && met.p50_ms < 2.1);
    }
}
