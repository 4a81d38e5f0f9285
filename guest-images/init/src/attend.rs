//! Attends to a container whose process runs, until that has ended: its streams, the host's messages, its freezes.

use crate::control::{Control, HostGone};
use crate::failure::{Failure, Reason};
use crate::freeze::Freezer;
use crate::guest::{Machine, PORT, STREAMS, identify};
use crate::names::Own;
use crate::network;
use crate::process::Running;
use crate::relay::{Flow, Step};
use crate::streams::{Opening, Streams, resize};
use crate::sys::{Clock, clock_ns};
use alloc::format;
use guest_protocol::{ExitStatus, FailureKind, HostMessage, Identity, MAIN_PROCESS, Phase};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr, tcgetpgrp};

const ENDED: &str = "the process has ended";

/// A container whose process has started.
pub struct Container {
    /// Its main process.
    pub running: Running,
    /// That one's streams.
    pub streams: Streams,
    /// Stops all its processes, if the kernel can.
    pub freezer: Option<Freezer>,
    /// What it was told it is.
    pub own: Own,
    /// It is on a network.
    pub networked: bool,
    /// /dev/urandom.
    pub random: OwnedFd,
}

/// Sees to the process, its streams and the host's messages until the process has ended and all it wrote is passed on.
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
        if let Some(end) = ended.filter(|_| container.streams.is_drained()) {
            return Ok(end);
        }
        // What came together with the end of a freeze has been read already.
        while let Some(message) = control.take()? {
            obey(&message, control, container, ended.is_some())?;
        }
        let ready = wait(control, container, ended.is_some());
        if ready.control {
            control.receive()?;
        }
        let Container { running, streams, .. } = container;
        for (slot, _) in streams.flows.iter_mut().zip(ready.flows).filter(|(_, ready)| *ready) {
            match slot.as_mut().map(Flow::step) {
                Some(Step::Done) => *slot = None,
                Some(Step::Typed(byte)) => interrupt(byte, running, streams.master.as_deref()),
                Some(Step::More | Step::Idle) | None => {}
            }
        }
        running.look_again();
        if ready.process && ended.is_none() {
            ended = Some((running.wait(), clock_ns(Clock::Monotonic)));
            streams.process_ended();
            take_back(control, container.freezer.as_mut(), ENDED)?;
        }
        if ready.freeze && container.freezer.as_mut().is_some_and(|freezer| freezer.is_complete().unwrap_or(false)) {
            stand_still(machine, control, container)?;
        }
    }
}

/// What [`wait`] has waited for.
struct Ready {
    control: bool,
    process: bool,
    flows: [bool; 3],
    freeze: bool,
}

/// Waits until there is something to do.
fn wait(control: &Control, container: &Container, ended: bool) -> Ready {
    let Container { running, streams, freezer, .. } = container;
    // A slot that waits for nothing keeps its place: a terminal's second descriptor would do for none of them.
    let idle = || PollFd::new(control, PollFlags::empty());
    let process = if ended { idle() } else { PollFd::from_borrowed_fd(running.end_event(), PollFlags::IN) };
    let [first, second, third] = streams.flows.each_ref().map(|flow| flow.as_ref().map_or_else(idle, Flow::interest));
    let freeze = freezer.as_ref().and_then(Freezer::interest);
    let (count, freeze) = freeze.map_or_else(|| (5, idle()), |freeze| (6, freeze));
    let mut fds = [PollFd::new(control, PollFlags::IN), process, first, second, third, freeze];
    let timeout = if ended { None } else { running.look_again_in() };
    // It fails only when interrupted or short of memory: then nothing is ready, and the next turn tries again.
    let _ = poll(fds.get_mut(..count).unwrap_or_default(), timeout.as_ref());
    let [control, process, first, second, third, freeze] = fds.map(|fd| !fd.revents().is_empty());
    Ready { control, process, flows: [first, second, third], freeze }
}

/// Does what the host says. Messages for other processes than the main one, and a second `Start`, have no meaning.
fn obey(message: &HostMessage, control: &Control, container: &mut Container, ended: bool) -> Result<(), HostGone> {
    match (message, &container.streams.master) {
        (&HostMessage::Signal { process: MAIN_PROCESS, signal }, _) => container.running.signal(signal),
        (&HostMessage::Resize { process: MAIN_PROCESS, size }, Some(master)) => {
            let _ = resize(master.as_fd(), size);
        }
        (HostMessage::Freeze, _) if ended => return control.not_frozen(ENDED),
        (HostMessage::Freeze, _) => return freeze(control, container.freezer.as_mut()),
        (HostMessage::Thaw(_), _) => {
            return take_back(control, container.freezer.as_mut(), "the host has taken it back");
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
fn take_back(control: &Control, freezer: Option<&mut Freezer>, why: &str) -> Result<(), HostGone> {
    match freezer.filter(|freezer| freezer.is_under_way()) {
        Some(freezer) => {
            let _ = freezer.thaw();
            control.not_frozen(why)
        }
        None => Ok(()),
    }
}

/// All processes stand still: tells the host, and waits until they may go on. Meanwhile the memory may be saved, and a lost
/// connection means that this is a clone, whose host is another one: it introduces itself there and becomes what it is told.
/// Nothing moves in the streams, but for what the process had written before: that is the original's to pass on.
fn stand_still<M: Machine>(machine: &M, control: &mut Control, container: &mut Container) -> Result<(), HostGone> {
    container.streams.drain();
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
            (Ok(message), None) => obey(&message, control, container, false)?,
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
            control.failed(failure)?;
            control.wait_for_close();
            return Err(HostGone::Lost);
        }
    };
    // Who cannot be let go on has nobody to run for.
    container.freezer.as_mut().map_or(Ok(()), Freezer::thaw).map_err(|_| HostGone::Lost)?;
    own_ns.map_or(Ok(()), |own_ns| control.started(own_ns))
}

/// Makes a clone, all of whose processes stand still, the guest that its host says it is, with streams to that host.
fn become_itself<M: Machine>(machine: &M, container: &mut Container, identity: &Identity) -> Result<(), Failure> {
    let guest = |error| Failure::errno(FailureKind::Guest, STREAMS, error);
    identify(&container.random, &identity.seed, identity.wall_clock_ns, &identity.hostname)?;
    if container.networked {
        let processes = container.freezer.as_ref().map(Freezer::processes).transpose();
        let processes = processes.map_err(|error| Failure::errno(FailureKind::Guest, "cgroup.procs", error))?;
        network::join(identity.network.as_ref(), &processes.unwrap_or_default())?;
    }
    let streams = &mut container.streams;
    let stdin = identity.stdin && streams.has_input();
    let opening = Opening::begin(machine, streams.master.is_some(), stdin).map_err(guest)?;
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
