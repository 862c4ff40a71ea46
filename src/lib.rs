//! Ringfort: a thread-per-core proxy appliance. `ARCHITECTURE.md` beside this file is the map.
//! Layers stand in order: a module may use its own layer and those above it, never those below.

// 0 words
pub mod base;
pub mod limits;
pub mod metrics;

// 1 protocols and policies: pure
pub mod balance;
pub mod detect;
pub mod h1;
pub mod health;
pub mod http;
pub mod limit;
pub mod proxy_protocol;
pub mod route;
pub mod steal;
pub mod tls;

// 2 the machine, and the runtime on it
pub mod sys;

pub mod runtime;

// 3 proxy
pub mod proxy;

// 4 worker
pub mod worker;

// 5 control, and what can be asked of it
pub mod config;
pub mod control;
pub mod doctor;
pub mod tune;

pub mod cli;
