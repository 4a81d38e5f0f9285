//! Moves the bytes of a process's streams between its pipes or terminal and the host, never waiting for either side.
//!
//! A [`Flow`] is one direction. It waits for its source until there is something to move, and for its sink when that is
//! full: at any time for exactly one of the two, so a slow reader on one side makes the writer on the other side wait, and
//! nothing piles up in between.

use alloc::boxed::Box;
use alloc::rc::Rc;
use guest_protocol::StreamHeader;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};

/// Most bytes moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// What a terminal moves at once.
const TERMINAL_CHUNK: usize = 4 << 10;

/// Which way a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the process.
    In,
    /// From the process to the host.
    Out,
}

/// One direction of a stream. Dropping it lets go of both ends.
#[derive(Debug)]
pub struct Flow {
    /// Which way it goes.
    pub direction: Direction,
    from: Rc<OwnedFd>,
    to: Sink,
    sink_is_full: bool,
    /// What the source has not brought by now is not waited for.
    ending: bool,
    buffer: Option<Box<Buffer>>,
}

/// Where a flow leads to.
#[derive(Debug)]
enum Sink {
    There(Rc<OwnedFd>),
    /// To a connection of this stream's, to be made once there is something to move.
    Later(StreamHeader),
}

/// Bytes read and not yet written, where splice cannot be used.
#[derive(Debug)]
struct Buffer {
    bytes: [u8; TERMINAL_CHUNK],
    start: usize,
    end: usize,
}

/// Makes the connection of a stream.
pub type Connect<'a> = &'a mut dyn FnMut(StreamHeader) -> io::Result<OwnedFd>;

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There may be more to come.
    More,
    /// There was nothing to move, or nowhere to.
    Idle,
    /// A character that may be a terminal's interrupt or quit has been passed on.
    Typed(u8),
    /// The source is at its end, or one side is gone: drop the flow.
    Done,
}

impl Flow {
    /// A flow of which one end is a pipe: spliced. A sink that is a socket must not block.
    #[must_use]
    pub fn spliced(direction: Direction, from: OwnedFd, to: OwnedFd) -> Self {
        let to = Sink::There(Rc::new(to));
        Self { direction, from: Rc::new(from), to, sink_is_full: false, ending: false, buffer: None }
    }

    /// A flow out of a pipe to a connection that is to be made once there is something to move. Most processes write nothing to
    /// one of their streams, and a connection takes some packets each way.
    #[must_use]
    pub fn later(from: OwnedFd, stream: StreamHeader) -> Self {
        let (from, to) = (Rc::new(from), Sink::Later(stream));
        Self { direction: Direction::Out, from, to, sink_is_full: false, ending: false, buffer: None }
    }

    /// A flow from or to a terminal. Neither descriptor may block.
    #[must_use]
    pub fn copied(direction: Direction, from: Rc<OwnedFd>, to: Rc<OwnedFd>) -> Self {
        let buffer = Some(Box::new(Buffer { bytes: [0; TERMINAL_CHUNK], start: 0, end: 0 }));
        Self { direction, from, to: Sink::There(to), sink_is_full: false, ending: false, buffer }
    }

    /// What the flow waits for.
    #[must_use]
    pub fn interest(&self) -> PollFd<'_> {
        match &self.to {
            // One that is ending finds out whether the source has more by trying.
            Sink::There(to) if self.sink_is_full || self.ending => PollFd::new(&**to, PollFlags::OUT),
            _ => PollFd::new(&*self.from, PollFlags::IN),
        }
    }

    /// From now on it is done when all has been moved that the source has, whoever else may still write to it.
    pub fn finish(&mut self) {
        self.ending = true;
    }

    /// Moves on until there is nothing to move or nowhere to, or until the end, which is false.
    pub fn drain(&mut self, connect: Connect<'_>) -> bool {
        loop {
            match self.step(connect) {
                Step::Done => return false,
                Step::Idle => return true,
                Step::More | Step::Typed(_) => {}
            }
        }
    }

    /// Puts another connection in place of the one to the host. Bytes on their way to the old one that it has not taken go to the
    /// new one.
    pub fn reconnect(&mut self, connection: Rc<OwnedFd>) {
        match self.direction {
            Direction::In => self.from = connection,
            Direction::Out => self.to = Sink::There(connection),
        }
        self.sink_is_full = self.buffer.as_ref().is_some_and(|buffer| buffer.start < buffer.end);
    }

    /// Lets go of the connection to the host: there will be another one for `stream` once there is something to move. Of a flow out
    /// of a pipe.
    pub fn disconnect(&mut self, stream: StreamHeader) {
        (self.to, self.sink_is_full) = (Sink::Later(stream), false);
    }

    /// Moves what can be moved. To be called when [`Self::interest`] has something to tell.
    pub fn step(&mut self, connect: Connect<'_>) -> Step {
        let to = match &self.to {
            Sink::There(to) => to.clone(),
            Sink::Later(stream) => {
                let stream = *stream;
                match self.look() {
                    Step::More => {}
                    step => return step,
                }
                let Ok(connection) = connect(stream) else { return Step::Done };
                let connection = Rc::new(connection);
                self.to = Sink::There(connection.clone());
                connection
            }
        };
        match &mut self.buffer {
            None => self.splice(&to),
            Some(buffer) => match copy(buffer, &self.from, &to) {
                Ok(step) => {
                    self.sink_is_full = buffer.start < buffer.end;
                    // A terminal says that it has nothing only after all that was written to it has arrived.
                    if self.ending && step == Step::Idle && !self.sink_is_full { Step::Done } else { step }
                }
                Err(Errno::INTR) => Step::More,
                Err(_) => Step::Done,
            },
        }
    }

    /// Whether there is something to move.
    fn look(&self) -> Step {
        let mut source = [PollFd::new(&*self.from, PollFlags::IN)];
        match poll(&mut source, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) if self.ending => Step::Done,
            Ok(0) | Err(Errno::INTR) => Step::Idle,
            Ok(_) if source.iter().any(|source| source.revents().contains(PollFlags::IN)) => Step::More,
            Ok(_) | Err(_) => Step::Done,
        }
    }

    fn splice(&mut self, to: &OwnedFd) -> Step {
        match splice(&*self.from, None, to, None, CHUNK, SpliceFlags::NONBLOCK) {
            Ok(0) => Step::Done,
            Ok(_) => {
                self.sink_is_full = false;
                Step::More
            }
            Err(Errno::AGAIN) if self.ending => {
                if ioctl_fionread(&*self.from) == Ok(0) {
                    Step::Done
                } else {
                    Step::Idle
                }
            }
            // The one that was waited for is ready, so it is the other.
            Err(Errno::AGAIN) => {
                self.sink_is_full = !self.sink_is_full;
                Step::Idle
            }
            Err(Errno::INTR) => Step::More,
            Err(_) => Step::Done,
        }
    }
}

/// Reads if the buffer is empty, then writes what is in it. The end of the source is `PIPE`.
fn copy(buffer: &mut Buffer, from: &OwnedFd, to: &OwnedFd) -> Result<Step, Errno> {
    if buffer.start == buffer.end {
        buffer.start = 0;
        buffer.end = match io::read(from, &mut buffer.bytes[..]) {
            Ok(0) => return Err(Errno::PIPE),
            Ok(count) => count,
            Err(Errno::AGAIN) => 0,
            Err(error) => return Err(error),
        };
    }
    let left = buffer.bytes.get(buffer.start..buffer.end).unwrap_or_default();
    if left.is_empty() {
        return Ok(Step::Idle);
    }
    let count = match io::write(to, left) {
        Ok(count) => count,
        Err(Errno::AGAIN) => return Ok(Step::Idle),
        Err(error) => return Err(error),
    };
    let typed = left.iter().take(count).copied().find(|byte| matches!(byte, 0x03 | 0x1c));
    buffer.start += count;
    Ok(typed.map_or(Step::More, Step::Typed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_protocol::StreamKind;
    use rustix::event::poll;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::vec::Vec;

    fn pipe() -> (std::fs::File, std::fs::File) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (reader.into(), writer.into())
    }

    fn nobody(_: StreamHeader) -> io::Result<OwnedFd> {
        Err(Errno::CONNREFUSED)
    }

    /// Runs a flow to its end.
    fn run(mut flow: Flow) {
        loop {
            poll(&mut [flow.interest()], None).unwrap();
            if flow.step(&mut nobody) == Step::Done {
                return;
            }
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    #[test]
    fn a_pipe_arrives_at_a_slow_socket_byte_for_byte() {
        let (reader, writer) = pipe();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let sent = pattern(3_000_000);
        let expected = sent.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut writer = writer;
                writer.write_all(&sent).unwrap();
            });
            scope.spawn(move || run(Flow::spliced(Direction::Out, reader.into(), ours.into())));
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).unwrap();
            assert!(received == expected);
        });
    }

    #[test]
    fn a_socket_arrives_at_a_slow_pipe_byte_for_byte() {
        let (mut reader, writer) = pipe();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = pattern(3_000_000);
        let expected = sent.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                theirs.write_all(&sent).unwrap();
                theirs.shutdown(std::net::Shutdown::Write).unwrap();
            });
            scope.spawn(move || run(Flow::spliced(Direction::In, ours.into(), writer.into())));
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            assert!(received == expected);
        });
    }

    #[test]
    fn a_gone_reader_ends_the_flow() {
        let (reader, mut writer) = pipe();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        drop(theirs);
        writer.write_all(b"x").unwrap();
        run(Flow::spliced(Direction::Out, reader.into(), ours.into()));
        assert!(writer.write_all(b"x").is_err());
    }

    #[test]
    fn a_flow_that_finishes_does_not_wait_for_other_writers() {
        let (reader, mut writer) = pipe();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let left = reader.try_clone().unwrap();
        let mut flow = Flow::spliced(Direction::Out, reader.into(), ours.into());
        // More than the other side has room for.
        let mut sent = 0;
        while ioctl_fionread(&left) == Ok(0) {
            writer.write_all(&pattern(4096)).unwrap();
            sent += 4096;
            assert!(flow.drain(&mut nobody));
        }
        drop(left);
        flow.finish();
        let receiver = std::thread::spawn(move || {
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).unwrap();
            received.len()
        });
        run(flow);
        assert_eq!(receiver.join().unwrap(), sent);
        assert!(writer.write_all(b"x").is_err());
        // Nothing there, and nothing to wait for.
        let (from, _near) = UnixStream::pair().unwrap();
        let (to, _far) = UnixStream::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        let mut flow = Flow::copied(Direction::Out, Rc::new(from.into()), Rc::new(to.into()));
        assert_eq!(flow.step(&mut nobody), Step::Idle);
        flow.finish();
        assert_eq!(flow.step(&mut nobody), Step::Done);
    }

    #[test]
    fn a_connection_is_made_once_there_is_something_to_move() {
        let stream = StreamHeader { process: 1, kind: StreamKind::Stderr };
        let (reader, mut writer) = pipe();
        let mut flow = Flow::later(reader.into(), stream);
        assert!(flow.drain(&mut nobody));
        writer.write_all(b"abc").unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut asked) = (Some(OwnedFd::from(ours)), Vec::new());
        let mut connect = |stream| {
            asked.push(stream);
            ours.take().ok_or(Errno::CONNREFUSED)
        };
        assert!(flow.drain(&mut connect));
        writer.write_all(b"def").unwrap();
        assert!(flow.drain(&mut connect));
        assert_eq!(asked, [stream]);
        // As somebody else's it has nobody again, until there is more.
        flow.disconnect(stream);
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"abcdef");
        assert!(flow.drain(&mut nobody));
        writer.write_all(b"x").unwrap();
        assert!(!flow.drain(&mut nobody), "a host that cannot be reached");
        // One that nothing ever came through, at its end, or given up.
        let (reader, writer) = pipe();
        let mut flow = Flow::later(reader.into(), stream);
        drop(writer);
        assert!(!flow.drain(&mut nobody));
        let (reader, _writer) = pipe();
        let mut flow = Flow::later(reader.into(), stream);
        flow.finish();
        assert!(!flow.drain(&mut nobody));
    }

    #[test]
    fn copies_wait_for_their_sink_and_tell_of_interrupts() {
        let (mut near, from) = UnixStream::pair().unwrap();
        let (to, mut far) = UnixStream::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        to.set_nonblocking(true).unwrap();
        let mut flow = Flow::copied(Direction::In, Rc::new(from.into()), Rc::new(to.into()));
        near.write_all(b"ab\x03c").unwrap();
        assert_eq!(flow.step(&mut nobody), Step::Typed(3));
        let sent = pattern(2_000_000);
        std::thread::scope(|scope| {
            let bytes = &sent;
            scope.spawn(move || {
                near.write_all(bytes).unwrap();
                drop(near);
            });
            let receiver = scope.spawn(move || {
                let mut received = Vec::new();
                far.read_to_end(&mut received).unwrap();
                received
            });
            run(flow);
            let received = receiver.join().unwrap();
            assert!(received[..4] == *b"ab\x03c" && received[4..] == sent);
        });
    }
}
