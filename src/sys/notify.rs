//! The service manager's side of our state (`sd_notify(3)`): one datagram a message. Where no service manager listens
//! nothing is sent, and one that does not take a message holds nobody up for long.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::clock;
use crate::base::time::Instant;

/// The variables that a service manager speaks by. A child that inherited them could speak in our name.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
/// How long one message may wait for room in the service manager's queue.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells the service manager what state the service is in.
#[derive(Debug)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// What the environment names. One that cannot be reached is an error: a service that is never ready is killed.
    pub fn from_env() -> io::Result<Self> {
        let [socket, watchdog_usec, watchdog_pid] = VARIABLES.map(std::env::var_os);
        Self::new(socket.as_deref(), watchdog_usec.as_deref(), watchdog_pid.as_deref())
    }

    fn new(
        socket: Option<&OsStr>,
        watchdog_usec: Option<&OsStr>,
        watchdog_pid: Option<&OsStr>,
    ) -> io::Result<Self> {
        let Some(address) = socket.filter(|name| !name.is_empty()) else {
            return Ok(Self { to: None, watchdog: None });
        };
        let from = UnixDatagram::unbound()?;
        from.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { to: Some((from, address_of(address)?)), watchdog: watchdog(watchdog_usec, watchdog_pid) })
    }

    /// How often at most the service manager wants a sign of life; `None` where it does not watch.
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service serves, with the files that it has read last.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=Serving");
    }

    /// Files are read anew; [`Self::ready`] ends it.
    pub fn reloading(&self) {
        let micros = clock::now().since(Instant::ZERO).as_micros();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=Reading files anew"));
    }

    /// The service ends, `within` this time at the latest, whatever the unit says.
    pub fn stopping(&self, within: Duration) {
        let micros = within.as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=Draining"));
    }

    /// A sign of life.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// One line for people, as `systemctl status` shows it.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    fn send(&self, message: &str) {
        let Some((from, to)) = &self.to else { return };
        if let Err(error) = from.send_to_addr(message.as_bytes(), to) {
            tracing::warn!(%error, message, "the service manager does not take what is told it over NOTIFY_SOCKET");
        }
    }
}

/// A path, or a name of the abstract namespace behind `@`.
fn address_of(name: &OsStr) -> io::Result<SocketAddr> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "NOTIFY_SOCKET is neither a path nor @NAME");
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(invalid()),
    }
}

/// The interval, where it is meant for this process.
fn watchdog(usec: Option<&OsStr>, pid: Option<&OsStr>) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    if pid.is_some_and(|pid| number(pid) != Some(std::process::id().into())) {
        return None;
    }
    usec.and_then(number).filter(|usec| *usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify(socket: &str, usec: Option<&str>, pid: Option<&str>) -> io::Result<Notify> {
        Notify::new(Some(OsStr::new(socket)), usec.map(OsStr::new), pid.map(OsStr::new))
    }

    fn received(from: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        from.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let len = from.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    #[test]
    fn messages_arrive_at_a_path_and_at_an_abstract_name() {
        let id = std::process::id();
        let path = std::env::temp_dir().join(format!("ringfort-notify-{id}"));
        let at_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("ringfort-notify-{id}");
        let at_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        for (socket, listener) in [(path.to_str().unwrap(), &at_path), (&*format!("@{name}"), &at_name)] {
            let notify = notify(socket, Some("30000000"), None).unwrap();
            notify.ready();
            assert_eq!(received(listener), "READY=1\nSTATUS=Serving");
            notify.stopping(Duration::from_millis(1_500));
            assert_eq!(received(listener), "STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000\nSTATUS=Draining");
            notify.status("two\nlines");
            assert_eq!(received(listener), "STATUS=two lines");
            notify.alive();
            assert_eq!(received(listener), "WATCHDOG=1");
            notify.reloading();
            assert!(received(listener).starts_with("RELOADING=1\nMONOTONIC_USEC="));
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_watchdog_counts_only_where_it_is_meant_for_this_process() {
        let own = std::process::id().to_string();
        let watchdog = |usec, pid| notify("/nowhere", usec, pid).unwrap().watchdog();
        assert_eq!(watchdog(Some("30000000"), None), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(Some("30000000"), Some(&own)), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(Some("30000000"), Some("1")), None, "another process's");
        for usec in [None, Some("0"), Some("soon"), Some("")] {
            assert_eq!(watchdog(usec, Some(&own)), None, "{usec:?}");
        }
    }

    #[test]
    fn without_a_service_manager_nothing_is_sent_and_a_wrong_name_is_told() {
        let silent = Notify::new(None, Some(OsStr::new("30000000")), None).unwrap();
        assert_eq!(silent.watchdog(), None);
        silent.ready();
        assert!(notify("relative", None, None).is_err());
        assert_eq!(notify("", None, None).unwrap().watchdog(), None);
        notify("/nonexistent/notify", None, None).unwrap().ready();
    }
}
