//! What init says on stdout where it is run not as PID 1 but as a process of a container, to find out what such a process can reach
//! (`bulkhead audit`): lines, each of words with a tab between them, whose first tells what it is. In any container: there it is a
//! program that stands alone.
//!
//! ```text
//! fact  KEY  VALUE                      what it sees of itself, by /proc
//! mount PATH KIND                       a file system that it sees
//! probe GROUP WHAT OUTCOME [ERROR]      what came of an attempt: `allowed`, `refused`, `absent`; the kernel's word for why
//! end
//! ```
//!
//! Behind `end` it waits for the end of its stdin: meanwhile it can be looked at from outside.

/// Its first argument. The second is the id of a process of the host, for which it looks.
pub const ARGUMENT: &str = "--audit";
/// Where init is for a process that it has started: the image need not have any program.
pub const PROGRAM: &str = "/proc/self/exe";

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, or failed for a reason behind the question whether it may.
    Allowed,
    /// It may not.
    Refused,
    /// There is no such thing here.
    Absent,
}

impl Outcome {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Absent => "absent",
        }
    }

    /// What a word means.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        [Self::Allowed, Self::Refused, Self::Absent].into_iter().find(|outcome| outcome.word() == word)
    }
}
