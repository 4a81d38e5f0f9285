//! The life of the guest: connect, be told what to be, become it, attend to it, report its end.
//!
//! ```text
//! Hello ─► all that is the same for every container ─► Start ─► its own ─► the process runs ─► Exited
//!                            │ Prepare, Ready              ▲
//!                            └─► waits ── connection lost ─┘ Hello from a clone, on a connection to another host
//! ```

use crate::control::{Control, HostGone};
use crate::failure::Failure;
use crate::names;
use crate::process::{self, Running};
use crate::relay::{Flow, Step};
use crate::root;
use crate::stage::Stage;
use crate::streams::{Opening, Streams, resize};
use crate::sys::{Clock, clock_ns, set_wall_clock};
use alloc::boxed::Box;
use guest_protocol::{CONTROL_PORT, End, ExitStatus, FailureKind, HostMessage, Layer, MAIN_PROCESS, Phase, Start};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr, tcgetpgrp};

/// How far the guest's clock may be from the host's before it is set, in nanoseconds: a message takes a while, and a
/// paravirtual clock may be better than what it says.
const CLOCK_TOLERANCE_NS: u64 = 500_000_000;
const STREAMS: &str = "making the standard streams";

/// What a guest is made of, as far as that differs between a virtual machine and a test.
pub trait Machine {
    /// Connects to a port of the host.
    ///
    /// # Errors
    /// As socket(2) and connect(2).
    fn connect(&self, port: u32) -> io::Result<OwnedFd>;

    /// Begins to connect to a port of the host, on a socket that does not block. It can be written to when it is connected.
    ///
    /// # Errors
    /// As socket(2) and connect(2).
    fn begin_connect(&self, port: u32) -> io::Result<OwnedFd>;

    /// Mounts layer `index` of `count`, 0 being the lowest, on the directory `target`.
    ///
    /// # Errors
    /// As the system call that failed.
    fn mount_layer(&self, index: usize, count: usize, layer: &Layer, target: &str) -> io::Result<()>;
}

/// Lives the whole life on a connected control connection; `init_ns` is when it began. Returns how the guest is to end.
pub fn run<M: Machine>(machine: &M, connection: OwnedFd, init_ns: u64) -> End {
    let mut end = End::Reset;
    // When the host is gone there is nobody to tell, and nothing left to do.
    let _: Result<(), HostGone> = live(machine, &mut Control::new(connection), init_ns, &mut end);
    end
}

/// The port that [`run`]'s connection goes to.
pub const PORT: u32 = CONTROL_PORT;

fn live<M: Machine>(machine: &M, control: &mut Control, init_ns: u64, end: &mut End) -> Result<(), HostGone> {
    control.hello(Phase::Booted, init_ns)?;
    // While the host answers.
    let started = match Stage::new() {
        Err(failure) => Err(failure),
        Ok(stage) => {
            let start = wait_for_start(machine, control)?;
            *end = start.end;
            begin(machine, stage, *start)
        }
    };
    match started {
        Err(failure) => control.failed(failure)?,
        Ok((mut running, mut streams, root_ns)) => {
            control.started(root_ns)?;
            let (status, exit_ns) = attend(control, &mut running, &mut streams)?;
            drop(streams);
            control.exited(status, exit_ns)?;
        }
    }
    control.wait_for_close();
    Ok(())
}

/// Waits for the host's `Start`, and says `Ready` if it asks. From then on a lost connection means that this is a clone,
/// whose host is another one: it introduces itself there.
fn wait_for_start<M: Machine>(machine: &M, control: &mut Control) -> Result<Box<Start>, HostGone> {
    let mut ready = false;
    loop {
        match control.order() {
            Ok(HostMessage::Start(start)) => return Ok(start),
            Ok(HostMessage::Prepare) => {
                ready = true;
                // If the connection is lost already, the next turn finds that out.
                let _ = control.ready();
            }
            Err(HostGone::Lost) if ready => {
                let noticed_ns = clock_ns(Clock::Monotonic);
                *control = Control::new(machine.connect(PORT).map_err(|_| HostGone::Lost)?);
                control.hello(Phase::Prepared, noticed_ns)?;
            }
            Ok(_) => return Err(HostGone::Nonsense),
            Err(gone) => return Err(gone),
        }
    }
}

/// Everything from the order to the running process. Also tells when the root was complete.
fn begin<M: Machine>(machine: &M, stage: Stage, start: Start) -> Result<(Running, Streams, u64), Failure> {
    let guest = |what| move |error| Failure::errno(FailureKind::Guest, what, error);
    // Before anything else: whatever is random from here on must not be what other clones get.
    stage.reseed(&start.seed)?;
    if clock_ns(Clock::Real).abs_diff(start.wall_clock_ns) > CLOCK_TOLERANCE_NS {
        set_wall_clock(start.wall_clock_ns).map_err(guest("setting the clock"))?;
    }
    rustix::system::sethostname(start.hostname.as_bytes()).map_err(|error| {
        Failure::errno(FailureKind::BadRequest, &alloc::format!("host name {:?}", start.hostname), error)
    })?;
    let terminal = start.process.terminal;
    // While the root is made, the host answers.
    let opening = Opening::begin(machine, terminal.is_some(), start.process.stdin).map_err(guest(STREAMS))?;
    root::mount_layers(machine, &start.root)?;
    let has_names = stage.names.write(&start)?;
    root::mount_overlay(&start.root)?;
    root::switch()?;
    if !has_names {
        names::write_through(&start)?;
    }
    stage.mounts.attach()?;
    let root_ns = clock_ns(Clock::Monotonic);
    let (streams, ends) = match terminal {
        Some(size) => Streams::terminal(machine, opening, size, start.process.stdin)?,
        None => Streams::pipes(machine, opening).map_err(guest(STREAMS))?,
    };
    let stdio = match &ends[..] {
        [all] => [all.as_fd(); 3],
        [stdin, stdout, stderr] => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        _ => return Err(guest(STREAMS)(Errno::BADF)),
    };
    let running = process::start(start.process, &start.hostname, stdio, start.root.read_only)?;
    let streams = Streams { terminal_end: terminal.and_then(|_| ends.into_iter().next()), ..streams };
    Ok((running, streams, root_ns))
}

/// Sees to the process, its streams and the host's messages until the process has ended and all it wrote is passed on.
/// Returns how and when it ended.
fn attend(control: &mut Control, running: &mut Running, streams: &mut Streams) -> Result<(ExitStatus, u64), HostGone> {
    let mut ended = None;
    loop {
        if let Some(end) = ended.filter(|_| streams.is_drained()) {
            return Ok(end);
        }
        let ready = wait(control, running, ended.is_some(), streams);
        if ready.control {
            control.receive()?;
            while let Some(message) = control.take()? {
                obey(&message, running, streams);
            }
        }
        for (slot, _) in streams.flows.iter_mut().zip(ready.flows).filter(|(_, ready)| *ready) {
            match slot.as_mut().map(Flow::step) {
                Some(Step::Done) => *slot = None,
                Some(Step::Typed(byte)) => interrupt(byte, running, streams.master.as_deref()),
                Some(Step::More) | None => {}
            }
        }
        running.look_again();
        if ready.process && ended.is_none() {
            ended = Some((running.wait(), clock_ns(Clock::Monotonic)));
            streams.process_ended();
        }
    }
}

/// What [`wait`] has waited for.
struct Ready {
    control: bool,
    process: bool,
    flows: [bool; 3],
}

/// Waits until there is something to do.
fn wait(control: &Control, running: &Running, ended: bool, streams: &Streams) -> Ready {
    // A slot that waits for nothing keeps its place: a terminal's second descriptor would do for none of them.
    let idle = || PollFd::new(control, PollFlags::empty());
    let process = if ended { idle() } else { PollFd::from_borrowed_fd(running.end_event(), PollFlags::IN) };
    let [first, second, third] = streams.flows.each_ref().map(|flow| flow.as_ref().map_or_else(idle, Flow::interest));
    let mut fds = [PollFd::new(control, PollFlags::IN), process, first, second, third];
    let timeout = if ended { None } else { running.look_again_in() };
    // It fails only when interrupted or short of memory: then nothing is ready, and the next turn tries again.
    let _ = poll(&mut fds, timeout.as_ref());
    let [control, process, flows @ ..] = fds.map(|fd| !fd.revents().is_empty());
    Ready { control, process, flows }
}

/// Does what the host says. Messages for other processes than the main one, and a second `Start`, have no meaning.
fn obey(message: &HostMessage, running: &mut Running, streams: &Streams) {
    match (message, &streams.master) {
        (&HostMessage::Signal { process: MAIN_PROCESS, signal }, _) => running.signal(signal),
        (&HostMessage::Resize { process: MAIN_PROCESS, size }, Some(master)) => {
            let _ = resize(master.as_fd(), size);
        }
        _ => {}
    }
}

/// An interrupt or quit character went to the terminal. If that is what it means there, the process in the foreground has
/// been sent its signal; see [`Running::signal`] why that is not enough.
fn interrupt(byte: u8, running: &mut Running, master: Option<&OwnedFd>) {
    const INTERRUPT: (u8, u8) = (0x03, 2);
    const QUIT: (u8, u8) = (0x1c, 3);
    let Some(master) = master else { return };
    let (Ok(modes), Ok(group)) = (tcgetattr(master), tcgetpgrp(master)) else {
        return;
    };
    let (index, signal) = match byte {
        byte if byte == INTERRUPT.0 => (SpecialCodeIndex::VINTR, INTERRUPT.1),
        byte if byte == QUIT.0 => (SpecialCodeIndex::VQUIT, QUIT.1),
        _ => return,
    };
    if modes.local_modes.contains(LocalModes::ISIG) && modes.special_codes[index] == byte {
        running.signalled_by_terminal(signal, group.as_raw_nonzero().get());
    }
}
