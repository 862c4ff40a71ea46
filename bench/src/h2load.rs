//! Load over HTTP/2 by h2load of nghttp2, an independent client that every proxy is compared with elsewhere too. Counts
//! what it reports; never takes a run in which one request failed.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::certificate;
use crate::load::Measured;

/// What h2load is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub address: SocketAddr,
    pub tls: bool,
    pub target: &'static str,
    pub connections: usize,
    /// Requests under way on each connection.
    pub streams: usize,
    /// A unary call of gRPC: the message to send.
    pub message: Option<std::path::PathBuf>,
    pub body_bytes: usize,
}

/// Puts load on for a time. All requests count, from the first connection to the last response.
pub fn run(program: &Path, plan: &Plan, span: Duration) -> io::Result<Measured> {
    let scheme = if plan.tls { "https" } else { "http" };
    let mut command = Command::new(program);
    // Whole seconds are all that it takes.
    let seconds = span.as_secs_f64().ceil().max(1.0);
    command
        .args(["--threads=1", "--warm-up-time=0"])
        .arg(format!("--duration={seconds}"))
        .arg(format!("--clients={}", plan.connections))
        .arg(format!("--max-concurrent-streams={}", plan.streams));
    if plan.tls {
        command.args(["--npn-list=h2", "--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519"]);
    }
    if let Some(message) = &plan.message {
        command.args(["--header=content-type: application/grpc", "--header=te: trailers"]);
        command.arg("--data").arg(message);
    }
    // The certificate's name: a gateway may refuse others.
    command
        .arg(format!("--connect-to={}", plan.address))
        .arg(format!("{scheme}://{}{}", certificate::NAME, plan.target))
        .stdin(Stdio::null());
    let output = command.output().map_err(|error| {
        let cure = "install the package nghttp2-client, or name it with --h2load PATH";
        io::Error::new(error.kind(), format!("{}: {error}; {cure}", program.display()))
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let measured = read(&text, plan.body_bytes).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        io::Error::other(format!("h2load said what it never said before: {said}{text}"))
    })?;
    if measured.errors > 0 || measured.responses == 0 {
        return Err(io::Error::other(format!("h2load had wrong or missing responses: {text}")));
    }
    Ok(measured)
}

/// The report of a run.
fn read(text: &str, body_bytes: usize) -> Option<Measured> {
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let number_of = |list: &str, name: &str| {
        let item = list.split(',').find(|item| item.trim_end().ends_with(name))?;
        item.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    let requests = line("requests: ")?;
    let statuses = line("status codes: ")?;
    let finished = line("finished in ")?;
    let seconds = seconds(finished.split_once(',')?.0)?;
    let done = number_of(requests, " done")?;
    let good = number_of(statuses, " 2xx")?;
    let lost = [" failed", " errored", " timeout"].into_iter().map(|name| number_of(requests, name));
    let lost: Option<u64> = lost.sum();
    let traffic = line("traffic: ")?;
    let data = traffic.rsplit_once('(')?.1.split_once(')')?.0.parse::<u64>().ok()?;
    // Of a body that is cut or too long the sum shows; those under way at the end add less than one each.
    let wanted = done.saturating_mul(body_bytes as u64);
    let bodies_are_right = data >= wanted && data <= wanted + wanted / 50 + 1_000_000;
    let errors = lost? + done.saturating_sub(good) + u64::from(!bodies_are_right);
    Some(Measured {
        seconds,
        responses: done,
        body_bytes: data,
        rate_per_second: done as f64 / seconds,
        errors,
        ..Measured::default()
    })
}

/// A span as it writes it: less than a second is told in a smaller unit.
fn seconds(text: &str) -> Option<f64> {
    let unit_at = text.find(|char: char| char.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let unit = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "starting benchmark...
finished in 1.00s, 160960.00 req/s, 22.11MB/s
requests: 160960 total, 161000 started, 160960 done, 160960 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 160960 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 22.11MB (23178832) total, 1.69MB (1771012) headers (space savings 93.64%), 16.12MB (16900800) data
";

    #[test]
    fn a_report_is_read() {
        let measured = read(REPORT, 105).unwrap();
        assert_eq!((measured.responses, measured.errors, measured.body_bytes), (160_960, 0, 16_900_800));
        assert!((measured.rate_per_second - 160_960.0).abs() < 1.0);
        let short = read(&REPORT.replace("in 1.00s", "in 999.95ms"), 105).unwrap();
        assert!((short.seconds - 0.99995).abs() < 1e-9);
    }

    #[test]
    fn what_went_wrong_counts() {
        for (from, to) in [
            ("160960 2xx, 0 3xx", "160959 2xx, 0 3xx"),
            ("0 errored", "3 errored"),
            ("(16900800) data", "(16900000) data"),
        ] {
            assert!(read(&REPORT.replace(from, to), 105).unwrap().errors > 0, "{to}");
        }
        assert!(read("no report", 105).is_none());
    }
}
