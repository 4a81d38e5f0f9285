//! A container's writable layer on disk: an ext4 file system in a file that takes what is in it and no more. Each is a copy of an
//! empty one, which `mke2fs` makes once for a store. Whatever a guest makes of it, this host never mounts it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};
use vmm::snapshot::disks;

/// The file's name in a container's directory.
pub const FILE: &str = "upper.ext4";
/// The empty one, beside the containers. Another number for another content.
const EMPTY: &str = ".upper-2.ext4";
/// Its bytes, as guests see them: the same for all, so that a guest can have booted before it is known which one it gets. Each
/// further 128 MiB is a group that a guest looks at when it mounts it.
pub const BYTES: u64 = 8 << 30;
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

/// Opens one for a microVM that its container shares with others, which lets go of it some time after the container's end, or that of whoever
/// looked after it. It is nobody else's as long as the descriptor is somewhere (flock(2)).
///
/// # Errors
/// It is not let go of within `patience`.
pub fn wait_for(path: &Path, patience: Duration) -> anyhow::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())?;
    let deadline = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK) => {
                return Err(anyhow!(
                    "{}: the microVM of its pod still uses it; `bulkhead pod stop` ends that",
                    path.display()
                ));
            }
            Err(error) => return Err(io::Error::from(error)).with_context(|| path.display().to_string()),
        }
    }
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

/// What makes a first mount cheap, for a guest whose kernel mode may be emulated (6.5 million instructions of a run became 3.0):
/// nothing is reserved for growing; the host's file system and its disk guard the bytes, so each block of metadata needs no
/// checksum of its own; and an allocation looks at its own group, not at the sixteen that share a place for their bitmaps.
const FEATURES: [&str; 4] = ["-O", "^resize_inode,^metadata_csum,uninit_bg", "-G", "1"];
/// The directories of an overlay, as init names them. Made by a guest, each would begin a group of its own.
const DIRECTORIES: &str = "mkdir u\nmkdir w\n";

/// Nobody waits for another one that makes it at the same time: the last to be complete stays.
fn make_empty(empty: &Path) -> anyhow::Result<()> {
    let unfinished = Unfinished(empty.with_extension(format!("{}.new", std::process::id())));
    let options = format!("size={JOURNAL_MB}");
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-J", &options]).args(FEATURES);
    command
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
        .arg(&unfinished.0)
        .arg(format!("{}k", BYTES >> 10));
    tool(command, "")?;
    let mut command = Command::new("debugfs");
    command.args(["-w", "-f", "-"]).arg(&unfinished.0);
    tool(command, DIRECTORIES)?;
    fs::rename(&unfinished.0, empty).with_context(|| empty.display().to_string())
}

/// Runs a program of e2fsprogs to its end, with `input` to read.
fn tool(mut command: Command, input: &str) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut run = || {
        let mut child = command.spawn()?;
        // Little enough for the pipe to hold it.
        child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes()))?;
        child.wait_with_output()
    };
    let output = run()
        .with_context(|| format!("{name} makes the writable layers of containers; install e2fsprogs, or use --rm"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!("{name}: {}", said.lines().next().unwrap_or("it failed without a word")));
    }
    Ok(())
}

/// Goes when dropped, if it is still there.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The device, for a disk at `path`. Without one it is the place of such a disk: guests with and without one go on from the same
/// template.
pub fn drive(path: Option<&Path>) -> anyhow::Result<Value> {
    let mut drive = json!({ "drive_id": "upper", "is_root_device": false, "is_read_only": false });
    match path {
        Some(path) => {
            let text = path.to_str();
            drive["path_on_host"] =
                text.ok_or_else(|| anyhow!("'{}': the path is not UTF-8; set BULKHEAD_STORE", path.display()))?.into();
        }
        None => drive["capacity"] = BYTES.into(),
    }
    Ok(drive)
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
            assert_eq!(meta.len(), BYTES);
            assert!(meta.blocks() * 512 < 4 << 20, "{} bytes", meta.blocks() * 512);
        }
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 3, "the empty one, and two directories");
        assert!(copy_saved(dir.path(), &dir.path().join("x")).unwrap_err().to_string().contains("no writable layer"));
    }
}
