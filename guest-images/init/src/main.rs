//! The program: entry point, memory, and the machine it runs on. The rest is in the library.
#![no_std]
#![no_main]

extern crate alloc;

mod memory;
mod start;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;
use guest_init::audit;
use guest_init::contained::Contained;
use guest_init::failure::Reason;
use guest_init::guest::{self, Machine, PORT};
use guest_init::sys::{self, Clock, clock_ns, complain};
use guest_protocol::{End, HOST_CID, Layer, LayerFs, MAX_PLACES, VOLUMES, port_at};
use guest_protocol::{audit::ARGUMENT, contained};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::{self, Errno};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsmount, fsopen, mount};
use rustix::process::chdir;
use rustix::system::{RebootCommand, reboot};

const SECTOR: u64 = 512;
/// As much as the kernel keeps (CONFIG_LOG_BUF_SHIFT).
const KERNEL_LOG: usize = 64 << 10;

/// Where the root of a member is made, before it is one.
const SCRATCH: &str = "/m";

/// A virtual machine with virtio-vsock and one virtio disk, or two; of one that several share, what is at a place of it.
struct VirtualMachine {
    place: Option<u8>,
}

impl VirtualMachine {
    /// The disk that holds the layers, one after the other.
    fn disk(&self) -> String {
        self.disk_at(0)
    }

    /// The disk with the writable layer, if there is one.
    fn upper_disk(&self) -> String {
        self.disk_at(1)
    }

    /// Disks come in pairs.
    fn disk_at(&self, which: u8) -> String {
        format!("dev/vd{}", char::from(b'a' + 2 * self.place.unwrap_or(0) + which))
    }

    fn port(&self, port: u32) -> u32 {
        self.place.map_or(port, |place| port_at(place, port))
    }
}

impl Machine for VirtualMachine {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        sys::connect_vsock(HOST_CID, self.port(port))
    }

    fn begin_connect(&self, port: u32) -> io::Result<OwnedFd> {
        sys::begin_connect_vsock(HOST_CID, self.port(port))
    }

    fn mount_layer(&self, index: usize, count: usize, layer: &Layer, target: &str) -> io::Result<()> {
        let kind = match layer.fs {
            LayerFs::Erofs => "erofs",
            LayerFs::Squashfs => "squashfs",
        };
        // A single layer is the disk itself; the file system knows its own length.
        if count == 1 && layer.start_sector == 0 {
            return mount(self.disk().as_str(), target, kind, MountFlags::RDONLY, None);
        }
        let number = u8::try_from(index + 1).map_err(|_| Errno::INVAL)?;
        let bytes =
            |sectors: u64| sectors.checked_mul(SECTOR).and_then(|bytes| i64::try_from(bytes).ok()).ok_or(Errno::INVAL);
        let disk = openat(CWD, self.disk().as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        sys::add_partition(&disk, number, bytes(layer.start_sector)?, bytes(layer.sectors)?)?;
        mount(format!("{}{number}", self.disk()).as_str(), target, kind, MountFlags::RDONLY, None)
    }

    fn mount_upper(&self, target: &str) -> io::Result<()> {
        let upper = self.upper_disk();
        let disk = openat(CWD, upper.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        sys::forget_disk(&disk)?;
        // Its inode tables are holes of the host's file, which read as the zeros that the kernel would write there, and nearly
        // all of its bitmaps are of groups that nobody has used.
        mount(upper.as_str(), target, "ext4", MountFlags::empty(), Some(c"noinit_itable,no_prefetch_block_bitmaps"))
    }

    fn mount_volumes(&self, target: &str) -> io::Result<()> {
        // Devices in them would be the guest's own. All else is the user's business, as with other container systems.
        mount(VOLUMES, target, "virtiofs", MountFlags::NODEV, None)
    }

    fn shows_interface(&self) -> bool {
        // The network of a guest that several share is all theirs.
        self.place.is_none()
    }

    fn cgroups(&self) -> io::Result<OwnedFd> {
        let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        if self.place.is_some() {
            // One that is not there is missed when something is to be limited.
            for controller in [b"+memory".as_slice(), b"+cpu", b"+pids"] {
                let file = openat(&root, "cgroup.subtree_control", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
                let _ = file.and_then(|file| io::write(file, controller));
            }
        }
        Ok(root)
    }

    fn kernel_log(&self) -> Vec<u8> {
        let mut log = vec![0; KERNEL_LOG];
        let filled = sys::kernel_log(&mut log).unwrap_or(0);
        log.truncate(filled);
        log
    }

    fn place(&self) -> Option<u8> {
        self.place
    }

    fn member(&self, place: u8) -> Option<Self> {
        (self.place.is_none() && place < MAX_PLACES).then_some(Self { place: Some(place) })
    }

    fn enter(&self) -> io::Result<()> {
        mount("tmpfs", SCRATCH, "tmpfs", MountFlags::NOSUID, None)?;
        chdir(SCRATCH)?;
        mkdirat(CWD, "dev", Mode::from_raw_mode(0o755))?;
        mount("devtmpfs", "dev", "devtmpfs", MountFlags::NOSUID, None)
    }

    fn is_free(&self) -> bool {
        // In the root that the guest's other processes have, the kernel's devices are not to be seen.
        let looks = || {
            match mkdirat(CWD, SCRATCH, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let context = fsopen("devtmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&context)?;
            let devices = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
            for disk in [self.disk(), self.upper_disk()] {
                let name = disk.strip_prefix("dev/").unwrap_or_default();
                // Nobody has one exclusively that somebody has mounted (open(2), O_EXCL).
                let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
                sys::forget_disk(openat(&devices, name, flags, Mode::empty())?)?;
            }
            Ok(())
        };
        looks().is_ok()
    }
}

/// PID 1. The working directory is the root of the initramfs, umask and signals are as the kernel sets them.
fn main(mode: Option<&CStr>, host: Option<&CStr>) -> ! {
    // No kernel tells PID 1 that: then this is a process of a container, whoever's.
    if mode.is_some_and(|mode| mode.to_bytes() == ARGUMENT.as_bytes()) {
        sys::exit(audit::run(host.and_then(|host| host.to_str().ok()?.parse().ok())));
    }
    if mode.is_some_and(|mode| mode.to_bytes() == contained::ARGUMENT.as_bytes()) {
        sys::exit(contain());
    }
    let init_ns = clock_ns(Clock::Monotonic);
    // Fails if the image's maker left it out or the kernel has mounted it: the disk will tell.
    let _ = mkdirat(CWD, "dev", Mode::from_raw_mode(0o755));
    let _ = mount("devtmpfs", "dev", "devtmpfs", MountFlags::NOSUID, None);
    let end = match sys::connect_vsock(HOST_CID, PORT) {
        Ok(connection) => guest::run(&VirtualMachine { place: None }, connection, init_ns),
        Err(error) => {
            complain(&format!("init: connecting to the host: {}\n", Reason(error)));
            End::Reset
        }
    };
    stop(end)
}

/// The first process of a container of the host's own kernel, whose end is the end of all in it.
fn contain() -> u8 {
    // Its defect is none of a machine's.
    sys::be_helper();
    let init_ns = clock_ns(Clock::Monotonic);
    let machine = Contained::enter();
    match machine.and_then(|machine| Ok((machine.connect(PORT)?, machine))) {
        Ok((connection, machine)) => {
            guest::run(&machine, connection, init_ns);
            0
        }
        Err(error) => {
            complain(&format!("init: what the runtime was to make: {}\n", Reason(error)));
            1
        }
    }
}

/// Ends the virtual machine. What is in memory is thrown away, so nothing is synced.
fn stop(end: End) -> ! {
    if end == End::PowerOff {
        let _ = reboot(RebootCommand::PowerOff);
    }
    let _ = reboot(RebootCommand::Restart);
    sys::exit(1)
}
