//! The standard streams of the process: pipes or a terminal on its side, connections to the host on the other.

use crate::failure::Failure;
use crate::guest::Machine;
use crate::relay::{Direction, Flow, Step};
use crate::sys::is_standard;
use alloc::rc::Rc;
use alloc::vec::Vec;
use guest_protocol::{FailureKind, ProcessId, STREAM_PORT, StreamHeader, StreamKind, WindowSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev, openat};
use rustix::io::{self, Errno};
use rustix::net::sockopt::socket_error;
use rustix::net::{SendFlags, send};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How often a connection is tried that the host did not answer in the time the kernel gives it.
const ATTEMPTS: usize = 30;

/// When output gets its connections to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// With the process: whoever is at the other end waits for them.
    AtOnce,
    /// Each once there is some. That there was none, the host knows when the process has ended.
    Later,
}

/// Connections to the host that have been begun, all at once: each answer is some way away.
#[derive(Debug)]
pub struct Opening {
    process: ProcessId,
    /// There is somebody for output to go to.
    attached: bool,
    connections: [Option<(StreamKind, OwnedFd)>; 3],
}

impl Opening {
    /// None: nobody is to be at the streams of `process`.
    #[must_use]
    pub fn none(process: ProcessId) -> Self {
        Self { process, attached: false, connections: [None, None, None] }
    }

    /// Begins what `process` needs: a terminal, or output and errors and, if it has one, input.
    ///
    /// # Errors
    /// As [`Machine::begin_connect`].
    pub fn begin<M: Machine>(
        machine: &M,
        process: ProcessId,
        terminal: bool,
        stdin: bool,
        output: Output,
    ) -> io::Result<Self> {
        let kinds = if terminal {
            [Some(StreamKind::Terminal), None, None]
        } else {
            let at_once = |kind| (output == Output::AtOnce).then_some(kind);
            [stdin.then_some(StreamKind::Stdin), at_once(StreamKind::Stdout), at_once(StreamKind::Stderr)]
        };
        let mut opening = Self { attached: true, ..Self::none(process) };
        for (slot, kind) in opening.connections.iter_mut().zip(kinds) {
            *slot = kind.map(|kind| machine.begin_connect(STREAM_PORT).map(|fd| (kind, fd))).transpose()?;
        }
        Ok(opening)
    }

    /// The connection begun at `index`, once it is there and has its header.
    fn take<M: Machine>(&mut self, machine: &M, index: usize) -> io::Result<Option<OwnedFd>> {
        let Some((kind, connection)) = self.connections.get_mut(index).and_then(Option::take) else {
            return Ok(None);
        };
        introduce(machine, connection, StreamHeader { process: self.process, kind }).map(Some)
    }

    /// Where the output at `index` goes that has no connection yet.
    fn later(&self, index: usize) -> Option<StreamHeader> {
        let kind = match index {
            1 => StreamKind::Stdout,
            2 => StreamKind::Stderr,
            _ => return None,
        };
        self.attached.then_some(StreamHeader { process: self.process, kind })
    }
}

/// A connection for a stream.
///
/// # Errors
/// As [`Machine::begin_connect`], and that the host does not take it.
pub fn dial<M: Machine>(machine: &M, stream: StreamHeader) -> io::Result<OwnedFd> {
    introduce(machine, machine.begin_connect(STREAM_PORT)?, stream)
}

/// Has a connection that was begun say which stream it is, once it is there.
fn introduce<M: Machine>(machine: &M, mut connection: OwnedFd, stream: StreamHeader) -> io::Result<OwnedFd> {
    let header = stream.to_bytes();
    for _ in 0..ATTEMPTS {
        match send(&connection, &header, SendFlags::NOSIGNAL) {
            // A new connection has room for these few bytes.
            Ok(StreamHeader::LEN) => return Ok(connection),
            Ok(_) => return Err(Errno::IO),
            Err(Errno::NOTCONN | Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        match poll(&mut [PollFd::new(&connection, PollFlags::OUT)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        match socket_error(&connection)? {
            Ok(()) => {}
            Err(Errno::TIMEDOUT) => connection = machine.begin_connect(STREAM_PORT)?,
            Err(error) => return Err(error),
        }
    }
    Err(Errno::TIMEDOUT)
}

/// The streams of the process, seen from here.
pub struct Streams {
    /// At most three; a flow that has ended is taken out.
    pub flows: [Option<Flow>; 3],
    /// The terminal, if that is what it has.
    pub master: Option<Rc<OwnedFd>>,
    /// The process's side of the terminal: as long as it is open here, reading the master does not fail when the process
    /// closes its own for a moment.
    pub terminal_end: Option<OwnedFd>,
}

impl Streams {
    /// None any more.
    #[must_use]
    pub fn closed() -> Self {
        Self { flows: [None, None, None], master: None, terminal_end: None }
    }

    /// Three pipes, or /dev/null where there is no connection. Also returns the process's ends, in order.
    ///
    /// # Errors
    /// As the system call that failed.
    pub fn pipes<M: Machine>(machine: &M, mut opening: Opening) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut ends = Vec::with_capacity(3);
        let mut flows = [None, None, None];
        for (index, slot) in flows.iter_mut().enumerate() {
            let (connection, later) = (opening.take(machine, index)?, opening.later(index));
            if connection.is_none() && later.is_none() {
                ends.push(above_standard(open_null(if index == 0 { OFlags::RDONLY } else { OFlags::WRONLY })?)?);
                continue;
            }
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            let (flow, end) = match (connection, later) {
                (Some(connection), None) => (Flow::spliced(Direction::In, connection, writer), reader),
                (Some(connection), Some(_)) => (Flow::spliced(Direction::Out, reader, connection), writer),
                (None, Some(stream)) => (Flow::later(reader, stream), writer),
                (None, None) => return Err(Errno::BADF),
            };
            *slot = Some(flow);
            ends.push(above_standard(end)?);
        }
        Ok((Self { flows, master: None, terminal_end: None }, ends))
    }

    /// A terminal, whose output goes to /dev/null if there is no connection. Also returns the process's end of it.
    ///
    /// # Errors
    /// [`FailureKind::Guest`].
    pub fn terminal<M: Machine>(
        machine: &M,
        mut opening: Opening,
        size: WindowSize,
        stdin: bool,
    ) -> Result<(Self, Vec<OwnedFd>), Failure> {
        let mut open = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let master = openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())?;
            unlockpt(&master)?;
            let end = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            resize(&master, size)?;
            let connection = opening.take(machine, 0)?.map_or_else(|| open_null(OFlags::WRONLY), Ok)?;
            Ok((master, above_standard(end)?, connection))
        };
        let (master, end, connection) =
            open().map_err(|error| Failure::errno(FailureKind::Guest, "making the terminal", error))?;
        let (master, connection) = (Rc::new(master), Rc::new(connection));
        let input = stdin.then(|| Flow::copied(Direction::In, connection.clone(), master.clone()));
        let output = Flow::copied(Direction::Out, master.clone(), connection);
        let streams = Self { flows: [input, Some(output), None], master: Some(master), terminal_end: None };
        Ok((streams, alloc::vec![end]))
    }

    /// Whether the process could still read what came from the host.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.master.is_some() || self.flows.iter().flatten().any(|flow| flow.direction == Direction::In)
    }

    /// Takes the flow at `at` one step further, if there is one.
    pub fn step<M: Machine>(&mut self, machine: &M, at: usize) -> Option<Step> {
        let flow = self.flows.get_mut(at).and_then(Option::as_mut)?;
        Some(flow.step(&mut |stream| dial(machine, stream)))
    }

    /// Passes on what the process has written, as far as the host takes it.
    pub fn drain<M: Machine>(&mut self, machine: &M) {
        for slot in &mut self.flows {
            let drain = |flow: &mut Flow| flow.drain(&mut |stream| dial(machine, stream));
            slot.take_if(|flow| flow.direction == Direction::Out && !drain(flow));
        }
    }

    /// Joins the process, which goes on in another machine, to that one's host: `opening` was begun with all its streams but what is
    /// for later, of which stdin may be left out. What the host sent before and the process had not received was not meant for this one.
    ///
    /// # Errors
    /// As the system call that failed.
    pub fn rejoin<M: Machine>(&mut self, machine: &M, mut opening: Opening, stdin: bool) -> io::Result<()> {
        if let Some(master) = &self.master {
            let connection = Rc::new(opening.take(machine, 0)?.ok_or(Errno::BADF)?);
            let [input, output, _] = &mut self.flows;
            *input = stdin.then(|| Flow::copied(Direction::In, connection.clone(), master.clone()));
            match output {
                Some(output) => output.reconnect(connection),
                None => *output = Some(Flow::copied(Direction::Out, master.clone(), connection)),
            }
            return Ok(());
        }
        for (index, slot) in self.flows.iter_mut().enumerate() {
            let (connection, later) = (opening.take(machine, index)?, opening.later(index));
            // Where the process has closed its end, the connection ends here.
            match (slot.as_mut(), connection, later) {
                (Some(flow), Some(connection), _) => flow.reconnect(Rc::new(connection)),
                (Some(flow), None, Some(stream)) => flow.disconnect(stream),
                _ => *slot = None,
            }
        }
        Ok(())
    }

    /// The process is gone: what it has written is still to be passed on, and nothing more will come.
    pub fn process_ended(&mut self) {
        self.terminal_end = None;
        self.master = None;
        for flow in &mut self.flows {
            flow.take_if(|flow| flow.direction == Direction::In);
        }
    }

    /// The process is gone, but others may have its streams: what has been written is still to be passed on, and nothing more.
    pub fn finish<M: Machine>(&mut self, machine: &M) {
        self.process_ended();
        self.flows.iter_mut().flatten().for_each(Flow::finish);
        self.drain(machine);
    }

    /// One of the flows is done. Whoever was at a terminal is gone with it, and it is hung up: the process is told by SIGHUP.
    pub fn done(&mut self, at: usize) {
        if self.master.is_some() {
            *self = Self::closed();
        } else if let Some(slot) = self.flows.get_mut(at) {
            *slot = None;
        }
    }

    /// Whether all there was to pass on has been.
    pub fn is_drained(&self) -> bool {
        self.flows.iter().all(Option::is_none)
    }
}

/// Gives a terminal its size.
///
/// # Errors
/// As the TIOCSWINSZ ioctl.
pub fn resize(master: impl AsFd, size: WindowSize) -> io::Result<()> {
    tcsetwinsize(master, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })
}

/// /dev/null, which the container may have put something else in the place of: that is neither waited for nor used.
fn open_null(mode: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let null = openat(CWD, "/dev/null", mode | flags, Mode::empty())?;
    let stat = fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if is_null { Ok(null) } else { Err(Errno::NXIO) }
}

/// The same descriptor, out of the way of the three standard ones: the child moves it onto one of them.
fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if is_standard(fd.as_fd()) { io::fcntl_dupfd_cloexec(&fd, 3) } else { Ok(fd) }
}
