//! Files of certificates and keys: reading them, bounded, and seeing that one has changed. Follows symbolic links, by
//! which many tools put a new set in place at once.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest file read, in bytes. Revocation lists of public authorities have tens of megabytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why a file cannot be used, and what to do about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    pub path: PathBuf,
    pub what: String,
    pub cure: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path.display(), self.what, self.cure)
    }
}

/// What of a file changes when its content does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the content, the owner or the permissions.
    changed: (i64, i64),
}

/// `None` where there is no such file, or none that may be looked at.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        len: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Whether everybody may read the file. A group may: a key of root's that the gateway's group reads (0640) is a good way to give it.
pub(super) fn is_readable_by_all(path: &Path) -> bool {
    const READ_BY_OTHERS: u32 = 0o004;
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & READ_BY_OTHERS != 0)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failure = |what: String, cure: &str| Failure { path: path.to_owned(), what, cure: cure.to_owned() };
    let unreadable = |error: io::Error| {
        let cure = match error.kind() {
            io::ErrorKind::NotFound => "put it there, or name another file in the configuration",
            io::ErrorKind::PermissionDenied => "make it readable for the user that runs the gateway",
            _ => "name a readable file in the configuration",
        };
        failure(error.to_string(), cure)
    };
    // To open a pipe would wait for its other end.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(failure("not a regular file".into(), "name a PEM file in the configuration"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failure(
            format!("longer than {FILE_BYTES_MAX} bytes"),
            "name a PEM file in the configuration",
        ));
    }
    Ok(bytes)
}
