//! What init does for the host beside the container's process ([`Helper`]): in a copy of itself, in the container, with all
//! privileges. It talks through its streams, as guest_protocol's `files` says.
//!
//! A copy and not another program: there is none in the guest, and one that it executed would have no more capabilities than the
//! container.

mod changes;
mod pack;
mod processes;
mod unpack;
mod usage;

pub use pack::{link, names};

use crate::failure::{Failure, Reason};
use crate::root;
use crate::sys::{self, Child, PidNamespace};
use alloc::format;
use alloc::string::String;
use guest_protocol::files::{FileMessage, Helper, MAX_FILE_FRAME};
use guest_protocol::{FailureKind, encode};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{self, Errno};
use rustix::process::{chdir, fchdir, setsid, umask};

/// Exit code of one that could not do all of it.
const FAILED: u8 = 1;

/// Starts one on these three descriptors. `upper` is the root of the container's writable layer's file system.
///
/// # Errors
/// As clone3(2).
pub fn start(
    helper: &Helper,
    stdio: [BorrowedFd<'_>; 3],
    upper: BorrowedFd<'_>,
    namespace: PidNamespace,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Child, Failure> {
    let main = || match prepare(helper, stdio, upper) {
        Ok(()) => run(helper),
        Err(_) => FAILED,
    };
    sys::fork(namespace, cgroup, main).map_err(|error| Failure::errno(FailureKind::Guest, "starting a helper", error))
}

/// In the child: its own working directory and streams, and nothing else of init's.
fn prepare(helper: &Helper, stdio: [BorrowedFd<'_>; 3], upper: BorrowedFd<'_>) -> io::Result<()> {
    match helper {
        Helper::Changes { .. } => fchdir(upper).and_then(|()| chdir(root::LAYER))?,
        _ => chdir("/")?,
    }
    own_streams(stdio)?;
    sys::close_all_but_streams()
}

/// In a copy of init: has a session and streams of its own.
///
/// # Errors
/// As setsid(2) and dup2(2).
pub fn own_streams(stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    let [stdin, stdout, stderr] = stdio;
    setsid()?;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    umask(Mode::empty());
    Ok(())
}

fn run(helper: &Helper) -> u8 {
    let (stdin, stdout) = sys::streams();
    let mut output = Output::new(stdout);
    let done = match helper {
        Helper::Processes => processes::all(&mut output),
        Helper::Pack { path, follow } => pack::all(&mut output, path, *follow),
        Helper::Unpack { path, copied } => unpack::all(stdin, path, copied, &mut output),
        Helper::Changes { content } => changes::all(&mut output, *content),
        Helper::Usage => usage::all(&mut output),
        Helper::Wait => loop {
            rustix::event::pause();
        },
        // That one says nothing here ([`crate::pod`]).
        Helper::Member { .. } => Err(Broken("a member is no process of a container".into())),
    };
    let last = matches!(helper, Helper::Changes { .. });
    let (message, code) = match done {
        Ok(()) => (FileMessage::End, 0),
        Err(Broken(detail)) => (FileMessage::Failed(detail), FAILED),
    };
    // Whoever listened may be gone.
    let code = output.say(&message).map_or(FAILED, |()| code);
    if last {
        // Where nothing comes after it, the guest is not to end before the host has all: it says so by the end of what it says.
        let _ = read_full(stdin, &mut [0]);
    }
    code
}

/// It cannot go on: one line that says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

/// `what` could not be done because of an error.
pub fn broken(what: &str) -> impl FnOnce(Errno) -> Broken {
    move |error| Broken(format!("{what}: {}", Reason(error)))
}

/// The way to the host.
#[derive(Debug)]
pub struct Output<'a>(BorrowedFd<'a>);

impl<'a> Output<'a> {
    /// To `fd`, which blocks.
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        Self(fd)
    }

    /// Says something.
    ///
    /// # Errors
    /// Nobody listens any more, or it is too long.
    pub fn say(&mut self, message: &FileMessage) -> Result<(), Broken> {
        let frame = encode(message, MAX_FILE_FRAME).map_err(|error| Broken(format!("{error}")))?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match io::write(self.0, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(broken("writing to the host")(error)),
            }
        }
        Ok(())
    }

    /// Something was left out.
    ///
    /// # Errors
    /// As [`Self::say`].
    pub fn note(&mut self, path: &[u8], why: &str) -> Result<(), Broken> {
        self.say(&FileMessage::Note(format!("{}: {why}", path.escape_ascii())))
    }
}

/// Opens a file that is there for reading, not through a link and without waiting for anybody.
pub fn open(path: &[u8], follow: bool) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(CWD, path, if follow { flags } else { flags | OFlags::NOFOLLOW }, Mode::empty())
}

/// Reads until `buffer` is full or there is no more.
pub fn read_full(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(space) = buffer.get_mut(filled..).filter(|space| !space.is_empty()) {
        match io::read(fd.as_fd(), space) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
