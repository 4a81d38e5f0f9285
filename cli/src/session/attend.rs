//! Somebody who has business with a VM while its process runs: who wants it to stand still for a moment, or to have it.

use guest_protocol::{GuestMessage, HostMessage, StreamHeader};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

/// What an [`Attendant`] wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// The container's processes are to stand still, and [`Attendant::frozen`] to be called. One that does not run yet is
    /// waited for.
    Freeze,
    /// Not any more: the freeze that was wished for and has not come about is taken back. [`Attendant::over`] is not called.
    GiveUp,
    /// The VM is to be ended or replaced: the conversation ends with [`super::Ended::Left`].
    Leave,
    /// The process is to get this signal. It is not sent to one that does not run.
    Signal(u8),
    /// The VM is to be ended, whatever the process says to that: the conversation ends as by SIGKILL.
    End,
    /// The guest is to be told this of a process that joins the container's, or has. One that is to join is told of when the main
    /// process runs; what comes of it is for [`Attendant::heard`]. It fits a frame.
    Tell(HostMessage),
}

/// What there is to hear of processes other than the main one.
#[derive(Debug)]
pub enum Heard {
    /// The guest has said this.
    Said(GuestMessage),
    /// The guest has opened this stream.
    Opened(StreamHeader, UnixStream),
}

/// Takes part in a conversation, in its thread. See [`super::Conversation::start`].
pub trait Attendant {
    /// Becomes readable when there is a wish; polled in every state of the run. None: there will be no more.
    fn event(&self) -> Option<BorrowedFd<'_>>;

    /// The wish. Called when the event is readable, which it must not stay.
    fn wish(&mut self) -> Option<Wish>;

    /// The process runs, or goes on: called once, before anything of it is passed on to the user.
    fn started(&mut self) {}

    /// The processes stand still until this returns, and the VM's memory can be saved. What they had written has been handed over,
    /// as far as the user takes it, and goes on to the user meanwhile; signals wait.
    fn frozen(&mut self);

    /// How a freeze came out, once for each: the processes go on after [`Self::frozen`], or it was never called.
    fn over(&mut self, result: Result<(), FreezeError>);

    /// Something has been heard of a process that has joined. The guest may say anything of any process.
    fn heard(&mut self, heard: Heard) {
        drop(heard);
    }

    /// The guest's kernel has killed a process for lack of memory: which one, in its words, without control characters.
    fn out_of_memory(&mut self, which: &str) {
        let _ = which;
    }

    /// The conversation is at its end: nothing more will be heard.
    fn ended(&mut self) {}
}

/// Wants nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoAttendant;

impl Attendant for NoAttendant {
    fn event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wish(&mut self) -> Option<Wish> {
        None
    }

    fn frozen(&mut self) {}

    fn over(&mut self, _: Result<(), FreezeError>) {}
}

/// Why a container's processes were not frozen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// There is nothing to freeze any more.
    #[error("the container's process has ended")]
    Ended,
    /// The conversation has ended otherwise: the VM is gone, or about to go.
    #[error("the microVM is being ended")]
    Gone,
    /// It is wished for a second time, before the first has come about.
    #[error("the container is being frozen already")]
    Already,
    /// It takes too long.
    #[error("the container did not come to a standstill within {seconds} s: {what}")]
    Late {
        /// How long that has been waited for.
        seconds: u64,
        /// What it still does, as far as its guest knows.
        what: String,
    },
    /// The guest cannot: one line from it, without control characters.
    #[error("the guest cannot freeze the container: {0}")]
    Guest(String),
}
