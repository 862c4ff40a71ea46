//! What the kernel is asked outside the data path: clock, CPUs, limits, listeners, descriptors between processes.
//! With `runtime/`, the only place of `unsafe`. Holds no policy: it answers questions and carries out orders.

pub mod affinity;
pub mod child;
pub mod clock;
pub mod cpu;
pub mod fd_passing;
pub mod holders;
pub mod hypervisor;
pub mod listeners;
pub mod lock;
pub mod notify;
pub mod poll;
pub mod process;
pub mod random;
pub mod reuseport;
pub mod rlimit;
pub mod socket_options;
pub mod succession;
