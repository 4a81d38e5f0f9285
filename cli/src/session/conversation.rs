//! One run. A loop that waits for whatever comes next: the guest's connections and messages, the user's signals, the end of
//! the VM, the end of a stream.
//!
//! ```text
//! Booting ── control connection ──► Greeting ── Hello ──► Starting ── Started ──► Running ── Exited ──► Draining ──► done
//!    │                                  │                    ├── StartFailed ──► error                      (outputs at their end)
//!    └──────────── a signal that ends programs, or the end of the VM ──► error
//! ```

use super::control::{Control, Received};
use super::io::{Io, RawMode};
use super::streams::Streams;
use super::times::{Times, now_ns, placed};
use super::{Outcome, SessionError};
use guest_protocol::{ExitStatus, GuestMessage, HostMessage, MAIN_PROCESS, Start, VERSION, WindowSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::signal::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};

/// Passed on to the process as they are; SIGWINCH becomes a new window size.
const SIGNALS: [i32; 8] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH];
/// Of those, the ones that mean an end where there is no process yet to decide.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
/// As many of those end the run whatever the process does with them.
const PATIENCE: u8 = 3;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Booting,
    Greeting,
    Starting,
    Running,
    Draining(ExitStatus),
}

struct Conversation<'a> {
    state: State,
    start: Option<Box<Start>>,
    streams: Streams<'a>,
    size: WindowSize,
    control: Option<Control>,
    raw: Option<RawMode>,
    vm_gone: bool,
    /// The control connection has been there and is closed.
    guest_gone: bool,
    impatience: u8,
    times: Times,
}

/// See [`super::Session::run`].
pub(super) fn run(
    control: &UnixListener,
    streams: &UnixListener,
    mut start: Start,
    io: Io,
    vm: BorrowedFd<'_>,
) -> Result<Outcome, SessionError> {
    let mut signals = wiring().map_err(host("prepare for signals"))?;
    let size = io.window_size();
    start.process.terminal = io.terminal.then_some(size);
    start.process.stdin = io.stdin.is_some();
    let io = Streams::new(io, streams).map_err(host("prepare for streams"))?;
    let mut run = Conversation {
        state: State::Booting,
        start: Some(Box::new(start)),
        streams: io,
        size,
        control: None,
        raw: None,
        vm_gone: false,
        guest_gone: false,
        impatience: 0,
        times: Times::default(),
    };
    let result = loop {
        if let Some(result) = run.result() {
            break result;
        }
        let ready = match run.wait(&signals, control, vm) {
            Ok(ready) => ready,
            Err(Errno::INTR) => continue,
            Err(error) => break Err(host("wait for the guest")(error.into())),
        };
        if let Err(error) = run.turn(&ready, &mut signals, control) {
            break Err(error);
        }
    };
    run.streams.stop_input();
    result
}

type Signals = SignalDelivery<UnixStream, SignalOnly>;

fn wiring() -> std::io::Result<Signals> {
    let (receiver, sender) = UnixStream::pair()?;
    SignalDelivery::with_pipe(receiver, sender, SignalOnly, SIGNALS)
}

pub(super) fn host(what: &'static str) -> impl Fn(std::io::Error) -> SessionError {
    move |source| SessionError::Host { what, source }
}

/// What [`Conversation::wait`] has waited for.
struct Ready {
    signals: bool,
    vm: bool,
    connection: bool,
    control: bool,
    streams: bool,
}

impl Conversation<'_> {
    /// The end, if this is it.
    fn result(&self) -> Option<Result<Outcome, SessionError>> {
        match self.state {
            State::Draining(status) if self.streams.is_drained() => {
                let times = Times { finished: now_ns(), ..self.times };
                Some(Ok(Outcome { exit_code: status.code(), times }))
            }
            // What it wrote before the end is passed on first.
            State::Running | State::Draining(_) if !self.streams.is_drained() => None,
            _ if !self.vm_gone && !self.guest_gone => None,
            _ if !self.vm_gone => Some(Err(SessionError::GuestClosed)),
            State::Booting => Some(Err(SessionError::VmEnded("its init reported"))),
            State::Greeting | State::Starting => Some(Err(SessionError::VmEnded("the process started"))),
            State::Running | State::Draining(_) => Some(Err(SessionError::VmEnded("the process did"))),
        }
    }

    fn wait(&self, signals: &Signals, control: &UnixListener, vm: BorrowedFd<'_>) -> Result<Ready, Errno> {
        let only_if = |condition, flags| if condition { flags } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(signals.get_read(), PollFlags::IN),
            match &self.control {
                None => PollFd::new(control, only_if(!self.guest_gone, PollFlags::IN)),
                Some(control) => PollFd::new(control, PollFlags::IN | only_if(control.has_queue(), PollFlags::OUT)),
            },
        ];
        // A hung-up descriptor is reported whether asked for or not, so it is left out once that is known.
        if !self.vm_gone {
            fds.push(PollFd::from_borrowed_fd(vm, PollFlags::IN));
        }
        let fixed = fds.len();
        self.streams.interests(&mut fds);
        poll(&mut fds, None)?;
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            signals: ready(0),
            connection: ready(1) && self.control.is_none(),
            control: ready(1) && self.control.is_some(),
            vm: !self.vm_gone && ready(2),
            streams: (fixed..fds.len()).any(ready),
        })
    }

    fn turn(&mut self, ready: &Ready, signals: &mut Signals, control: &UnixListener) -> Result<(), SessionError> {
        if ready.signals {
            let pending: Vec<i32> = signals.pending().collect();
            for signal in pending {
                self.signal(signal)?;
            }
        }
        if ready.connection {
            self.greet(control)?;
        }
        if ready.streams {
            self.streams.step()?;
        }
        if ready.control {
            self.listen_to_guest()?;
        }
        if ready.vm {
            self.vm_ended(control)?;
        }
        Ok(())
    }

    /// A signal to this program.
    fn signal(&mut self, signal: i32) -> Result<(), SessionError> {
        let number = u8::try_from(signal).unwrap_or_default();
        if ENDING.contains(&signal) {
            self.impatience += 1;
            if self.state != State::Running || self.guest_gone || self.impatience >= PATIENCE {
                return Err(SessionError::Interrupted(number));
            }
        }
        if signal == SIGWINCH {
            return self.resize();
        }
        if let (SIGCONT, Some(raw)) = (signal, &self.raw) {
            raw.enter_again();
        }
        self.tell_guest(&HostMessage::Signal { process: MAIN_PROCESS, signal: number })
    }

    /// Tells the guest the terminal's size if it is another than it knows.
    fn resize(&mut self) -> Result<(), SessionError> {
        let size = self.streams.io.window_size();
        if !self.streams.io.terminal || size == self.size {
            return Ok(());
        }
        self.size = size;
        self.tell_guest(&HostMessage::Resize { process: MAIN_PROCESS, size })
    }

    /// To a guest whose process runs; to another it would mean nothing.
    fn tell_guest(&mut self, message: &HostMessage) -> Result<(), SessionError> {
        match (&mut self.control, self.state) {
            (Some(control), State::Running) => control.send(message),
            _ => Ok(()),
        }
    }

    /// Init has connected.
    fn greet(&mut self, listener: &UnixListener) -> Result<(), SessionError> {
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(host("accept the guest's connection")(error)),
        };
        let mut control = Control::new(connection).map_err(host("accept the guest's connection"))?;
        control.send(&HostMessage::Hello { version: VERSION })?;
        self.control = Some(control);
        self.state = State::Greeting;
        Ok(())
    }

    /// Whatever init has said.
    fn listen_to_guest(&mut self) -> Result<(), SessionError> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        control.flush();
        let received = control.receive();
        while let Some(message) = self.control.as_mut().map(Control::take).transpose()?.flatten() {
            self.heed(message)?;
        }
        if received == Received::End {
            self.control = None;
            self.guest_gone = true;
            self.streams.no_more()?;
        }
        Ok(())
    }

    fn heed(&mut self, message: GuestMessage) -> Result<(), SessionError> {
        match (self.state, message) {
            (State::Greeting, GuestMessage::Hello { version: VERSION, init_ns, now_ns: guest_now }) => {
                self.times.kernel = placed(0, guest_now);
                self.times.init = placed(init_ns, guest_now);
                self.times.connected = now_ns();
                self.state = State::Starting;
                let (Some(control), Some(start)) = (&mut self.control, self.start.take()) else {
                    return Err(SessionError::Unexpected("Hello"));
                };
                control.send(&HostMessage::Start(start))
            }
            (State::Greeting, GuestMessage::Hello { version, .. }) => Err(SessionError::Version { guest: version }),
            (State::Starting, GuestMessage::Started { process: MAIN_PROCESS, root_ns, now_ns: guest_now }) => {
                self.times.root = placed(root_ns, guest_now);
                self.times.started = now_ns();
                self.state = State::Running;
                self.process_runs()
            }
            (State::Starting, GuestMessage::StartFailed { process: MAIN_PROCESS, kind, detail }) => {
                let detail = detail.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
                Err(SessionError::StartFailed { kind, detail })
            }
            (State::Running, GuestMessage::Exited { process: MAIN_PROCESS, status, exit_ns, now_ns: guest_now }) => {
                self.times.exited = placed(exit_ns, guest_now);
                self.state = State::Draining(status);
                self.raw = None;
                Ok(())
            }
            (_, message) => Err(SessionError::Unexpected(name(&message))),
        }
    }

    /// From now on the terminal's keys are the process's.
    fn process_runs(&mut self) -> Result<(), SessionError> {
        if let (true, Some(stdin)) = (self.streams.io.terminal, &self.streams.io.stdin) {
            self.raw = Some(RawMode::enter(stdin).map_err(host("put the terminal into raw mode"))?);
        }
        self.streams.flow()?;
        self.resize()
    }

    /// The VM has ended. What it had sent is still there to be read.
    fn vm_ended(&mut self, control: &UnixListener) -> Result<(), SessionError> {
        self.vm_gone = true;
        if self.control.is_none() && !self.guest_gone {
            self.greet(control)?;
        }
        while let Some(control) = &mut self.control {
            let received = control.receive();
            while let Some(message) = self.control.as_mut().map(Control::take).transpose()?.flatten() {
                self.heed(message)?;
            }
            if received != Received::Something {
                self.control = None;
                self.guest_gone = true;
            }
        }
        self.streams.no_more()
    }
}

fn name(message: &GuestMessage) -> &'static str {
    match message {
        GuestMessage::Hello { .. } => "Hello",
        GuestMessage::Started { .. } => "Started",
        GuestMessage::StartFailed { .. } => "StartFailed",
        GuestMessage::Exited { .. } => "Exited",
    }
}
