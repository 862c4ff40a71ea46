//! How much of the gateway one client may have. Pure: time comes in, verdicts go out. Never knows what a request is.

pub mod rate;
