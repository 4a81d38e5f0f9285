//! The container's root: layers, overlay, switching to it, and the files a container finds in it.
//!
//! Paths before [`switch`] are relative to the working directory, which is the empty root the guest began with (a scratch
//! directory in tests); after it they are absolute in the container. What has to be written into the image's own
//! directories is written before anything is mounted there ([`crate::names`]), so that a link in the image leads to no device or
//! kernel file.

use crate::failure::{Failure, Reason};
use crate::guest::Machine;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use core::fmt::Write;
use guest_protocol::{FailureKind, Root, Upper};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, XattrFlags, mkdirat, openat, setxattr, statvfs};
use rustix::io::{self, Errno};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use rustix::process::{chdir, chroot};

/// Most layers: what one disk can have in partitions, less one to be safe.
const MAX_LAYERS: usize = 254;
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
/// The file system of the writable layer: the layer itself and what overlayfs needs beside it.
const UPPER: &str = "u";
/// The writable layer, from the root of its file system.
pub const LAYER: &str = "u";
/// The writable layer: what is in it before it is mounted over the others is on top of them.
pub const UPPER_LAYER: &str = "u/u";
/// Directories that are mounted on in every container.
const MOUNT_POINTS: [&str; 3] = ["u/u/dev", "u/u/proc", "u/u/sys"];
/// For file systems that are no place for programs and devices.
pub const NO_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts the layers on the directories `0` (the lowest), `1`, …
///
/// # Errors
/// [`FailureKind::Root`] with the layer's number.
pub fn mount_layers<M: Machine>(machine: &M, root: &Root) -> Result<(), Failure> {
    if root.layers.len() > MAX_LAYERS {
        let detail = format!("{} layers are more than the {MAX_LAYERS} a guest can mount", root.layers.len());
        return Err(Failure::new(FailureKind::BadRequest, detail));
    }
    for (index, layer) in root.layers.iter().enumerate() {
        let name = format!("{index}");
        make_directory(&name)?;
        machine.mount_layer(index, root.layers.len(), layer, &name).map_err(|error| {
            Failure::new(FailureKind::Root, format!("mounting layer {index} ({:?}): {}", layer.fs, Reason(error)))
        })?;
    }
    Ok(())
}

/// Mounts the writable layer over the others, as `r`. After [`prepare`] and [`mount_layers`]. With `no_devices`, a file in it that is a
/// device leads to none. On a kernel that is not this guest's own, `others` are options of overlayfs.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn mount_overlay(root: &Root, no_devices: bool, others: &str) -> Result<(), Failure> {
    let mut lower = String::new();
    // The topmost layer comes first.
    for index in (0..root.layers.len()).rev() {
        let _ = write!(lower, "{}{index}", if lower.is_empty() { "" } else { ":" });
    }
    if root.layers.is_empty() {
        make_directory("0")?;
        lower.push('0');
    }
    if let Upper::Memory { bytes: Some(bytes) } = root.upper {
        mount_remount(UPPER, MountFlags::empty(), format!("size={bytes}").as_str())
            .map_err(|error| failed("the writable layer", error))?;
    }
    let options = format!("lowerdir={lower},upperdir=u/u,workdir=u/w{others}");
    let flags = if no_devices { MountFlags::NODEV } else { MountFlags::empty() };
    mount_fs("overlay", "r", flags, Some(&options))
}

/// Makes the writable layer, empty, and the directory the root will be at: what [`mount_overlay`] needs besides the layers.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn prepare() -> Result<(), Failure> {
    make_directory(UPPER)?;
    mount_fs("tmpfs", UPPER, MountFlags::empty(), Some("mode=755"))?;
    [UPPER_LAYER, "u/w", "r"].into_iter().try_for_each(make_directory)?;
    MOUNT_POINTS.into_iter().try_for_each(make_mount_point)
}

/// Has the writable layer on the disk that is meant for it, with what it holds already, in place of the one that [`prepare`] has
/// made. Returns its file system's root.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn upper_on_disk<M: Machine>(machine: &M) -> Result<OwnedFd, Failure> {
    machine.mount_upper(UPPER).map_err(|error| failed("the writable layer's disk", error))?;
    [UPPER_LAYER, "u/w"].into_iter().try_for_each(ensure_directory)?;
    MOUNT_POINTS.into_iter().try_for_each(make_mount_point)?;
    upper()
}

/// The root of the writable layer's file system, in which [`LAYER`] is that layer. Before [`switch`].
///
/// # Errors
/// [`FailureKind::Root`].
pub fn upper() -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, UPPER, flags, Mode::empty()).map_err(|error| failed("the writable layer", error))
}

fn make_mount_point(path: &str) -> Result<(), Failure> {
    ensure_directory(path)?;
    // Whatever the image has there cannot be seen under the mount, so it need not be looked for. Without support for
    // attributes it is looked for in vain.
    let _ = setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty());
    Ok(())
}

/// Makes `r` the root of this process and of all it starts.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn switch() -> Result<(), Failure> {
    chdir("r")
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| chroot("."))
        .map_err(|error| Failure::errno(FailureKind::Root, "switching to the container's root", error))
}

/// Mounts /proc for the PID namespace of the caller.
///
/// # Errors
/// As mount(2).
pub fn mount_proc() -> io::Result<()> {
    mount("proc", "/proc", "proc", NO_EXEC, None)
}

/// Puts the terminal at /dev/console.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn bind_console(terminal: &str) -> Result<(), Failure> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(CWD, "/dev/console", flags, Mode::from_raw_mode(0o600))
        .map(drop)
        .and_then(|()| mount_bind(terminal, "/dev/console"))
        .map_err(|error| failed("/dev/console", error))
}

/// Makes the root read-only, or lets it be written to again; mounts in it stay as they are.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn set_read_only(read_only: bool) -> Result<(), Failure> {
    let mut flags = MountFlags::BIND;
    flags.set(MountFlags::RDONLY, read_only);
    let now = statvfs("/").map_err(|error| failed("/", error))?.f_flag;
    flags.set(MountFlags::NODEV, now.contains(StatVfsMountFlags::NODEV));
    mount_remount("/", flags, c"").map_err(|error| failed("/", error))
}

/// Goes to the working directory of the process and makes it if it is missing.
///
/// # Errors
/// [`FailureKind::BadWorkingDir`].
pub fn enter_working_directory(path: &str) -> Result<(), Failure> {
    let bad = |error| Failure::errno(FailureKind::BadWorkingDir, &format!("working directory {path:?}"), error);
    check_working_directory(path)?;
    match chdir(path) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(bad),
    }
    make_and_enter(path).map_err(bad)
}

/// Looks at the path of a working directory, not at what is there.
///
/// # Errors
/// [`FailureKind::BadWorkingDir`]: it is not absolute.
pub fn check_working_directory(path: &str) -> Result<(), Failure> {
    if path.starts_with('/') {
        return Ok(());
    }
    let detail = format!("working directory {path:?}: not an absolute path");
    Err(Failure::new(FailureKind::BadWorkingDir, detail))
}

/// Makes what is missing of a path of directories. The working directory is the root afterwards.
///
/// # Errors
/// As mkdir(2) and chdir(2).
pub fn make_path(path: &str) -> io::Result<()> {
    let result = make_and_enter(path);
    chdir("/").and(result)
}

fn make_and_enter(path: &str) -> io::Result<()> {
    chdir("/")?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        match mkdirat(CWD, part, DIRECTORY) {
            Ok(()) | Err(Errno::EXIST) => chdir(part)?,
            // Not to be made where it is not missing (a read-only mount, …): then it can be entered.
            Err(error) => chdir(part).map_err(|_| error)?,
        }
    }
    Ok(())
}

/// Reads a file of the image, at most `limit` bytes. A file that is not there is empty.
///
/// # Errors
/// As open(2) and read(2), and `TOOBIG`.
pub fn read_file(path: &str, limit: usize) -> io::Result<alloc::vec::Vec<u8>> {
    // What is there may be a FIFO or a terminal: neither may make init wait, or its own.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(alloc::vec::Vec::new()),
        other => other?,
    };
    let mut content = alloc::vec![0; 4096];
    let mut filled = 0;
    loop {
        if filled == content.len() {
            if filled > limit {
                return Err(Errno::TOOBIG);
            }
            content.resize(filled * 2, 0);
        }
        match io::read(&file, content.get_mut(filled..).unwrap_or_default())? {
            0 => break,
            count => filled += count,
        }
    }
    content.truncate(filled);
    if filled > limit { Err(Errno::TOOBIG) } else { Ok(content) }
}

/// Makes a directory.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn make_directory(path: &str) -> Result<(), Failure> {
    mkdirat(CWD, path, DIRECTORY).map_err(|error| failed(path, error))
}

/// Makes a directory if there is none.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn ensure_directory(path: &str) -> Result<(), Failure> {
    match mkdirat(CWD, path, DIRECTORY) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(path, error)),
    }
}

/// Mounts a file system; makes the mount point if it is missing.
///
/// # Errors
/// [`FailureKind::Root`].
pub fn mount_fs(kind: &str, path: &str, flags: MountFlags, options: Option<&str>) -> Result<(), Failure> {
    let options = options.map(CString::new).transpose().map_err(|_| failed(path, Errno::INVAL))?;
    let attempt = || mount(kind, path, kind, flags, options.as_deref());
    let result = match attempt() {
        Err(Errno::NOENT) => {
            ensure_directory(path)?;
            attempt()
        }
        other => other,
    };
    result.map_err(|error| Failure {
        kind: FailureKind::Root,
        detail: format!("mounting {kind} on {path}: {}", Reason(error)),
    })
}

/// `path` cannot be what it must be.
pub fn failed(path: &str, error: Errno) -> Failure {
    Failure::errno(FailureKind::Root, path, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_within_their_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [b'x'; 10_000]).unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(read_file(path, 10_000).unwrap().len(), 10_000);
        assert_eq!(read_file(path, 9_999), Err(Errno::TOOBIG));
        assert_eq!(read_file("/dev/zero", 5_000), Err(Errno::TOOBIG));
        assert_eq!(read_file("/not/there", 10), Ok(alloc::vec![]));
    }
}
