//! The benchmark of Ringfort: what puts load on a proxy, what stands behind it, and what compares it with
//! others.
//!
//! Loopback only. Nothing here is part of the product, and the product uses nothing of it.

pub mod certificate;
pub mod child;
pub mod compare;
pub mod h2;
pub mod h2load;
pub mod load;
pub mod machine;
pub mod measure;
pub mod origin;
pub mod pin;
pub mod procfs;
pub mod proxies;
pub mod report;
pub mod rig;
pub mod stats;
pub mod steal;
pub mod tls;
pub mod tls_api;
pub mod wire;
pub mod workload;
