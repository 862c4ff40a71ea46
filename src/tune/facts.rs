//! What conditions and templates of the settings ask about a machine. Pure but for `gather`, which reads through a
//! `Root` and changes nothing.

use std::collections::BTreeSet;
use std::fmt;

use super::root::Root;
use super::settings::sysctl_path;
use super::unit;
use super::value::{Format, Value};
use crate::sys::holders;

/// The group whose members may use io_uring, and the user of the service.
const GROUP: &str = "ringfort";
/// What `ip_local_port_range` is widened to; a test holds it equal to the setting.
pub(super) const PORTS_WIDENED: (u16, u16) = (16_384, 65_535);
const PORTS_DEFAULT: (u16, u16) = (32_768, 60_999);

/// Kernel release, such as 6.1.0.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Release(pub u32, pub u32, pub u32);

impl Release {
    /// Reads the numbers and leaves what a distribution appends; `None` without two of them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split(|character: char| !character.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}")?;
        if *patch > 0 { write!(f, ".{patch}") } else { Ok(()) }
    }
}

/// What the configuration asks of the machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// Ports of listeners and of the admin endpoint; 0 is left out.
    pub listen_ports: BTreeSet<u16>,
    /// Names of congestion controls for sockets.
    pub congestion_controls: BTreeSet<String>,
}

/// The machine, as far as settings depend on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub kernel: Release,
    /// As the kernel spells it.
    pub kernel_release: String,
    pub boot_id: String,
    pub memory_bytes: u64,
    /// Connections are tracked: the module is there.
    pub conntrack: bool,
    /// `kernel.io_uring_disabled`; 0 where the kernel does not have it.
    pub io_uring_disabled: u8,
    /// The id of the group ringfort.
    pub group: Option<u32>,
    /// ringfort.service is installed.
    pub unit: bool,
    pub congestion_controls: BTreeSet<String>,
    /// Ports of the configuration's listeners.
    pub listen_ports: BTreeSet<u16>,
    /// Ports that somebody listens on now.
    pub listening: BTreeSet<u16>,
    /// The range of outgoing connections, both ends within.
    pub port_range: (u16, u16),
}

impl Facts {
    /// Reads what can be read; what cannot is as if it were not there.
    pub(super) fn gather(root: &dyn Root, asked: &Asked) -> Self {
        let read = |path: &str| root.read(path).unwrap_or_default();
        let kernel_release = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let mut listening = BTreeSet::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            listening.extend(holders::listening_ports(&read(table)));
        }
        Self {
            kernel: Release::parse(&kernel_release).unwrap_or_default(),
            kernel_release,
            boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            memory_bytes: memory_bytes(&read("/proc/meminfo")).unwrap_or(0),
            conntrack: root.read(&sysctl_path("net.netfilter.nf_conntrack_max")).is_ok(),
            io_uring_disabled: read("/proc/sys/kernel/io_uring_disabled").trim().parse().unwrap_or(0),
            group: group(&read("/etc/group"), GROUP),
            unit: unit::is_installed(root),
            congestion_controls: asked.congestion_controls.clone(),
            listen_ports: asked.listen_ports.clone(),
            listening,
            port_range: port_range(&read("/proc/sys/net/ipv4/ip_local_port_range")).unwrap_or(PORTS_DEFAULT),
        }
    }

    /// Ports that outgoing connections must not be given: of the configuration's listeners, and of others that listen
    /// now where the range is about to be widened around them. Those inside the range of today were most likely given
    /// by the kernel, and will be other ones tomorrow.
    pub(super) fn ports_to_reserve(&self, widened: bool) -> BTreeSet<u16> {
        let (low, high) = self.port_range;
        let (after_low, after_high) =
            if widened { (low.min(PORTS_WIDENED.0), high.max(PORTS_WIDENED.1)) } else { (low, high) };
        let others = self.listening.iter().filter(|port| !(low..=high).contains(*port));
        let all = self.listen_ports.iter().chain(others);
        all.copied().filter(|port| (after_low..=after_high).contains(port)).collect()
    }
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// The id of a group in group(5).
fn group(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let Some(Value::Numbers(numbers)) = Value::parse(Format::Numbers, text) else { return None };
    match numbers[..] {
        [low, high] => Some((u16::try_from(low).ok()?, u16::try_from(high).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::settings;

    #[test]
    fn releases_are_ordered_as_numbers() {
        assert_eq!(Release::parse("6.1.0-13-amd64\n"), Some(Release(6, 1, 0)));
        assert_eq!(Release::parse("6.18.44-fc-v595"), Some(Release(6, 18, 44)));
        assert!(Release::parse("6.10") > Release::parse("6.9.9"));
        assert_eq!(Release::parse("x"), None);
        assert_eq!(Release(6, 16, 0).to_string(), "6.16");
    }

    #[test]
    fn facts_are_read_from_their_files() {
        assert_eq!(memory_bytes("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16_384));
        assert_eq!(memory_bytes("nothing"), None);
        assert_eq!(group("root:x:0:\nringfort:x:998:\n", "ringfort"), Some(998));
        assert_eq!(group("ringforts:x:998:\nringfort", "ringfort"), None);
        assert_eq!(port_range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(port_range("1"), None);
        assert_eq!(port_range("1 70000"), None);
    }

    #[test]
    fn reserved_are_listeners_in_reach_and_not_what_the_kernel_chose() {
        let facts = Facts {
            listen_ports: BTreeSet::from([443, 20_000, 40_000]),
            listening: BTreeSet::from([22, 18_000, 45_123]),
            port_range: (32_768, 60_999),
            ..Facts::default()
        };
        assert_eq!(facts.ports_to_reserve(false), BTreeSet::from([40_000]));
        assert_eq!(facts.ports_to_reserve(true), BTreeSet::from([18_000, 20_000, 40_000]));
    }

    #[test]
    fn the_widened_range_is_the_one_that_is_wanted() {
        let tuning = settings::embedded();
        let range = tuning.settings.iter().find(|setting| setting.id == "ip_local_port_range").unwrap();
        assert_eq!(port_range(&range.want), Some(PORTS_WIDENED));
    }
}
