//! `serve`: the service in plaintext and over TLS on ports of the kernel's choice, which it prints. `check`: every kind
//! of call against a gateway in front of it, a line for each. `deadline`: a call that only the gateway can end.

mod check;
mod serve;

use std::error::Error;

/// The one message there is, both ways.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    #[prost(bytes = "vec", tag = "1")]
    pub body: Vec<u8>,
    /// What the server is to do, see `serve`.
    #[prost(string, tag = "2")]
    pub order: String,
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

pub mod echo {
    tonic::include_proto!("echo.Echo");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", cert, key] => {
            serve::run(&std::fs::read_to_string(cert)?, &std::fs::read_to_string(key)?).await
        }
        ["check", uri] => check::run(uri, None).await,
        ["check", uri, ca] => check::run(uri, Some(std::fs::read_to_string(ca)?)).await,
        ["deadline", uri] => check::deadline(uri).await,
        _ => Err("usage: ringfort-grpc serve CERT KEY | check URI [CA] | deadline URI".into()),
    }
}
