//! What is done to the proxies, and what is promised of it.

use std::time::Duration;

use super::variants::Variant;

const MS: Duration = Duration::from_millis(1);

/// What the antagonist takes.
#[derive(Clone, Copy, Debug)]
pub enum Taking {
    Nothing,
    /// From the first CPU: a slice of each period.
    Slices(Duration, Duration),
    /// From both: the recorded trace times so much, the next part of it each round.
    Trace(f64),
}

/// What `act` is promised to reach. Ratios are taken within a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Promises {
    /// p99 against that of `off`, at most.
    pub p99_ratio_max: Option<f64>,
    /// The same of all rounds together: parts of a trace are not alike.
    pub whole_p99_ratio_max: Option<f64>,
    /// Of all asked, served within the objective, at least; and refused, at most.
    pub within_ratio_min: Option<f64>,
    pub refused_ratio_max: Option<f64>,
    /// CPU a request against that of `off`, at most.
    pub cpu_ratio_max: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub about: &'static str,
    pub taking: Taking,
    /// Share of the capacity without theft.
    pub load: f64,
    pub requests: u32,
    pub variants: &'static [Variant],
    pub promises: Promises,
}

/// Requests of one connection, usually.
const REQUESTS: u32 = 20;
const NONE: Promises = Promises {
    p99_ratio_max: None,
    whole_p99_ratio_max: None,
    within_ratio_min: None,
    refused_ratio_max: None,
    cpu_ratio_max: None,
};
const FOUR: [Variant; 4] = [Variant::Off, Variant::Act, Variant::NginxShared, Variant::Haproxy];

pub const CASES: [Case; 9] = [
    Case {
        name: "30-at-80",
        about: "CPU 0 loses 30 % (3 ms of 10), load 80 %",
        taking: Taking::Slices(MS.saturating_mul(3), MS.saturating_mul(10)),
        load: 0.8,
        requests: REQUESTS,
        variants: &Variant::ALL,
        promises: Promises {
            p99_ratio_max: Some(0.2),
            within_ratio_min: Some(0.99),
            refused_ratio_max: Some(0.01),
            ..NONE
        },
    },
    Case {
        name: "60-at-60",
        about: "CPU 0 loses 60 % (6 ms of 10), load 60 %",
        taking: Taking::Slices(MS.saturating_mul(6), MS.saturating_mul(10)),
        load: 0.6,
        requests: REQUESTS,
        variants: &Variant::ALL,
        promises: Promises { p99_ratio_max: Some(0.1), ..NONE },
    },
    Case {
        name: "30-long-at-60",
        about: "CPU 0 loses 30 % in long slices (30 ms of 100), load 60 %",
        taking: Taking::Slices(MS.saturating_mul(30), MS.saturating_mul(100)),
        load: 0.6,
        requests: REQUESTS,
        variants: &FOUR,
        promises: NONE,
    },
    Case {
        name: "trace",
        about: "both CPUs lose what the recorded trace lost, load 70 %",
        taking: Taking::Trace(1.0),
        load: 0.7,
        requests: REQUESTS,
        variants: &Variant::OWN,
        promises: Promises { whole_p99_ratio_max: Some(1.0), ..NONE },
    },
    Case {
        name: "trace-x4",
        about: "both CPUs lose four times what the recorded trace lost, load 70 %",
        taking: Taking::Trace(4.0),
        load: 0.7,
        requests: REQUESTS,
        variants: &Variant::OWN,
        promises: Promises { whole_p99_ratio_max: Some(1.0), ..NONE },
    },
    Case {
        name: "30-at-40",
        about: "CPU 0 loses 30 % (3 ms of 10), load 40 %: no gain expected",
        taking: Taking::Slices(MS.saturating_mul(3), MS.saturating_mul(10)),
        load: 0.4,
        requests: REQUESTS,
        variants: &Variant::OWN,
        promises: NONE,
    },
    Case {
        name: "long-lived",
        about: "CPU 0 loses 30 % (3 ms of 10), load 80 %, connections of 500 requests",
        taking: Taking::Slices(MS.saturating_mul(3), MS.saturating_mul(10)),
        load: 0.8,
        requests: 500,
        variants: &Variant::OWN,
        promises: NONE,
    },
    Case {
        name: "calm",
        about: "nothing is taken, load 70 %: what the controller costs",
        taking: Taking::Nothing,
        load: 0.7,
        requests: REQUESTS,
        variants: &Variant::OWN,
        promises: Promises { cpu_ratio_max: Some(1.005), ..NONE },
    },
    Case {
        name: "smoke",
        about: "CPU 0 loses 30 % (3 ms of 10), load 50 %: does everything run?",
        taking: Taking::Slices(MS.saturating_mul(3), MS.saturating_mul(10)),
        load: 0.5,
        requests: REQUESTS,
        variants: &Variant::OWN,
        promises: NONE,
    },
];

impl Case {
    pub fn named(name: &str) -> Option<Self> {
        CASES.into_iter().find(|case| case.name == name)
    }

    /// All but the smoke.
    pub fn standard() -> Vec<Self> {
        CASES.into_iter().filter(|case| case.name != "smoke").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_compares_off_with_act_and_is_found_by_its_name() {
        for case in CASES {
            assert!(Variant::OWN.iter().all(|variant| case.variants.contains(variant)), "{}", case.name);
            assert_eq!(Case::named(case.name).map(|found| found.about), Some(case.about));
            assert!((0.0..1.0).contains(&case.load) && case.requests > 0);
        }
        assert_eq!(Case::standard().len(), CASES.len() - 1);
    }
}
