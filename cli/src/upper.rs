//! A container's writable layer on disk: an ext4 file system in a file that takes what is in it and no more. Each is a copy of an
//! empty one, which `mke2fs` makes once for a store. Whatever a guest makes of it, this host never mounts it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use vmm::snapshot::disks;

/// The file's name in a container's directory.
pub const FILE: &str = "upper.ext4";
/// The empty one, beside the containers. Another number for another content.
const EMPTY: &str = ".upper-1.ext4";
/// Its size, as guests see it: the same for all, so that a guest can have booted before it is known which one it gets. Each
/// further 128 MiB is a group that a guest looks at when it mounts it.
const SIZE: &str = "8G";
/// Size of the journal: what a crash leaves to do is done when it is started next.
const JOURNAL_MB: u32 = 4;

/// Makes one in the directory of a new container of `containers`.
///
/// # Errors
/// There is no `mke2fs`, or no space.
pub fn make(containers: &Path, dir: &Path) -> anyhow::Result<()> {
    let empty = containers.join(EMPTY);
    let from = match File::open(&empty) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_empty(&empty)?;
            File::open(&empty)
        }
        other => other,
    };
    let from = from.with_context(|| empty.display().to_string())?;
    copy(&from, &dir.join(FILE))
}

/// The copy of one that is in a snapshot, as `to`.
///
/// # Errors
/// There is none in it, or no space.
pub fn copy_saved(snapshot: &Path, to: &Path) -> anyhow::Result<()> {
    let path = snapshot.join("disk-0");
    let from = File::open(&path).with_context(|| format!("the snapshot has no writable layer: {}", path.display()))?;
    copy(&from, to)
}

fn copy(from: &File, to: &Path) -> anyhow::Result<()> {
    let make = || {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(to)?;
        disks::copy(from, &file)
    };
    make().with_context(|| format!("the container's writable layer {}", to.display()))
}

/// Nobody waits for another one that makes it at the same time: the last to be complete stays.
fn make_empty(empty: &Path) -> anyhow::Result<()> {
    let unfinished = Unfinished(empty.with_extension(format!("{}.new", std::process::id())));
    let options = format!("size={JOURNAL_MB}");
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-O", "^resize_inode", "-J", &options]);
    command
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
        .arg(&unfinished.0)
        .arg(SIZE);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    let output =
        command.output().context("mke2fs makes the writable layers of containers; install e2fsprogs, or use --rm")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!("mke2fs: {}", said.lines().next().unwrap_or("it failed without a word")));
    }
    fs::rename(&unfinished.0, empty).with_context(|| empty.display().to_string())
}

/// Goes when dropped, if it is still there.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The device, for a disk at `path`.
pub fn drive(path: &Path) -> anyhow::Result<Value> {
    let text =
        path.to_str().ok_or_else(|| anyhow!("'{}': the path is not UTF-8; set BULKHEAD_STORE", path.display()))?;
    Ok(json!({ "drive_id": "upper", "is_root_device": false, "is_read_only": false, "path_on_host": text }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn each_container_gets_an_empty_one_that_takes_little() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let container = dir.path().join(name);
            fs::create_dir(&container).unwrap();
            if let Err(error) = make(dir.path(), &container) {
                assert!(format!("{error:#}").contains("e2fsprogs"), "{error:#}");
                return;
            }
            let meta = fs::metadata(container.join(FILE)).unwrap();
            assert_eq!(meta.len(), 8 << 30);
            assert!(meta.blocks() * 512 < 4 << 20, "{} bytes", meta.blocks() * 512);
        }
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 3, "the empty one, and two directories");
        assert!(copy_saved(dir.path(), &dir.path().join("x")).unwrap_err().to_string().contains("no writable layer"));
    }
}
