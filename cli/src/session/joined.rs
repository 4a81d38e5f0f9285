//! A process that has joined a container's main one, from the side of whoever asked for it: its streams are the guest's own
//! connections, which the VM's owner has handed over.
//!
//! ```text
//! asked ── streams ─► the terminal in its mode, bytes move ── answer, and all output at its end ─► exit code
//!   └── answer: it did not start
//! ```

use super::conversation::{ENDING, PATIENCE, Signals, host, wiring};
use super::io::RawMode;
use super::keys::Keys;
use super::{Io, SessionError, pump};
use crate::attend::client::{AskError, Asking};
use crate::attend::{Answer, Size, Stream, Word};
use crate::failure::sanitize;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;
use signal_hook::consts::signal::{SIGCONT, SIGWINCH};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// How it came out without an exit code of the process.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The VM's owner could not do it, or is gone.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It was not started; one line from the guest.
    #[error("{detail}")]
    NotStarted {
        /// What that is as an exit code.
        code: u8,
        /// Why.
        detail: String,
    },
    /// Its microVM has given this one up.
    #[error(
        "what it writes was not taken for too long, so that it went on without this; `bulkhead logs` has all of it"
    )]
    TooSlow,
    /// This side failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// How long a microVM that has closed a stream may take to say more. It says how a process has ended before it closes its streams.
const GRACE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// What the threads of streams say in the end.
const OUTPUT_ENDED: u8 = 0;
const LEFT: u8 = 1;

/// How somebody is at the streams of a process.
#[derive(Debug, Clone)]
pub struct Manners {
    /// Others may be at them as well: the end of this one's input is not that of the process's.
    pub shared: bool,
    /// Keys that leave it.
    pub keys: Option<Keys>,
    /// Signals are passed on to the process, instead of ending this.
    pub proxy: bool,
}

impl Manners {
    /// It is there for nobody else.
    pub const ALONE: Manners = Manners { shared: false, keys: None, proxy: true };
}

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parted {
    /// It has ended with this exit code.
    Exited(u8),
    /// It goes on, and has been left.
    Left,
}

/// Somebody at the streams of a process.
pub struct Joined {
    asking: Asking,
    io: Io,
    manners: Manners,
    signals: Signals,
    size: Size,
    raw: Option<RawMode>,
    /// A byte for each output that has ended, and for keys that leave. The threads have the other end.
    ended: UnixStream,
    ended_sender: UnixStream,
    /// Output streams that have not ended.
    outputs: usize,
    /// The keys that leave it have been typed.
    left: bool,
    /// It has its streams.
    started: bool,
    answer: Option<Value>,
    impatience: u8,
}

impl Joined {
    /// Asks by `ask`, which is told how large the terminal is, if there is to be one. From now on signals are passed on, or end it.
    ///
    /// # Errors
    /// It cannot be asked for.
    pub fn ask(
        io: Io,
        manners: Manners,
        ask: impl FnOnce(Option<Size>) -> Result<Asking, AskError>,
    ) -> Result<Self, JoinError> {
        let signals = wiring().map_err(host("prepare for signals"))?;
        let (ended, ended_sender) = UnixStream::pair().map_err(host("prepare for streams"))?;
        ended.set_nonblocking(true).map_err(host("prepare for streams"))?;
        let size = size(&io);
        let asking = ask(io.terminal.then_some(size))?;
        let (raw, answer) = (None, None);
        Ok(Self {
            asking,
            io,
            manners,
            signals,
            size,
            raw,
            ended,
            ended_sender,
            outputs: 0,
            left: false,
            started: false,
            answer,
            impatience: 0,
        })
    }

    /// Sees to it until it has ended and all it wrote has been passed on, or it is left.
    ///
    /// # Errors
    /// There is no exit code.
    pub fn attend(mut self) -> Result<Parted, JoinError> {
        loop {
            while let Some(answer) = self.asking.take()? {
                self.heed(answer)?;
            }
            if let Some(answer) = self.answer.as_ref().filter(|_| self.outputs == 0) {
                return outcome(answer).map(Parted::Exited);
            }
            if self.left {
                self.asking.say(Word::Detach);
                return Ok(Parted::Left);
            }
            if self.manners.shared && self.started && self.outputs == 0 {
                self.hear_why()?;
                continue;
            }
            let mut fds = [
                PollFd::new(self.signals.get_read(), PollFlags::IN),
                PollFd::new(&self.ended, PollFlags::IN),
                PollFd::new(&self.asking, if self.answer.is_some() { PollFlags::empty() } else { PollFlags::IN }),
            ];
            // One that has answered may be gone: that is no news.
            let waited = if self.answer.is_some() { 2 } else { 3 };
            match poll(&mut fds[..waited], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(host("wait for the process")(error.into()).into()),
            }
            let [signals, ended, answers] = fds.map(|fd| !fd.revents().is_empty());
            if signals {
                self.pass_signals_on()?;
            }
            if ended {
                let mut bytes = [0; 4];
                let count = self.ended.read(&mut bytes).unwrap_or(0);
                for byte in &bytes[..count] {
                    match byte {
                        &OUTPUT_ENDED => self.outputs = self.outputs.saturating_sub(1),
                        _ => self.left = true,
                    }
                }
            }
            if answers {
                self.receive()?;
            }
        }
    }

    /// All that others hear as well has ended, without a word so far.
    fn hear_why(&mut self) -> Result<(), JoinError> {
        match poll(&mut [PollFd::new(&self.asking, PollFlags::IN)], Some(&GRACE)) {
            Ok(0) => Err(JoinError::TooSlow),
            Ok(_) => self.receive(),
            Err(Errno::INTR) => Ok(()),
            Err(error) => Err(host("wait for the process")(error.into()).into()),
        }
    }

    /// Hears more from the VM's owner. One that is gone takes the process with it, but not what that has written.
    fn receive(&mut self) -> Result<(), JoinError> {
        let Err(gone) = self.asking.receive() else { return Ok(()) };
        self.raw = None;
        let mut byte = [0];
        let _ = self.ended.set_nonblocking(false);
        while self.outputs > 0 && self.ended.read(&mut byte).is_ok() {
            self.outputs -= usize::from(byte == [OUTPUT_ENDED]);
        }
        Err(gone.into())
    }

    fn heed(&mut self, answer: Answer) -> Result<(), JoinError> {
        match answer {
            Answer::Progress(text) => tracing::info!("{}", sanitize(&text)),
            Answer::Streams(names) if !self.started => {
                let streams = self.asking.descriptors();
                self.attach(names.into_iter().zip(streams).collect())?;
            }
            Answer::Streams(_) => drop(self.asking.descriptors()),
            Answer::Done(value) => {
                self.raw = None;
                self.answer = Some(value);
            }
            Answer::Error(text) => return Err(AskError::Refused(sanitize(&text)).into()),
        }
        Ok(())
    }

    /// Connects the user's streams with those of the process, input first, so that no key is lost that is typed at what it shows.
    fn attach(&mut self, streams: Vec<(Stream, OwnedFd)>) -> Result<(), SessionError> {
        let failed = || host("attach a stream");
        self.started = true;
        if let Some(keyboard) = self.io.keyboard() {
            self.raw = Some(RawMode::enter(keyboard).map_err(host("put the terminal into raw mode"))?);
        }
        for (name, stream) in streams {
            if self.manners.shared && name == Stream::Stdin {
                self.share_input(stream).map_err(failed())?;
                continue;
            }
            let stream = UnixStream::from(stream);
            if let (Stream::Stdin | Stream::Terminal, Some(stdin)) = (name, &self.io.stdin) {
                let start = || pump::input(stdin.try_clone()?, stream.try_clone()?);
                start().map_err(failed())?;
            }
            let sink = match name {
                Stream::Stdin => continue,
                Stream::Stderr => &self.io.stderr,
                Stream::Stdout | Stream::Terminal => &self.io.stdout,
            };
            let start = || {
                let sender = self.ended_sender.try_clone()?;
                pump::output(
                    stream,
                    sink.try_clone()?,
                    |_| (),
                    move || {
                        // Whoever listened may be gone; there is room for these few bytes.
                        let _ = rustix::io::write(&sender, &[OUTPUT_ENDED]);
                    },
                )
            };
            start().map_err(failed())?;
            self.outputs += 1;
        }
        self.resize();
        Ok(())
    }

    /// Passes on what is typed here to what others may write to as well.
    fn share_input(&self, sink: OwnedFd) -> std::io::Result<()> {
        let Some(stdin) = &self.io.stdin else { return Ok(()) };
        let sender = self.ended_sender.try_clone()?;
        pump::shared_input(stdin.try_clone()?, sink, self.manners.keys.clone(), move || {
            let _ = rustix::io::write(&sender, &[LEFT]);
        })
    }

    fn pass_signals_on(&mut self) -> Result<(), SessionError> {
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending {
            let number = u8::try_from(signal).unwrap_or_default();
            if ENDING.contains(&signal) {
                self.impatience += 1;
                if !self.started || !self.manners.proxy || self.answer.is_some() || self.impatience >= PATIENCE {
                    return Err(SessionError::Interrupted(number));
                }
            }
            if signal == SIGWINCH {
                self.resize();
                continue;
            }
            if let (SIGCONT, Some(raw)) = (signal, &self.raw) {
                raw.enter_again();
            }
            if self.started && self.manners.proxy {
                self.asking.say(Word::Signal(number));
            }
        }
        Ok(())
    }

    /// Says how large the terminal is if that has changed.
    fn resize(&mut self) {
        let size = size(&self.io);
        if self.started && self.io.terminal && size != self.size {
            self.size = size;
            self.asking.say(Word::Resize(size));
        }
    }
}

/// Size of the terminal that there is, or a usual one.
pub fn size(io: &Io) -> Size {
    let size = io.window_size();
    Size { rows: size.rows, columns: size.columns }
}

/// What the owner's answer to an order for a process says: its exit code.
///
/// # Errors
/// There is none.
pub fn outcome(answer: &Value) -> Result<u8, JoinError> {
    let code = answer["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok());
    let code = code.ok_or_else(|| AskError::Refused("the microVM's owner did not say 'exit_code'".into()))?;
    match answer["failed"].as_str() {
        Some(detail) => Err(JoinError::NotStarted { code, detail: sanitize(detail) }),
        None => Ok(code),
    }
}
