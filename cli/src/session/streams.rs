//! The streams of a run: the connections the guest opens for them, told apart by their headers, each with its thread.

use super::conversation::host;
use super::io::Io;
use super::{SessionError, pump};
use guest_protocol::{MAIN_PROCESS, StreamHeader, StreamKind};
use rustix::event::{PollFd, PollFlags};
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

/// Stream connections that may wait for their header; a guest opens three at a time, and sends it at once.
const MAX_UNNAMED: usize = 4;

/// A stream connection whose header is still to come.
#[derive(Debug)]
struct Unnamed {
    connection: UnixStream,
    header: [u8; StreamHeader::LEN],
    filled: usize,
}

/// A stream that the process writes.
#[derive(Debug)]
struct Output {
    kind: StreamKind,
    /// Once the guest has connected it.
    connection: Option<UnixStream>,
}

#[derive(Debug)]
pub(super) struct Streams<'a> {
    /// The user's side.
    pub(super) io: Io,
    /// The process has a terminal, whatever the user has.
    terminal: bool,
    listener: &'a UnixListener,
    unnamed: Vec<Unnamed>,
    /// Output streams that have not ended.
    outputs: Vec<Output>,
    /// Where the input stream goes, kept so that it can be ended.
    input: Option<UnixStream>,
    input_thread: Option<JoinHandle<()>>,
    /// Which output has ended: one byte each. The threads have the other end.
    ended: UnixStream,
    ended_sender: UnixStream,
    /// Connected before the process was known to run: no byte moves before the terminal is in its mode.
    held: Vec<(StreamKind, UnixStream)>,
    /// The process runs.
    flowing: bool,
    /// The guest's connections are none of ours any more.
    cut: bool,
    /// Streams of other processes, for whoever takes them.
    others: Vec<(StreamHeader, UnixStream)>,
}

impl<'a> Streams<'a> {
    /// Streams of a process that has a `terminal`, or three of them.
    pub(super) fn new(io: Io, terminal: bool, listener: &'a UnixListener) -> std::io::Result<Self> {
        let kinds: &[StreamKind] =
            if terminal { &[StreamKind::Terminal] } else { &[StreamKind::Stdout, StreamKind::Stderr] };
        let outputs = kinds.iter().map(|&kind| Output { kind, connection: None }).collect();
        let (ended, ended_sender) = UnixStream::pair()?;
        ended.set_nonblocking(true)?;
        Ok(Self {
            io,
            terminal,
            listener,
            unnamed: Vec::new(),
            outputs,
            input: None,
            input_thread: None,
            ended,
            ended_sender,
            held: Vec::new(),
            flowing: false,
            cut: false,
            others: Vec::new(),
        })
    }

    /// Adds what the streams wait for, to be followed by [`Self::step`].
    pub(super) fn interests<'b>(&'b self, fds: &mut Vec<PollFd<'b>>) {
        fds.push(PollFd::new(&self.ended, PollFlags::IN));
        if self.cut {
            return;
        }
        if self.unnamed.len() < MAX_UNNAMED {
            fds.push(PollFd::new(self.listener, PollFlags::IN));
        }
        fds.extend(self.unnamed.iter().map(|unnamed| PollFd::new(&unnamed.connection, PollFlags::IN)));
    }

    /// Whether all that the process wrote has been passed on.
    pub(super) fn is_drained(&self) -> bool {
        self.outputs.is_empty()
    }

    /// Takes in new connections, headers, and the news of streams that have ended.
    pub(super) fn step(&mut self) -> Result<(), SessionError> {
        self.accept()?;
        self.read_headers()?;
        let mut ended = [0; 4];
        let count = self.ended.read(&mut ended).unwrap_or(0);
        self.outputs.retain(|output| !ended[..count].contains(&(output.kind as u8)));
        Ok(())
    }

    /// The streams of other processes that have been opened since.
    pub(super) fn take_others(&mut self) -> Vec<(StreamHeader, UnixStream)> {
        std::mem::take(&mut self.others)
    }

    /// Streams that the guest has not opened by now will not come.
    pub(super) fn no_more(&mut self) -> Result<(), SessionError> {
        self.accept()?;
        self.read_headers()?;
        self.outputs.retain(|output| output.connection.is_some());
        Ok(())
    }

    /// The process runs: from now on bytes move, those of the input first, so that no key typed at what the process shows
    /// is lost.
    pub(super) fn flow(&mut self) -> Result<(), SessionError> {
        self.flowing = true;
        self.start_input()?;
        for (kind, connection) in std::mem::take(&mut self.held) {
            self.start_output(kind, connection)?;
        }
        Ok(())
    }

    fn start_input(&mut self) -> Result<(), SessionError> {
        if let (Some(connection), Some(stdin)) = (&self.input, &self.io.stdin) {
            let start = || pump::input(stdin.try_clone()?, connection.try_clone()?);
            self.input_thread = Some(start().map_err(host("attach standard input"))?);
        }
        Ok(())
    }

    /// Lets the input's thread end, wherever it waits.
    pub(super) fn stop_input(&mut self) {
        if let Some(connection) = self.input.take() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Ends all of the guest's connections. What has arrived over them is still passed on.
    pub(super) fn cut(&mut self) {
        self.cut = true;
        self.stop_input();
        self.unnamed.clear();
        self.held.clear();
        self.outputs.retain(|output| self.flowing && output.connection.is_some());
        for connection in self.outputs.iter().filter_map(|output| output.connection.as_ref()) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// The user's side, which nothing here uses any longer. After [`Self::cut`], once all is drained.
    pub(super) fn give_back(mut self) -> Io {
        self.stop_input();
        if let Some(thread) = self.input_thread.take() {
            let _ = thread.join();
        }
        self.io
    }

    fn accept(&mut self) -> Result<(), SessionError> {
        while !self.cut && self.unnamed.len() < MAX_UNNAMED {
            match self.listener.accept() {
                Ok((connection, _)) => {
                    connection.set_nonblocking(true).map_err(host("accept a stream"))?;
                    self.unnamed.push(Unnamed { connection, header: [0; StreamHeader::LEN], filled: 0 });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(host("accept a stream")(error)),
            }
        }
        Ok(())
    }

    /// Reads what there is of each header; a stream whose header is complete gets its thread.
    fn read_headers(&mut self) -> Result<(), SessionError> {
        for mut unnamed in std::mem::take(&mut self.unnamed) {
            match unnamed.connection.read(&mut unnamed.header[unnamed.filled..]) {
                Ok(0) => continue,
                Ok(count) => unnamed.filled += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => continue,
            }
            if unnamed.filled < StreamHeader::LEN {
                self.unnamed.push(unnamed);
                continue;
            }
            match StreamHeader::from_bytes(unnamed.header) {
                Some(StreamHeader { process: MAIN_PROCESS, kind }) => self.attach(kind, unnamed.connection)?,
                Some(other) => {
                    unnamed.connection.set_nonblocking(false).map_err(host("accept a stream"))?;
                    self.others.push((other, unnamed.connection));
                }
                None => return Err(SessionError::Unexpected("stream")),
            }
        }
        Ok(())
    }

    /// Connects a stream of the process with the user's.
    fn attach(&mut self, kind: StreamKind, connection: UnixStream) -> Result<(), SessionError> {
        let failed = host("attach a stream");
        connection.set_nonblocking(false).map_err(&failed)?;
        if kind == StreamKind::Terminal || (kind == StreamKind::Stdin && self.io.stdin.is_some() && !self.terminal) {
            if self.input.is_some() {
                return Err(SessionError::Unexpected("second stream of a kind"));
            }
            self.input = Some(connection.try_clone().map_err(&failed)?);
            if self.flowing {
                self.start_input()?;
            }
            if kind == StreamKind::Stdin {
                return Ok(());
            }
        }
        let output = self.outputs.iter_mut().find(|output| output.kind == kind && output.connection.is_none());
        let Some(output) = output else {
            return Err(SessionError::Unexpected("stream"));
        };
        output.connection = Some(connection.try_clone().map_err(&failed)?);
        if self.flowing {
            return self.start_output(kind, connection);
        }
        self.held.push((kind, connection));
        Ok(())
    }

    fn start_output(&self, kind: StreamKind, connection: UnixStream) -> Result<(), SessionError> {
        let sink: &OwnedFd = if kind == StreamKind::Stderr { &self.io.stderr } else { &self.io.stdout };
        let start = || {
            let sender = self.ended_sender.try_clone()?;
            let recorder = self.io.recorder.clone();
            let record = move |bytes: &[u8]| recorder.iter().for_each(|recorder| recorder.output(kind, bytes));
            pump::output(connection, sink.try_clone()?, record, move || {
                // Whoever listened may be gone; there is room for three bytes.
                let _ = rustix::io::write(&sender, &[kind as u8]);
            })
        };
        start().map_err(host("attach a stream"))
    }
}
