//! Ringfort: a thread-per-core proxy appliance. `ARCHITECTURE.md` beside this file is the map.
//! Modules stand in layer order; a module may use those above it, never those below.

// 0 words
pub mod base;
pub mod limits;
pub mod metrics;

// 1 protocols and policies: pure
pub mod balance;
pub mod h1;
pub mod health;
pub mod http;
pub mod route;

// 2 runtime
pub mod runtime;
pub mod sys;

// 3 proxy
pub mod proxy;

// 4 worker
pub mod worker;

// 5 control
pub mod cli;
pub mod config;
pub mod control;
