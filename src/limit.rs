//! How much is let through: what may be under way to a cluster at once, over all workers, and how often requests are tried
//! again. Pure: time comes in, decisions go out.

pub mod circuit;
pub mod retry;
