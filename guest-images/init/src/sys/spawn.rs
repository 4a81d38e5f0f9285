//! Starting processes: children that borrow this one's memory until they have gone to another program.

use super::{SYS_EXIT, checked, syscall};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::{c_char, c_int, c_void};
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

const SYS_PAUSE: usize = 34;
const SYS_EXECVE: usize = 59;
const SYS_CLONE3: usize = 435;

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
const PIDFD: u64 = 0x1000;
const NEWNS: u64 = 0x2_0000;
const NEWUTS: u64 = 0x400_0000;
const NEWIPC: u64 = 0x800_0000;
const NEWPID: u64 = 0x2000_0000;
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

impl CloneArguments {
    /// The child is to be there.
    fn join(&mut self, namespace: PidNamespace, cgroup: Option<BorrowedFd<'_>>) {
        if namespace == PidNamespace::New {
            self.flags |= NEWPID;
        }
        if let Some(cgroup) = cgroup {
            self.flags |= CLONE_INTO_CGROUP;
            self.cgroup = cgroup.as_raw_fd() as u64;
        }
    }
}

/// The PID namespace of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// A new one, whose PID 1 it is.
    New,
    /// The one that this process's children are in ([`join_pid_namespace`]).
    Joined,
}

/// Has the children that this process will have be in the PID namespace of `process`, and see its control group as the root of all.
///
/// # Errors
/// As setns(2): it has ended.
pub fn join_pid_namespace(process: BorrowedFd<'_>) -> io::Result<()> {
    move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID | ThreadNameSpaceType::CONTROL_GROUP)
}

/// Has the children that this process will have be in its own PID namespace again.
///
/// # Errors
/// As pidfd_open(2) and setns(2).
pub fn leave_pid_namespace() -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    move_into_thread_name_spaces(own.as_fd(), ThreadNameSpaceType::PROCESS_ID)
}

/// Starts a child and runs `main` in it, in this process's memory, while the caller waits. The child is in the cgroup of which
/// `cgroup` is the directory, or in the caller's.
///
/// Returns once the child has executed another program or `main` has returned (the child is then gone; reap it). What `main`
/// writes into its captures is there for the caller to read. The rest is the child's own: file descriptors, working
/// directory, user.
///
/// `main` must not panic, and should do little but system calls.
///
/// # Errors
/// As clone3(2).
pub fn spawn<F: FnMut()>(namespace: PidNamespace, cgroup: Option<BorrowedFd<'_>>, mut main: F) -> io::Result<Child> {
    const VFORK: u64 = 0x4000;
    /// Of the caller's stack, for the child.
    const STACK: u64 = 32 << 10;

    extern "C" fn enter<F: FnMut()>(main: *mut c_void) {
        // SAFETY: the pointer is the one `spawn` passed; the caller of `spawn` waits and does not touch it.
        let main = unsafe { &mut *main.cast::<F>() };
        main();
    }

    let mut pidfd: c_int = -1;
    let mut arguments = CloneArguments {
        flags: CLONE_VM | PIDFD | VFORK,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: SIGCHLD,
        stack_size: STACK,
        ..CloneArguments::default()
    };
    arguments.join(namespace, cgroup);
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

/// This process is a child of [`fork`], or has said that it is not init.
static FORKED: AtomicBool = AtomicBool::new(false);

/// From now on this process is no init, whose defect would be the machine's.
pub fn be_helper() {
    FORKED.store(true, Ordering::Relaxed);
}

/// Whether this process is a child of [`fork`], or something else that is not init.
#[must_use]
pub fn is_helper() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Starts a child that is a copy of this process, and runs `main` in it, whose result is its exit code. What the child does to its
/// memory and descriptors is its own.
///
/// # Errors
/// As clone3(2).
pub fn fork(namespace: PidNamespace, cgroup: Option<BorrowedFd<'_>>, main: impl FnOnce() -> u8) -> io::Result<Child> {
    let mut arguments = CloneArguments::default();
    arguments.join(namespace, cgroup);
    copy(arguments, main)
}

/// The same, whose child is the first process of new namespaces for mounts, names, IPC and PIDs.
///
/// # Errors
/// As clone3(2).
pub fn fork_apart(main: impl FnOnce() -> u8) -> io::Result<Child> {
    copy(CloneArguments { flags: NEWPID | NEWNS | NEWUTS | NEWIPC, ..CloneArguments::default() }, main)
}

fn copy(mut arguments: CloneArguments, main: impl FnOnce() -> u8) -> io::Result<Child> {
    let mut pidfd: c_int = -1;
    arguments.flags |= PIDFD;
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = SIGCHLD;
    // SAFETY: a clone_args of this size, which it reads; without CLONE_VM the child goes on in a copy of all memory, this stack
    // included, and so returns from here as the parent does. There is one thread, so nothing in the copy is half done.
    let pid = unsafe { syscall(SYS_CLONE3, ptr::from_mut(&mut arguments) as usize, size_of::<CloneArguments>(), 0) }?;
    if pid == 0 {
        be_helper();
        let code = main();
        super::exit(code);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::process::{WaitId, WaitIdOptions, waitid};

    #[test]
    fn a_child_shares_memory_and_is_pid_1() {
        let (mut seen, mut file) = (0, None);
        let child = match spawn(PidNamespace::New, None, || {
            seen = getpid().as_raw_nonzero().get();
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
        let child = match spawn(PidNamespace::New, None, || error = Some(execve(&path, &args, &env))) {
            Err(Errno::PERM) => return,
            other => other.unwrap(),
        };
        assert_eq!(error, None);
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(42));
    }
}
