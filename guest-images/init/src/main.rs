//! The program: entry point, memory, and the machine it runs on. The rest is in the library.
#![no_std]
#![no_main]

extern crate alloc;

mod memory;
mod start;

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;
use guest_init::audit;
use guest_init::failure::Reason;
use guest_init::guest::{self, Machine, PORT};
use guest_init::sys::{self, Clock, clock_ns, complain};
use guest_protocol::audit::ARGUMENT;
use guest_protocol::{End, HOST_CID, Layer, LayerFs, VOLUMES};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::{self, Errno};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsmount, fsopen, mount};
use rustix::system::{RebootCommand, reboot};

/// The disk that holds the layers, one after the other.
const DISK: &str = "dev/vda";
/// The disk with the writable layer, if there is one.
const UPPER_DISK: &str = "dev/vdb";
const SECTOR: u64 = 512;
/// As much as the kernel keeps (CONFIG_LOG_BUF_SHIFT).
const KERNEL_LOG: usize = 64 << 10;

/// A virtual machine with virtio-vsock and one virtio disk, or two.
struct VirtualMachine;

impl Machine for VirtualMachine {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        sys::connect_vsock(HOST_CID, port)
    }

    fn begin_connect(&self, port: u32) -> io::Result<OwnedFd> {
        sys::begin_connect_vsock(HOST_CID, port)
    }

    fn mount_layer(&self, index: usize, count: usize, layer: &Layer, target: &str) -> io::Result<()> {
        let kind = match layer.fs {
            LayerFs::Erofs => "erofs",
            LayerFs::Squashfs => "squashfs",
        };
        // A single layer is the disk itself; the file system knows its own length.
        if count == 1 && layer.start_sector == 0 {
            return mount(DISK, target, kind, MountFlags::RDONLY, None);
        }
        let number = u8::try_from(index + 1).map_err(|_| Errno::INVAL)?;
        let bytes =
            |sectors: u64| sectors.checked_mul(SECTOR).and_then(|bytes| i64::try_from(bytes).ok()).ok_or(Errno::INVAL);
        let disk = openat(CWD, DISK, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        sys::add_partition(&disk, number, bytes(layer.start_sector)?, bytes(layer.sectors)?)?;
        mount(format!("{DISK}{number}").as_str(), target, kind, MountFlags::RDONLY, None)
    }

    fn mount_upper(&self, target: &str) -> io::Result<()> {
        let disk = openat(CWD, UPPER_DISK, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        sys::forget_disk(&disk)?;
        // Its inode tables are holes of the host's file, which read as the zeros that the kernel would write there, and nearly
        // all of its bitmaps are of groups that nobody has used.
        mount(UPPER_DISK, target, "ext4", MountFlags::empty(), Some(c"noinit_itable,no_prefetch_block_bitmaps"))
    }

    fn mount_volumes(&self, target: &str) -> io::Result<()> {
        // Devices in them would be the guest's own. All else is the user's business, as with other container systems.
        mount(VOLUMES, target, "virtiofs", MountFlags::NODEV, None)
    }

    fn cgroups(&self) -> io::Result<OwnedFd> {
        let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    fn kernel_log(&self) -> Vec<u8> {
        let mut log = vec![0; KERNEL_LOG];
        let filled = sys::kernel_log(&mut log).unwrap_or(0);
        log.truncate(filled);
        log
    }
}

/// PID 1. The working directory is the root of the initramfs, umask and signals are as the kernel sets them.
fn main(mode: Option<&CStr>, host: Option<&CStr>) -> ! {
    // No kernel tells PID 1 that: then this is a process of a container, whoever's.
    if mode.is_some_and(|mode| mode.to_bytes() == ARGUMENT.as_bytes()) {
        sys::exit(audit::run(host.and_then(|host| host.to_str().ok()?.parse().ok())));
    }
    let init_ns = clock_ns(Clock::Monotonic);
    // Fails if the image's maker left it out or the kernel has mounted it: the disk will tell.
    let _ = mkdirat(CWD, "dev", Mode::from_raw_mode(0o755));
    let _ = mount("devtmpfs", "dev", "devtmpfs", MountFlags::NOSUID, None);
    let end = match sys::connect_vsock(HOST_CID, PORT) {
        Ok(connection) => guest::run(&VirtualMachine, connection, init_ns),
        Err(error) => {
            complain(&format!("init: connecting to the host: {}\n", Reason(error)));
            End::Reset
        }
    };
    stop(end)
}

/// Ends the virtual machine. What is in memory is thrown away, so nothing is synced.
fn stop(end: End) -> ! {
    if end == End::PowerOff {
        let _ = reboot(RebootCommand::PowerOff);
    }
    let _ = reboot(RebootCommand::Restart);
    sys::exit(1)
}
