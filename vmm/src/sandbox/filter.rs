//! From lists of system calls to what the kernel runs (seccomp(2), SECCOMP_SET_MODE_FILTER).
//!
//! A filter costs most when a thread takes it: the kernel checks it, translates it twice, and goes through it once for each call that
//! it has (`seccomp_cache_prepare_bitmap`), all of which the guest's first instruction waits for. So it is short, and the way to
//! each answer is: numbers are halved until a few are left, and those are compared one by one. The library's filters, which
//! the tests compare these with, compare all numbers one by one, and have three times as many instructions.

use libc::c_long;
use seccompiler::{BpfProgram, sock_filter};

use super::{Calls, Mode};

/// What is answered as by a kernel that does not have it: the C library starts threads by `clone` then, the arguments of which can be
/// looked at, and a disk does with threads, since what a ring carries out no filter sees (docs/sandbox.md).
const ABSENT: [c_long; 2] = [libc::SYS_clone3, libc::SYS_io_uring_setup];
/// `prctl(PR_SET_VMA, ...)`: the C library names memory. libc has no name for it.
const PR_SET_VMA: u32 = 0x5356_4d41;

/// Numbers that are compared one by one.
const ROW: usize = 4;

/// A filter that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Jumps of a filter go 255 instructions far.
    #[error("more requests of one call than a filter can tell apart")]
    TooLong,
    /// The kernel refuses it.
    #[error(transparent)]
    Refused(#[from] seccompiler::Error),
}

/// A filter that lets a thread do what is in `calls`.
///
/// # Errors
/// [`FilterError::TooLong`].
pub fn compile(calls: &Calls, mode: Mode) -> Result<BpfProgram, FilterError> {
    let (other, absent) = match mode {
        Mode::Enforce => (libc::SECCOMP_RET_KILL_PROCESS, &ABSENT[..]),
        Mode::Log => (libc::SECCOMP_RET_LOG, &[][..]),
    };
    let mut numbers: Vec<_> = calls.numbers().chain(absent.iter().copied()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let cases: Vec<_> = numbers.into_iter().map(|number| (number as u32, answer(number, calls, absent))).collect();
    let mut filter = Filter { other, program: Vec::with_capacity(4 * cases.len() + 64) };
    // Numbers mean something else to programs of another kind.
    filter.push(load(ARCHITECTURE));
    filter.push(jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0));
    filter.push(give(libc::SECCOMP_RET_KILL_PROCESS));
    filter.push(load(NUMBER));
    filter.search(&cases)?;
    Ok(filter.program)
}

/// What a call is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// It is carried out.
    Allowed,
    /// As by a kernel that does not have it.
    Absent,
    /// It is carried out if the bits of `mask`, of the low half of this argument, are one of these. The kernel looks at no others
    /// where this is used.
    If { argument: u32, mask: u32, one_of: Vec<u32> },
}

impl Answer {
    /// Instructions that it takes.
    fn len(&self) -> usize {
        match self {
            Answer::Allowed | Answer::Absent => 1,
            Answer::If { mask, one_of, .. } => 3 + usize::from(*mask != u32::MAX) + one_of.len(),
        }
    }
}

/// Instructions that it takes to find one of these, and to answer it.
fn len(cases: &[(u32, Answer)]) -> usize {
    if cases.len() <= ROW {
        return cases.iter().map(|(_, answer)| 1 + answer.len()).sum::<usize>() + 1;
    }
    let (below, above) = cases.split_at(cases.len() / 2);
    1 + usize::from(len(below) > FAR) + len(below) + len(above)
}

/// How many instructions a jump that compares can leave out.
const FAR: usize = u8::MAX as usize;

/// A filter that is being written.
struct Filter {
    /// What all that is on no list is answered with.
    other: u32,
    program: BpfProgram,
}

impl Filter {
    fn push(&mut self, instruction: sock_filter) {
        self.program.push(instruction);
    }

    /// Answers the call whose number is loaded; the cases are in order.
    fn search(&mut self, cases: &[(u32, Answer)]) -> Result<(), FilterError> {
        if cases.len() <= ROW {
            return self.row(cases);
        }
        let (below, above) = cases.split_at(cases.len() / 2);
        match u8::try_from(len(below)) {
            Ok(left_out) => self.push(jump(libc::BPF_JGE, above[0].0, left_out, 0)),
            Err(_) => {
                self.push(jump(libc::BPF_JGE, above[0].0, 0, 1));
                self.push(statement(libc::BPF_JMP | libc::BPF_JA, len(below) as u32));
            }
        }
        self.search(below)?;
        self.search(above)
    }

    fn row(&mut self, cases: &[(u32, Answer)]) -> Result<(), FilterError> {
        // Long answers come last, where no jump has to leave them out.
        let mut order: Vec<_> = cases.iter().collect();
        order.sort_by_key(|(_, answer)| answer.len());
        let mut behind = 0;
        for (at, (number, answer)) in order.iter().enumerate() {
            // What is left of the comparisons, and the answer to none of them.
            let left_out = order.len() - at - 1 + 1 + behind;
            self.push(jump(libc::BPF_JEQ, *number, near(left_out)?, 0));
            behind += answer.len();
        }
        self.push(give(self.other));
        order.into_iter().try_for_each(|(_, answer)| self.answer(answer))
    }

    fn answer(&mut self, answer: &Answer) -> Result<(), FilterError> {
        match answer {
            Answer::Allowed => self.push(give(libc::SECCOMP_RET_ALLOW)),
            Answer::Absent => self.push(give(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)),
            Answer::If { argument, mask, one_of } => {
                self.push(load(ARGUMENTS + 8 * argument));
                if *mask != u32::MAX {
                    self.push(statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, *mask));
                }
                for (at, value) in one_of.iter().enumerate() {
                    self.push(jump(libc::BPF_JEQ, *value, near(one_of.len() - at)?, 0));
                }
                self.push(give(self.other));
                self.push(give(libc::SECCOMP_RET_ALLOW));
            }
        }
        Ok(())
    }
}

fn near(left_out: usize) -> Result<u8, FilterError> {
    u8::try_from(left_out).map_err(|_| FilterError::TooLong)
}

/// Where a filter finds what it is asked about (`struct seccomp_data`, seccomp(2)): of each argument, the low half first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// A program of x86-64 (linux/audit.h): EM_X86_64, 64 bits, little-endian.
const AUDIT_ARCH_X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

fn load(from: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, from)
}

fn give(what: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, what)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Leaves out as many instructions if the comparison is true, or not.
fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt, jf, k }
}

/// What a call is answered with that is on a list, or `absent`.
fn answer(number: c_long, calls: &Calls, absent: &[c_long]) -> Answer {
    let one_of = |argument, one_of: Vec<u32>| Answer::If { argument, mask: u32::MAX, one_of };
    match number {
        absentee if absent.contains(&absentee) => Answer::Absent,
        libc::SYS_ioctl => one_of(1, calls.ioctls().collect()),
        // No memory that can be run is made.
        libc::SYS_mmap | libc::SYS_mprotect => {
            Answer::If { argument: 2, mask: libc::PROT_EXEC as u32, one_of: vec![0] }
        }
        // Threads of this process, and no processes.
        libc::SYS_clone => {
            let flags = (libc::CLONE_THREAD | libc::CLONE_VM) as u32;
            Answer::If { argument: 0, mask: flags, one_of: vec![flags] }
        }
        libc::SYS_socket => one_of(0, vec![libc::AF_UNIX as u32]),
        // Signals only to this process's own threads.
        libc::SYS_tgkill => one_of(0, vec![std::process::id()]),
        libc::SYS_prctl => one_of(0, calls.prctls().to_vec()),
        libc::SYS_fcntl => one_of(
            1,
            [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC]
                .map(|c| c as u32)
                .into(),
        ),
        _ => Answer::Allowed,
    }
}

/// The requests of prctl(2) of any thread: its name, and that of memory.
pub const USUAL_PRCTLS: &[u32] = &[libc::PR_SET_NAME as u32, PR_SET_VMA];
/// And those of a thread that starts others, which are confined when they start.
pub const STARTING_PRCTLS: &[u32] =
    &[libc::PR_SET_NAME as u32, PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS as u32, libc::PR_CAPBSET_DROP as u32];

#[cfg(test)]
mod tests;
