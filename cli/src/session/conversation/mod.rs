//! One run. A loop that waits for whatever comes next: the guest's connections and messages, the user's signals, the end of
//! the VM, the end of a stream.
//!
//! ```text
//! Booting ── control connection ──► Greeting ── Hello ──► Starting ── Started ──► Running ── Exited ──► Draining ──► done
//!    ▲──────── its end, without Hello ──┤ Hello            │ ▲ ▲                                         (outputs at their end)
//!    │                                  ├──► Preparing ── Ready ──► Prepared
//!    │                                  └──► Found ── Thaw ──┘
//!    │                                           └─────────┴── StartFailed ──► error
//!    └──────────── a signal that ends programs, or the end of the VM ──► error
//! ```
//!
//! What the guest is to do goes out with the first hello, before the guest's own has come: a guest of another version closes
//! the connection at the hello and does not read on. Only a frozen clone's hello is waited for: it says what streams there are.

mod freeze;
mod guest;
mod others;
mod signals;

use super::attend::{Attendant, NoAttendant};
use super::control::Control;
use super::io::{Io, RawMode};
use super::streams::Streams;
use super::times::{Times, now_ns};
use super::{Ended, Outcome, SessionError};
use freeze::Freezing;
use guest_protocol::{ExitStatus, HostMessage, Identity, Network, Start, WindowSize};
use others::Others;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
pub(super) use signals::{ENDING, PATIENCE, Signals, wiring};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;

const FROZEN_CLONE: &str = "clone of a guest whose process runs";

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Booting,
    Greeting,
    Preparing,
    Prepared,
    /// A frozen clone.
    Found {
        terminal: bool,
    },
    Starting,
    Running,
    Draining(ExitStatus),
}

/// What the guest is to do next.
#[derive(Debug, Clone)]
enum Order {
    Prepare(Option<Network>),
    Start(Box<Start>),
    Thaw(Box<Identity>),
}

/// The host's side of one VM's life. See [`super::Session::begin`].
#[derive(Debug)]
pub struct Conversation<'a> {
    control_listener: &'a UnixListener,
    stream_listener: &'a UnixListener,
    vm: BorrowedFd<'a>,
    signals: Signals,
    state: State,
    /// Waits for the guest's connection, and its hello.
    order: Option<Order>,
    /// It has been told to prepare, not to start.
    preparing: bool,
    freezing: Freezing,
    others: Others,
    /// Once the process has been ordered.
    streams: Option<Streams<'a>>,
    size: WindowSize,
    control: Option<Control>,
    raw: Option<RawMode>,
    vm_gone: bool,
    /// The control connection has been there and is closed.
    guest_gone: bool,
    impatience: u8,
    /// The process is there for what it changes or says: who ends this wants none of that, whatever the process would do.
    ends_at_once: bool,
    times: Times,
}

impl<'a> Conversation<'a> {
    /// From now on signals are passed on or end it.
    pub(super) fn new(
        control: &'a UnixListener,
        streams: &'a UnixListener,
        vm: BorrowedFd<'a>,
    ) -> Result<Self, SessionError> {
        Ok(Self {
            control_listener: control,
            stream_listener: streams,
            vm,
            signals: wiring().map_err(host("prepare for signals"))?,
            state: State::Booting,
            order: None,
            preparing: false,
            freezing: Freezing::NONE,
            others: Others::default(),
            streams: None,
            size: WindowSize { rows: 0, columns: 0 },
            control: None,
            raw: None,
            vm_gone: false,
            guest_gone: false,
            impatience: 0,
            ends_at_once: false,
            times: Times::default(),
        })
    }

    /// Freezes are late after this long.
    #[cfg(test)]
    pub(super) fn expect_freezes_within(&mut self, patience: std::time::Duration) {
        self.freezing.patience = patience;
    }

    /// Waits for the guest to be there: for its connection, whatever comes over it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn arrive(&mut self) -> Result<(), SessionError> {
        self.until(&mut NoAttendant, |this| match this.state {
            State::Booting => this.broken().map(Err),
            _ => Some(Ok(())),
        })
    }

    /// Waits for the guest to say that it is a frozen clone, for [`Self::thaw`].
    ///
    /// # Errors
    /// As [`Self::start`]; the guest is something else.
    pub fn meet(&mut self) -> Result<(), SessionError> {
        self.until(&mut NoAttendant, |this| this.met().map(|met| met.map(drop)))
    }

    /// Whether the process of the frozen clone that the guest is has a terminal.
    fn met(&self) -> Option<Result<bool, SessionError>> {
        match self.state {
            State::Found { terminal } => Some(Ok(terminal)),
            State::Starting => Some(Err(SessionError::Unexpected("guest that is no frozen clone"))),
            _ => self.broken().map(Err),
        }
    }

    /// Waits for the guest to boot and to do all that needs no [`Start`]. Its memory can be saved then, by whoever has the
    /// VM, and become any number of clones; this VM can go on with [`Self::start`]. `network` is what most of them will be on, if they
    /// have an interface.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn prepare(&mut self, network: Option<Network>) -> Result<(), SessionError> {
        self.give(Order::Prepare(network))?;
        self.until(&mut NoAttendant, |this| match this.state {
            State::Prepared => Some(Ok(())),
            _ => this.broken().map(Err),
        })
    }

    /// Has the guest start the process once it is there (booted, prepared or a clone), relays signals, window size and
    /// streams until the process has ended and all its output has been passed on. `attendant` can have it frozen meanwhile.
    ///
    /// Whether the process gets input and a terminal is what `io` says, whatever `start` says; its seed and clock are made
    /// here. On return the guest waits for the conversation to be dropped and powers off then; the caller may as well end the
    /// VM, since nothing in it is of use any more.
    ///
    /// # Errors
    /// Everything that leaves no exit status. See [`SessionError::exit_code`].
    pub fn start(mut self, mut start: Start, io: Io, attendant: &mut dyn Attendant) -> Result<Ended, SessionError> {
        self.size = io.window_size();
        start.process.terminal = io.terminal.then_some(self.size);
        start.process.stdin = io.stdin.is_some();
        self.ends_at_once = start.changes || start.helper.is_some();
        let terminal = io.terminal;
        self.converse(Order::Start(Box::new(start)), io, terminal, attendant)
    }

    /// Has a clone of a frozen guest become itself and its process go on; from there on as [`Self::start`]. Host name and machine
    /// id are the caller's; the rest of `identity` is made here.
    ///
    /// What streams the process has, the clone says. Of a process that can read, `io` says whether it gets input or finds
    /// its end; that of a terminal is the user's terminal, if `io` says that there is one.
    ///
    /// # Errors
    /// As [`Self::start`]; the guest is something else than a frozen clone.
    pub fn thaw(
        mut self,
        identity: Identity,
        mut io: Io,
        attendant: &mut dyn Attendant,
    ) -> Result<Ended, SessionError> {
        let found = self.until(attendant, |this| match this.state {
            _ if this.freezing.leaving => Some(Ok(None)),
            _ => this.met().map(|met| met.map(Some)),
        });
        let terminal = match found {
            Ok(Some(terminal)) => terminal,
            other => {
                self.abandon_freeze(attendant);
                attendant.ended();
                return other.map(|_| Ended::Left(io));
            }
        };
        io.terminal &= terminal;
        self.size = io.window_size();
        let identity = Identity { size: self.size, stdin: io.stdin.is_some(), ..identity };
        self.converse(Order::Thaw(Box::new(identity)), io, terminal, attendant)
    }

    /// Gives the order that makes the process run, and sees to it until its end.
    fn converse(
        mut self,
        order: Order,
        io: Io,
        terminal: bool,
        attendant: &mut dyn Attendant,
    ) -> Result<Ended, SessionError> {
        let streams = Streams::new(io, terminal, self.stream_listener).map_err(host("prepare for streams"))?;
        self.streams = Some(streams);
        let result = self.give(order).and_then(|()| self.until(attendant, Self::result));
        self.abandon_freeze(attendant);
        let result = result.and_then(|outcome| self.hand_over(attendant).map(|()| outcome));
        attendant.ended();
        if let Some(streams) = &mut self.streams {
            streams.stop_input();
        }
        if let Some(outcome) = result? {
            return Ok(Ended::Exited(outcome));
        }
        self.streams.map(|streams| Ended::Left(streams.give_back())).ok_or(SessionError::GuestClosed)
    }

    /// Gives the guest an order, now or as soon as it connects.
    fn give(&mut self, order: Order) -> Result<(), SessionError> {
        if matches!((self.state, &order), (State::Found { .. }, Order::Prepare(_) | Order::Start(_))) {
            return Err(SessionError::Unexpected(FROZEN_CLONE));
        }
        self.order = Some(order);
        match self.state {
            State::Prepared | State::Found { .. } => {
                self.state = State::Starting;
                self.send_order()
            }
            // Its hello may have come already, or not.
            State::Greeting | State::Starting => self.send_order(),
            _ => Ok(()),
        }
    }

    fn until<T>(
        &mut self,
        attendant: &mut dyn Attendant,
        done: impl Fn(&Self) -> Option<Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        loop {
            self.pursue_freeze(attendant)?;
            self.hand_over(attendant)?;
            if let Some(result) = done(self) {
                return result;
            }
            match self.wait(attendant) {
                Ok(ready) => self.turn(&ready, attendant)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(host("wait for the guest")(error.into())),
            }
        }
    }
}

pub(super) fn host(what: &'static str) -> impl Fn(std::io::Error) -> SessionError {
    move |source| SessionError::Host { what, source }
}

/// Adds a descriptor to wait for, if there is one; returns its place.
fn add<'a>(fds: &mut Vec<PollFd<'a>>, fd: Option<BorrowedFd<'a>>) -> Option<usize> {
    fds.push(PollFd::from_borrowed_fd(fd?, PollFlags::IN));
    Some(fds.len() - 1)
}

/// What [`Conversation::wait`] has waited for.
struct Ready {
    signals: bool,
    attendant: bool,
    vm: bool,
    connection: bool,
    control: bool,
    streams: bool,
}

impl Conversation<'_> {
    /// The end of the process, if this is it; none if the attendant wants the VM.
    fn result(&self) -> Option<Result<Option<Outcome>, SessionError>> {
        match self.state {
            _ if self.freezing.leaving => self.is_drained().then_some(Ok(None)),
            State::Draining(status) if self.is_drained() => {
                let times = Times { finished: now_ns(), ..self.times };
                Some(Ok(Some(Outcome { exit_code: status.code(), times })))
            }
            // What it wrote before the end is passed on first.
            State::Running | State::Draining(_) if !self.is_drained() => None,
            _ => self.broken().map(Err),
        }
    }

    /// Why there is nothing more to be expected, if so.
    fn broken(&self) -> Option<SessionError> {
        if !self.vm_gone {
            return self.guest_gone.then_some(SessionError::GuestClosed);
        }
        Some(SessionError::VmEnded(match self.state {
            State::Booting => "its init reported",
            State::Greeting | State::Preparing | State::Prepared | State::Found { .. } | State::Starting => {
                "the process started"
            }
            State::Running | State::Draining(_) => "the process did",
        }))
    }

    fn is_drained(&self) -> bool {
        self.streams.as_ref().is_none_or(Streams::is_drained)
    }

    fn wait(&self, attendant: &dyn Attendant) -> Result<Ready, Errno> {
        let only_if = |condition, flags| if condition { flags } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.signals.get_read(), PollFlags::IN),
            match &self.control {
                None => PollFd::new(self.control_listener, only_if(!self.guest_gone, PollFlags::IN)),
                Some(control) => PollFd::new(control, PollFlags::IN | only_if(control.has_queue(), PollFlags::OUT)),
            },
        ];
        // A hung-up descriptor is reported whether asked for or not, so it is left out once that is known.
        let vm = add(&mut fds, (!self.vm_gone).then_some(self.vm));
        let attendant = add(&mut fds, attendant.event().filter(|_| !self.freezing.leaving));
        let fixed = fds.len();
        if let Some(streams) = &self.streams {
            streams.interests(&mut fds);
        }
        poll(&mut fds, self.freezing.left().as_ref())?;
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            signals: ready(0),
            connection: ready(1) && self.control.is_none(),
            control: ready(1) && self.control.is_some(),
            vm: vm.is_some_and(ready),
            attendant: attendant.is_some_and(ready),
            streams: (fixed..fds.len()).any(ready),
        })
    }

    fn turn(&mut self, ready: &Ready, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        if ready.signals {
            let pending: Vec<i32> = self.signals.pending().collect();
            for signal in pending {
                self.signal(signal)?;
            }
        }
        if ready.connection {
            self.greet()?;
        }
        if let Some(streams) = self.streams.as_mut().filter(|_| ready.streams) {
            streams.step()?;
        }
        if ready.control {
            self.listen_to_guest(attendant)?;
        }
        if ready.vm {
            self.vm_ended(attendant)?;
        }
        if ready.attendant {
            self.attend(attendant)?;
        }
        Ok(())
    }

    /// To a guest whose process runs; to another it would mean nothing.
    fn tell_guest(&mut self, message: &HostMessage) -> Result<(), SessionError> {
        match (&mut self.control, self.state) {
            (Some(control), State::Running) => control.send(message),
            _ => Ok(()),
        }
    }
}
