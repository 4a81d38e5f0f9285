//! Processes: what they are to be, how they ended, and why they did not start.

use crate::account::Account;
use crate::files::Helper;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Names a process that the host has asked for. The container's main process is [`MAIN_PROCESS`]; the others' names are the host's to
/// give, each once while it is in use.
pub type ProcessId = u32;

/// The process that `Start` asks for; the guest ends with it.
pub const MAIN_PROCESS: ProcessId = 0;

/// The helper that [`crate::Start::changes`] asks for.
pub const CHANGES_PROCESS: ProcessId = ProcessId::MAX;

/// Most processes that [`Exec`] has started and that have not ended, at a time.
pub const MAX_EXECS: usize = 64;

/// A process to start in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Entrypoint and command as one list; the first is looked up in PATH unless it has a slash.
    pub args: Vec<String>,
    /// `KEY=value`, each key once. The guest adds PATH, HOSTNAME, HOME and (with a terminal) TERM where they are missing.
    pub env: Vec<String>,
    /// Absolute; made if missing.
    pub cwd: String,
    /// As in an image's configuration: `""`, `user`, `uid`, `user:group`, `uid:gid`, …
    pub user: String,
    /// Give it a terminal of this size instead of three streams.
    pub terminal: Option<WindowSize>,
    /// Connect its standard input; otherwise it reads /dev/null. With a terminal: whether the host sends input.
    pub stdin: bool,
    /// What the host has looked up already.
    pub found: Found,
}

/// What the host has found in the image's own files, so that the guest need not: there each look at a directory is a
/// block to read. `None` where the image alone does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Whom [`Process::user`] means.
    pub account: Option<Account>,
    /// The first place in PATH where the command is. The guest looks itself if it cannot be executed there.
    pub program: Option<String>,
}

/// Another process in a container: in all that is not said it is like the main one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What it is called, in messages and in the headers of its streams.
    pub process: ProcessId,
    /// The command; the first is looked up in PATH unless it has a slash.
    pub args: Vec<String>,
    /// Not a command, but something that init does itself, as root, in `/`: then `args`, `env`, `cwd`, `user` and `terminal` say
    /// nothing.
    pub helper: Option<Helper>,
    /// `KEY=value`: in place of what the main process was given by these names, and beside the rest.
    pub env: Vec<String>,
    /// Absolute. Unlike the main process's it is not made if it is missing.
    pub cwd: Option<String>,
    /// As [`Process::user`].
    pub user: Option<String>,
    /// Give it a terminal of this size instead of three streams.
    pub terminal: Option<WindowSize>,
    /// Connect its standard input; otherwise it reads /dev/null. A terminal's input is always connected: its end is the terminal's.
    pub stdin: bool,
    /// Connect its streams. If not, it reads and writes /dev/null, or has a terminal that nobody is at.
    pub attached: bool,
}

/// PATH of a process whose image and user gave none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called exit with this code.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
}

impl ExitStatus {
    /// The code a shell reports: the process's own, or 128 + signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// Why a process did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The command is not there (127).
    NotFound,
    /// The command is there and cannot be executed (126).
    NotExecutable,
    /// The image knows no such user.
    UnknownUser,
    /// The image knows no such group.
    UnknownGroup,
    /// The working directory is not one, or cannot be made.
    BadWorkingDir,
    /// A layer or the writable layer cannot be mounted.
    Root,
    /// The request makes no sense (no command, a NUL in a string, …).
    BadRequest,
    /// The guest could not do it for a reason of its own.
    Guest,
}

impl FailureKind {
    /// The exit code that tells this failure, as container users know it: 125, 126 or 127.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
            Self::UnknownUser
            | Self::UnknownGroup
            | Self::BadWorkingDir
            | Self::Root
            | Self::BadRequest
            | Self::Guest => 125,
        }
    }
}
