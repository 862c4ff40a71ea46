//! One origin, one proxy in front of it, everything on loopback, and a folder that goes when the rig goes.
//! Never runs two proxies at once.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConnection, Stream};

use crate::child::{Child, Launch};
use crate::proxies::{OPENSSL_CONFIG, Programs, Proxy, Site, nginx_stream_module};
use crate::tls::{Offer, Tls};
use crate::workload::{GRPC_PREFIX_BYTES, GRPC_TARGET, Protocol, Terms};
use crate::{certificate, h2, procfs, wire};

/// A proxy or origin that does not answer within this is given up.
const START_MAX: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// The CPUs of the two sides.
#[derive(Clone, Copy, Debug)]
pub struct Cpus {
    pub proxy: usize,
    pub load: usize,
}

pub struct Rig {
    pub cpus: Cpus,
    pub programs: Programs,
    origin: SocketAddr,
    /// Answers calls of gRPC; started with the first proxy that needs it.
    grpc_origin: RefCell<Option<(SocketAddr, Child)>>,
    nginx_stream_module: Option<PathBuf>,
    /// What every proxy presents.
    certificate: CertificateDer<'static>,
    // Fields drop in order: processes before the folder that they write to.
    _origin_process: Child,
    folder: Folder,
}

/// A proxy that answers.
pub struct Running {
    pub address: SocketAddr,
    process: Child,
    pids: Vec<u32>,
}

/// A folder of this run that goes when this is dropped.
pub struct Folder(PathBuf);

impl Rig {
    /// Starts the origin: `program` with the arguments `origin --listen ADDRESS`.
    pub fn start(program: &Path, programs: Programs, cpus: Cpus) -> io::Result<Self> {
        let folder = Folder::create()?;
        let origin = free_address()?;
        let arguments = ["origin".to_owned(), "--listen".to_owned(), origin.to_string()];
        let log = folder.0.join("origin.log");
        let launch = Launch { name: "origin", program, arguments: &arguments, environment: &[], log };
        let mut process = Child::spawn(launch, cpus.load, cpus.load)?;
        wait_until_answering(origin, &Probe::Http1(None), &mut process)?;
        let nginx_stream_module = nginx_stream_module();
        let certificate = certificate::make(&folder.0)?;
        Ok(Self {
            cpus,
            programs,
            origin,
            grpc_origin: RefCell::default(),
            nginx_stream_module,
            certificate,
            _origin_process: process,
            folder,
        })
    }

    pub fn origin(&self) -> SocketAddr {
        self.origin
    }

    /// Where logs of other children may go.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    pub fn site(&self, protocol: Protocol) -> io::Result<Site<'_>> {
        Ok(Site {
            protocol,
            listen: free_address()?,
            admin: free_address()?,
            origin: if protocol == Protocol::Grpc { self.grpc_origin()? } else { self.origin },
            cpu: self.cpus.proxy,
            folder: &self.folder.0,
            nginx_stream_module: self.nginx_stream_module.as_deref(),
        })
    }

    /// The message that a call sends and is answered with.
    pub fn grpc_message(&self) -> PathBuf {
        self.folder.0.join("htdocs").join(GRPC_TARGET.trim_start_matches('/'))
    }

    fn grpc_origin(&self) -> io::Result<SocketAddr> {
        if let Some((address, _)) = &*self.grpc_origin.borrow() {
            return Ok(*address);
        }
        let message = self.grpc_message();
        message.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut bytes = vec![0; GRPC_PREFIX_BYTES];
        bytes[GRPC_PREFIX_BYTES - 1] = wire::SMALL_BYTES as u8;
        bytes.resize(GRPC_PREFIX_BYTES + wire::SMALL_BYTES, b'x');
        fs::write(&message, bytes)?;
        let address = free_address()?;
        let folder = self.folder.0.join("htdocs").display().to_string();
        let port = address.port().to_string();
        let trailer = "--trailer=grpc-status: 0";
        let arguments =
            ["--no-tls", "--address=127.0.0.1", "--htdocs", &folder, trailer, &port].map(str::to_owned);
        let program = &self.programs.nghttpd;
        let log = self.folder.0.join("nghttpd.log");
        let launch = Launch { name: "nghttpd", program, arguments: &arguments, environment: &[], log };
        let mut process = Child::spawn(launch, self.cpus.load, self.cpus.load).map_err(|error| {
            let cure = "install the package nghttp2-server, or name it with --nghttpd PATH";
            io::Error::new(error.kind(), format!("{error}; {cure}"))
        })?;
        wait_until_answering(address, &Probe::PriorKnowledge(GRPC_TARGET), &mut process)?;
        self.grpc_origin.replace(Some((address, process)));
        Ok(address)
    }

    /// How the load generator speaks to a proxy.
    pub fn tls(&self, protocol: Protocol) -> Option<Tls> {
        let terms = protocol.terms()?;
        Some(Tls {
            server_name: certificate::NAME.to_owned(),
            offer: if terms == Terms::Defaults { Offer::Openssl } else { Offer::Aes128 },
            resume: terms == Terms::Resumed,
            tickets: terms != Terms::Pinned,
            certificate: Some(self.certificate.clone()),
        })
    }

    /// Starts a proxy afresh and waits until a request goes through it.
    pub fn proxy(&self, proxy: Proxy, protocol: Protocol) -> io::Result<Running> {
        let site = self.site(protocol)?;
        let config = self.folder.0.join(proxy.config_name());
        fs::write(&config, proxy.config(&site))?;
        let openssl = self.folder.0.join("openssl.cnf");
        fs::write(&openssl, OPENSSL_CONFIG)?;
        let launch = Launch {
            name: proxy.name(),
            program: proxy.program(&self.programs),
            arguments: &proxy.arguments(&config, &self.folder.0),
            environment: &proxy.environment(protocol, openssl),
            log: self.folder.0.join(format!("{}.log", proxy.name())),
        };
        let probe = match protocol {
            Protocol::Grpc => Probe::PriorKnowledge(GRPC_TARGET),
            _ if protocol.needs_prior_knowledge() => Probe::PriorKnowledge("/small"),
            _ => Probe::Http1(self.tls(protocol)),
        };
        let started = self.start_process(launch, site.listen, &probe);
        if (proxy, protocol) == (Proxy::Nginx, Protocol::Tcp) && site.nginx_stream_module.is_none() {
            let cure = "nginx relays TCP by its stream module only: install the package libnginx-mod-stream";
            return started.map_err(|error| io::Error::other(format!("{error}; {cure}")));
        }
        started
    }

    /// Starts any program that is to answer at `address`.
    pub fn launch(
        &self,
        name: &str,
        program: &Path,
        arguments: &[String],
        address: SocketAddr,
        log: PathBuf,
    ) -> io::Result<Running> {
        let launch = Launch { name, program, arguments, environment: &[], log };
        self.start_process(launch, address, &Probe::Http1(None))
    }

    fn start_process(&self, launch: Launch<'_>, address: SocketAddr, probe: &Probe) -> io::Result<Running> {
        let mut process = Child::spawn(launch, self.cpus.proxy, self.cpus.load)?;
        wait_until_answering(address, probe, &mut process)?;
        let pids = procfs::tree(process.pid())?;
        Ok(Running { address, process, pids })
    }
}

impl Running {
    /// CPU time of the whole tree so far.
    pub fn usage(&mut self) -> io::Result<procfs::Usage> {
        procfs::usage(&self.pids).map_err(|error| self.explain(error))
    }

    pub fn memory(&mut self) -> io::Result<procfs::Memory> {
        procfs::memory(&self.pids).map_err(|error| self.explain(error))
    }

    /// `error`, unless the proxy has ended: then that.
    pub fn explain(&mut self, error: io::Error) -> io::Error {
        match self.process.alive() {
            Err(ended) => ended,
            Ok(()) => error,
        }
    }
}

impl Folder {
    pub fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("ringfort-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Only litter in the temporary folder is at stake.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A loopback port that was free a moment ago.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// How a program is asked whether it answers.
enum Probe {
    Http1(Option<Tls>),
    /// HTTP/2 in plaintext, for this target.
    PriorKnowledge(&'static str),
}

/// Waits until a plaintext request of HTTP/1.1 is answered with 200.
pub fn wait_until_answering_http(address: SocketAddr, process: &mut Child) -> io::Result<()> {
    wait_until_answering(address, &Probe::Http1(None), process)
}

fn wait_until_answering(address: SocketAddr, probe: &Probe, process: &mut Child) -> io::Result<()> {
    let deadline = Instant::now() + START_MAX;
    loop {
        process.alive()?;
        let answered = match probe {
            Probe::Http1(tls) => answers(address, tls.as_ref()),
            Probe::PriorKnowledge(target) => h2::Connection::open(address, target).map(drop),
        };
        let error = match answered {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "no answer at {address} within {} s ({error}); log: {}",
                START_MAX.as_secs(),
                process.log_end()
            )));
        }
        thread::sleep(RETRY_EVERY);
    }
}

fn answers(address: SocketAddr, tls: Option<&Tls>) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let Some(tls) = tls else { return answers_over(&mut stream) };
    let config = Arc::new(tls.config(true)?);
    let mut session = ClientConnection::new(config, tls.server_name()?).map_err(io::Error::other)?;
    answers_over(&mut Stream::new(&mut session, &mut stream))
}

fn answers_over(stream: &mut (impl Read + Write)) -> io::Result<()> {
    stream.write_all(&wire::request("bench.test", "/small", true))?;
    let mut buffer = [0; 4096];
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
        if let Some(head) = wire::response_head(&buffer[..filled]).map_err(io::Error::other)? {
            if head.status == 200 {
                return Ok(());
            }
            return Err(io::Error::other(format!("status {}", head.status)));
        }
    }
    Err(io::Error::other("no whole response head"))
}
