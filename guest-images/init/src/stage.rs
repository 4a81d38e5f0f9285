//! What every container needs, whatever its image: done before the host says which, and once for all clones of a guest.
//!
//! Mounts are made in directories of the empty root that the guest began with, and moved to their places when the
//! container's root is there. Nothing here reads the disk, which is another one in each clone, nor a random number that a
//! process could see (the kernel makes its boot id when that is first asked for).

use crate::failure::Failure;
use crate::freeze::Freezer;
use crate::guest::Machine;
use crate::names::Names;
use crate::process;
use crate::root::{self, NO_EXEC, failed, mount_fs};
use crate::sys::Interface;
use alloc::format;
use alloc::string::String;
use guest_protocol::FailureKind;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, openat, symlinkat};
use rustix::mount::{MountFlags, MoveMountFlags, mount_bind, move_mount};
use rustix::process::umask;

/// Where the container's /dev and /sys wait.
const DEV: &str = "d";
const SYS: &str = "s";

/// The devices in /dev: names and numbers.
pub const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// All that is ready.
#[derive(Debug)]
pub struct Stage {
    /// /dev/urandom.
    pub random: OwnedFd,
    /// The cgroup of the container's processes. Not with every kernel: then they cannot be frozen.
    pub freezer: Option<Freezer>,
    /// The root of the writable layer's file system, in memory.
    pub upper: OwnedFd,
    /// The files in /etc.
    pub names: Names,
    /// /dev and /sys.
    pub mounts: Mounts,
}

/// Mounts that wait for their places.
#[derive(Debug)]
pub struct Mounts {
    dev: OwnedFd,
    /// Not with every kernel.
    sys: Option<OwnedFd>,
}

impl Stage {
    /// Prepares it in the working directory. Sets the umask to 0.
    ///
    /// # Errors
    /// [`FailureKind::Root`] with the path. What the kernel has no support for and a process can do without is left out.
    pub fn new<M: Machine>(machine: &M) -> Result<Self, Failure> {
        umask(Mode::empty());
        // Without it (a kernel without IPv4) most processes get on.
        let _ = Interface::named("lo").and_then(|lo| lo.up());
        process::limit().map_err(|error| Failure::errno(FailureKind::Guest, "setting limits", error))?;
        root::prepare()?;
        let upper = root::upper()?;
        let names = Names::new()?;
        // Before the container's own view of it: the first mount decides whether the file system can be written to.
        let freezer = machine.cgroups().and_then(|parent| Freezer::new(parent, group(machine.place()))).ok();
        let mounts = Mounts {
            dev: make_dev(machine.is_root())?,
            sys: make_sys(SYS, machine.place().is_none() && machine.has_kernel()),
        };
        let random = openat(&mounts.dev, "urandom", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let random = random.map_err(|error| failed("/dev/urandom", error))?;
        Ok(Self { random, freezer, upper, names, mounts })
    }
}

impl Mounts {
    /// Has the container have another /sys.
    pub fn show(&mut self, sys: Option<OwnedFd>) {
        self.sys = sys;
    }

    /// Moves them to their places in the root of this process. That of /proc stays empty: the process mounts it from inside
    /// its PID namespace.
    ///
    /// # Errors
    /// [`FailureKind::Root`] with the path.
    pub fn attach(self) -> Result<(), Failure> {
        graft(&self.dev, "/dev")?;
        self.sys.as_ref().map_or(Ok(()), |sys| graft(sys, "/sys"))
    }
}

/// The container's /dev, complete. Who has no privileges to make devices has those of the host in their places.
fn make_dev(privileges: bool) -> Result<OwnedFd, Failure> {
    mount_fs("tmpfs", DEV, MountFlags::NOSUID, Some("mode=755,size=65536k"))?;
    let dev = open_directory(DEV)?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        let made = match privileges {
            true => mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor)),
            false => openat(&dev, name, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, mode)
                .and_then(|_| mount_bind(format!("/dev/{name}").as_str(), format!("{DEV}/{name}").as_str())),
        };
        made.map_err(|error| failed(name, error))?;
    }
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ] {
        symlinkat(target, &dev, name).map_err(|error| failed(name, error))?;
    }
    let no_exec = MountFlags::NOSUID.union(MountFlags::NOEXEC);
    // The group of terminals is none of a single user's.
    let group = if privileges { ",gid=5" } else { "" };
    mount_fs("devpts", "d/pts", no_exec, Some(format!("newinstance,ptmxmode=0666,mode=0620{group}").as_str()))?;
    mount_fs("tmpfs", "d/shm", NO_EXEC, Some("mode=1777,size=65536k"))?;
    // A kernel may have been built without it; most processes do not miss it.
    let _ = mount_fs("mqueue", "d/mqueue", NO_EXEC, None);
    Ok(dev)
}

/// What the container's cgroup is called.
fn group(place: Option<u8>) -> String {
    place.map_or_else(|| "container".into(), |place| format!("member-{place}"))
}

/// The container's /sys, if the kernel has one, mounted at `path`: it shows the interfaces of this process's network namespace. `alone`: with
/// the cgroups of the whole kernel.
pub fn make_sys(path: &str, alone: bool) -> Option<OwnedFd> {
    let read_only = NO_EXEC.union(MountFlags::RDONLY);
    mount_fs("sysfs", path, read_only, None).ok()?;
    if alone {
        let _ = mount_fs("cgroup2", &format!("{path}/fs/cgroup"), read_only, None);
    }
    open_directory(path).ok()
}

fn open_directory(path: &str) -> Result<OwnedFd, Failure> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|error| failed(path, error))
}

/// Moves a mount with all that is mounted in it.
fn graft(tree: &OwnedFd, path: &str) -> Result<(), Failure> {
    move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|error| failed(path, error))
}
