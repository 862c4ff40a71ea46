//! The proxies that are compared and how each is configured. Each peer is tuned as its own manual advises for
//! this work: a win over a default configuration would be no win.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use crate::certificate::{bundle_file, certificate_file, key_file};
use crate::workload::{Protocol, Terms};

/// One column of the comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proxy {
    Nginx,
    Haproxy,
    /// HAProxy with splice(2); compared once so that the better setting could be kept, not by default.
    HaproxySplice,
    RingfortUring,
    RingfortEpoll,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub nginx: PathBuf,
    pub haproxy: PathBuf,
    pub ringfort: PathBuf,
    /// The load of HTTP/2, and the origin of gRPC.
    pub h2load: PathBuf,
    pub nghttpd: PathBuf,
}

/// What a configuration is made from.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    pub protocol: Protocol,
    pub listen: SocketAddr,
    /// For Ringfort, which always has one.
    pub admin: SocketAddr,
    pub origin: SocketAddr,
    pub cpu: usize,
    /// Holds the configuration and whatever a proxy writes.
    pub folder: &'a Path,
    pub nginx_stream_module: Option<&'a Path>,
}

/// For what has no setting of its own for the number of session tickets: HAProxy 2.6 with `no-tls-tickets`
/// still sends two of the stateful kind in every TLS 1.3 handshake.
pub const OPENSSL_CONFIG: &str = "openssl_conf = openssl_init

[openssl_init]
ssl_conf = ssl

[ssl]
system_default = no_tickets

[no_tickets]
NumTickets = 0
";

const NGINX_MODULE_FOLDERS: [&str; 4] =
    ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules", "/etc/nginx/modules"];

impl Proxy {
    pub const ALL: [Self; 5] =
        [Self::Nginx, Self::Haproxy, Self::HaproxySplice, Self::RingfortUring, Self::RingfortEpoll];
    pub const DEFAULT: [Self; 4] = [Self::Nginx, Self::Haproxy, Self::RingfortUring, Self::RingfortEpoll];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::RingfortUring => "ringfort-uring",
            Self::RingfortEpoll => "ringfort-epoll",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|proxy| proxy.name() == name)
    }

    /// Whether ratios are taken against it.
    pub fn is_peer(self) -> bool {
        !matches!(self, Self::RingfortUring | Self::RingfortEpoll)
    }

    pub fn program(self, programs: &Programs) -> &Path {
        match self {
            Self::Nginx => &programs.nginx,
            Self::Haproxy | Self::HaproxySplice => &programs.haproxy,
            Self::RingfortUring | Self::RingfortEpoll => &programs.ringfort,
        }
    }

    pub fn arguments(self, config: &Path, folder: &Path) -> Vec<String> {
        let (config, folder) = (config.display().to_string(), folder.display().to_string());
        let words: Vec<&str> = match self {
            Self::Nginx => vec!["-p", &folder, "-c", &config, "-e", "stderr"],
            Self::Haproxy | Self::HaproxySplice => vec!["-db", "-f", &config],
            Self::RingfortUring | Self::RingfortEpoll => vec!["run", "--config", &config],
        };
        words.into_iter().map(str::to_owned).collect()
    }

    /// What it is started with besides; `openssl` is the file that holds [`OPENSSL_CONFIG`].
    pub fn environment(self, protocol: Protocol, openssl: PathBuf) -> Vec<(&'static str, PathBuf)> {
        match (self, protocol.terms()) {
            (Self::Haproxy | Self::HaproxySplice, Some(Terms::Pinned)) => {
                vec![("OPENSSL_CONF", openssl)]
            }
            _ => Vec::new(),
        }
    }

    pub fn config(self, site: &Site<'_>) -> String {
        match self {
            Self::Nginx => nginx(site),
            Self::Haproxy => haproxy(site, false),
            Self::HaproxySplice => haproxy(site, true),
            Self::RingfortUring => ringfort(site, "io_uring"),
            Self::RingfortEpoll => ringfort(site, "epoll"),
        }
    }

    pub fn config_name(self) -> String {
        let ending = if self.is_peer() { "conf" } else { "toml" };
        format!("{}.{ending}", self.name())
    }

    /// What the program says it is; an error names the package to install.
    pub fn version(self, programs: &Programs) -> io::Result<String> {
        let (argument, cure) = match self {
            Self::Nginx => ("-v", "install the package nginx (and libnginx-mod-stream)"),
            Self::Haproxy | Self::HaproxySplice => ("-v", "install the package haproxy"),
            Self::RingfortUring | Self::RingfortEpoll => {
                ("version", "build it with cargo build --release, or name it with --ringfort PATH")
            }
        };
        let program = self.program(programs);
        let output = Command::new(program).arg(argument).output().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{}: {error}; {cure}, or leave it out with --only", program.display()),
            )
        })?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
    }
}

/// The stream module where packages put it, for nginx that was built with it apart.
pub fn nginx_stream_module() -> Option<PathBuf> {
    let files = NGINX_MODULE_FOLDERS.map(|folder| Path::new(folder).join("ngx_stream_module.so"));
    files.into_iter().find(|file| fs::exists(file).unwrap_or(false))
}

fn nginx(site: &Site<'_>) -> String {
    let Site { listen, origin, folder, .. } = site;
    let folder = folder.display();
    let affinity = format!("{:b}", 1_u64 << site.cpu.min(63));
    let (module, body) = match site.protocol {
        Protocol::Tcp => {
            let module = site.nginx_stream_module.map(|path| format!("load_module {};\n", path.display()));
            (module.unwrap_or_default(), nginx_stream(*listen, *origin))
        }
        _ => (String::new(), nginx_http(site)),
    };
    format!(
        "{module}daemon off;
worker_processes 1;
worker_cpu_affinity {affinity};
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 20000; multi_accept on; use epoll; }}
{body}"
    )
}

const NGINX_PROXY_PASS: &str = "      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
      proxy_buffer_size 16k;
      proxy_buffers 16 16k;
      proxy_busy_buffers_size 64k;
      proxy_max_temp_file_size 0;
";

const NGINX_WEBSOCKET_PASS: &str = "      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection upgrade;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Host $host;
      proxy_read_timeout 600s;
      proxy_send_timeout 600s;
";

const NGINX_GRPC_PASS: &str = "      grpc_pass grpc://origin;
      grpc_buffer_size 16k;
";

// keepalive and keepalive_requests: no connection on either side is closed during a run. Buffers: a body of
// 100 KiB fits, so that none goes through a temporary file.
fn nginx_http(site: &Site<'_>) -> String {
    let Site { listen, origin, folder, .. } = site;
    let folder = folder.display();
    let terms = site.protocol.terms().map_or_else(String::new, |terms| nginx_tls(site, terms));
    let listener = match site.protocol {
        Protocol::Tls(_) => " ssl",
        Protocol::H2 => " ssl http2",
        Protocol::H2c | Protocol::Grpc => " http2",
        Protocol::Http | Protocol::Tcp | Protocol::WebSocket => "",
    };
    let pass = match site.protocol {
        Protocol::Grpc => NGINX_GRPC_PASS,
        Protocol::WebSocket => NGINX_WEBSOCKET_PASS,
        _ => NGINX_PROXY_PASS,
    };
    format!(
        "http {{
  access_log off;
  server_tokens off;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  upstream origin {{
    server {origin};
    keepalive 9000;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
  }}
  server {{
    listen {listen} reuseport backlog=4096{listener};
{terms}    location / {{
{pass}    }}
  }}
}}
"
    )
}

// ssl_session_tickets off alone still sends tickets of the stateful kind in TLS 1.3: NumTickets 0 ends that.
// Release 1.22 leaves TLS 1.3 out by default; with it on, the rest of its defaults stay.
fn nginx_tls(site: &Site<'_>, terms: Terms) -> String {
    let (certificate, key) = (certificate_file(site.folder), key_file(site.folder));
    let protocols = if terms == Terms::Defaults { "TLSv1.2 TLSv1.3" } else { "TLSv1.3" };
    let mut lines = vec![
        format!("ssl_certificate {};", certificate.display()),
        format!("ssl_certificate_key {};", key.display()),
        format!("ssl_protocols {protocols};"),
    ];
    if terms != Terms::Defaults {
        lines.push("ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;".to_owned());
        lines.push("ssl_ecdh_curve X25519;".to_owned());
    }
    if terms == Terms::Pinned {
        lines.push("ssl_session_tickets off;".to_owned());
        lines.push("ssl_session_cache off;".to_owned());
        lines.push("ssl_conf_command NumTickets 0;".to_owned());
    }
    lines.iter().map(|line| format!("    {line}\n")).collect()
}

fn nginx_stream(listen: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "stream {{
  access_log off;
  tcp_nodelay on;
  proxy_timeout 600s;
  server {{ listen {listen} reuseport backlog=4096; proxy_pass {origin}; }}
}}
"
    )
}

// pool-*-fd-ratio: by default HAProxy closes idle upstream connections once a quarter of its descriptors is
// in use, which at thousands of connections means a connection a request.
fn haproxy(site: &Site<'_>, splice: bool) -> String {
    let Site { listen, origin, cpu, .. } = site;
    let (splice, pipes) = if splice { ("  option splice-auto\n", "  maxpipes 200\n") } else { ("", "") };
    let mode = match site.protocol {
        Protocol::Tcp => "  mode tcp\n",
        _ => "  mode http\n  option http-keep-alive\n  http-reuse always\n",
    };
    let version = match site.protocol {
        Protocol::H2 => " alpn h2,http/1.1",
        Protocol::H2c | Protocol::Grpc => " proto h2",
        Protocol::Http | Protocol::Tcp | Protocol::WebSocket | Protocol::Tls(_) => "",
    };
    let (global, ssl) = site.protocol.terms().map_or(("", String::new()), |terms| {
        (haproxy_tls(terms), format!(" ssl crt {}", bundle_file(site.folder).display()))
    });
    let bind = format!("{ssl}{version}");
    let upstream = if site.protocol == Protocol::Grpc { " proto h2" } else { "" };
    format!(
        "global
  nbthread 1
  cpu-map auto:1/1 {cpu}
  maxconn 9500
  ulimit-n 20000
{pipes}{global}  tune.pool-low-fd-ratio 95
  tune.pool-high-fd-ratio 99
defaults
{mode}{splice}  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout tunnel 600s
  timeout http-keep-alive 600s
  maxconn 9500
  backlog 4096
frontend bench
  bind {listen}{bind}
  default_backend origin
backend origin
  server origin {origin}{upstream} pool-purge-delay 600s
"
    )
}

fn haproxy_tls(terms: Terms) -> &'static str {
    match terms {
        Terms::Pinned => {
            "  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-curves X25519
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  tune.ssl.cachesize 0
"
        }
        Terms::Resumed => {
            "  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-curves X25519
  ssl-default-bind-options ssl-min-ver TLSv1.3
"
        }
        Terms::Defaults => "",
    }
}

// As with the peers: no connection on either side is closed during a run, and idle upstream connections are
// kept.
fn ringfort(site: &Site<'_>, engine: &str) -> String {
    let Site { listen, admin, origin, cpu, folder, .. } = site;
    let (protocol, route) = match site.protocol {
        Protocol::Tcp => ("protocol = \"tcp\"\ncluster = \"origin\"", ""),
        _ => ("protocol = \"http\"", "[[route]]\nlistener = \"bench\"\ncluster = \"origin\"\n"),
    };
    // Suite and group are the client's choice of one where they are pinned: Ringfort has no keys for them.
    let tls = match site.protocol.terms() {
        Some(terms) => format!(
            "[listener.tls]\ncertificates = [{{ cert = \"{}\", key = \"{}\" }}]\n{}",
            certificate_file(folder).display(),
            key_file(folder).display(),
            if terms == Terms::Pinned { "session_tickets = false\n" } else { "" }
        ),
        None => String::new(),
    };
    let upstream = if site.protocol == Protocol::Grpc { "protocol = \"h2\"\n" } else { "" };
    format!(
        "[workers]
cpus = \"{cpu}\"
engine = \"{engine}\"

[admin]
listen = \"{admin}\"
socket = \"{}/admin.sock\"

[limits]
requests_per_connection_max = 1000000000

[timeouts]
idle_timeout_ms = 600000
pool_idle_timeout_ms = 600000

[[listener]]
name = \"bench\"
listen = \"{listen}\"
{protocol}
{tls}
{route}
[[cluster]]
name = \"origin\"
endpoints = [\"{origin}\"]
pool_idle_per_worker_max = 9000
{upstream}",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOCOLS: [Protocol; 9] = [
        Protocol::WebSocket,
        Protocol::H2,
        Protocol::H2c,
        Protocol::Grpc,
        Protocol::Http,
        Protocol::Tcp,
        Protocol::Tls(Terms::Pinned),
        Protocol::Tls(Terms::Resumed),
        Protocol::Tls(Terms::Defaults),
    ];

    fn site(protocol: Protocol) -> Site<'static> {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Site {
            protocol,
            listen: address(8080),
            admin: address(9901),
            origin: address(9000),
            cpu: 2,
            folder: Path::new("/tmp/bench"),
            nginx_stream_module: Some(Path::new("/modules/ngx_stream_module.so")),
        }
    }

    #[test]
    fn every_configuration_names_its_listener_origin_and_cpu() {
        for protocol in PROTOCOLS {
            for proxy in Proxy::ALL {
                let config = proxy.config(&site(protocol));
                for part in ["127.0.0.1:8080", "127.0.0.1:9000"] {
                    assert!(config.contains(part), "{}: no {part} in\n{config}", proxy.name());
                }
                let cpu = match proxy {
                    Proxy::Nginx => "worker_cpu_affinity 100;",
                    Proxy::Haproxy | Proxy::HaproxySplice => "cpu-map auto:1/1 2",
                    Proxy::RingfortUring | Proxy::RingfortEpoll => "cpus = \"2\"",
                };
                assert!(config.contains(cpu), "{}: no {cpu} in\n{config}", proxy.name());
            }
        }
    }

    #[test]
    fn pinned_terms_leave_no_proxy_a_ticket() {
        for (proxy, off) in [
            (Proxy::Nginx, "NumTickets 0;"),
            (Proxy::Haproxy, "no-tls-tickets"),
            (Proxy::RingfortUring, "session_tickets = false"),
        ] {
            for terms in [Terms::Pinned, Terms::Resumed, Terms::Defaults] {
                let config = proxy.config(&site(Protocol::Tls(terms)));
                assert!(config.contains("/tmp/bench/bench"), "{}: no certificate in\n{config}", proxy.name());
                assert_eq!(config.contains(off), terms == Terms::Pinned, "{}: {config}", proxy.name());
            }
        }
    }

    #[test]
    fn only_a_tcp_relay_by_nginx_loads_the_stream_module() {
        assert!(nginx(&site(Protocol::Tcp)).contains("load_module /modules/ngx_stream_module.so;"));
        assert!(!nginx(&site(Protocol::Http)).contains("load_module"));
    }

    #[test]
    fn names_are_read_back() {
        for proxy in Proxy::ALL {
            assert_eq!(Proxy::named(proxy.name()), Some(proxy));
        }
        assert_eq!(Proxy::named("envoy"), None);
    }
}
