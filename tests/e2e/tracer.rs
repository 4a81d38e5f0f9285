//! Kills a program at one of the calls by which it changes files, or has it make one: ptrace(2) as strace uses it.
//!
//! Such a call is killed before it is carried out, so that between the call before and this one every moment is as good as any other.

use std::io;
use std::mem::MaybeUninit;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use libc::{c_int, c_long, pid_t};

/// The calls that count: whatever makes, writes, syncs, renames or removes files. A few that only write to a socket are among them.
const CALLS: &[(c_long, &str)] = &[
    (libc::SYS_open, "open"),
    (libc::SYS_openat, "open"),
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pwrite64, "pwrite"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_pwritev2, "pwritev2"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_sendfile, "sendfile"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_sync_file_range, "sync_file_range"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_symlink, "symlink"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_link, "link"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_rmdir, "rmdir"),
];
/// Of all ioctls, the one that writes to a file.
const FICLONE: u64 = 0x4004_9409;
/// Of a stop at a call, if the tracer has asked for that (PTRACE_O_TRACESYSGOOD).
const SYSCALL_STOP: c_int = libc::SIGTRAP | 0x80;
const ENTRY: u8 = 1;
/// The instruction, 0f 05.
const SYSCALL: u16 = 0x050f;

/// A process whose threads are watched, until it ends.
pub struct Tracer {
    thread: JoinHandle<Option<&'static str>>,
}

impl Tracer {
    /// Has the process `pid` killed at the `nth` call (from 1) of one of its threads, or of those that this one starts.
    ///
    /// # Errors
    /// As ptrace(2).
    pub fn kill_at(pid: u32, thread: u32, nth: usize) -> io::Result<Self> {
        let (attached, told) = channel();
        // Who attaches is who must wait.
        let thread = thread::spawn(move || {
            let began = seize(thread as pid_t);
            let failed = began.is_err();
            // Whoever asked is there until it has been told.
            let _ = attached.send(began);
            if failed { None } else { watch(pid as pid_t, nth) }
        });
        told.recv().map_err(io::Error::other)??;
        Ok(Tracer { thread })
    }

    /// The call at which the process has been killed; `None` if it ended without.
    ///
    /// # Panics
    /// The tracer has.
    pub fn end(self) -> Option<&'static str> {
        self.thread.join().expect("the tracer")
    }
}

/// What C libraries call a request.
#[cfg(target_env = "musl")]
type Request = c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

/// A request that takes a number at most.
fn ptrace(request: Request, thread: pid_t, data: c_long) -> io::Result<()> {
    // SAFETY: none of the requests made through this function takes an address of ours.
    match unsafe { libc::ptrace(request, thread, 0, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// From now on the thread stops at each call.
fn seize(thread: pid_t) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXEC;
    ptrace(libc::PTRACE_SEIZE, thread, options.into())?;
    ptrace(libc::PTRACE_INTERRUPT, thread, 0)
}

/// Lets the threads go on from one stop to the next, until the process has ended. Its end stays for its parent to see.
fn watch(pid: pid_t, nth: usize) -> Option<&'static str> {
    let (mut calls, mut killed) = (0, None);
    while let Some(thread) = stopped(pid) {
        let mut status = 0;
        // SAFETY: it writes one number.
        if unsafe { libc::waitpid(thread, &mut status, libc::__WALL) } != thread || !libc::WIFSTOPPED(status) {
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        if signal == SYSCALL_STOP
            && let Some(call) = entered(thread)
        {
            calls += 1;
            if calls == nth {
                killed = Some(call);
                // SAFETY: it takes two numbers.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                continue;
            }
        }
        let event = status >> 16 != 0;
        let pass_on = if event || signal == SYSCALL_STOP { 0 } else { signal };
        // A thread that has been killed meanwhile is seen by the next wait.
        let _ = ptrace(libc::PTRACE_SYSCALL, thread, pass_on.into());
    }
    killed
}

/// Waits for a thread that has stopped or ended; `None` if that is the end of the process.
fn stopped(pid: pid_t) -> Option<pid_t> {
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: it fills in the structure, which may be all zeros.
    let (result, info) = unsafe { (libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags), info.assume_init()) };
    // SAFETY: waitid fills in the members of SIGCHLD.
    let thread = unsafe { info.si_pid() };
    let ended = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code);
    (result == 0 && !(ended && thread == pid)).then_some(thread)
}

/// Has a thread of somebody else's process make a system call, wherever it is just now: number and arguments.
///
/// # Errors
/// As ptrace(2).
pub fn have_call(thread: u32, [number, a, b, c, d]: [c_long; 5]) -> io::Result<()> {
    let thread = thread as pid_t;
    ptrace(libc::PTRACE_SEIZE, thread, 0)?;
    let mut registers = loop {
        ptrace(libc::PTRACE_INTERRUPT, thread, 0)?;
        let mut status = 0;
        // SAFETY: it writes one number.
        if unsafe { libc::waitpid(thread, &mut status, libc::__WALL) } != thread {
            return Err(io::Error::last_os_error());
        }
        let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
        // SAFETY: it fills in the structure, of which all bit patterns are valid.
        let registers = unsafe {
            if libc::ptrace(libc::PTRACE_GETREGS, thread, 0, registers.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            registers.assume_init()
        };
        // SAFETY: it reads a word of the other process.
        let word = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, thread, registers.rip - 2, 0) };
        if word as u16 == SYSCALL {
            break registers;
        }
        ptrace(libc::PTRACE_CONT, thread, 0)?;
    };
    // A thread that waits does so in a system call, the instruction for which is the one before.
    registers.rip -= 2;
    registers.orig_rax = u64::MAX;
    registers.rax = number as u64;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10] = [a, b, c, d].map(|argument| argument as u64);
    // SAFETY: it reads the structure.
    if unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, &raw const registers) } != 0 {
        return Err(io::Error::last_os_error());
    }
    ptrace(libc::PTRACE_DETACH, thread, 0)
}

/// linux/ptrace.h, Linux 5.3.
const PTRACE_GET_SYSCALL_INFO: Request = 0x420e;

/// The beginning of `struct ptrace_syscall_info`, as it is where a call is entered.
#[repr(C)]
struct SyscallEntry {
    op: u8,
    _pad: [u8; 3],
    _architecture: u32,
    _instruction: u64,
    _stack: u64,
    number: u64,
    arguments: [u64; 6],
}

/// The name of the call that a thread has stopped before, if it is one that counts.
fn entered(thread: pid_t) -> Option<&'static str> {
    let mut info = MaybeUninit::<SyscallEntry>::zeroed();
    let size = size_of::<SyscallEntry>();
    // SAFETY: it fills in as many bytes of the structure as it says, which may be all zeros.
    let (filled, info) = unsafe {
        let filled = libc::ptrace(PTRACE_GET_SYSCALL_INFO, thread, size, info.as_mut_ptr());
        (filled, info.assume_init())
    };
    if filled <= 0 || info.op != ENTRY {
        return None;
    }
    let (number, arguments) = (info.number as c_long, info.arguments);
    let (_, name) = CALLS.iter().find(|(call, _)| *call == number)?;
    let changes = match number {
        libc::SYS_open => arguments[1] & libc::O_CREAT as u64 != 0,
        libc::SYS_openat => arguments[2] & libc::O_CREAT as u64 != 0,
        libc::SYS_ioctl => arguments[1] == FICLONE,
        _ => true,
    };
    changes.then_some(name)
}
