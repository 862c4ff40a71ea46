//! The file system that settings are read from and written to: this machine's, or a false one under a folder. Paths
//! are those of the machine, beginning with `/`. Never decides what to write.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Largest file read; `/proc/net/tcp` lists listeners first, the rest of it may be cut.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Each call either happens or does not, also where the process is killed within it.
pub(super) trait Root {
    /// # Errors
    /// What open(2) and read(2) report.
    fn read(&self, path: &str) -> io::Result<String>;

    /// Names of what is in a folder, in no order.
    ///
    /// # Errors
    /// What opening it reports.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Writes to a file that is there, in one write(2), as the kernel wants it.
    ///
    /// # Errors
    /// What open(2) and write(2) report: the kernel refuses values so.
    fn set(&mut self, path: &str, value: &str) -> io::Result<()>;

    /// Puts a whole file in its place, so that after a crash the old or the new one is there; makes its folder.
    ///
    /// # Errors
    /// What the file system reports; the old file is there then.
    fn replace(&mut self, path: &str, text: &str) -> io::Result<()>;

    /// Removes a file; good also where it is not there.
    ///
    /// # Errors
    /// What unlink(2) reports.
    fn remove(&mut self, path: &str) -> io::Result<()>;

    /// Loads a module into the running kernel; nothing where the root is a false one, which runs none.
    ///
    /// # Errors
    /// What modprobe(8) says.
    fn load_module(&mut self, name: &str) -> io::Result<()>;
}

/// A file system.
#[derive(Clone, Debug)]
pub(super) struct Host {
    root: Option<PathBuf>,
    procfs: PathBuf,
    sysfs: PathBuf,
}

impl Host {
    /// This machine, with the kernel's file systems where `[host]` says.
    pub(super) fn new(procfs: PathBuf, sysfs: PathBuf) -> Self {
        Self { root: None, procfs, sysfs }
    }

    /// The file system under a folder, with all that belongs to it.
    pub(super) fn under(root: &Path) -> Self {
        Self { root: Some(root.to_owned()), procfs: root.join("proc"), sysfs: root.join("sys") }
    }

    /// The folder of a false root.
    pub(super) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        let below = |folder: &str| path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
        if let Some(rest) = below("/proc") {
            self.procfs.join(rest)
        } else if let Some(rest) = below("/sys") {
            self.sysfs.join(rest)
        } else {
            self.root.as_deref().unwrap_or_else(|| Path::new("/")).join(path.trim_start_matches('/'))
        }
    }
}

impl Root for Host {
    fn read(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(self.resolve(path))?.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.resolve(folder))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn set(&mut self, path: &str, value: &str) -> io::Result<()> {
        if self.root.is_some() {
            // A common file would be empty between being cut off and being written.
            fs::metadata(self.resolve(path))?;
            return self.replace(path, &format!("{value}\n"));
        }
        // The kernel's files take one write whole, and do not mind being cut off before.
        let mut file = File::options().write(true).truncate(true).open(self.resolve(path))?;
        file.write_all(format!("{value}\n").as_bytes())
    }

    fn replace(&mut self, path: &str, text: &str) -> io::Result<()> {
        let path = self.resolve(path);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        fs::create_dir_all(folder)?;
        // No name that ends in .conf: nobody reads it should it be left behind.
        let draft = folder.join(format!(".{}.tmp", name.to_string_lossy()));
        // One that is there was left behind, or is a link of somebody who may write here: never written through.
        if let Err(error) = fs::remove_file(&draft)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = File::options().write(true).create_new(true).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(folder)?.sync_all()
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        let path = self.resolve(path);
        match fs::remove_file(&path) {
            Ok(()) => path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn load_module(&mut self, name: &str) -> io::Result<()> {
        if self.root.is_some() {
            return Ok(());
        }
        let output = Command::new("modprobe").arg("--").arg(name).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// A file system in memory that may fail, or die as by SIGKILL.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub files: std::collections::BTreeMap<String, String>,
    /// Changes left until the process is dead: from then on every call fails and changes nothing.
    pub left: Option<u32>,
    /// Paths that refuse to be set, as a kernel does.
    pub refuses: Vec<String>,
    /// Every change, in order.
    pub log: Vec<String>,
}

#[cfg(test)]
impl Memory {
    pub(super) fn put(&mut self, path: &str, text: &str) {
        self.files.insert(path.to_owned(), text.to_owned());
    }

    fn change(&mut self, what: String) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("killed"))?;
        }
        self.log.push(what);
        Ok(())
    }
}

#[cfg(test)]
impl Root for Memory {
    fn read(&self, path: &str) -> io::Result<String> {
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let below = |path: &String| {
            let name = path.strip_prefix(folder)?.strip_prefix('/')?;
            (!name.contains('/')).then(|| name.to_owned())
        };
        Ok(self.files.keys().filter_map(below).collect())
    }

    fn set(&mut self, path: &str, value: &str) -> io::Result<()> {
        if self.refuses.iter().any(|refused| refused == path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.read(path)?;
        self.change(format!("set {path}"))?;
        // As the kernel shows them.
        self.put(path, &format!("{}\n", value.replace(' ', "\t")));
        Ok(())
    }

    fn replace(&mut self, path: &str, text: &str) -> io::Result<()> {
        self.change(format!("replace {path}"))?;
        self.put(path, text);
        Ok(())
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.change(format!("remove {path}"))?;
        self.files.remove(path);
        Ok(())
    }

    fn load_module(&mut self, name: &str) -> io::Result<()> {
        self.change(format!("load {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_place_of_a_draft_is_not_written_through() {
        let folder = std::env::temp_dir().join(format!("ringfort-tune-link-{}", std::process::id()));
        let (other, draft) = (folder.join("other"), folder.join("etc/.a.conf.tmp"));
        fs::create_dir_all(folder.join("etc")).unwrap();
        fs::write(&other, "somebody's").unwrap();
        std::os::unix::fs::symlink(&other, &draft).unwrap();
        let mut host = Host::under(&folder);
        host.replace("/etc/a.conf", "a\n").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "somebody's");
        assert!(fs::symlink_metadata(folder.join("etc/a.conf")).unwrap().is_file());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_kernels_file_systems_are_where_they_are_said_to_be() {
        let host = Host::new("/host/proc".into(), "/sys".into());
        assert_eq!(host.resolve("/proc/sys/vm/x"), Path::new("/host/proc/sys/vm/x"));
        assert_eq!(host.resolve("/process"), Path::new("/process"));
        assert_eq!(host.resolve("/etc/a"), Path::new("/etc/a"));
        let host = Host::under(Path::new("/tmp/r"));
        assert_eq!(host.resolve("/proc/a"), Path::new("/tmp/r/proc/a"));
        assert_eq!(host.resolve("/etc/a"), Path::new("/tmp/r/etc/a"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_draft_left_behind_does_not_matter() {
        let folder = std::env::temp_dir().join(format!("ringfort-tune-root-{}", std::process::id()));
        let mut host = Host::under(&folder);
        host.replace("/etc/sysctl.d/60-ringfort.conf", "a\n").unwrap();
        fs::write(folder.join("etc/sysctl.d/.60-ringfort.conf.tmp"), "torn by a crash").unwrap();
        host.replace("/etc/sysctl.d/60-ringfort.conf", "b\n").unwrap();
        assert_eq!(host.list("/etc/sysctl.d").unwrap(), ["60-ringfort.conf"]);
        assert_eq!(host.read("/etc/sysctl.d/60-ringfort.conf").unwrap(), "b\n");
        host.set("/etc/sysctl.d/60-ringfort.conf", "c").unwrap();
        assert_eq!(host.read("/etc/sysctl.d/60-ringfort.conf").unwrap(), "c\n");
        assert!(host.set("/proc/sys/none", "1").is_err(), "never makes a setting");
        let mut old = File::open(folder.join("etc/sysctl.d/60-ringfort.conf")).unwrap();
        host.set("/etc/sysctl.d/60-ringfort.conf", "d").unwrap();
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "c\n", "the old text is never cut off, wherever the process is killed");
        host.remove("/etc/sysctl.d/60-ringfort.conf").unwrap();
        host.remove("/etc/sysctl.d/60-ringfort.conf").unwrap();
        fs::remove_dir_all(folder).unwrap();
    }
}
