//! From lists of system calls to what the kernel runs (seccomp(2), SECCOMP_SET_MODE_FILTER).

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::{Calls, Mode};

/// What is answered as by a kernel that does not have it: the C library starts threads by `clone` then, the arguments of which can be
/// looked at, and a disk does with threads, since what a ring carries out no filter sees (docs/sandbox.md).
const ABSENT: [c_long; 2] = [libc::SYS_clone3, libc::SYS_io_uring_setup];
/// `prctl(PR_SET_VMA, ...)`: the C library names memory. libc has no name for it.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Calls that a part of a filter is about. The kernel goes through a filter once for each call that it has when it takes it
/// (`seccomp_cache_prepare_bitmap`), 230 us for one list of sixty, and at each call with arguments to be looked at.
const PART: usize = 8;

/// A filter that lets a thread do what is in `calls`: the way to the part for a call's number, and the parts, which are the library's.
pub fn compile(calls: &Calls, mode: Mode) -> Result<BpfProgram, Error> {
    let other = match mode {
        Mode::Enforce => SeccompAction::KillProcess,
        Mode::Log => SeccompAction::Log,
    };
    let numbers: Vec<_> = calls.numbers().collect();
    let mut parts = Vec::new();
    for part in numbers.chunks(PART) {
        let rules = part.iter().map(|&number| Ok((number, rules(number, calls)?)));
        let rules = rules.collect::<Result<_, BackendError>>()?;
        let filter = SeccompFilter::new(rules, other.clone(), SeccompAction::Allow, TargetArch::x86_64)?;
        parts.push((part[0], BpfProgram::try_from(filter)?));
    }
    let absent = if mode == Mode::Enforce { &ABSENT[..] } else { &[] };
    Ok(join(&parts, absent))
}

/// The parts, the first of which is for all numbers below its own, behind the way to them. What is `absent` fails with ENOSYS.
fn join(parts: &[(c_long, BpfProgram)], absent: &[c_long]) -> BpfProgram {
    let mut way = Vec::new();
    // Numbers mean something else to programs of another kind: to find that out is the first thing that each part does.
    way.push(statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER));
    for &number in absent {
        way.push(jump(libc::BPF_JEQ, number as u32, 0, 3));
        way.push(statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ARCHITECTURE));
        way.push(jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 0, 1));
        way.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
    }
    // Two instructions for each part but the first, the last one first, and one for that.
    let mut left = 2 * parts.len().saturating_sub(1) + 1;
    let starts: Vec<_> = parts.iter().scan(0, |at, (_, part)| Some(std::mem::replace(at, *at + part.len()))).collect();
    for ((first, _), start) in parts.iter().zip(&starts).skip(1).rev() {
        way.push(jump(libc::BPF_JGE, *first as u32, 0, 1));
        left -= 2;
        way.push(statement(libc::BPF_JMP | libc::BPF_JA, (left + start) as u32));
    }
    way.push(statement(libc::BPF_JMP | libc::BPF_JA, 0));
    way.extend(parts.iter().flat_map(|(_, part)| part.iter().cloned()));
    way
}

/// Where a filter finds what it is asked about (`struct seccomp_data`, seccomp(2)).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// A program of x86-64 (linux/audit.h): EM_X86_64, 64 bits, little-endian.
const AUDIT_ARCH_X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Goes on behind as many instructions if the comparison is true, or not.
fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt, jf, k }
}

/// What a call's arguments must be: as one of these says. None: anything.
fn rules(number: c_long, calls: &Calls) -> Result<Vec<SeccompRule>, BackendError> {
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
