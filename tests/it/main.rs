//! Integration tests: the real binary, real sockets, ports from the kernel. One file a feature.
