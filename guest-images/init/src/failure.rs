//! Why the process does not start, in the words of the protocol. Errno values get their usual text: there is no libc here.

use alloc::format;
use alloc::string::String;
use core::fmt;
use guest_protocol::FailureKind;
use guest_protocol::account::Unknown;
use rustix::io::Errno;

/// Goes to the host as `StartFailed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Of which kind.
    pub kind: FailureKind,
    /// What failed, on what, why.
    pub detail: String,
}

impl Failure {
    /// A failure with its own words.
    #[must_use]
    pub fn new(kind: FailureKind, detail: String) -> Self {
        Self { kind, detail }
    }

    /// `what` could not be done because of `error`.
    #[must_use]
    pub fn errno(kind: FailureKind, what: &str, error: Errno) -> Self {
        Self::new(kind, format!("{what}: {}", Reason(error)))
    }
}

impl From<Unknown> for Failure {
    fn from(Unknown { kind, detail }: Unknown) -> Self {
        Self { kind, detail }
    }
}

/// Shows an errno value as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub Errno);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            Errno::ACCESS => "permission denied",
            Errno::PERM => "operation not permitted",
            Errno::NOENT => "no such file or directory",
            Errno::NOTDIR => "not a directory",
            Errno::ISDIR => "is a directory",
            Errno::NOEXEC => "exec format error",
            Errno::TOOBIG => "argument list too long",
            Errno::LOOP => "too many levels of symbolic links",
            Errno::NAMETOOLONG => "file name too long",
            Errno::NOMEM => "out of memory",
            Errno::NOSPC => "no space left on device",
            Errno::INVAL => "invalid argument",
            Errno::IO => "input/output error",
            Errno::NODEV => "the guest kernel does not support it",
            Errno::NXIO => "no such device",
            Errno::EXIST => "file exists",
            Errno::TXTBSY => "text file busy",
            Errno::CONNREFUSED | Errno::CONNRESET => "the host closed the connection",
            other => return write!(f, "error {}", other.raw_os_error()),
        };
        f.write_str(text)
    }
}
