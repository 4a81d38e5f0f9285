//! What keeps a container from others on the same kernel, beside namespaces, capabilities and the [filter](crate::filter): it opens no
//! device but those of /dev, and of /proc and /sys it sees and changes what is its own.

use crate::failure::Failure;
use crate::root::{NO_EXEC, failed};
use crate::stage::DEVICES;
use crate::sys::own_cgroup_namespace;
use alloc::format;
use rustix::io::{self, Errno};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

const CGROUPS: &str = "/sys/fs/cgroup";
/// What is written there is done to the kernel, or to all that it runs.
const READ_ONLY: [&str; 5] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"];
/// What is read there is others' as well: memory, keys, timers.
const HIDDEN: [&str; 6] =
    ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/latency_stats"];
/// The same of directories: firmware, disks, how much power is drawn.
const HIDDEN_DIRECTORIES: [&str; 5] =
    ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"];

/// Has every file in /dev of this process's root lead to no device, but for those that are there now: a disk's number may be made a file
/// by whoever may make devices, and that file opened.
///
/// # Errors
/// [`FailureKind::Root`](guest_protocol::FailureKind::Root) with the path.
pub fn forbid_devices() -> Result<(), Failure> {
    for (name, ..) in DEVICES {
        let path = format!("/dev/{name}");
        mount_bind(path.as_str(), path.as_str()).map_err(|error| failed(&path, error))?;
    }
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount("/dev", flags, c"").map_err(|error| failed("/dev", error))
}

/// In the container's first process, before its program: its view of cgroups begins at its own, and what of /proc is not its own is
/// read-only or hidden, unless it is `privileged`.
///
/// # Errors
/// As mount(2). What the kernel does not have needs no hiding.
pub fn narrow(privileged: bool) -> io::Result<()> {
    own_cgroup_namespace()?;
    if_there(mount("cgroup2", CGROUPS, "cgroup2", NO_EXEC | MountFlags::RDONLY, None))?;
    if privileged {
        return Ok(());
    }
    for path in READ_ONLY {
        if_there(
            mount_bind(path, path)
                .and_then(|()| mount_remount(path, MountFlags::BIND | NO_EXEC | MountFlags::RDONLY, c"")),
        )?;
    }
    HIDDEN.into_iter().try_for_each(|path| if_there(mount_bind("/dev/null", path)))?;
    let empty = |path| mount("tmpfs", path, "tmpfs", NO_EXEC | MountFlags::RDONLY, Some(c"size=0"));
    HIDDEN_DIRECTORIES.into_iter().try_for_each(|path| if_there(empty(path)))
}

fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
