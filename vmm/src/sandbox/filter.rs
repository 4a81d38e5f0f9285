//! From lists of system calls to what the kernel runs (seccomp(2), SECCOMP_SET_MODE_FILTER).
//!
//! A filter costs most when a thread takes it: the kernel checks it, translates it twice, and goes through it once for each call that
//! it has (`seccomp_cache_prepare_bitmap`), all of which the guest's first instruction waits for. So it is short, and the way to
//! each answer is: the numbers are a few ranges with one answer each, which are halved by comparisons, and the answers stand once, behind
//! all of those. The library's filters, which the tests compare these with, compare all numbers one by one, and have five
//! times as many instructions.

use libc::c_long;
use seccompiler::{BpfProgram, sock_filter};

use super::{Calls, Mode};

/// What is answered as by a kernel that does not have it: the C library starts threads by `clone` then, the arguments of which can be
/// looked at, and a disk does with threads, since what a ring carries out no filter sees (docs/sandbox.md).
const ABSENT: [c_long; 2] = [libc::SYS_clone3, libc::SYS_io_uring_setup];
/// `prctl(PR_SET_VMA, ...)`: the C library names memory. libc has no name for it.
const PR_SET_VMA: u32 = 0x5356_4d41;

/// Behind the calls that the kernel has, about: as many it tries. The halves of a search are to have as many each.
const NUMBERS: u32 = 480;

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
    let mut filter = Filter { other, conditions: Vec::new(), program: Vec::with_capacity(128) };
    let mut ranges = vec![(0, Answer::Other)];
    for number in numbers {
        let answer = if absent.contains(&number) { Answer::Absent } else { filter.answer_to(number, calls) };
        put(&mut ranges, number as u32, answer);
        put(&mut ranges, number as u32 + 1, Answer::Other);
    }
    // Numbers mean something else to programs of another kind.
    filter.push(load(ARCHITECTURE));
    filter.push(jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0));
    filter.push(give(libc::SECCOMP_RET_KILL_PROCESS));
    filter.push(load(NUMBER));
    filter.search(&ranges, NUMBERS)?;
    Ok(filter.program)
}

/// What a call is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It is on no list.
    Other,
    /// It is carried out.
    Allowed,
    /// As by a kernel that does not have it.
    Absent,
    /// It is carried out if this of the filter's conditions holds.
    If(usize),
}

/// That the bits of `mask`, of the low half of this argument, are one of these, of which there is one at least. The kernel looks
/// at no others where this is used.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    argument: u32,
    mask: u32,
    one_of: Vec<u32>,
}

/// Numbers with one answer: from this one to where the next range begins.
type Range = (u32, Answer);

/// From this number on there is this answer.
fn put(ranges: &mut Vec<Range>, from: u32, answer: Answer) {
    if ranges.last().is_some_and(|last| last.0 == from) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.1 != answer) {
        ranges.push((from, answer));
    }
}

/// Where to part ranges in two so that their numbers are as many; the last ends at `end`.
fn middle(ranges: &[Range], end: u32) -> usize {
    let half = ranges[0].0.midpoint(end);
    let above = ranges.partition_point(|(from, _)| *from <= half).clamp(1, ranges.len() - 1);
    let away = |at: usize| ranges[at].0.abs_diff(half);
    if above > 1 && away(above - 1) < away(above) { above - 1 } else { above }
}

/// The answers of some ranges, each once, in an order in which jumps go forward, and where each is among the instructions.
struct Answers {
    places: Vec<(Answer, usize)>,
    /// Instructions of the comparisons and of the answers.
    len: usize,
}

impl Answers {
    fn place(&self, answer: Answer) -> usize {
        self.places.iter().find(|(known, _)| *known == answer).map_or(0, |(_, at)| *at)
    }
}

/// How many instructions a jump that compares can leave out.
const FAR: usize = u8::MAX as usize;

/// A filter that is being written.
struct Filter {
    /// What all that is on no list is answered with.
    other: u32,
    conditions: Vec<Condition>,
    program: BpfProgram,
}

impl Filter {
    fn push(&mut self, instruction: sock_filter) {
        self.program.push(instruction);
    }

    /// What a call is answered with that is on the list.
    fn answer_to(&mut self, number: c_long, calls: &Calls) -> Answer {
        let Some(condition) = condition(number, calls) else { return Answer::Allowed };
        let known = self.conditions.iter().position(|known| *known == condition);
        Answer::If(known.unwrap_or_else(|| {
            self.conditions.push(condition);
            self.conditions.len() - 1
        }))
    }

    /// Answers the call whose number is loaded, by these ranges, of which the last ends at `end`.
    fn search(&mut self, ranges: &[Range], end: u32) -> Result<(), FilterError> {
        let answers = self.answers(ranges);
        if ranges.len() == 1 || answers.len <= FAR {
            let start = self.program.len();
            self.halve(ranges, end, &answers, start)?;
            return answers.places.iter().try_for_each(|(answer, _)| self.answer(*answer, &answers, start));
        }
        // Too far for one jump: each part has answers of its own.
        let (below, above) = ranges.split_at(middle(ranges, end));
        let leap = self.program.len() + 1;
        self.push(jump(libc::BPF_JGE, above[0].0, 0, 1));
        self.push(statement(libc::BPF_JMP | libc::BPF_JA, 0));
        self.search(below, above[0].0)?;
        self.program[leap].k = (self.program.len() - leap - 1) as u32;
        self.search(above, end)
    }

    /// The answers behind the comparisons that tell these ranges apart.
    fn answers(&self, ranges: &[Range]) -> Answers {
        let mut answers = Answers { places: Vec::with_capacity(8), len: ranges.len() - 1 };
        let is = |answer: Answer| ranges.iter().any(|(_, of)| *of == answer);
        let conditions = (0..self.conditions.len()).filter(|which| is(Answer::If(*which)));
        // What a condition leads to comes behind it.
        let mut put = |answer: Answer, len: usize| {
            answers.places.push((answer, answers.len));
            answers.len += len;
        };
        let mut conditional = false;
        for which in conditions {
            put(Answer::If(which), self.conditions[which].len());
            conditional = true;
        }
        for answer in [Answer::Other, Answer::Allowed, Answer::Absent] {
            if is(answer) || conditional && answer != Answer::Absent {
                put(answer, 1);
            }
        }
        answers
    }

    /// One comparison less than there are ranges, each with what is below before what is above.
    fn halve(&mut self, ranges: &[Range], end: u32, answers: &Answers, start: usize) -> Result<(), FilterError> {
        if ranges.len() == 1 {
            return Ok(());
        }
        let (below, above) = ranges.split_at(middle(ranges, end));
        let next = self.program.len() - start + 1;
        let to = |part: &[Range], compared: usize| match part {
            [(_, answer)] => near(answers.place(*answer) - next),
            _ => near(compared),
        };
        self.push(jump(libc::BPF_JGE, above[0].0, to(above, below.len() - 1)?, to(below, 0)?));
        self.halve(below, above[0].0, answers, start)?;
        self.halve(above, end, answers, start)
    }

    fn answer(&mut self, answer: Answer, answers: &Answers, start: usize) -> Result<(), FilterError> {
        match answer {
            Answer::Other => self.push(give(self.other)),
            Answer::Allowed => self.push(give(libc::SECCOMP_RET_ALLOW)),
            Answer::Absent => self.push(give(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)),
            Answer::If(which) => {
                let Condition { argument, mask, one_of } = self.conditions[which].clone();
                self.push(load(ARGUMENTS + 8 * argument));
                if mask != u32::MAX {
                    self.push(statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask));
                }
                for (at, value) in one_of.iter().enumerate() {
                    let next = self.program.len() - start + 1;
                    let otherwise = if at + 1 < one_of.len() { 0 } else { answers.place(Answer::Other) - next };
                    let allowed = near(answers.place(Answer::Allowed) - next)?;
                    self.push(jump(libc::BPF_JEQ, *value, allowed, near(otherwise)?));
                }
            }
        }
        Ok(())
    }
}

impl Condition {
    /// Instructions that it takes.
    fn len(&self) -> usize {
        1 + usize::from(self.mask != u32::MAX) + self.one_of.len()
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

/// On what a call is carried out that is on the list; none if on nothing.
fn condition(number: c_long, calls: &Calls) -> Option<Condition> {
    let one_of = |argument, one_of: Vec<u32>| Some(Condition { argument, mask: u32::MAX, one_of });
    match number {
        libc::SYS_ioctl => one_of(1, calls.ioctls().collect()),
        // No memory that can be run is made.
        libc::SYS_mmap | libc::SYS_mprotect => {
            Some(Condition { argument: 2, mask: libc::PROT_EXEC as u32, one_of: vec![0] })
        }
        // Threads of this process, and no processes.
        libc::SYS_clone => {
            let flags = (libc::CLONE_THREAD | libc::CLONE_VM) as u32;
            Some(Condition { argument: 0, mask: flags, one_of: vec![flags] })
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
        _ => None,
    }
}

/// The requests of prctl(2) of any thread: its name, and that of memory.
pub const USUAL_PRCTLS: &[u32] = &[libc::PR_SET_NAME as u32, PR_SET_VMA];
/// And those of a thread that starts others, which are confined when they start.
pub const STARTING_PRCTLS: &[u32] =
    &[libc::PR_SET_NAME as u32, PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS as u32, libc::PR_CAPBSET_DROP as u32];

#[cfg(test)]
mod tests;
