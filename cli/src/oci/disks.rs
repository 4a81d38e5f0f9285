//! The host's disks that a container without a microVM reads and writes, as its control group numbers them for limits
//! (Documentation/admin-guide/cgroup-v1/blkio-controller.rst, cgroup-v2.rst, "IO Interface Files").

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

/// A whole disk, `MAJOR:MINOR`: a partition has no limit of its own.
pub type Disk = String;

/// What tells of this host's file systems and disks.
struct Host {
    sys: PathBuf,
    mountinfo: PathBuf,
}

/// The disks beneath these paths, each once. Of a path that is on none (tmpfs, a network's) there is nothing to limit.
pub fn beneath<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Disk> {
    let host = Host { sys: "/sys".into(), mountinfo: "/proc/self/mountinfo".into() };
    let mut disks: Vec<Disk> = paths.filter_map(|path| host.disk_of(fs::metadata(path).ok()?.dev())).collect();
    disks.sort();
    disks.dedup();
    disks
}

impl Host {
    /// The disk of a file system whose files say that it is on this device.
    fn disk_of(&self, device: u64) -> Option<Disk> {
        let number = numbered(device);
        self.whole(&number).or_else(|| {
            // Btrfs and its like give out numbers of no device.
            let source = self.source_of(&number)?;
            let metadata = fs::metadata(source).ok().filter(|metadata| metadata.file_type().is_block_device())?;
            self.whole(&numbered(metadata.rdev()))
        })
    }

    /// What a device is part of, or is itself. None: there is no such device.
    fn whole(&self, number: &str) -> Option<Disk> {
        let device = fs::canonicalize(self.sys.join("dev/block").join(number)).ok()?;
        if !device.join("partition").exists() {
            return Some(number.to_owned());
        }
        Some(fs::read_to_string(device.parent()?.join("dev")).ok()?.trim().to_owned())
    }

    /// What is mounted where a mount has this number (proc_pid_mountinfo(5)).
    fn source_of(&self, number: &str) -> Option<PathBuf> {
        let text = fs::read_to_string(&self.mountinfo).ok()?;
        let found = text.lines().find(|line| line.split(' ').nth(2) == Some(number))?;
        let (_, after) = found.split_once(" - ")?;
        after.split(' ').nth(1).map(PathBuf::from).filter(|source| source.is_absolute())
    }
}

fn numbered(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_partition_s_disk_is_the_whole_one_and_memory_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host { sys: dir.path().to_owned(), mountinfo: dir.path().join("mountinfo") };
        fs::create_dir_all(dir.path().join("devices/sda/sda1")).unwrap();
        fs::create_dir_all(dir.path().join("dev/block")).unwrap();
        fs::write(dir.path().join("devices/sda/dev"), "8:0\n").unwrap();
        fs::write(dir.path().join("devices/sda/sda1/partition"), "1\n").unwrap();
        for (number, place) in [("8:0", "sda"), ("8:1", "sda/sda1")] {
            symlink(dir.path().join("devices").join(place), dir.path().join("dev/block").join(number)).unwrap();
        }
        fs::write(&host.mountinfo, "20 1 0:30 / /t rw - tmpfs tmpfs rw\n21 1 0:31 /s /b rw - btrfs /dev/null rw\n")
            .unwrap();
        assert_eq!(host.disk_of(makedev(8, 1)).as_deref(), Some("8:0"));
        assert_eq!(host.disk_of(makedev(8, 0)).as_deref(), Some("8:0"));
        assert_eq!((host.disk_of(makedev(0, 30)), host.disk_of(makedev(0, 31))), (None, None));
        assert_eq!(host.source_of("0:31"), Some("/dev/null".into()));
        assert_eq!((host.source_of("0:30"), host.source_of("0:32")), (None, None));
    }
}
