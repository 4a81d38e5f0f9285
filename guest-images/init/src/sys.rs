//! The system calls that rustix does not have, each as a safe function: clocks, entropy, vsock addresses, partitions, network
//! interfaces, starting a process. All of this crate's `unsafe` but the entry point's is here.

mod attempt;
mod interface;
mod spawn;

pub use attempt::{Attempt, attempt};
pub use interface::{Interface, make_tap};
pub use spawn::{
    Child, PidNamespace, StringList, be_helper, execve, fork, fork_apart, is_helper, join_pid_namespace,
    leave_pid_namespace, spawn, spawn_idle,
};

use crate::filter::{Filter, Instruction};
use core::arch::asm;
use core::ffi::{c_int, c_long, c_void};
use core::ptr;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::ioctl::{self, Opcode};
use rustix::net::SocketFlags;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const SYS_WRITE: usize = 1;
const SYS_EXIT: usize = 60;
const SYS_SYSLOG: usize = 103;
const SYS_CLOCK_SETTIME: usize = 227;
const SYS_CLOCK_GETTIME: usize = 228;
const SYS_UNSHARE: usize = 272;
const SYS_SECCOMP: usize = 317;
const SYS_CLOSE_RANGE: usize = 436;
const SYS_MOUNT_SETATTR: usize = 442;

/// Has the kernel let this process, and what it becomes and starts, make no system calls but those that `filter` lets through.
///
/// # Errors
/// As seccomp(2).
pub fn set_filter(filter: &Filter) -> io::Result<()> {
    const SET_MODE_FILTER: usize = 1;
    /// `struct sock_fprog` (linux/filter.h).
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const Instruction,
    }
    let instructions = filter.program();
    let length = u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, instructions: instructions.as_ptr() };
    // SAFETY: it reads a sock_fprog and as many instructions as that says, which are alive.
    unsafe { syscall(SYS_SECCOMP, SET_MODE_FILTER, 0, ptr::from_ref(&program) as usize) }.map(drop)
}

/// Has this process see the cgroup that it is in as the root of all.
///
/// # Errors
/// As unshare(2).
pub fn own_cgroup_namespace() -> io::Result<()> {
    const NEWCGROUP: usize = 0x0200_0000;
    // SAFETY: of all that could be unshared this is nothing that a descriptor or memory depends on.
    unsafe { syscall(SYS_UNSHARE, NEWCGROUP, 0, 0) }.map(drop)
}

/// Has this process be in a network namespace of its own, in which there is a loopback interface that is down. Its sockets stay where they
/// were made.
///
/// # Errors
/// As unshare(2).
pub fn own_network_namespace() -> io::Result<()> {
    const NEWNET: usize = 0x4000_0000;
    // SAFETY: of all that could be unshared this is nothing that a descriptor or memory depends on.
    unsafe { syscall(SYS_UNSHARE, NEWNET, 0, 0) }.map(drop)
}

/// Has this process, and what it starts from now on, be in a network namespace.
///
/// # Errors
/// As setns(2).
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
}

/// Closes every descriptor of this process but those of its standard streams, in a child: what it has of its parent's is a copy.
///
/// # Errors
/// As close_range(2).
pub fn close_all_but_streams() -> io::Result<()> {
    // SAFETY: it touches no memory. What owns one of them is never used again in a child of [`fork`] or [`spawn`], and only those call this.
    unsafe { syscall(SYS_CLOSE_RANGE, 3, u32::MAX as usize, 0) }.map(drop)
}

/// Has no file of a mount, and of those below it, lead to a device, and with `read_only` none be written to. What else the mounts are they stay.
/// `tree` is the root of it.
///
/// # Errors
/// As mount_setattr(2).
pub fn restrict(tree: impl AsFd, read_only: bool) -> io::Result<()> {
    const RDONLY: u64 = 1;
    const NODEV: u64 = 4;
    const EMPTY_PATH: usize = 0x1000;
    const RECURSIVE: usize = 0x8000;
    /// `struct mount_attr` (linux/mount.h).
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let set = if read_only { RDONLY | NODEV } else { NODEV };
    let attributes = Attributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    let (tree, given) = (tree.as_fd().as_raw_fd() as usize, ptr::from_ref(&attributes) as usize);
    let path = c"".as_ptr() as usize;
    let call = [SYS_MOUNT_SETATTR, tree, path, EMPTY_PATH | RECURSIVE, given, size_of::<Attributes>(), 0];
    // SAFETY: it reads a terminated path and a mount_attr of this size, which are alive.
    unsafe { call_kernel(call) }.map(drop)
}

/// Its stdin and stdout, in a child of [`fork`] that has been given some.
#[must_use]
pub fn streams() -> (BorrowedFd<'static>, BorrowedFd<'static>) {
    // SAFETY: nothing here closes these two, and their numbers are valid ones.
    unsafe { (BorrowedFd::borrow_raw(0), BorrowedFd::borrow_raw(1)) }
}

/// The clocks used here, by their kernel numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// CLOCK_REALTIME.
    Real = 0,
    /// CLOCK_MONOTONIC.
    Monotonic = 1,
}

/// `struct timespec` of a 64-bit kernel.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

/// A system call with up to three arguments.
///
/// # Safety
/// As for [`call_kernel`].
unsafe fn syscall(number: usize, first: usize, second: usize, third: usize) -> io::Result<usize> {
    // SAFETY: the caller's.
    unsafe { call_kernel([number, first, second, third, 0, 0, 0]) }
}

/// A system call with its number and all six arguments.
///
/// # Safety
/// The arguments must be what call `number` expects, and any memory it writes must be the caller's.
unsafe fn call_kernel([number, first, second, third, fourth, fifth, sixth]: [usize; 7]) -> io::Result<usize> {
    let result: isize;
    // SAFETY: the x86-64 system call convention: result in rax; rcx and r11 are lost; memory is what the caller vouches for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    checked(result)
}

/// The kernel returns -4095…-1 for errors.
fn checked(result: isize) -> io::Result<usize> {
    if (-4095..0).contains(&result) {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    Ok(result as usize)
}

/// Nanoseconds on `clock`. 0 if it cannot be read, which no kernel with these clocks does.
#[must_use]
pub fn clock_ns(clock: Clock) -> u64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: clock_gettime writes one timespec.
    let _ = unsafe { syscall(SYS_CLOCK_GETTIME, clock as usize, ptr::from_mut(&mut time) as usize, 0) };
    (time.seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(time.nanoseconds as u64)
}

/// Sets CLOCK_REALTIME, in nanoseconds since 1970.
///
/// # Errors
/// As clock_settime(2).
pub fn set_wall_clock(ns: u64) -> io::Result<()> {
    let time = Timespec { seconds: (ns / 1_000_000_000) as i64, nanoseconds: (ns % 1_000_000_000) as c_long };
    // SAFETY: clock_settime reads one timespec.
    unsafe { syscall(SYS_CLOCK_SETTIME, Clock::Real as usize, ptr::from_ref(&time) as usize, 0) }.map(drop)
}

/// `struct rand_pool_info` (linux/random.h), as long as it is needed here.
#[repr(C)]
struct PoolInfo {
    entropy_bits: c_int,
    bytes: c_int,
    buffer: [u8; 32],
}

/// Credits `seed` to the kernel's random number generator and has it start from there at once, on every CPU and in every
/// process's own copy. `random` is /dev/random or /dev/urandom.
///
/// # Errors
/// As the RNDADDENTROPY and RNDRESEEDCRNG ioctls (random(4)).
pub fn reseed(random: impl AsFd, seed: &[u8; 32]) -> io::Result<()> {
    const RNDADDENTROPY: Opcode = ioctl::opcode::write::<[c_int; 2]>(b'R', 3);
    const RNDRESEEDCRNG: Opcode = ioctl::opcode::none(b'R', 7);
    let length = seed.len() as c_int;
    let info = PoolInfo { entropy_bits: length * 8, bytes: length, buffer: *seed };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info with as many bytes as it says.
    unsafe { ioctl::ioctl(&random, ioctl::Setter::<RNDADDENTROPY, PoolInfo>::new(info)) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { ioctl::ioctl(&random, ioctl::NoArg::<RNDRESEEDCRNG>::new()) }
}

/// Writes all of a file system to its disk and lets nothing more be written: it need not be repaired when it is mounted next.
/// `root` is a directory of it.
///
/// # Errors
/// As the FIFREEZE ioctl: it cannot be written, or is of a kind that has no disk.
pub fn freeze_file_system(root: OwnedFd) -> io::Result<()> {
    const FIFREEZE: Opcode = ioctl::opcode::read_write::<c_int>(b'X', 119);
    // SAFETY: FIFREEZE takes an argument and does not look at it.
    unsafe { ioctl::ioctl(&root, ioctl::NoArg::<FIFREEZE>::new()) }
}

/// Forgets what has been read of a disk: what is behind it may be another one since.
///
/// # Errors
/// As the BLKFLSBUF ioctl.
pub fn forget_disk(disk: impl AsFd) -> io::Result<()> {
    const BLKFLSBUF: Opcode = ioctl::opcode::none(0x12, 97);
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { ioctl::ioctl(&disk, ioctl::NoArg::<BLKFLSBUF>::new()) }
}

/// `struct sockaddr_vm` (linux/vm_sockets.h).
#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

impl VsockAddress {
    fn new(cid: u32, port: u32) -> Self {
        Self { family: AddressFamily::VSOCK.as_raw(), reserved: 0, port, cid, flags: 0, zero: [0; 3] }
    }
}

// SAFETY: the pointer is to a live sockaddr_vm and the length is its own.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(ptr::from_ref(self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}

/// A stream connection to a vsock port. Waits until the other side has accepted or refused.
///
/// # Errors
/// As socket(2) and connect(2). The kernel gives up after two seconds; on a busy host the other side may need longer, so it
/// is asked several times.
pub fn connect_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    const ATTEMPTS: usize = 30;
    let attempt = || {
        let socket = vsock_socket(SocketFlags::CLOEXEC)?;
        rustix::net::connect(&socket, &VsockAddress::new(cid, port))?;
        Ok(socket)
    };
    let mut result = attempt();
    for _ in 1..ATTEMPTS {
        if !matches!(result, Err(Errno::TIMEDOUT)) {
            break;
        }
        result = attempt();
    }
    result
}

/// A stream connection to a vsock port that has been begun; the socket does not block.
///
/// # Errors
/// As socket(2) and connect(2).
pub fn begin_connect_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&socket, &VsockAddress::new(cid, port)) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn vsock_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)
}

/// `struct blkpg_partition` (linux/blkpg.h).
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg` (linux/blkpg.h).
#[repr(C)]
struct BlkpgArgument {
    operation: c_int,
    flags: c_int,
    data_length: c_int,
    data: *mut c_void,
}

/// Adds a partition to a disk that has no table: `start` and `length` in bytes.
///
/// # Errors
/// As the BLKPG ioctl: not within the disk, overlapping another, not aligned to its blocks, …
pub fn add_partition(disk: impl AsFd, number: u8, start: i64, length: i64) -> io::Result<()> {
    const BLKPG: Opcode = 0x1269;
    const ADD: c_int = 1;
    let mut partition =
        BlkpgPartition { start, length, number: c_int::from(number), device_name: [0; 64], volume_name: [0; 64] };
    let argument = BlkpgArgument {
        operation: ADD,
        flags: 0,
        data_length: size_of::<BlkpgPartition>() as c_int,
        data: ptr::from_mut(&mut partition).cast(),
    };
    // SAFETY: BLKPG takes a blkpg_ioctl_arg whose data is a blkpg_partition; both live across the call.
    unsafe { ioctl::ioctl(disk, ioctl::Setter::<BLKPG, BlkpgArgument>::new(argument)) }
}

/// What the kernel has said last, into `buffer`: how much of that is filled.
///
/// # Errors
/// As syslog(2), SYSLOG_ACTION_READ_ALL.
pub fn kernel_log(buffer: &mut [u8]) -> io::Result<usize> {
    const READ_ALL: usize = 3;
    // SAFETY: it writes as many bytes as it is told at most, which are the buffer's.
    unsafe { syscall(SYS_SYSLOG, READ_ALL, buffer.as_mut_ptr() as usize, buffer.len()) }
}

/// Says something on the console, which the kernel has opened as standard error; for when there is nobody else to tell.
pub fn complain(text: &str) {
    // SAFETY: write reads `text`, which is alive.
    let _ = unsafe { syscall(SYS_WRITE, 2, text.as_ptr() as usize, text.len()) };
}

/// Ends the calling process without anything else.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: exit has no effect on memory and does not return.
        let _ = unsafe { syscall(SYS_EXIT, usize::from(code), 0, 0) };
    }
}

/// Whether this descriptor is one of the three standard ones, which a child's streams are moved onto.
#[must_use]
pub fn is_standard(fd: impl AsFd) -> bool {
    fd.as_fd().as_raw_fd() < 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_advance() {
        let first = clock_ns(Clock::Monotonic);
        assert!(first > 0 && clock_ns(Clock::Monotonic) >= first);
        assert!(clock_ns(Clock::Real) > 1_600_000_000_000_000_000);
    }

    #[test]
    fn a_seed_is_taken_by_those_who_may_give_one() {
        let random = std::fs::File::open("/dev/urandom").unwrap();
        // Without CAP_SYS_ADMIN nobody may credit entropy.
        assert!(matches!(reseed(&random, &[7; 32]), Ok(()) | Err(Errno::PERM)));
        assert_eq!(reseed(std::fs::File::open("/dev/null").unwrap(), &[7; 32]), Err(Errno::NOTTY));
    }
}
