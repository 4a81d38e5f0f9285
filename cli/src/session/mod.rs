//! The host's half of a container's run: from the guest's first connection to the process's exit status.
//!
//! - [`Session`]: the sockets the guest connects to, [`Session::begin`] and [`Session::run`].
//! - [`io`]: the user's streams and terminal.
//! - [`audience`]: whoever else is at the streams.
//! - [`keys`]: those that have a terminal leave.
//! - [`arrival`]: a guest that is waited for beside another one's run ([`Arrival`]).
//! - [`attend`]: whoever wants something of a VM while its process runs ([`Attendant`]).
//! - [`conversation`]: one run ([`Conversation`]): the loop over control messages, signals and the end of the VM.
//! - [`joined`]: a process that has joined another one's run, from the side of whoever asked for it.
//! - [`streams`]: the connections of the process's streams.
//! - [`pump`]: the threads that move the bytes of the streams.
//! - [`control`]: the control connection.
//! - [`times`]: when what happened.
//!
//! Starts no VM and ends none: that is the caller's. The guest is not trusted: it can at worst keep its own run from
//! ending, which the user's third interrupt or the end of the VM ends for it.

mod arrival;
pub mod attend;
pub mod audience;
mod control;
mod conversation;
pub mod io;
pub mod joined;
pub mod keys;
mod pump;
mod streams;
#[cfg(test)]
mod tests;
mod times;

use guest_protocol::{CONTROL_PORT, ExitStatus, FailureKind, FrameError, STREAM_PORT, port_at};
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

pub use arrival::Arrival;
pub use attend::{Attendant, FreezeError, Heard, Wish};
pub use conversation::Conversation;
pub use io::{Io, Recorder};
pub use times::Times;

/// How a run ended without an exit status.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The sockets for the guest cannot be made.
    #[error("cannot listen for the guest on {path}: {source}")]
    Listen {
        /// Which socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A terminal with input was asked for, and standard input is none.
    #[error("the input device is not a TTY")]
    NotATty,
    /// A system call on the host's side failed.
    #[error("cannot {what}: {source}")]
    Host {
        /// What it was for.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The VM ended before the process did.
    #[error("the microVM ended before {0}")]
    VmEnded(&'static str),
    /// The guest closed its connection before the process ended.
    #[error("the guest closed its connection before the process ended")]
    GuestClosed,
    /// The guest has another version of init.
    #[error("the guest speaks protocol version {guest}, this program {}", guest_protocol::VERSION)]
    Version {
        /// The guest's version.
        guest: u32,
    },
    /// The guest sent something that is not a message.
    #[error("the guest broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The guest sent a message that has no place there.
    #[error("the guest broke the protocol: unexpected {0}")]
    Unexpected(&'static str),
    /// The process was not started.
    #[error("{detail}")]
    StartFailed {
        /// Of which kind the failure is.
        kind: FailureKind,
        /// One line, from the guest, without control characters.
        detail: String,
    },
    /// The user ended the run by a signal, before the process ran or for the third time.
    #[error("interrupted by signal {0}")]
    Interrupted(u8),
}

impl SessionError {
    /// The exit code that tells this, as container users know it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::StartFailed { kind, .. } => kind.code(),
            Self::Interrupted(signal) => ExitStatus::Signal(*signal).code(),
            _ => 125,
        }
    }
}

/// How the process ended, and when what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The process's own code, or 128 + signal.
    pub exit_code: u8,
    /// The run's milestones.
    pub times: Times,
}

/// How a conversation ended.
#[derive(Debug)]
pub enum Ended {
    /// With the process.
    Exited(Outcome),
    /// An [`Attendant`] wanted the VM: these are the user's streams, with nobody at them, and the terminal is as it was.
    Left(Io),
}

/// The sockets that a guest's vsock connections arrive at. Removes them when dropped.
#[derive(Debug)]
pub struct Session {
    control: Socket,
    streams: Socket,
}

/// A listening socket with a name in the file system.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Session {
    /// Listens on `<uds_path>_1024` and `<uds_path>_1025`, for the owner only. To be called before the VM starts.
    ///
    /// # Errors
    /// [`SessionError::Listen`]: the path is too long, taken, or not to be written to.
    pub fn listen(uds_path: &Path) -> Result<Self, SessionError> {
        Self::listen_at(uds_path, None)
    }

    /// The same for what is at a place of a guest that several containers share, at the ports that stand for these two there.
    ///
    /// # Errors
    /// As [`Self::listen`].
    pub fn listen_at(uds_path: &Path, place: Option<u8>) -> Result<Self, SessionError> {
        let listen = |port| Socket::listen(uds_path, place.map_or(port, |place| port_at(place, port)));
        Ok(Self { control: listen(CONTROL_PORT)?, streams: listen(STREAM_PORT)? })
    }

    /// Waits for the guest of a VM and talks to it: [`Conversation::prepare`] if its memory is to be saved, then
    /// [`Conversation::start`]; or [`Conversation::thaw`], if its memory was saved while its process was frozen. From now on signals to this program are passed on, or end the conversation.
    ///
    /// `vm` becomes readable or hung up when the VM has ended (a pidfd, or a pipe that only the VM's process holds). A session
    /// can have several VMs, one after the other.
    ///
    /// # Errors
    /// [`SessionError::Host`].
    pub fn begin<'a>(&'a self, vm: BorrowedFd<'a>) -> Result<Conversation<'a>, SessionError> {
        Conversation::new(&self.control.listener, &self.streams.listener, vm)
    }
}

impl Socket {
    fn listen(uds_path: &Path, port: u32) -> Result<Self, SessionError> {
        let mut path = uds_path.as_os_str().to_owned();
        path.push(format!("_{port}"));
        let path = PathBuf::from(path);
        let listen = || {
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        match listen() {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(SessionError::Listen { path, source }),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The caller may have removed the whole directory already.
        let _ = fs::remove_file(&self.path);
    }
}
