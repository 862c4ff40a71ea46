//! Integration tests: the real binary, real sockets, ports from the kernel. One file a feature.
#![allow(unreachable_pub, reason = "a test binary exports nothing; `pub` marks what the harness offers")]

mod harness;

mod access_log;
mod admin;
mod bad_inputs;
mod bad_responses;
mod certificates;
mod check;
mod clusters;
mod doctor;
mod drain;
mod faults;
mod first_minute;
mod grpc;
mod http1_basic;
mod http2_bad_inputs;
mod http2_basic;
mod http2_ends;
mod http2_floods;
mod http2_tls;
mod identity;
mod notify;
mod passthrough;
mod routing;
mod slow;
mod sockets;
mod steal;
mod supervisor;
mod tcp;
mod tidy;
mod tls;
mod tls_peers;
mod traceparent;
mod tune;
mod tunnels;
mod tunnels_h2;
mod upstream_tls;
mod views;
mod websocket;
