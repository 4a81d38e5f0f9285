//! The system calls that rustix does not have, each as a safe function: clocks, entropy, vsock addresses, partitions, network
//! interfaces, starting a process. All of this crate's `unsafe` but the entry point's is here.

mod interface;

pub use interface::Interface;

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::mem::offset_of;
use core::ptr;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::ioctl::{self, Opcode};
use rustix::net::SocketFlags;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::Pid;

const SYS_WRITE: usize = 1;
const SYS_EXECVE: usize = 59;
const SYS_EXIT: usize = 60;
const SYS_CLOCK_SETTIME: usize = 227;
const SYS_CLOCK_GETTIME: usize = 228;
const SYS_CLONE3: usize = 435;
const SYS_PAUSE: usize = 34;

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
/// The arguments must be what call `number` expects, and any memory it writes must be the caller's.
unsafe fn syscall(number: usize, first: usize, second: usize, third: usize) -> io::Result<usize> {
    let result: isize;
    // SAFETY: the x86-64 system call convention: result in rax; rcx and r11 are lost; memory is what the caller vouches for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
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

/// Strings as execve wants them: a null-terminated list of pointers. Keeps the strings alive.
#[derive(Debug)]
pub struct StringList {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl StringList {
    /// A list of these strings.
    #[must_use]
    pub fn new(strings: Vec<CString>) -> Self {
        // A CString's bytes stay where they are when the CString itself moves.
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

/// Replaces the program of the calling process; returns only if that fails, with the reason.
#[must_use]
pub fn execve(path: &CString, args: &StringList, env: &StringList) -> Errno {
    let (args, env) = (args.pointers.as_ptr() as usize, env.pointers.as_ptr() as usize);
    // SAFETY: a terminated path and two null-terminated lists of terminated strings, all alive.
    match unsafe { syscall(SYS_EXECVE, path.as_ptr() as usize, args, env) } {
        Ok(_) => Errno::INVAL,
        Err(error) => error,
    }
}

/// A child of this process.
#[derive(Debug)]
pub struct Child {
    /// Its id in this process's PID namespace.
    pub pid: Pid,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
}

const CLONE_VM: u64 = 0x100;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGCHLD: u64 = 17;

/// `struct clone_args` (linux/sched.h).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts a child as PID 1 of a new PID namespace and runs `main` in it, in this process's memory, while the caller waits. The
/// child is in the cgroup of which `cgroup` is the directory, or in the caller's.
///
/// Returns once the child has executed another program or `main` has returned (the child is then gone; reap it). What `main`
/// writes into its captures is there for the caller to read. The rest is the child's own: file descriptors, working
/// directory, user.
///
/// `main` must not panic, and should do little but system calls.
///
/// # Errors
/// As clone3(2).
pub fn spawn<F: FnMut()>(cgroup: Option<BorrowedFd<'_>>, mut main: F) -> io::Result<Child> {
    const PIDFD: u64 = 0x1000;
    const VFORK: u64 = 0x4000;
    const NEWPID: u64 = 0x2000_0000;
    /// Of the caller's stack, for the child.
    const STACK: u64 = 32 << 10;

    extern "C" fn enter<F: FnMut()>(main: *mut c_void) {
        // SAFETY: the pointer is the one `spawn` passed; the caller of `spawn` waits and does not touch it.
        let main = unsafe { &mut *main.cast::<F>() };
        main();
    }

    let mut pidfd: c_int = -1;
    let mut arguments = CloneArguments {
        flags: CLONE_VM | PIDFD | VFORK | NEWPID,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: SIGCHLD,
        stack_size: STACK,
        ..CloneArguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    let result: isize;
    // SAFETY: CLONE_VM | CLONE_VFORK: the child borrows this process's memory, and this thread does not run until the child
    // has gone to another program or ended. The child's stack is this one, below what the caller uses (the 128 bytes under
    // rsp included); what it leaves there is dead when the caller goes on. It never returns from the block: it exits.
    // The caller's registers are restored by the kernel; the child changes its own copies only.
    unsafe {
        asm!(
            "lea rax, [rsp - {below}]",
            "and rax, -16",
            "mov [rdi + {stack}], rax",
            "mov eax, {clone3}",
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "mov edi, 127",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const SYS_EXIT,
            below = const STACK + 256,
            stack = const offset_of!(CloneArguments, stack),
            clone3 = const SYS_CLONE3,
            out("rax") result,
            in("rdi") ptr::from_mut(&mut arguments),
            in("rsi") size_of::<CloneArguments>(),
            in("r12") ptr::from_mut(&mut main),
            in("r13") enter::<F> as extern "C" fn(*mut c_void),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let pid = checked(result)?;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    // SAFETY: with CLONE_PIDFD the kernel has put a descriptor there that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid, pidfd })
}

/// Starts a process in this process's memory that does nothing, ever, in the cgroup of which `cgroup` is the directory. Returns its
/// id.
///
/// # Errors
/// As clone3(2).
pub fn spawn_idle(cgroup: BorrowedFd<'_>) -> io::Result<Pid> {
    let mut arguments = CloneArguments {
        flags: CLONE_VM | CLONE_INTO_CGROUP,
        exit_signal: SIGCHLD,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArguments::default()
    };
    let result: isize;
    // SAFETY: without a stack of its own the child has this one's pointer, and never uses it: it only repeats a system call
    // that touches no memory. The caller's registers are restored by the kernel; the child changes its own copies only.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "3:",
            "mov eax, {pause}",
            "syscall",
            "jmp 3b",
            "2:",
            pause = const SYS_PAUSE,
            inlateout("rax") SYS_CLONE3 as isize => result,
            in("rdi") ptr::from_mut(&mut arguments),
            in("rsi") size_of::<CloneArguments>(),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let pid = checked(result)?;
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)
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
    use rustix::process::{WaitId, WaitIdOptions, waitid};

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

    #[test]
    fn a_child_shares_memory_and_is_pid_1() {
        let (mut seen, mut file) = (0, None);
        let child = match spawn(None, || {
            seen = rustix::process::getpid().as_raw_nonzero().get();
            file =
                rustix::fs::open("/definitely/not/there", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).err();
        }) {
            Err(Errno::PERM) => return, // A new PID namespace needs CAP_SYS_ADMIN; the session test says so.
            other => other.unwrap(),
        };
        assert_eq!((seen, file), (1, Some(Errno::NOENT)));
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(127));
    }

    #[test]
    fn a_child_executes_a_program() {
        let path = CString::new("/bin/sh").unwrap();
        let list = |strings: &[&str]| StringList::new(strings.iter().map(|s| CString::new(*s).unwrap()).collect());
        let (args, env) = (list(&["sh", "-c", "exit $X"]), list(&["X=42"]));
        let mut error = None;
        let child = match spawn(None, || error = Some(execve(&path, &args, &env))) {
            Err(Errno::PERM) => return,
            other => other.unwrap(),
        };
        assert_eq!(error, None);
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(42));
    }
}
