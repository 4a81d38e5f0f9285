//! What a container has asked for beside its files: memory mounted as file systems, kernel parameters. Limits and capabilities are each process's
//! own ([`crate::process`]).

use crate::alone::Alone;
use crate::failure::{Failure, Reason};
use crate::root::{self, NO_EXEC, failed, mount_proc};
use alloc::format;
use guest_protocol::{FailureKind, Settings, Sysctl, Tmpfs, Volume};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// The file systems in memory on both sides of the volumes: what is mounted inside of another thing comes after it.
#[must_use]
pub fn split(tmpfs: &[Tmpfs], volumes: &[Volume]) -> (alloc::vec::Vec<Tmpfs>, alloc::vec::Vec<Tmpfs>) {
    tmpfs.iter().cloned().partition(|one| !volumes.iter().any(|volume| is_below(&one.target, &volume.target)))
}

/// Whether `path` is in `directory`, or the same.
fn is_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Mounts them in the root of this process, in their order.
///
/// # Errors
/// [`FailureKind::Root`] with the path.
pub fn mount_tmpfs(list: &[Tmpfs]) -> Result<(), Failure> {
    for Tmpfs { target, bytes, mode, exec, writable } in list {
        root::make_path(target).map_err(|error| failed(target, error))?;
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::NOEXEC, !exec);
        flags.set(MountFlags::RDONLY, !writable);
        let size = bytes.map_or_else(Default::default, |bytes| format!(",size={bytes}"));
        let options = alloc::ffi::CString::new(format!("mode={mode:o}{size}"));
        let options = options.map_err(|_| failed(target, io::Errno::INVAL))?;
        mount("tmpfs", target.as_str(), "tmpfs", flags, Some(options.as_c_str()))
            .map_err(|error| failed(target, error))?;
    }
    Ok(())
}

/// The rest, in the complete root of this process, in which /proc is not mounted; `alone`: it is on no network.
///
/// # Errors
/// [`FailureKind::BadRequest`]: the kernel does not have that parameter, or does not take that value.
pub fn apply(settings: &Settings, alone: Option<&Alone>) -> Result<(), Failure> {
    if let Some(bytes) = settings.shm_bytes {
        mount_remount("/dev/shm", NO_EXEC, format!("mode=1777,size={bytes}").as_str())
            .map_err(|error| failed("/dev/shm", error))?;
    }
    if settings.writable_sys {
        mount_remount("/sys", NO_EXEC, c"").map_err(|error| failed("/sys", error))?;
    }
    if settings.sysctls.is_empty() {
        return Ok(());
    }
    // The container's own comes later, from inside its PID namespace.
    mount_proc().map_err(|error| failed("/proc", error))?;
    let all = settings.sysctls.iter().try_for_each(|sysctl| {
        let Sysctl { path, value } = sysctl;
        // What the kernel has once for all networks is not to be changed from just any.
        let others = alone.filter(|_| path.starts_with("net/"));
        set(sysctl)
            .or_else(|error| others.map_or(Err(error), |alone| alone.outside(|| set(sysctl))))
            .map_err(|error| Failure::new(FailureKind::BadRequest, format!("sysctl {path}={value}: {}", Reason(error))))
    });
    unmount("/proc", UnmountFlags::DETACH).map_err(|error| failed("/proc", error))?;
    all
}

fn set(Sysctl { path, value }: &Sysctl) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, format!("/proc/sys/{path}").as_str(), flags, Mode::empty())?;
    // The kernel takes a value as a whole, or not at all.
    io::write(&file, value.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use guest_protocol::VolumeSource;

    #[test]
    fn what_is_in_a_volume_is_mounted_after_it() {
        let tmpfs =
            |target: &str| Tmpfs { target: target.into(), bytes: None, mode: 0o1777, exec: false, writable: true };
        let volume = |target: &str| Volume {
            source: VolumeSource::Directory("v".into()),
            target: target.into(),
            read_only: false,
        };
        let list = ["/run", "/data", "/data/cache", "/database"].map(tmpfs);
        let (before, after) = split(&list, &[volume("/data/"), volume("/run/x")]);
        let targets = |list: Vec<Tmpfs>| list.into_iter().map(|one| one.target).collect::<Vec<_>>();
        assert_eq!(targets(before), ["/run", "/database"]);
        assert_eq!(targets(after), ["/data", "/data/cache"]);
    }
}
