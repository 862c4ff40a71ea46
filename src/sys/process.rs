//! Orders to the kernel about this process and its child. Keeps no state.

use std::fs;
use std::io;
use std::path::Path;

/// Signals the supervisor passes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    Kill,
    Terminate,
    HangUp,
    User1,
    User2,
}

/// Has the next program that this process executes begin without the capabilities of a service manager, and neither it nor its
/// children gain any by executing a file. Of a process of root nothing is taken: root has them by being root. Makes two
/// system calls and allocates nothing.
///
/// # Errors
/// What prctl(2) reports.
pub fn give_up_privileges() -> io::Result<()> {
    // A kernel that refuses knows no such set, so that nothing is in it. For any user but root execve(2) leaves only
    // what is in this set and what the file has; the latter it leaves out without new privileges (capabilities(7)).
    // SAFETY: PR_CAP_AMBIENT_CLEAR_ALL takes integers only.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Has the kernel kill this process when its parent's thread that started it ends. `parent` is the process id
/// expected there: a parent that died before the order is an error, as no signal will come.
pub fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    if std::os::unix::process::parent_id() == parent {
        Ok(())
    } else {
        Err(io::Error::other("the parent process is gone"))
    }
}

/// Has large allocations be mappings of their own, of whatever size those before were. By itself glibc raises the bound with each
/// that is freed (mallopt(3)): tables that grow with connections, each time to double their size, then leave holes in the heap, which made an
/// idle connection 70 bytes dearer. A mapping grows where it is.
pub fn map_large_memory() {
    const LARGE_BYTES: libc::c_int = 128 * 1024;
    #[cfg(target_env = "gnu")]
    // SAFETY: plain integers; a value that is not taken changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

/// Has SIGHUP, SIGUSR1 and SIGUSR2 do nothing until somebody takes them: by default they end the process.
pub fn ignore_hang_up() {
    for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: SIG_IGN is no handler of ours, and signal takes integers otherwise.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Has files that this process makes readable to all, and writable to nobody else, whatever its caller's umask.
pub fn make_files_readable() {
    // SAFETY: umask takes an integer and cannot fail.
    unsafe { libc::umask(0o022) };
}

/// Leaves the terminal and the session that this process was started in: they end without it.
pub fn new_session() -> io::Result<()> {
    // SAFETY: setsid takes nothing; it fails only for the leader of a group, which a child just started is not.
    if unsafe { libc::setsid() } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends `signal` to process `id`. The caller keeps the child unreaped, so that the id is still its own.
pub fn send_signal(id: u32, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Terminate => libc::SIGTERM,
        Signal::HangUp => libc::SIGHUP,
        Signal::User1 => libc::SIGUSR1,
        Signal::User2 => libc::SIGUSR2,
    };
    // 0 and negative ids address groups of processes: never those. 1 is the supervisor of a container.
    let id = libc::pid_t::try_from(id).ok().filter(|id| *id > 0).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes integers only.
    check(unsafe { libc::kill(id, number) })
}

/// Names the calling thread, as `ps` and `top` show it; the main thread's name is that of the process.
pub fn set_thread_name(name: &std::ffi::CStr) {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, of which it takes the first 15 bytes; `name` outlives the
    // call. It cannot fail with a readable pointer.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Lets other threads go first when CPUs are short: nice value 5 for the calling thread and those it starts later.
pub fn lower_priority() -> io::Result<()> {
    // SAFETY: setpriority takes integers only; 0 names the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) })
}

/// Number of the calling thread, as procfs names it.
pub fn thread_id() -> u32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }.cast_unsigned()
}

/// Release of the running kernel, such as `6.12.9-amd64`.
pub fn kernel_release(procfs: &Path) -> Option<String> {
    fs::read_to_string(procfs.join("sys/kernel/osrelease")).ok().map(|text| text.trim().to_string())
}

/// Resident memory of this process, in bytes.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// File descriptors this process has open.
pub fn descriptors_open() -> Option<u64> {
    // One of them is the folder being read.
    fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_parent_is_told_so() {
        let error = std::thread::spawn(|| die_with_parent(1 << 30)).join().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the parent process is gone");
    }

    #[test]
    fn groups_of_processes_are_never_signalled() {
        for id in [0, u32::MAX] {
            assert_eq!(send_signal(id, Signal::Terminate).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn facts_of_this_process_are_readable() {
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(descriptors_open().unwrap() >= 3);
        assert!(kernel_release(Path::new("/proc")).unwrap().contains('.'));
    }
}
