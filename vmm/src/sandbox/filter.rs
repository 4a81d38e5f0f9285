//! From lists of system calls to what the kernel runs (seccomp(2), SECCOMP_SET_MODE_FILTER).

use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{Calls, Mode};

/// What is answered as by a kernel that does not have it: the C library starts threads by `clone` then, the arguments of which can be
/// looked at, and a disk does with threads, since what a ring carries out no filter sees (docs/sandbox.md).
const ABSENT: [libc::c_long; 2] = [libc::SYS_clone3, libc::SYS_io_uring_setup];
/// `prctl(PR_SET_VMA, ...)`: the C library names memory. libc has no name for it.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// A filter that lets a thread do what is in `calls`.
pub fn compile(calls: &Calls, mode: Mode) -> Result<BpfProgram, Error> {
    let other = match mode {
        Mode::Enforce => SeccompAction::KillProcess,
        Mode::Log => SeccompAction::Log,
    };
    let rules = calls.numbers().map(|number| Ok((number, rules(number, calls)?)));
    let rules = rules.collect::<Result<_, BackendError>>()?;
    Ok(SeccompFilter::new(rules, other, SeccompAction::Allow, TargetArch::x86_64)?.try_into()?)
}

/// A filter that says of the calls in [`ABSENT`] that there are none.
pub fn absent() -> Result<BpfProgram, Error> {
    let rules = ABSENT.into_iter().map(|number| (number, Vec::new())).collect();
    let none = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, none, TargetArch::x86_64)?.try_into()?)
}

/// What a call's arguments must be: as one of these says. None: anything.
fn rules(number: libc::c_long, calls: &Calls) -> Result<Vec<SeccompRule>, BackendError> {
    let one_of = |argument, values: &[u64]| {
        values.iter().map(|&value| SeccompRule::new(vec![equal(argument, value)?])).collect::<Result<Vec<_>, _>>()
    };
    match number {
        libc::SYS_ioctl => one_of(1, &calls.ioctls().map(u64::from).collect::<Vec<_>>()),
        // No memory that can be run is made.
        libc::SYS_mmap | libc::SYS_mprotect => only(masked(2, libc::PROT_EXEC as u64, 0)?),
        // Threads of this process, and no processes.
        libc::SYS_clone => {
            let flags = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
            only(masked(0, flags, flags)?)
        }
        libc::SYS_socket => one_of(0, &[libc::AF_UNIX as u64]),
        // Signals only to this process's own threads.
        libc::SYS_tgkill => one_of(0, &[std::process::id().into()]),
        libc::SYS_prctl => one_of(0, calls.prctls()),
        libc::SYS_fcntl => one_of(
            1,
            &[libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC].map(|c| c as u64),
        ),
        _ => Ok(Vec::new()),
    }
}

fn only(condition: SeccompCondition) -> Result<Vec<SeccompRule>, BackendError> {
    Ok(vec![SeccompRule::new(vec![condition])?])
}

/// The low half of an argument is this, which is all that the kernel looks at where these are used.
fn equal(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// These bits of an argument are that.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
}

/// The requests of prctl(2) of any thread: its name, and that of memory.
pub const USUAL_PRCTLS: &[u64] = &[libc::PR_SET_NAME as u64, PR_SET_VMA];
/// And those of a thread that starts others, which are confined when they start.
pub const STARTING_PRCTLS: &[u64] =
    &[libc::PR_SET_NAME as u64, PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS as u64, libc::PR_CAPBSET_DROP as u64];
