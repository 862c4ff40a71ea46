//! What Ringfort counts: the catalogue of metrics, one shard of values a worker, and their text form.
//! Reads no clock, file or socket: workers write values, the control thread reads and renders them.

pub mod catalog;
pub mod describe;
pub mod render;
pub mod shard;
pub mod steal;

pub use catalog::{
    AcceptError, ClusterCounter, ClusterGauge, ClusterHistogram, Counter, Drained, Gauge, HandshakeFailure,
    Histogram, ListenerCounter, ListenerGauge, LogDrop, Overflow, ProbeResult, Process, ProxyHeader,
    RateLimited, Shed, TunnelProtocol,
};
pub use render::{CertificateEnd, CertificateFacts, HealthFacts, ProcessFacts, WorkerFacts};
pub use shard::Shard;
pub use steal::{CpuFacts, StealFacts, WorkerLoss};
