//! What is logged of sessions, where it goes, and which lines are left out. Pure: chance comes in as a number.

use std::path::PathBuf;
use std::time::Duration;

/// The access log of one configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLogSpec {
    pub target: Target,
    pub format: Format,
    /// Bytes of lines of one worker that may wait for the writer; a line more is dropped and counted.
    pub buffer_bytes: usize,
    /// The first that matches decides; a line that none matches is written.
    pub rules: Vec<SampleRule>,
}

/// Where lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    Stdout,
    /// A file that is appended to, or a pipe.
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    Json,
    Text,
}

/// Which share of some lines is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleRule {
    /// Empty: any listener.
    pub listeners: Vec<u16>,
    /// Empty: any route, also none.
    pub routes: Vec<u16>,
    /// Inclusive ranges of the status; empty: any, also none.
    pub statuses: Vec<(u16, u16)>,
    /// Lines without a status match `statuses`, too.
    pub without_status: bool,
    /// `Some(true)`: only what went wrong; `Some(false)`: only what did not.
    pub failed: Option<bool>,
    /// Only what took at least as long.
    pub duration_min: Duration,
    /// 0 to 1.
    pub ratio: f64,
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Sampled {
    pub listener: u16,
    pub route: Option<u16>,
    pub status: Option<u16>,
    pub failed: bool,
    pub duration: Duration,
}

impl AccessLogSpec {
    /// The share of its like with which this line is written, or `None` where it is not. `random` is uniform.
    pub fn sample(&self, line: &Sampled, random: impl FnOnce() -> u32) -> Option<f64> {
        let ratio = self.rules.iter().find(|rule| rule.matches(line)).map_or(1.0, |rule| rule.ratio);
        (ratio >= 1.0 || f64::from(random()) < ratio * (f64::from(u32::MAX) + 1.0)).then_some(ratio)
    }
}

impl SampleRule {
    fn matches(&self, line: &Sampled) -> bool {
        let status = match line.status {
            Some(status) => {
                let any = self.statuses.is_empty() && !self.without_status;
                any || self.statuses.iter().any(|(first, last)| (*first..=*last).contains(&status))
            }
            None => self.statuses.is_empty() || self.without_status,
        };
        status
            && line.duration >= self.duration_min
            && self.failed.is_none_or(|failed| failed == line.failed)
            && (self.listeners.is_empty() || self.listeners.contains(&line.listener))
            && (self.routes.is_empty() || line.route.is_some_and(|route| self.routes.contains(&route)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rules: Vec<SampleRule>) -> AccessLogSpec {
        AccessLogSpec { target: Target::Stdout, format: Format::Json, buffer_bytes: 0, rules }
    }

    fn line(status: impl Into<Option<u16>>) -> Sampled {
        let status = status.into();
        let failed = status.is_none_or(|status| status >= 500);
        Sampled { listener: 0, route: Some(3), status, failed, duration: Duration::from_millis(20) }
    }

    #[test]
    fn without_a_rule_every_line_is_written() {
        assert_eq!(spec(vec![]).sample(&line(200), || unreachable!("no chance is needed")), Some(1.0));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let spec = spec(vec![
            SampleRule { failed: Some(true), ratio: 1.0, ..Default::default() },
            SampleRule { duration_min: Duration::from_millis(500), ratio: 1.0, ..Default::default() },
            SampleRule { statuses: vec![(200, 299)], ratio: 0.25, ..Default::default() },
            SampleRule { routes: vec![3], ratio: 0.0, ..Default::default() },
        ]);
        assert_eq!(spec.sample(&line(503), || u32::MAX), Some(1.0));
        assert_eq!(spec.sample(&line(None), || u32::MAX), Some(1.0));
        let slow = Sampled { duration: Duration::from_millis(500), ..line(200) };
        assert_eq!(spec.sample(&slow, || u32::MAX), Some(1.0));
        assert_eq!(spec.sample(&line(200), || (1 << 30) - 1), Some(0.25));
        assert_eq!(spec.sample(&line(200), || 1 << 30), None);
        assert_eq!(spec.sample(&line(404), || 0), None, "none of route 3");
        assert_eq!(spec.sample(&Sampled { route: None, ..line(404) }, || 0), Some(1.0));
    }

    #[test]
    fn a_line_without_status_matches_where_that_is_named() {
        let named =
            SampleRule { statuses: vec![(500, 599)], without_status: true, ratio: 0.0, ..Default::default() };
        let spec_ = spec(vec![named.clone()]);
        assert_eq!(spec_.sample(&line(None), || 0), None);
        assert_eq!(spec_.sample(&line(200), || 0), Some(1.0));
        let only_none = SampleRule { statuses: vec![], ..named };
        assert_eq!(spec(vec![only_none.clone()]).sample(&line(200), || 0), Some(1.0));
        assert_eq!(spec(vec![only_none]).sample(&line(None), || 0), None);
        let other = SampleRule { statuses: vec![(500, 599)], ratio: 0.0, ..Default::default() };
        assert_eq!(spec(vec![other]).sample(&line(None), || 0), Some(1.0));
    }
}
