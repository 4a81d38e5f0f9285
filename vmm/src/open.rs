//! Files that a client or a configuration names, opened on the event loop: without waiting for whoever has the other end of
//! what turns out to be a FIFO.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags, linkat};

/// Opens whatever is there for reading.
pub fn any(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK a FIFO would block here; on a regular file it does nothing.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Opens a regular file for reading.
pub fn regular(path: &Path) -> io::Result<File> {
    check_regular(any(path)?)
}

/// The same, of one that is no link to another: where the directory comes from somebody else, a link would let that
/// somebody choose among all files of this host.
pub fn regular_itself(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    check_regular(OpenOptions::new().read(true).custom_flags(flags).open(path)?)
}

fn check_regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// Opens a directory.
pub fn directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

/// Creates or truncates a file for output, or opens a device, or a FIFO that has a reader. Writes to it may block.
pub fn output(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENXIO) => io::Error::new(io::ErrorKind::NotConnected, "nobody reads this FIFO"),
        _ => e,
    })?;
    if !file.metadata()?.is_file() {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    }
    Ok(file)
}

/// The effective user's id.
pub fn user() -> u32 {
    // SAFETY: it only returns a number.
    unsafe { libc::geteuid() }
}

/// Puts a file in place at once, without a name before it is whole: a process that ends in between leaves nothing. The
/// directory must be one that nobody but this user may write to, and what is there already a regular file: who names
/// /dev/null does not want that replaced.
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unusable = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let dir = path.parent().ok_or_else(|| unusable("no directory"))?;
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != user() || meta.mode() & 0o022 != 0 {
        return Err(unusable("not in a directory that only this user may write to"));
    }
    let there = match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => return Err(unusable("something else than a file is there")),
        Ok(_) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    let mut file = OpenOptions::new().write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)?;
    file.write_all(bytes)?;
    match there.then(|| fs::remove_file(path)) {
        Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Gives a file without a name that name, unless there is one (open(2), O_TMPFILE).
    linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Makes a FIFO.
#[cfg(test)]
pub fn fifo(path: &Path) {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a plain call with a valid string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_fifo_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        fifo(&path);
        assert!(regular(&path).unwrap_err().to_string().contains("not a regular file"));
        assert!(output(&path).unwrap_err().to_string().contains("nobody reads"));
        assert!(regular_itself(&path).unwrap_err().to_string().contains("not a regular file"));
        assert!(any(&path).is_ok() && directory(&path).is_err());
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        output(&path).unwrap().write_all(b"words").unwrap();
        let mut got = [0; 5];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"words");
    }

    #[test]
    fn only_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        put(&path, b"one").unwrap();
        put(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let other = dir.path().join("fifo");
        fifo(&other);
        assert!(put(&other, b"x").unwrap_err().to_string().contains("something else"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(put(&link, b"x").is_err() && link.is_symlink() && put(dir.path(), b"x").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn a_link_is_followed_only_where_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        File::create(&file).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(regular(&link).is_ok() && regular_itself(&file).is_ok());
        assert!(regular_itself(&link).is_err());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(regular(dir.path()).is_err() && output(dir.path()).is_err());
        assert!(output(Path::new("/dev/null")).is_ok());
        assert!(directory(dir.path()).is_ok());
    }
}
