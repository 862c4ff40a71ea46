//! Ringfort: a thread-per-core proxy appliance. `ARCHITECTURE.md` beside this file is the map.
//! Modules stand in layer order; a module may use those above it, never those below.

// 0 words
pub mod base;
pub mod limits;
pub mod metrics;

// 1 protocols and policies: pure

// 2 runtime
pub mod sys;

// 3 proxy

// 4 worker

// 5 control
