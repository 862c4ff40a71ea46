//! What the supervisor opens at start, in worker order, and where the admin Unix socket goes.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::control::handover::Sockets;
use crate::control::{cpus, socket};
use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::sys::{affinity, listeners};

const ADMIN_BACKLOG: u32 = ADMIN_CONNECTIONS_MAX as u32;

/// The CPU of each worker, from configuration, affinity and control group.
pub fn cpus(config: &Config) -> Result<Vec<usize>, String> {
    let allowed =
        affinity::allowed_cpus().map_err(|error| format!("cannot read the affinity mask: {error}"))?;
    let quota = affinity::cpu_quota(&config.host.procfs, &config.host.cgroupfs);
    cpus::choose(&config.workers.cpus, &allowed, quota)
}

/// All sockets of the gateway for `workers` workers, and the path of the admin Unix socket if there is one.
pub fn sockets(config: &Config, workers: usize) -> Result<(Sockets, Option<PathBuf>), String> {
    let mut by_worker: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for listener in &config.snapshot.listeners {
        let opened = listeners::open(listener.address, workers, listener.backlog)
            .map_err(|error| format!("listener \"{}\": {error}", listener.name))?;
        for (worker, socket) in by_worker.iter_mut().zip(opened) {
            worker.push(socket);
        }
    }
    let admin_tcp = listeners::open_one(config.admin.listen, ADMIN_BACKLOG)
        .map_err(|error| format!("admin.listen: {error}"))?;
    let (admin_unix, path) = admin_socket(config.admin.socket.as_deref())?.unzip();
    Ok((Sockets { workers: by_worker, admin_tcp, admin_unix }, path))
}

/// A path from the configuration must work; of the default ones the first that works is taken, if any.
fn admin_socket(configured: Option<&Path>) -> Result<Option<(UnixListener, PathBuf)>, String> {
    if let Some(path) = configured {
        let listener = listeners::open_unix(path, ADMIN_BACKLOG).map_err(|error| {
            format!("admin.socket: cannot listen on {}: {}", path.display(), explain(&error))
        })?;
        return Ok(Some((listener, path.into())));
    }
    let mut notes = Vec::new();
    for path in socket::default_paths() {
        let Some(folder) = path.parent() else { continue };
        // Exists already under systemd's RuntimeDirectory=.
        let made = fs::create_dir(folder);
        let made = made.or_else(|error| if folder.is_dir() { Ok(()) } else { Err(error) });
        match made.and_then(|()| listeners::open_unix(&path, ADMIN_BACKLOG)) {
            Ok(listener) => return Ok(Some((listener, path))),
            Err(error) => notes.push(format!("{}: {}", path.display(), explain(&error))),
        }
    }
    let cause = notes.join("; ");
    tracing::info!(cause, "no admin Unix socket: set admin.socket to a path that this user may write");
    Ok(None)
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process answers on it".to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_socket_that_cannot_be_opened_is_an_error_with_its_path() {
        let error = admin_socket(Some(Path::new("/nonexistent/admin.sock"))).unwrap_err();
        assert!(error.starts_with("admin.socket: cannot listen on /nonexistent/admin.sock: "), "{error}");
    }
}
