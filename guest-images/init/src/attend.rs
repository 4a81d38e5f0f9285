//! Attends to a container whose process runs, until that has ended: its streams, the host's messages, its freezes.

use crate::control::{Control, HostGone};
use crate::exec::{Common, EVENTS, Execs};
use crate::failure::{Failure, Reason};
use crate::freeze::Freezer;
use crate::guest::{Machine, PORT, STREAMS, identify, rename};
use crate::names::Own;
use crate::network;
use crate::process::Defaults;
use crate::relay::{Flow, Step};
use crate::restless;
use crate::running::Running;
use crate::streams::{Opening, Output, Streams, resize};
use crate::sys::{Clock, clock_ns};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_protocol::{ExitStatus, FailureKind, HostMessage, Identity, MAIN_PROCESS, Phase};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr, tcgetpgrp};

const ENDED: &str = "the process has ended";
/// Descriptors that are waited for in any case: the host, the main process, its flows.
const FIXED: usize = 5;

/// A container whose process has started.
pub struct Container {
    /// Its main process.
    pub running: Running,
    /// That one's streams.
    pub streams: Streams,
    /// The processes that have joined it.
    pub execs: Execs,
    /// What it was given, for those.
    pub defaults: Defaults,
    /// Stops all its processes, if the kernel can.
    pub freezer: Option<Freezer>,
    /// What it was told it is.
    pub own: Own,
    /// The root of its writable layer's file system.
    pub upper: OwnedFd,
    /// That is on a disk.
    pub on_disk: bool,
    /// It is on a network.
    pub networked: bool,
    /// What its process has changed is to be said in the end.
    pub changes: bool,
    /// /dev/urandom.
    pub random: OwnedFd,
}

impl Container {
    /// All of it goes; what is left is its writable layer's file system, if that is on a disk.
    #[must_use]
    pub fn into_disk(self) -> Option<OwnedFd> {
        self.on_disk.then_some(self.upper)
    }
}

/// Sees to the process, its streams and the host's messages until the process has ended and all it wrote is passed on, and what it has
/// changed, if that is wanted.
/// Returns how and when it ended.
///
/// # Errors
/// There is nobody left to run for.
pub fn attend<M: Machine>(
    machine: &M,
    control: &mut Control,
    container: &mut Container,
) -> Result<(ExitStatus, u64), HostGone> {
    let mut ended = None;
    loop {
        if let Some(end) = ended.filter(|_| container.streams.is_drained() && container.execs.count() == 0) {
            return Ok(end);
        }
        // What came together with the end of a freeze has been read already.
        while let Some(message) = control.take()? {
            obey(message, control, container, ended.is_some())?;
        }
        start_one(machine, control, container)?;
        let ready = wait(control, container, ended.is_some());
        if ready.control {
            control.receive()?;
        }
        let Container { running, streams, .. } = container;
        for (at, _) in ready.flows.into_iter().enumerate().filter(|(_, ready)| *ready) {
            match streams.step(machine, at) {
                Some(Step::Done) => streams.flows.get_mut(at).into_iter().for_each(|slot| *slot = None),
                Some(Step::Typed(byte)) => interrupt(byte, running, streams.master.as_deref()),
                Some(Step::More | Step::Idle) | None => {}
            }
        }
        running.look_again();
        container.execs.step(machine, &ready.execs, control)?;
        let Container { running, streams, .. } = container;
        if ready.process && ended.is_none() {
            ended = Some((running.wait(), clock_ns(Clock::Monotonic)));
            streams.process_ended();
            container.execs.finish(machine, control)?;
            take_back(control, container.freezer.as_mut(), || ENDED.into())?;
            if container.changes && matches!(ended, Some((ExitStatus::Code(0), _))) {
                container.execs.tell_changes(machine, control, container.upper.as_fd())?;
            }
        }
        if ready.freeze && container.freezer.as_mut().is_some_and(|freezer| freezer.is_complete().unwrap_or(false)) {
            stand_still(machine, control, container)?;
        }
    }
}

/// Starts one of the processes that are to join the main one: one at a time, since that takes a while, and nothing else is seen to
/// meanwhile. Not while a freeze is under way.
fn start_one<M: Machine>(machine: &M, control: &Control, container: &mut Container) -> Result<(), HostGone> {
    let Container { running, execs, defaults, freezer, own, upper, .. } = container;
    if freezer.as_ref().is_some_and(Freezer::is_under_way) {
        return Ok(());
    }
    let (hostname, freezer, upper) = (own.hostname(), freezer.as_ref(), upper.as_fd());
    let common = Common { main: running, defaults, hostname, freezer, upper };
    execs.start_one(machine, control, &common)
}

/// What [`wait`] has waited for.
struct Ready {
    control: bool,
    process: bool,
    flows: [bool; 3],
    execs: Vec<[bool; EVENTS]>,
    freeze: bool,
}

/// Waits until there is something to do.
fn wait(control: &Control, container: &Container, ended: bool) -> Ready {
    let Container { running, streams, execs, freezer, .. } = container;
    // A slot that waits for nothing keeps its place: a terminal's second descriptor would do for none of them.
    let idle = || PollFd::new(control, PollFlags::empty());
    let process = if ended { idle() } else { PollFd::from_borrowed_fd(running.end_event(), PollFlags::IN) };
    let [first, second, third] = streams.flows.each_ref().map(|flow| flow.as_ref().map_or_else(idle, Flow::interest));
    let mut fds = Vec::with_capacity(FIXED + 1 + EVENTS * execs.count());
    fds.extend([PollFd::new(control, PollFlags::IN), process, first, second, third]);
    execs.interests(&mut fds, idle);
    let all_execs = fds.len();
    let freeze = freezer.as_ref().and_then(Freezer::interest);
    let freezing = freeze.is_some();
    fds.extend(freeze);
    let timeout = match freezing || !execs.has_waiting() {
        _ if ended => None,
        true => running.look_again_in(),
        false => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
    };
    // It fails only when interrupted or short of memory: then nothing is ready, and the next turn tries again.
    let _ = poll(&mut fds, timeout.as_ref());
    let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    Ready {
        control: ready(0),
        process: ready(1),
        flows: [ready(2), ready(3), ready(4)],
        execs: (FIXED..all_execs).step_by(EVENTS).map(|at| [0, 1, 2, 3].map(|event| ready(at + event))).collect(),
        freeze: freezing && ready(all_execs),
    }
}

/// Does what the host says. A second `Start` has no meaning.
fn obey(message: HostMessage, control: &Control, container: &mut Container, ended: bool) -> Result<(), HostGone> {
    match (message, &container.streams.master) {
        (HostMessage::Signal { process: MAIN_PROCESS, signal }, _) => container.running.signal(signal),
        (HostMessage::Signal { process, signal }, _) => container.execs.signal(process, signal),
        (HostMessage::Resize { process: MAIN_PROCESS, size }, Some(master)) => {
            let _ = resize(master.as_fd(), size);
        }
        (HostMessage::Resize { process, size }, _) => container.execs.resize(process, size),
        (HostMessage::Exec(exec), _) if ended => {
            return control.failed(exec.process, Failure::new(FailureKind::Guest, ENDED.into()));
        }
        (HostMessage::Exec(exec), _) => return container.execs.order(*exec, control),
        (HostMessage::Freeze, _) if ended => return control.not_frozen(ENDED),
        (HostMessage::Freeze, _) => return freeze(control, container.freezer.as_mut()),
        (HostMessage::Thaw(_), _) => {
            return take_back(control, container.freezer.as_mut(), restless::tell);
        }
        _ => {}
    }
    Ok(())
}

/// Begins a freeze; one that is under way stays the same.
fn freeze(control: &Control, freezer: Option<&mut Freezer>) -> Result<(), HostGone> {
    let Some(freezer) = freezer else {
        return control.not_frozen("its kernel has no cgroup v2");
    };
    if freezer.is_under_way() {
        return Ok(());
    }
    freezer.freeze().or_else(|error| {
        let _ = freezer.thaw();
        control.not_frozen(&format!("cgroup.freeze: {}", Reason(error)))
    })
}

/// Takes a freeze back that is under way.
fn take_back(control: &Control, freezer: Option<&mut Freezer>, why: impl FnOnce() -> String) -> Result<(), HostGone> {
    match freezer.filter(|freezer| freezer.is_under_way()) {
        Some(freezer) => {
            let why = why();
            let _ = freezer.thaw();
            control.not_frozen(&why)
        }
        None => Ok(()),
    }
}

/// All processes stand still: tells the host, and waits until they may go on. Meanwhile the memory may be saved, and a lost
/// connection means that this is a clone, whose host is another one: it introduces itself there and becomes what it is told.
/// Nothing moves in the streams, but for what the process had written before: that is the original's to pass on.
fn stand_still<M: Machine>(machine: &M, control: &mut Control, container: &mut Container) -> Result<(), HostGone> {
    container.streams.drain(machine);
    container.execs.drain(machine);
    // If the connection is lost already, the next turn finds that out.
    let _ = control.frozen();
    let mut noticed_ns = None;
    let identity = loop {
        match (control.order(), noticed_ns) {
            (Ok(HostMessage::Thaw(None)), None) => break None,
            (Ok(HostMessage::Thaw(Some(identity))), Some(_)) => break Some(identity),
            // Nobody runs on as somebody else, nor is one container two.
            (Ok(HostMessage::Thaw(_)), _) => return Err(HostGone::Nonsense),
            // A second freeze is this one.
            (Ok(HostMessage::Freeze), _) => {}
            (Ok(message), None) => obey(message, control, container, false)?,
            (Ok(_), Some(_)) => {}
            (Err(HostGone::Lost), _) => {
                noticed_ns = Some(clock_ns(Clock::Monotonic));
                if container.networked {
                    network::leave();
                }
                *control = Control::new(machine.connect(PORT).map_err(|_| HostGone::Lost)?);
                let terminal = container.streams.master.is_some();
                control.hello(Phase::Frozen { terminal }, noticed_ns.unwrap_or_default())?;
            }
            (Err(gone), _) => return Err(gone),
        }
    };
    let own_ns = match identity.map(|identity| become_itself(machine, container, &identity)) {
        None => None,
        Some(Ok(())) => Some(clock_ns(Clock::Monotonic)),
        Some(Err(failure)) => {
            control.failed(MAIN_PROCESS, failure)?;
            control.wait_for_close();
            return Err(HostGone::Lost);
        }
    };
    // Who cannot be let go on has nobody to run for.
    container.freezer.as_mut().map_or(Ok(()), Freezer::thaw).map_err(|_| HostGone::Lost)?;
    own_ns.map_or(Ok(()), |own_ns| control.started(MAIN_PROCESS, own_ns))
}

/// Makes a clone, all of whose processes stand still, the guest that its host says it is, with streams to that host.
fn become_itself<M: Machine>(machine: &M, container: &mut Container, identity: &Identity) -> Result<(), Failure> {
    let guest = |error| Failure::errno(FailureKind::Guest, STREAMS, error);
    identify(&container.random, &identity.seed, identity.wall_clock_ns)?;
    rename(&identity.hostname)?;
    if container.networked {
        let processes = container.freezer.as_ref().map(Freezer::processes).transpose();
        let processes = processes.map_err(|error| Failure::errno(FailureKind::Guest, "cgroup.procs", error))?;
        network::join(identity.network.as_ref(), &processes.unwrap_or_default())?;
    }
    container.execs.forget_host();
    let streams = &mut container.streams;
    let stdin = identity.stdin && streams.has_input();
    let opening =
        Opening::begin(machine, MAIN_PROCESS, streams.master.is_some(), stdin, Output::Later).map_err(guest)?;
    container.own.rename(identity)?;
    streams.rejoin(machine, opening, stdin).map_err(guest)?;
    if let Some(master) = &streams.master {
        let _ = resize(master.as_fd(), identity.size);
    }
    Ok(())
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
