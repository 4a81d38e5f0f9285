//! The standard streams of the process: pipes or a terminal on its side, connections to the host on the other.

use crate::failure::Failure;
use crate::guest::Machine;
use crate::relay::{Direction, Flow};
use crate::root;
use crate::sys::is_standard;
use alloc::rc::Rc;
use alloc::vec::Vec;
use guest_protocol::{FailureKind, MAIN_PROCESS, STREAM_PORT, StreamHeader, StreamKind, WindowSize};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fcntl_setfl, openat};
use rustix::io::{self, Errno};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// The first terminal of a new devpts instance.
const TERMINAL: &str = "/dev/pts/0";

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
    /// Three pipes, or /dev/null for the first. Also returns the process's ends, in order.
    pub fn pipes<M: Machine>(machine: &M, stdin: bool) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut ends = Vec::with_capacity(3);
        let mut flows = [None, None, None];
        if stdin {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            let connection = connect(machine, StreamKind::Stdin)?;
            flows[0] = Some(Flow::spliced(Direction::In, connection, writer));
            ends.push(above_standard(reader)?);
        } else {
            let null = openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            ends.push(above_standard(null)?);
        }
        for (flow, kind) in flows.iter_mut().skip(1).zip([StreamKind::Stdout, StreamKind::Stderr]) {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            let connection = connect(machine, kind)?;
            fcntl_setfl(&connection, OFlags::NONBLOCK)?;
            *flow = Some(Flow::spliced(Direction::Out, reader, connection));
            ends.push(above_standard(writer)?);
        }
        Ok((Self { flows, master: None, terminal_end: None }, ends))
    }

    /// A terminal. Also returns the process's end of it.
    pub fn terminal<M: Machine>(machine: &M, size: WindowSize, stdin: bool) -> Result<(Self, Vec<OwnedFd>), Failure> {
        let open = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let master = openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())?;
            unlockpt(&master)?;
            let end = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            resize(&master, size)?;
            let connection = connect(machine, StreamKind::Terminal)?;
            fcntl_setfl(&connection, OFlags::NONBLOCK)?;
            Ok((master, above_standard(end)?, connection))
        };
        let (master, end, connection) =
            open().map_err(|error| Failure::errno(FailureKind::Guest, "making the terminal", error))?;
        root::bind_console(TERMINAL)?;
        let (master, connection) = (Rc::new(master), Rc::new(connection));
        let input = stdin.then(|| Flow::copied(Direction::In, connection.clone(), master.clone()));
        let output = Flow::copied(Direction::Out, master.clone(), connection);
        let streams = Self { flows: [input, Some(output), None], master: Some(master), terminal_end: None };
        Ok((streams, alloc::vec![end]))
    }

    /// The process is gone: what it has written is still to be passed on, and nothing more will come.
    pub fn process_ended(&mut self) {
        self.terminal_end = None;
        self.master = None;
        for flow in &mut self.flows {
            flow.take_if(|flow| flow.direction == Direction::In);
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

/// Opens the connection of a stream.
fn connect<M: Machine>(machine: &M, kind: StreamKind) -> io::Result<OwnedFd> {
    let connection = machine.connect(STREAM_PORT)?;
    let header = StreamHeader { process: MAIN_PROCESS, kind }.to_bytes();
    // A new connection has room for these few bytes.
    match io::write(&connection, &header)? {
        StreamHeader::LEN => Ok(connection),
        _ => Err(Errno::IO),
    }
}

/// The same descriptor, out of the way of the three standard ones: the child moves it onto one of them.
fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if is_standard(fd.as_fd()) { io::fcntl_dupfd_cloexec(&fd, 3) } else { Ok(fd) }
}
