//! Files of the host that devices are made of.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl};

use super::table::DeviceError;

/// Opens a regular file or block device for `section`, and finds its length in bytes. Anything else could block or lie.
pub fn open(section: &'static str, path: &Path, writable: bool) -> Result<(File, u64), DeviceError> {
    let host = || DeviceError::host(section, path.display().to_string());
    // Without O_NONBLOCK a FIFO would block here; on files and block devices it does nothing.
    let options = OpenOptions::new().read(true).write(writable).custom_flags(libc::O_NONBLOCK).open(path);
    checked(section, path, options.map_err(host())?)
}

/// The same, of what somebody else has opened, who calls it `path`.
pub fn take(section: &'static str, path: &Path, file: OwnedFd, writable: bool) -> Result<(File, u64), DeviceError> {
    let (file, len) = checked(section, path, File::from(file))?;
    let flags =
        fcntl_getfl(&file).map_err(|error| DeviceError::host(section, path.display().to_string())(error.into()))?;
    // What is read-only is so by the host, too.
    let (wanted, what) = if writable { (OFlags::RDWR, "writing") } else { (OFlags::RDONLY, "reading alone") };
    if flags & OFlags::RWMODE != wanted {
        let reason = format!("{}: it was not opened for {what}", path.display());
        return Err(DeviceError::Invalid { section, reason });
    }
    Ok((file, len))
}

fn checked(section: &'static str, path: &Path, mut file: File) -> Result<(File, u64), DeviceError> {
    let host = || DeviceError::host(section, path.display().to_string());
    let kind = file.metadata().map_err(host())?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let reason = format!("{} is not a regular file or block device", path.display());
        return Err(DeviceError::Invalid { section, reason });
    }
    let len = file.seek(SeekFrom::End(0)).map_err(host())?;
    Ok((file, len))
}
