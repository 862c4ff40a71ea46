//! Facts about processes, read from `/proc`, and signals to those a test started itself.

use std::fs;
use std::io;
use std::path::Path;

/// Sends a signal to a process that the test started, directly or through the gateway.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes two integers; the process id is one that this test started and still watches.
    let rc = unsafe { libc::kill(pid as i32, signal) };
    assert!(rc == 0 || !alive(pid), "kill({pid}, {signal}): {}", io::Error::last_os_error());
}

/// Stops a process and waits until every thread of it stands.
pub fn stop(pid: u32) {
    signal(pid, libc::SIGSTOP);
    let stands = |entry: io::Result<fs::DirEntry>| {
        let stat =
            entry.and_then(|thread| fs::read_to_string(thread.path().join("stat"))).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    };
    super::eventually("every thread stands", || {
        fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|mut threads| threads.all(stands))
    });
}

/// Whether the process runs (a zombie does not).
pub fn alive(pid: u32) -> bool {
    stat_field(pid, 0).is_some_and(|state| state != "Z" && state != "X")
}

/// Whether nothing is left of the process. Threads of one that was killed end one by one after its first: until the last has, one
/// may take a connection yet, which goes down with it.
pub fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Direct children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let parent = pid.to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&child| stat_field(child, 1).as_deref() == Some(&parent))
        .collect()
}

/// The process and all that descend from it, the oldest first.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        all.extend(children(pid));
        next += 1;
    }
    all
}

/// Open descriptors of a process.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Lowers what a process may open; what it has open stays.
pub fn limit_open_files(pid: u32, limit: u64) {
    let wanted = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the limit is read from a local that lives through the call; none is asked back.
    let result = unsafe {
        libc::prlimit(pid as libc::pid_t, libc::RLIMIT_NOFILE, &raw const wanted, std::ptr::null_mut())
    };
    assert_eq!(result, 0, "prlimit: {}", io::Error::last_os_error());
}

/// Resident anonymous memory in bytes: what the process itself allocated and touched.
pub fn anonymous_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// CPU time used so far, user and system, in clock ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> u64 {
    let ticks = |index| stat_field(pid, index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    ticks(11) + ticks(12)
}

/// Field of `/proc/PID/stat` counted from the one behind the command's name (0 is the state, 1 the parent).
fn stat_field(pid: u32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let behind_name = &stat[stat.rfind(')')? + 2..];
    behind_name.split(' ').nth(index).map(str::to_string)
}

/// Whether the kernel would let this process make a ring.
pub fn io_uring_is_permitted() -> bool {
    // SAFETY: zero entries and a null parameter block are refused by the kernel before it reads anything.
    let rc = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<u8>()) };
    let errno = io::Error::last_os_error().raw_os_error();
    rc >= 0 || !matches!(errno, Some(libc::EPERM | libc::ENOSYS | libc::EACCES))
}

/// The thread of a process with this name.
#[track_caller]
pub fn thread(pid: u32, name: &str) -> u32 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let named = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == name).then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    };
    threads.filter_map(named).next().unwrap_or_else(|| panic!("process {pid} has no thread {name:?}"))
}

/// Whether the process has a thread of this name, which waits for something.
pub fn thread_waits(pid: u32, name: &str) -> bool {
    let waits = |entry: io::Result<fs::DirEntry>| {
        let stat = entry.and_then(|thread| fs::read_to_string(thread.path().join("stat")));
        stat.is_ok_and(|stat| stat.contains(&format!(" ({name}) S ")))
    };
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|mut threads| threads.any(waits))
}

/// One thread that stands where it was until this is dropped, as on a CPU that is taken away. By its holder's thread.
pub struct Held(libc::pid_t);

/// Has one thread stand, while the others of its process run on.
#[track_caller]
pub fn hold_thread(thread: u32) -> Held {
    let thread = thread as libc::pid_t;
    trace(libc::PTRACE_SEIZE, thread);
    trace(libc::PTRACE_INTERRUPT, thread);
    // SAFETY: a null status is not written to; the thread is one that this one traces.
    let stopped = unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) };
    assert_eq!(stopped, thread, "waitpid: {}", io::Error::last_os_error());
    Held(thread)
}

impl Drop for Held {
    fn drop(&mut self) {
        trace(libc::PTRACE_DETACH, self.0);
    }
}

#[track_caller]
fn trace(request: libc::c_uint, thread: libc::pid_t) {
    let nothing = std::ptr::null_mut::<u8>();
    // SAFETY: these three requests take null for the address, and integers else; the thread belongs to a process that
    // the test started.
    let rc = unsafe { libc::ptrace(request, thread, nothing, nothing) };
    assert_eq!(rc, 0, "ptrace({request}, {thread}): {}", io::Error::last_os_error());
}
