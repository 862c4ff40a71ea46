//! What the operating system is asked for directly. The only other place with `unsafe` is `runtime/`.

pub mod clock;
