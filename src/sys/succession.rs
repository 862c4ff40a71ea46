//! Another program in place of this one, in the same process: what it is to know, and which descriptors it is to keep.
//! Signals wait meanwhile, as nobody would take them.

use std::ffi::{CString, OsStr, OsString, c_char};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;

/// Names the descriptor of the note that the other program reads.
pub const VARIABLE: &str = "RINGFORT_SUCCESSION";
const NOTE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Executes `program` with the arguments of this one. It finds `note`, and `kept` under their present numbers. Returns only
/// where that fails; nothing has changed then.
pub fn execute(program: &Path, note: &[u8], kept: &[BorrowedFd<'_>]) -> io::Error {
    let note = match written(note) {
        Ok(note) => note,
        Err(error) => return error,
    };
    let kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).chain([note.as_raw_fd()]).collect();
    let before = set_blocked(libc::SIG_BLOCK, &all_signals());
    let failed = kept.iter().find_map(|fd| set_close_on_exec(*fd, false).err());
    let error = failed.unwrap_or_else(|| replace(program, note.as_raw_fd()));
    for fd in kept {
        let _ = set_close_on_exec(fd, true);
    }
    set_blocked(libc::SIG_SETMASK, &before);
    error
}

/// As `std::os::unix::process::CommandExt::exec`, which lets all signals come before there is anybody to take them.
fn replace(program: &Path, note: RawFd) -> io::Error {
    let text = |bytes: &OsStr| CString::new(bytes.as_bytes());
    let named = |(name, value): (OsString, OsString)| {
        let mut both = name.into_vec();
        both.push(b'=');
        both.extend_from_slice(value.as_bytes());
        CString::new(both)
    };
    let others = std::env::vars_os().filter(|(name, _)| name != VARIABLE);
    let variables = others.chain([(VARIABLE.into(), note.to_string().into())]).map(named);
    let arguments = std::env::args_os().map(|argument| text(&argument)).collect::<Result<Vec<_>, _>>();
    let (Ok(program), Ok(arguments), Ok(variables)) =
        (text(program.as_os_str()), arguments, variables.collect::<Result<Vec<_>, _>>())
    else {
        return io::ErrorKind::InvalidInput.into();
    };
    let ended = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, envp) = (ended(&arguments), ended(&variables));
    // SAFETY: the three are NUL-terminated strings, and arrays of such that end with a null pointer; all outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// The note of the program before this one, if it was one. To be called once, before descriptors are opened.
///
/// # Errors
/// Where the variable names no note.
pub fn note() -> io::Result<Option<Vec<u8>>> {
    let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let none = || io::Error::new(io::ErrorKind::InvalidData, format!("{VARIABLE} names no note"));
    let number = number.to_str().and_then(|text| text.parse::<RawFd>().ok()).filter(|number| *number > 2);
    let mut note = File::from(inherited(number.ok_or_else(none)?)?);
    note.rewind()?;
    let mut bytes = Vec::new();
    note.take(NOTE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The number of a descriptor, as a note names it.
pub fn number(fd: BorrowedFd<'_>) -> i32 {
    fd.as_raw_fd()
}

/// Takes over a descriptor that the program before this one left open. Each number once.
///
/// # Errors
/// `EBADF` where there is none.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    set_close_on_exec(number, true)?;
    // SAFETY: it is open, as fcntl has just shown. The program before this one left it to whoever reads its note, and each
    // number stands there once, so that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has threads that `start` starts take no signals, so that none is on its way to one of them when another program comes.
pub fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    let before = set_blocked(libc::SIG_BLOCK, &all_signals());
    let started = start();
    set_blocked(libc::SIG_SETMASK, &before);
    started
}

/// Lets signals come that waited since the program before this one.
pub fn take_signals() {
    // SAFETY: the call fills the whole set.
    let none = filled(|set| unsafe { libc::sigemptyset(set) });
    set_blocked(libc::SIG_SETMASK, &none);
}

fn written(note: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::memfd_create(c"ringfort-succession".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for this call: nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(note)?;
    Ok(file)
}

fn set_close_on_exec(fd: RawFd, closes: bool) -> io::Result<()> {
    // SAFETY: F_SETFD takes integers only.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, if closes { libc::FD_CLOEXEC } else { 0 }) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn all_signals() -> libc::sigset_t {
    // SAFETY: the call fills the whole set.
    filled(|set| unsafe { libc::sigfillset(set) })
}

fn filled(fill: impl FnOnce(*mut libc::sigset_t) -> libc::c_int) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    fill(set.as_mut_ptr());
    // SAFETY: all-zero bytes are a set already, and `fill` wrote one.
    unsafe { set.assume_init() }
}

/// Changes which signals wait for the calling thread; gives those that did before.
fn set_blocked(how: libc::c_int, set: &libc::sigset_t) -> libc::sigset_t {
    filled(|before| {
        // SAFETY: both sets outlive the call, which reads one and writes the other.
        unsafe { libc::pthread_sigmask(how, ptr::from_ref(set), before) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_program_that_cannot_be_executed_leaves_everything_as_it_was() {
        let file = File::open("/dev/null").unwrap();
        let error = execute(Path::new("/nonexistent/ringfort"), b"note", &[file.as_fd()]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // SAFETY: F_GETFD takes integers only.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        // SAFETY: the set is filled by the call, which reads none.
        let blocked = filled(|set| unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set) });
        // SAFETY: the set outlives the call.
        assert_eq!(unsafe { libc::sigismember(&raw const blocked, libc::SIGTERM) }, 0);
    }

    #[test]
    fn what_is_not_open_is_not_inherited() {
        assert_eq!(inherited(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(note().unwrap(), None);
    }
}
