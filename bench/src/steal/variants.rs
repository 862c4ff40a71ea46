//! The proxies of the rig and how each is configured: two workers, one pinned to each CPU, and an answer of their own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use crate::child::{Child, Launch};
use crate::procfs;
use crate::proxies::{Programs, Proxy};
use crate::rig::{free_address, wait_until_answering_http};

/// Octets of the answer's body.
const BODY_BYTES: usize = 1_000;

/// One column of the comparison.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Variant {
    Off,
    Act,
    NginxShared,
    NginxReuseport,
    Haproxy,
    HaproxyByThread,
}

impl Variant {
    pub const ALL: [Self; 6] =
        [Self::Off, Self::Act, Self::NginxShared, Self::NginxReuseport, Self::Haproxy, Self::HaproxyByThread];
    /// The same binary with and without.
    pub const OWN: [Self; 2] = [Self::Off, Self::Act];

    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "ringfort-off",
            Self::Act => "ringfort-act",
            Self::NginxShared => "nginx-shared",
            Self::NginxReuseport => "nginx-reuseport",
            Self::Haproxy => "haproxy",
            Self::HaproxyByThread => "haproxy-by-thread",
        }
    }

    /// The program it is one of.
    pub fn proxy(self) -> Proxy {
        match self {
            Self::Off | Self::Act => Proxy::RingfortUring,
            Self::NginxShared | Self::NginxReuseport => Proxy::Nginx,
            Self::Haproxy | Self::HaproxyByThread => Proxy::Haproxy,
        }
    }

    /// Whose capacity its load is a share of: both modes of Ringfort are given the same.
    pub fn measured_as(self) -> Self {
        if self == Self::Act { Self::Off } else { self }
    }

    pub fn config(self, place: &Place<'_>) -> String {
        match self {
            Self::Off => ringfort(place, "off"),
            Self::Act => ringfort(place, "act"),
            Self::NginxShared => nginx(place, ""),
            Self::NginxReuseport => nginx(place, " reuseport"),
            Self::Haproxy => haproxy(place, ""),
            Self::HaproxyByThread => haproxy(place, " shards by-thread"),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// What a configuration is made from.
pub struct Place<'a> {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub cpus: [usize; 2],
    pub folder: &'a Path,
}

/// A proxy that answers.
pub struct Running {
    pub address: SocketAddr,
    admin: Option<SocketAddr>,
    process: Child,
    pids: Vec<u32>,
}

impl Running {
    /// Starts it afresh and waits until it answers.
    pub fn start(variant: Variant, programs: &Programs, cpus: [usize; 2], folder: &Path) -> io::Result<Self> {
        let place = Place { listen: free_address()?, admin: free_address()?, cpus, folder };
        let config: PathBuf = folder.join(format!("{variant}.conf"));
        fs::write(&config, variant.config(&place))?;
        let launch = Launch {
            name: variant.name(),
            program: variant.proxy().program(programs),
            arguments: &variant.proxy().arguments(&config, folder),
            environment: &[],
            log: folder.join(format!("{variant}.log")),
        };
        let mut process = Child::spawn_unpinned(launch)?;
        wait_until_answering_http(place.listen, &mut process)?;
        let pids = procfs::tree(process.pid())?;
        let admin = (variant.proxy() == Proxy::RingfortUring).then_some(place.admin);
        Ok(Self { address: place.listen, admin, process, pids })
    }

    /// CPU time of the whole tree so far.
    pub fn usage(&mut self) -> io::Result<procfs::Usage> {
        procfs::usage(&self.pids).map_err(|error| self.process.alive().err().unwrap_or(error))
    }

    /// Threads that may run on `cpu` alone.
    pub fn threads_on(&self, cpu: usize) -> Vec<u32> {
        let on = |thread: &u32| {
            let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
            let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            allowed.is_some_and(|list| list.trim() == cpu.to_string())
        };
        let tasks =
            self.pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten();
        tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).filter(on).collect()
    }

    /// What an admin endpoint says; `None` for a proxy that has none.
    pub fn ask(&self, target: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin?).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin?).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }
}

fn body() -> String {
    "x".repeat(BODY_BYTES)
}

fn ringfort(place: &Place<'_>, mode: &str) -> String {
    let Place { listen, admin, cpus: [first, second], folder } = place;
    format!(
        "[workers]
cpus = \"{first},{second}\"

[admin]
listen = \"{admin}\"
socket = \"{}/admin.sock\"

[limits]
requests_per_connection_max = 1000000000

[steal]
mode = \"{mode}\"
latency_objective_ms = 25

[[listener]]
name = \"bench\"
listen = \"{listen}\"
protocol = \"http\"

[[route]]
listener = \"bench\"
respond = {{ status = 200, body = \"{}\", headers = {{ \"content-type\" = \"text/plain\" }} }}
",
        folder.display(),
        body()
    )
}

fn nginx(place: &Place<'_>, reuseport: &str) -> String {
    let Place { listen, cpus: [first, second], folder, .. } = place;
    let mask = |cpu: &usize| format!("{:b}", 1_u64 << (*cpu).min(63));
    let folder = folder.display();
    format!(
        "daemon off;
worker_processes 2;
worker_cpu_affinity {} {};
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 10000; use epoll; }}
http {{
  access_log off;
  server_tokens off;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  default_type text/plain;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  server {{
    listen {listen}{reuseport} backlog=4096;
    location / {{ return 200 \"{}\"; }}
  }}
}}
",
        mask(first),
        mask(second),
        body()
    )
}

fn haproxy(place: &Place<'_>, shards: &str) -> String {
    let Place { listen, cpus: [first, second], .. } = place;
    format!(
        "global
  nbthread 2
  cpu-map 1/1 {first}
  cpu-map 1/2 {second}
  maxconn 9500
  ulimit-n 20000
defaults
  mode http
  option http-keep-alive
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  maxconn 9500
  backlog 4096
frontend bench
  bind {listen}{shards}
  http-request return status 200 content-type text/plain string {}
",
        body()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_answers_itself_on_both_cpus() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let place = Place {
            listen: address(8080),
            admin: address(9901),
            cpus: [2, 5],
            folder: Path::new("/tmp/rig"),
        };
        for (variant, parts) in [
            (Variant::Off, ["cpus = \"2,5\"", "mode = \"off\""]),
            (Variant::Act, ["cpus = \"2,5\"", "mode = \"act\""]),
            (Variant::NginxShared, ["worker_cpu_affinity 100 100000;", "listen 127.0.0.1:8080 backlog"]),
            (Variant::NginxReuseport, ["worker_cpu_affinity 100 100000;", "listen 127.0.0.1:8080 reuseport"]),
            (Variant::Haproxy, ["cpu-map 1/2 5", "bind 127.0.0.1:8080\n"]),
            (Variant::HaproxyByThread, ["cpu-map 1/2 5", "shards by-thread"]),
        ] {
            let config = variant.config(&place);
            for part in parts.into_iter().chain([body().as_str()]) {
                assert!(config.contains(part), "{variant}: no {part} in\n{config}");
            }
        }
    }
}
