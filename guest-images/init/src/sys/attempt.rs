//! Calls of which only the kernel's answer is wanted: whether this process may. Each is one that changes nothing if it succeeds, or
//! nothing but the process that makes it, which is a child that ends right after ([`crate::audit`]).

use super::call_kernel;
use core::ptr;
use rustix::io;
use rustix::process::Pid;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// unshare(2) with these flags.
    Unshare(usize),
    /// PTRACE_SEIZE of a process, which does not stop it, and ends with this one.
    Seize(Pid),
    /// init_module(2) of no bytes: refused for its format where it may.
    LoadModule,
    /// kexec_load(2) with flags that there are none of: an error behind the question whether it may.
    Kexec,
    /// reboot(2) without its magic numbers: the same.
    Reboot,
    /// ioperm(2) of one port, for this process.
    Ports,
    /// bpf(2): a map of one entry, which goes with this process.
    BpfMap,
    /// perf_event_open(2): a counter of the kernel's own work, which goes with this process.
    KernelCounter,
    /// io_uring_setup(2) of one entry, which goes with this process.
    IoUring,
    /// keyctl(2): the number of the session's keyring.
    Keyring,
    /// syslog(2): the kernel's log, a byte of it.
    KernelLog,
    /// open_by_handle_at(2) of a handle of "/", which is no way around directories but for who may.
    OpenByHandle,
}

/// `MAX_HANDLE_SZ` and the two numbers before it (linux/fs.h, `struct file_handle`).
#[repr(C, align(8))]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

/// Asks.
///
/// # Errors
/// The kernel's.
pub fn attempt(what: Attempt) -> io::Result<()> {
    const AT_FDCWD: usize = -100_isize as usize;
    let map: [u32; 18] = [2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // `struct perf_event_attr` of its first version: PERF_TYPE_SOFTWARE, its size, PERF_COUNT_SW_CPU_CLOCK.
    let counter: [u32; 16] = [1, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut ring = [0_u32; 30];
    let mut byte = 0_u8;
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount = 0_i32;
    let call: [usize; 7] = match what {
        Attempt::Unshare(flags) => [272, flags, 0, 0, 0, 0, 0],
        Attempt::Seize(pid) => [101, 0x4206, pid.as_raw_nonzero().get() as usize, 0, 0, 0, 0],
        Attempt::LoadModule => [175, ptr::from_ref(&byte) as usize, 0, c"".as_ptr() as usize, 0, 0, 0],
        Attempt::Kexec => [246, 0, 0, 0, 0x8000, 0, 0],
        Attempt::Reboot => [169, 0, 0, 0, 0, 0, 0],
        Attempt::Ports => [173, 0x80, 1, 1, 0, 0, 0],
        Attempt::BpfMap => [321, 0, map.as_ptr() as usize, size_of_val(&map), 0, 0, 0],
        Attempt::KernelCounter => [298, counter.as_ptr() as usize, 0, usize::MAX, usize::MAX, 0, 0],
        Attempt::IoUring => [425, 1, ring.as_mut_ptr() as usize, 0, 0, 0, 0],
        Attempt::Keyring => [250, 0, -3_isize as usize, 0, 0, 0, 0],
        Attempt::KernelLog => [103, 3, ptr::from_mut(&mut byte) as usize, 1, 0, 0, 0],
        Attempt::OpenByHandle => {
            let places = [ptr::from_mut(&mut handle) as usize, ptr::from_mut(&mut mount) as usize];
            // SAFETY: name_to_handle_at reads a terminated path and writes a handle of the size that it says, and a number.
            unsafe { call_kernel([303, AT_FDCWD, c"/".as_ptr() as usize, places[0], places[1], 0, 0]) }?;
            [304, AT_FDCWD, places[0], 0, 0, 0, 0]
        }
    };
    // SAFETY: each of them reads and writes what is above at most, which is alive; none touches other memory of this process.
    unsafe { call_kernel(call) }.map(drop)
}
