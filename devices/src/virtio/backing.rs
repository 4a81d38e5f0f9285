//! Files of the host that devices are made of.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::table::DeviceError;

/// Opens a regular file or block device for `section`, and finds its length in bytes. Anything else could block or lie.
pub fn open(section: &'static str, path: &Path, writable: bool) -> Result<(File, u64), DeviceError> {
    let host = || DeviceError::host(section, path.display().to_string());
    // Without O_NONBLOCK a FIFO would block here; on files and block devices it does nothing.
    let options = OpenOptions::new().read(true).write(writable).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = options.map_err(host())?;
    let kind = file.metadata().map_err(host())?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let reason = format!("{} is not a regular file or block device", path.display());
        return Err(DeviceError::Invalid { section, reason });
    }
    let len = file.seek(SeekFrom::End(0)).map_err(host())?;
    Ok((file, len))
}
