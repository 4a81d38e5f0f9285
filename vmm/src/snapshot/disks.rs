//! The disks that a machine could write to: copied into its snapshot, and copied again for each machine that goes on from
//! there, so that no two of them ever share a writable file.
//!
//! A copy shares its blocks with the original where the file system can (FICLONE); elsewhere it takes the time and space
//! of what the disk holds, without its holes. In the snapshot's configuration a copy is named `disk-N`, which means a file beside
//! `state`. The copy of a machine that goes on has no name and ends with it; to keep a disk, give the machine one of your own.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use devices::virtio::DEVICES;
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::SnapshotError;
use super::files::Unfinished;
use crate::open;

/// What the name of a copy begins with.
const PREFIX: &str = "disk-";

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { path: path.to_owned(), source }
}

/// Copies the disks of `sections` into the snapshot, and has `sections` name the copies. Nothing may write to them meanwhile.
/// Returns the copies, which are not on the disk yet.
pub fn capture(sections: &mut Map<String, Value>, target: &Unfinished) -> Result<Vec<File>, SnapshotError> {
    let mut files = Vec::new();
    for (number, path) in writable_files(sections).into_iter().enumerate() {
        let original = PathBuf::from(path.as_str().unwrap_or_default());
        let name = format!("{PREFIX}{number}");
        let from = open::any(&original).map_err(io_error(&original))?;
        if !from.metadata().map_err(io_error(&original))?.is_file() {
            let why = "a block device cannot be part of a snapshot; use a file, or make the disk read-only";
            return Err(io_error(&original)(io::Error::new(ErrorKind::Unsupported, why)));
        }
        let to = target.file(&name)?;
        copy(&from, &to).map_err(io_error(&target.path().join(&name)))?;
        *path = name.into();
        files.push(to);
    }
    Ok(files)
}

/// Gives `sections` of a snapshot in `dir` private copies of the disks that are in it. They last as long as the files.
pub fn provide(sections: &mut Map<String, Value>, dir: &Path) -> Result<Vec<File>, SnapshotError> {
    let mut files = Vec::new();
    for path in writable_files(sections) {
        let Some(name) = path.as_str().filter(|name| is_copy(name)) else { continue };
        let captured = dir.join(name);
        let from = open::regular_itself(&captured).map_err(io_error(&captured))?;
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(dir)
            .map_err(io_error(dir))?;
        // Read again by whoever the process is then, for a snapshot of its own. Nobody else has a way to what has no name.
        nameless.set_permissions(Permissions::from_mode(0o644)).map_err(io_error(dir))?;
        copy(&from, &nameless).map_err(io_error(&captured))?;
        *path = format!("/proc/self/fd/{}", nameless.as_raw_fd()).into();
        files.push(nameless);
    }
    Ok(files)
}

/// Whether this is the name of a copy in a snapshot, and nothing that leads out of it.
fn is_copy(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The paths of writable files in all sections.
pub fn writable_files(sections: &mut Map<String, Value>) -> Vec<&mut Value> {
    let mut found = Vec::new();
    for (key, section) in sections.iter_mut() {
        if let Some(kind) = DEVICES.iter().find(|kind| kind.config_key == key) {
            found.extend((kind.writable_files)(section));
        }
    }
    found
}

/// Makes the empty file `to` the same as `from`, with the same holes; they share blocks where the file system can.
///
/// # Errors
/// As the system call that failed.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    match ioctl_ficlone(to, from) {
        Ok(()) => return Ok(()),
        // Another file system, or one that cannot.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {}
        Err(e) => return Err(e.into()),
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        at = seek(from, SeekFrom::Hole(data))?;
        copy_range(from, to, data, at)?;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let left = usize::try_from(end - source).unwrap_or(usize::MAX);
        if copy_file_range(from, Some(&mut source), to, Some(&mut target), left)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn sections(disk: &Path) -> Map<String, Value> {
        let drives = json!([{ "drive_id": "ro", "path_on_host": "/nonexistent", "is_read_only": true },
                            { "drive_id": "layers", "extents": ["/nonexistent"] },
                            { "drive_id": "rw", "path_on_host": disk }]);
        json!({ "drives": drives, "entropy": {} }).as_object().cloned().unwrap()
    }

    #[test]
    fn a_disk_goes_into_the_snapshot_and_out_of_it_and_is_never_shared() {
        let dir = tempfile::tempdir().unwrap();
        let original = dir.path().join("disk.img");
        let file = File::create(&original).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"one", 1 << 20).unwrap();
        file.write_all_at(b"two", 63 << 20).unwrap();
        let mut config = sections(&original);
        let target = Unfinished::create(&dir.path().join("snapshot")).unwrap();
        capture(&mut config, &target).unwrap();
        target.write(super::super::files::STATE, b"x").unwrap();
        target.finish().unwrap();
        assert_eq!(config["drives"][2]["path_on_host"], "disk-0");
        assert_eq!(config["drives"][0]["path_on_host"], "/nonexistent");
        file.write_all_at(b"new", 1 << 20).unwrap();

        let snapshot = dir.path().join("snapshot");
        assert!(fs::metadata(snapshot.join("disk-0")).unwrap().blocks() * 512 < 1 << 20, "not sparse");
        let (mut first, mut second) = (config.clone(), config);
        let files = [provide(&mut first, &snapshot).unwrap(), provide(&mut second, &snapshot).unwrap()];
        let path = |config: &Map<String, Value>| config["drives"][2]["path_on_host"].as_str().unwrap().to_owned();
        let read = |path: &str| {
            let mut bytes = [0; 3];
            File::open(path).unwrap().read_exact_at(&mut bytes, 1 << 20).unwrap();
            bytes
        };
        File::options().write(true).open(path(&first)).unwrap().write_all_at(b"ha!", 1 << 20).unwrap();
        assert_eq!((read(&path(&first)), read(&path(&second))), (*b"ha!", *b"one"));
        assert_eq!(files[0][0].metadata().unwrap().len(), 64 << 20);
        assert_eq!(fs::read_dir(&snapshot).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_copied_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let target = Unfinished::create(&dir.path().join("snapshot")).unwrap();
        let missing = capture(&mut sections(Path::new("/nonexistent/disk")), &target).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/disk"));
        let device = capture(&mut sections(Path::new("/dev/null")), &target).unwrap_err();
        assert!(device.to_string().contains("block device"), "{device}");
        let mut gone = sections(Path::new("disk-0"));
        assert!(provide(&mut gone, dir.path()).unwrap_err().to_string().contains("disk-0"));
    }

    #[test]
    fn a_snapshot_of_somebody_else_neither_blocks_nor_names_files_outside() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk-0");
        std::os::unix::fs::symlink("/etc/passwd", &disk).unwrap();
        assert!(provide(&mut sections(Path::new("disk-0")), dir.path()).is_err());
        fs::remove_file(&disk).unwrap();
        open::fifo(&disk);
        let fifo = provide(&mut sections(Path::new("disk-0")), dir.path()).unwrap_err();
        assert!(fifo.to_string().contains("not a regular file"), "{fifo}");
    }

    #[test]
    fn only_names_of_copies_are_copies() {
        for (name, expected) in [
            ("disk-0", true),
            ("disk-12", true),
            ("disk-", false),
            ("disk-../x", false),
            ("/disk-0", false),
            ("x/disk-0", false),
        ] {
            assert_eq!(is_copy(name), expected, "{name}");
        }
    }
}
