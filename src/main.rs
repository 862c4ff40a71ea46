//! Entry point. Only turns the outcome of a command into an exit code.
fn main() {}
