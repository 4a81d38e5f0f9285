//! The host's disks that a container without a microVM reads and writes, as its control group numbers them for limits
//! (Documentation/admin-guide/cgroup-v1/blkio-controller.rst, cgroup-v2.rst, "IO Interface Files").

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, major, makedev, minor, statx};

/// A whole disk, `MAJOR:MINOR`: a partition has no limit of its own.
pub type Disk = String;

/// What tells of this host's file systems and disks.
struct Host {
    sys: PathBuf,
    mountinfo: PathBuf,
}

/// Where a file is.
struct Place {
    /// What its file system says that it is on.
    device: u64,
    /// The number of its mount.
    mount: u64,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let told = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
        Ok(Place { device: makedev(told.stx_dev_major, told.stx_dev_minor), mount: told.stx_mnt_id })
    }
}

/// The disks beneath these paths, each once. Of a path that is on none (tmpfs, a network's) there is nothing to limit.
pub fn beneath<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Disk> {
    let host = Host { sys: "/sys".into(), mountinfo: "/proc/self/mountinfo".into() };
    let mut disks: Vec<Disk> = paths.filter_map(|path| host.disk_of(&Place::of(path).ok()?)).collect();
    disks.sort();
    disks.dedup();
    disks
}

impl Host {
    /// The disk beneath a place.
    fn disk_of(&self, place: &Place) -> Option<Disk> {
        self.whole(&numbered(place.device)).or_else(|| {
            // Btrfs and its like give out numbers of no device; of several that it is on, its mount names one.
            let source = self.source_of(place.mount)?;
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

    /// What is mounted by the mount of this number (proc_pid_mountinfo(5)).
    fn source_of(&self, mount: u64) -> Option<PathBuf> {
        let text = fs::read_to_string(&self.mountinfo).ok()?;
        let found = text.lines().find(|line| line.split(' ').next().is_some_and(|id| id.parse() == Ok(mount)))?;
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
        let at = |device, mount| Place { device, mount };
        assert_eq!(host.disk_of(&at(makedev(8, 1), 1)).as_deref(), Some("8:0"));
        assert_eq!(host.disk_of(&at(makedev(8, 0), 1)).as_deref(), Some("8:0"));
        // A subvolume has another number than its file system, and /dev/null is no disk.
        assert_eq!((host.disk_of(&at(makedev(0, 30), 20)), host.disk_of(&at(makedev(0, 99), 21))), (None, None));
        assert_eq!(host.source_of(21), Some("/dev/null".into()));
        assert_eq!((host.source_of(20), host.source_of(2)), (None, None));
        let here = Place::of(dir.path()).unwrap();
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(text.lines().any(|line| line.starts_with(&format!("{} ", here.mount))), "{}", here.mount);
    }
}
