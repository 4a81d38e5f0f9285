//! The user's side: the three standard streams, and the terminal they may be.

use super::SessionError;
use guest_protocol::{StreamKind, WindowSize};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Where a process's streams lead to.
#[derive(Debug)]
pub struct Io {
    /// What the process reads; `None`: nothing (/dev/null, or a terminal nobody types on).
    pub stdin: Option<OwnedFd>,
    /// What the process writes; with a terminal, all of it.
    pub stdout: OwnedFd,
    /// The second stream; unused with a terminal.
    pub stderr: OwnedFd,
    /// The process gets a terminal.
    pub terminal: bool,
    /// Size of that where none is at hand to tell.
    pub size: Option<WindowSize>,
    /// Hears all that the process writes, too.
    pub recorder: Option<Arc<dyn Recorder>>,
}

/// Hears what a process writes. Each stream has a thread of its own.
pub trait Recorder: Send + Sync + std::fmt::Debug {
    /// These bytes come next on a stream. The process waits meanwhile.
    fn output(&self, stream: StreamKind, bytes: &[u8]);
}

impl Io {
    /// This program's own streams, for `-i` (`interactive`) and `-t` (`terminal`).
    ///
    /// # Errors
    /// [`SessionError::NotATty`]: both are asked for and standard input is no terminal.
    pub fn inherit(interactive: bool, terminal: bool) -> Result<Self, SessionError> {
        let stdin = std::io::stdin();
        if interactive && terminal && !isatty(&stdin) {
            return Err(SessionError::NotATty);
        }
        let own = |fd: BorrowedFd<'_>| {
            let failed = |source| SessionError::Host { what: "duplicate a standard stream", source };
            fd.try_clone_to_owned().map_err(failed)
        };
        Ok(Self {
            stdin: interactive.then(|| own(stdin.as_fd())).transpose()?,
            stdout: own(std::io::stdout().as_fd())?,
            stderr: own(std::io::stderr().as_fd())?,
            terminal,
            size: None,
            recorder: None,
        })
    }

    /// Streams of a process that nobody is at: what it writes goes nowhere, and what it reads comes from the second part, if it is
    /// `interactive`; that is not at its end before all copies of it are closed.
    ///
    /// # Errors
    /// [`SessionError::Host`].
    pub fn nobody(interactive: bool, terminal: bool) -> Result<(Self, Option<OwnedFd>), SessionError> {
        let make = || {
            let null = File::options().write(true).open("/dev/null")?;
            let pipe = interactive.then(|| pipe_with(PipeFlags::CLOEXEC)).transpose()?;
            let (stdin, input) = pipe.unzip();
            let (stdout, stderr) = (null.try_clone()?.into(), null.into());
            let io = Self { stdin, stdout, stderr, terminal, size: None, recorder: None };
            Ok((io, input))
        };
        make().map_err(|source| SessionError::Host { what: "make streams", source })
    }

    /// The size of the terminal that the process's output goes to; a usual one if there is none.
    pub(super) fn window_size(&self) -> WindowSize {
        let size = [Some(&self.stdout), self.stdin.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|fd| tcgetwinsize(fd).ok())
            .filter(|size| size.ws_row != 0 && size.ws_col != 0);
        let size = size.map(|size| WindowSize { rows: size.ws_row, columns: size.ws_col });
        size.or(self.size).unwrap_or(WindowSize { rows: 24, columns: 80 })
    }

    /// The user's terminal, whose keys are the process's while it runs.
    pub(super) fn keyboard(&self) -> Option<&OwnedFd> {
        self.stdin.as_ref().filter(|stdin| self.terminal && isatty(stdin))
    }
}

/// A terminal in raw mode; back as it was when dropped, which a panic does as well.
#[derive(Debug)]
pub(super) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
    raw: Termios,
}

impl RawMode {
    /// Puts the terminal into raw mode: every key goes to the guest, ^C included.
    pub(super) fn enter(terminal: &OwnedFd) -> std::io::Result<Self> {
        let terminal = terminal.try_clone()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before, raw })
    }

    /// After this program was stopped and goes on: the shell has put the terminal back meanwhile.
    pub(super) fn enter_again(&self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.raw);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}
