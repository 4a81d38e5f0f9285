//! The guest's side of a conversation: its connection, what it says, and what that means.

use super::super::SessionError;
use super::super::attend::{Attendant, FreezeError, NoAttendant};
use super::super::control::{Control, Received};
use super::super::io::RawMode;
use super::super::streams::Streams;
use super::super::times::{now_ns, placed, wall_clock_ns};
use super::{Conversation, FROZEN_CLONE, Order, State, host};
use guest_protocol::{GuestMessage, HostMessage, MAIN_PROCESS, Phase, Seed, VERSION};
use rustix::rand::GetRandomFlags;
use std::io::ErrorKind;

impl Conversation<'_> {
    /// Init has connected.
    pub(super) fn greet(&mut self) -> Result<(), SessionError> {
        let connection = match self.control_listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(host("accept the guest's connection")(error)),
        };
        let mut control = Control::new(connection).map_err(host("accept the guest's connection"))?;
        control.send(&HostMessage::Hello { version: VERSION })?;
        self.control = Some(control);
        self.state = State::Greeting;
        self.send_order()
    }

    /// Goes on with a guest that has been said hello to, and has said this.
    pub(in super::super) fn resume(&mut self, control: Control, hello: GuestMessage) -> Result<(), SessionError> {
        self.control = Some(control);
        self.state = State::Greeting;
        self.heed(hello, &mut NoAttendant)
    }

    /// Sends what the guest is to do. Until it has said hello it may not be the last connection that it is sent on.
    pub(super) fn send_order(&mut self) -> Result<(), SessionError> {
        let order = if self.state == State::Greeting { self.order.clone() } else { self.order.take() };
        let message = match order {
            None => return Ok(()),
            Some(Order::Prepare(network)) => {
                self.preparing = true;
                HostMessage::Prepare(network)
            }
            Some(Order::Start(mut start)) => {
                self.preparing = false;
                start.seed = new_seed()?;
                start.wall_clock_ns = wall_clock_ns();
                HostMessage::Start(start)
            }
            Some(Order::Thaw(mut identity)) => {
                identity.seed = new_seed()?;
                identity.wall_clock_ns = wall_clock_ns();
                HostMessage::Thaw(Some(identity))
            }
        };
        self.control.as_mut().map_or(Ok(()), |control| control.send(&message))
    }

    /// Whatever init has said.
    pub(super) fn listen_to_guest(&mut self, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        control.flush();
        let received = control.receive();
        while let Some(message) = self.control.as_mut().map(Control::take).transpose()?.flatten() {
            self.heed(message, attendant)?;
        }
        if received == Received::End {
            self.control = None;
            if self.state == State::Greeting {
                // On a busy host its kernel gives up a connection that is not answered within two seconds, and init asks anew: what
                // has come here is the one that nobody has any more.
                self.state = State::Booting;
                return Ok(());
            }
            self.guest_gone = true;
            self.no_more_streams()?;
        }
        Ok(())
    }

    fn heed(&mut self, mut message: GuestMessage, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        if matches!(self.state, State::Running | State::Draining(_)) {
            message = match self.others.hear(message) {
                Ok(()) => return Ok(()),
                Err(message) => message,
            };
        }
        match (self.state, message) {
            (State::Greeting, GuestMessage::Hello { version: VERSION, phase, init_ns, now_ns: guest_now }) => {
                let kernel = placed(0, guest_now);
                self.times.init = placed(init_ns, guest_now);
                // The clock of a clone began with the guest it is a clone of.
                self.times.kernel = if phase == Phase::Booted { kernel } else { self.times.init };
                self.times.connected = now_ns();
                self.order = None;
                self.state = match phase {
                    // What a clone is to become is nothing for one that is something already.
                    Phase::Frozen { .. } if self.preparing || self.streams.is_some() => {
                        return Err(SessionError::Unexpected(FROZEN_CLONE));
                    }
                    Phase::Frozen { terminal } => State::Found { terminal },
                    _ if self.preparing => State::Preparing,
                    _ => State::Starting,
                };
                Ok(())
            }
            (State::Greeting, GuestMessage::Hello { version, .. }) => Err(SessionError::Version { guest: version }),
            (State::Preparing, GuestMessage::Ready { .. }) => {
                self.state = State::Prepared;
                Ok(())
            }
            (State::Starting, GuestMessage::Started { process: MAIN_PROCESS, root_ns, now_ns: guest_now }) => {
                self.times.root = placed(root_ns, guest_now);
                self.times.started = now_ns();
                self.state = State::Running;
                attendant.started();
                self.process_runs()
            }
            (State::Preparing | State::Starting, GuestMessage::StartFailed { process: MAIN_PROCESS, kind, detail }) => {
                Err(SessionError::StartFailed { kind, detail: line(&detail) })
            }
            (State::Running, GuestMessage::Exited { process: MAIN_PROCESS, status, exit_ns, now_ns: guest_now }) => {
                self.times.exited = placed(exit_ns, guest_now);
                self.state = State::Draining(status);
                self.raw = None;
                // It opens one when there is something to be said there, and has said all.
                self.no_more_streams()
            }
            (State::Running, GuestMessage::OutOfMemory { detail }) => {
                attendant.out_of_memory(&line(&detail));
                Ok(())
            }
            (State::Running, GuestMessage::Frozen { .. }) if self.freezing.answered(Ok(())) => Ok(()),
            (State::Running, GuestMessage::NotFrozen { detail })
                if self.freezing.answered(Err(FreezeError::Guest(line(&detail)))) =>
            {
                Ok(())
            }
            (_, message) => Err(SessionError::Unexpected(name(&message))),
        }
    }

    /// From now on the terminal's keys are the process's.
    fn process_runs(&mut self) -> Result<(), SessionError> {
        if let Some(streams) = &mut self.streams {
            if let Some(keyboard) = streams.io.keyboard() {
                self.raw = Some(RawMode::enter(keyboard).map_err(host("put the terminal into raw mode"))?);
            }
            streams.flow()?;
        }
        self.resize()
    }

    /// The VM has ended. What it had sent is still there to be read.
    pub(super) fn vm_ended(&mut self, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        self.vm_gone = true;
        if self.control.is_none() && !self.guest_gone {
            self.greet()?;
        }
        while let Some(control) = &mut self.control {
            let received = control.receive();
            while let Some(message) = self.control.as_mut().map(Control::take).transpose()?.flatten() {
                self.heed(message, attendant)?;
            }
            if received != Received::Something {
                self.control = None;
                self.guest_gone = true;
            }
        }
        self.no_more_streams()
    }

    /// Streams that are not there by now will not come.
    fn no_more_streams(&mut self) -> Result<(), SessionError> {
        self.streams.as_mut().map_or(Ok(()), Streams::no_more)
    }
}

/// A seed of its own for each guest.
fn new_seed() -> Result<Seed, SessionError> {
    let mut seed = Seed([0; 32]);
    rustix::rand::getrandom(&mut seed.0, GetRandomFlags::empty())
        .map_err(|error| host("get random numbers")(error.into()))?;
    Ok(seed)
}

/// The guest's words, fit for the user's terminal.
pub(in super::super) fn line(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn name(message: &GuestMessage) -> &'static str {
    match message {
        GuestMessage::Hello { .. } => "Hello",
        GuestMessage::Started { .. } => "Started",
        GuestMessage::StartFailed { .. } => "StartFailed",
        GuestMessage::OutOfMemory { .. } => "OutOfMemory",
        GuestMessage::Exited { .. } => "Exited",
        GuestMessage::Ready { .. } => "Ready",
        GuestMessage::Frozen { .. } => "Frozen",
        GuestMessage::NotFrozen { .. } => "NotFrozen",
    }
}
