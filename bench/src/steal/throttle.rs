//! Takes from a proxy's threads by the quota of a control group, where real-time scheduling is not allowed. Not the same
//! as an antagonist: a thread that uses less than its quota loses nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::antagonist::Taken;
use super::theft::Theft;

/// Where the group may stand: version 1 of control groups.
const ROOT: &str = "/sys/fs/cgroup/cpu";

/// Threads under a quota; free again on drop.
pub struct Throttle {
    folder: PathBuf,
    threads: Vec<u32>,
}

impl Throttle {
    /// Puts `threads` under a quota that leaves what `theft` leaves. An error where there is no such controller.
    pub fn start(threads: &[u32], theft: &Theft) -> io::Result<Self> {
        let told = |error: io::Error| {
            let why =
                "a quota takes the cpu controller of control groups, version 1, and the right to write to it";
            io::Error::new(error.kind(), format!("{ROOT}: {error}; {why}"))
        };
        if threads.is_empty() {
            return Err(io::Error::other("no thread of the proxy is pinned to the CPU that is to be taken"));
        }
        let folder = Path::new(ROOT).join(format!("ringfort-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(told)?;
        let throttle = Self { folder, threads: threads.to_vec() };
        let left = theft.period.saturating_sub(theft.slice(0));
        fs::write(throttle.folder.join("cpu.cfs_period_us"), theft.period.as_micros().to_string())
            .map_err(told)?;
        fs::write(throttle.folder.join("cpu.cfs_quota_us"), left.as_micros().to_string()).map_err(told)?;
        for thread in threads {
            fs::write(throttle.folder.join("tasks"), thread.to_string()).map_err(told)?;
        }
        Ok(throttle)
    }

    /// What the kernel says of it.
    pub fn taken(&self, span: Duration) -> Taken {
        let text = fs::read_to_string(self.folder.join("cpu.stat")).unwrap_or_default();
        let throttled =
            text.lines().find_map(|line| line.strip_prefix("throttled_time ")?.parse::<u64>().ok());
        let held_ratio = throttled.unwrap_or(0) as f64 / span.as_nanos().max(1) as f64;
        Taken { held_ratio, ..Taken::default() }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // Threads may have ended; a group that stays is litter, and empty.
        for thread in &self.threads {
            let _ = fs::write(Path::new(ROOT).join("tasks"), thread.to_string());
        }
        let _ = fs::remove_dir(&self.folder);
    }
}
