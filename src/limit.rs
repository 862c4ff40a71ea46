//! How much is let through: what one client may ask for, what may be under way to a cluster at once, over all workers, and how
//! often requests are tried again. Pure: time comes in, decisions go out. Never knows what a request is.

pub mod circuit;
pub mod rate;
pub mod retry;
