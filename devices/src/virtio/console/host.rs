//! The host's side of a console: input that is read when the guest has room for it, and output with a bound.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::output::{self, Output};
use crate::virtio::chain::Buffers;
use crate::virtio::iovec::{Direction, Target, transfer};
use crate::worker::Work;

/// What writes a console's output.
pub const OUTPUT: Work = output::work("console");

/// The process's standard output is one, whoever writes to it: a console that takes another's place writes behind what that has
/// written.
static STDOUT: Mutex<Weak<Output>> = Mutex::new(Weak::new());

/// What is at the console's other end.
pub struct Host {
    /// What is typed.
    pub input: Input,
    /// Where output goes.
    pub output: Arc<Output>,
}

impl Host {
    /// This process's own stdin and stdout.
    pub fn stdio() -> io::Result<Self> {
        let input = Input::new(Some(io::stdin().as_fd().try_clone_to_owned()?))?;
        let mut known = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
        let output = match known.upgrade() {
            Some(output) => output,
            None => Arc::new(Output::with_room(&OUTPUT, Box::new(io::stdout()))?),
        };
        *known = Arc::downgrade(&output);
        Ok(Host { input, output })
    }

    /// Nobody.
    pub fn nobody() -> io::Result<Self> {
        Host::new(None, Box::new(io::sink()))
    }

    /// A descriptor to read from, and a writer, which may block.
    pub fn new(input: Option<OwnedFd>, output: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Host { input: Input::new(input)?, output: Arc::new(Output::with_room(&OUTPUT, output)?) })
    }
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed {
    /// So many bytes.
    Bytes(u32),
    /// None at the moment, or none ever again.
    Nothing,
}

/// Input. The descriptor may be shared with other processes, so it stays as blocking as it is, and is asked before each read.
pub struct Input {
    /// Until its end.
    source: Option<File>,
    /// Readable when the source is, as long as somebody waits for that.
    epoll: Epoll,
    waiting: bool,
}

impl Input {
    fn new(source: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Input { source: source.map(File::from), epoll: Epoll::new()?, waiting: false })
    }

    /// A descriptor that is readable when there is something that was waited for.
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Waits for what is typed, or does not.
    pub fn wait(&mut self, on: bool) {
        let Some(source) = self.source.as_ref().filter(|_| on != self.waiting) else {
            return;
        };
        let operation = if on { ControlOperation::Add } else { ControlOperation::Delete };
        match self.epoll.ctl(operation, source.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)) {
            Ok(()) => self.waiting = on,
            // A regular file or /dev/null cannot be watched: there is no one to type there.
            Err(e) => {
                tracing::debug!("console input: {e}");
                self.source = None;
            }
        }
    }

    /// Reads into guest memory what is there and fits; `room` is not empty.
    pub fn read(&mut self, room: Buffers) -> Typed {
        let Some(source) = &self.source else {
            return Typed::Nothing;
        };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::new(source, PollFlags::IN)], Some(&now)) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Typed::Nothing,
        }
        match transfer(source.as_fd(), Direction::ToGuest, Target::Stream, room) {
            Ok(count @ 1..) => return Typed::Bytes(count as u32),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Typed::Nothing,
            Ok(0) => {}
            Err(e) => tracing::debug!("console input: {e}"),
        }
        // That was all.
        self.wait(false);
        self.source = None;
        Typed::Nothing
    }
}
