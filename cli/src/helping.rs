//! What a guest's init does for a verb ([`guest_protocol::files::Helper`]), from this side: a conversation over the streams of a
//! process that joins a container.
//!
//! The guest is not trusted: what it says is bounded, and ends.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, anyhow};
use guest_protocol::files::{FileMessage, Helper, MAX_FILE_FRAME};
use guest_protocol::{FrameBuffer, encode};

use crate::attend::client::Asking;
use crate::attend::{Answer, Exec, Order, Stream};
use crate::failure::sanitize;
use crate::running;

/// One that is at work.
#[derive(Debug)]
pub struct Helping {
    name: String,
    /// Its end is the helper's, of one that has joined a container's process.
    asking: Option<Asking>,
    input: Option<UnixStream>,
    output: UnixStream,
    /// Nothing comes there that is for people, but it must be there.
    _errors: Option<UnixStream>,
    buffer: FrameBuffer,
}

impl Helping {
    /// Has a container's init begin with something; with `input`, it is told more.
    ///
    /// # Errors
    /// No such container runs, or it cannot be had.
    pub fn begin(container: &str, helper: Helper, input: bool) -> anyhow::Result<Self> {
        Self::ask(container, helper, input, None)
    }

    /// The same, of something that is to be done within `patience`: what takes longer is an error.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_within(container: &str, helper: Helper, patience: Duration) -> anyhow::Result<Self> {
        let this = Self::ask(container, helper, false, Some(patience))?;
        this.output.set_read_timeout(Some(patience))?;
        Ok(this)
    }

    fn ask(container: &str, helper: Helper, input: bool, patience: Option<Duration>) -> anyhow::Result<Self> {
        let (name, directory) = running::find(container)?;
        let order = Order::Exec(Exec { helper: Some(helper), stdin: input, ..Exec::default() });
        let asking = Asking::ask(&directory, &name, &order)?;
        asking.be_patient(patience)?;
        Self::wait(name, asking)
    }

    /// Waits for the one that was asked for when the container was made, and comes when its process has ended: `stream` leads to the
    /// container's owner. The guest does not end before this is dropped.
    ///
    /// # Errors
    /// The process did not succeed, or the guest cannot tell.
    pub fn expect(container: &str, stream: UnixStream) -> anyhow::Result<Self> {
        Self::wait(container.to_owned(), Asking::over(stream, container))
    }

    /// One that is all that runs in its guest, at its streams.
    pub fn over(container: &str, input: Option<UnixStream>, output: UnixStream) -> Self {
        let buffer = FrameBuffer::new(MAX_FILE_FRAME);
        Helping { name: container.to_owned(), asking: None, input, output, _errors: None, buffer }
    }

    fn wait(name: String, mut asking: Asking) -> anyhow::Result<Self> {
        loop {
            match asking.next()? {
                Answer::Streams(names) => {
                    let streams = names.into_iter().zip(asking.descriptors());
                    return Self::with(name, asking, streams);
                }
                Answer::Progress(text) => tracing::info!("{}", sanitize(&text)),
                Answer::Done(value) => {
                    let why = value["failed"].as_str().map_or_else(|| "no reason was given".into(), sanitize);
                    return Err(anyhow!("container {name}: {why}"));
                }
                Answer::Error(text) => return Err(anyhow!("container {name}: {}", sanitize(&text))),
            }
        }
    }

    fn with(name: String, asking: Asking, streams: impl Iterator<Item = (Stream, OwnedFd)>) -> anyhow::Result<Self> {
        let (mut input, mut output, mut errors) = (None, None, None);
        for (kind, stream) in streams {
            let place = match kind {
                Stream::Stdin => &mut input,
                Stream::Stdout => &mut output,
                Stream::Stderr => &mut errors,
                Stream::Terminal => continue,
            };
            *place = Some(UnixStream::from(stream));
        }
        let output = output.ok_or_else(|| anyhow!("container {name}: it has no output"))?;
        for stream in [&input, &errors].into_iter().flatten().chain([&output]) {
            stream.set_nonblocking(false).context("a stream of the container")?;
        }
        Ok(Helping { asking: Some(asking), _errors: errors, ..Self::over(&name, input, output) })
    }

    /// The next thing that it says; none once it has said all.
    ///
    /// # Errors
    /// It could not do all of it, and says why; or it broke off.
    pub fn hear(&mut self) -> anyhow::Result<Option<FileMessage>> {
        loop {
            let taken = self.buffer.take::<FileMessage>();
            match taken.map_err(|error| anyhow!("container {}: {error}", self.name))? {
                Some(FileMessage::End) => return Ok(None),
                Some(FileMessage::Failed(why)) => return Err(anyhow!("container {}: {}", self.name, sanitize(&why))),
                Some(message) => return Ok(Some(message)),
                None => {}
            }
            match self.output.read(self.buffer.space()) {
                Ok(0) => return Err(anyhow!("container {}: it broke off; it may have ended", self.name)),
                Ok(count) => self.buffer.received(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("container {}", self.name)),
            }
        }
    }

    /// The next thing that it says of files or processes; what it left out is said on stderr.
    ///
    /// # Errors
    /// As [`Self::hear`].
    pub fn hear_file(&mut self) -> anyhow::Result<Option<FileMessage>> {
        loop {
            match self.hear()? {
                Some(FileMessage::Note(text)) => eprintln!("bulkhead: left out: {}", sanitize(&text)),
                other => return Ok(other),
            }
        }
    }

    /// All of that.
    ///
    /// # Errors
    /// As [`Self::hear`].
    pub fn hear_all(&mut self, mut with: impl FnMut(FileMessage) -> anyhow::Result<()>) -> anyhow::Result<()> {
        while let Some(message) = self.hear_file()? {
            with(message)?;
        }
        Ok(())
    }

    /// Tells it something.
    ///
    /// # Errors
    /// It does not listen any more: what it has said tells why, if that is known.
    pub fn say(&mut self, message: &FileMessage) -> anyhow::Result<()> {
        let frame = encode(message, MAX_FILE_FRAME).map_err(|error| anyhow!("{error}"))?;
        let written = self.input.as_mut().map(|input| input.write_all(&frame));
        match written {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => {
                // It says what went wrong before it goes.
                self.hear_all(|_| Ok(()))?;
                Err(error).with_context(|| format!("container {}", self.name))
            }
            None => Err(anyhow!("container {}: it takes no input", self.name)),
        }
    }

    /// That was all; waits for it to be done.
    ///
    /// # Errors
    /// It could not do all of it.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.say(&FileMessage::End)?;
        if let Some(input) = self.input.take() {
            let _ = input.shutdown(Shutdown::Write);
        }
        self.hear_all(|_| Ok(()))?;
        drop(self.asking);
        Ok(())
    }
}
