//! Processes that join the container's main one: what the attendant wants the guest to be told of them, and what is heard of them.
//! What they are to whom is the attendant's business.

use super::super::SessionError;
use super::super::attend::{Attendant, Heard};
use super::{Conversation, State};
use guest_protocol::{FailureKind, GuestMessage, HostMessage, MAIN_PROCESS, ProcessId};

/// What waits to be told.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// To the guest, once the main process runs.
    orders: Vec<HostMessage>,
    /// To the attendant.
    heard: Vec<GuestMessage>,
}

impl Others {
    /// Keeps what the guest has said of another process than the main one; or gives it back.
    pub(super) fn hear(&mut self, message: GuestMessage) -> Result<(), GuestMessage> {
        match process_of(&message) {
            Some(process) if process != MAIN_PROCESS => {
                self.heard.push(message);
                Ok(())
            }
            _ => Err(message),
        }
    }
}

/// Of which process the guest says something.
fn process_of(message: &GuestMessage) -> Option<ProcessId> {
    match message {
        GuestMessage::Started { process, .. }
        | GuestMessage::StartFailed { process, .. }
        | GuestMessage::Exited { process, .. } => Some(*process),
        _ => None,
    }
}

impl Conversation<'_> {
    /// The attendant wants the guest to be told this.
    pub(super) fn tell_of_another(&mut self, message: HostMessage) -> Result<(), SessionError> {
        match (&message, self.state) {
            (HostMessage::Exec(_), State::Running) if !self.guest_takes_orders() => {
                self.refuse(message, "the guest takes no more orders");
                Ok(())
            }
            (_, State::Running) => self.tell_guest(&message),
            (HostMessage::Exec(_), State::Draining(_)) => {
                self.refuse(message, "the container's process has ended");
                Ok(())
            }
            (HostMessage::Exec(_), _) => {
                self.others.orders.push(message);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn guest_takes_orders(&self) -> bool {
        self.control.as_ref().is_some_and(|control| !control.is_full())
    }

    fn refuse(&mut self, order: HostMessage, why: &str) {
        if let HostMessage::Exec(exec) = order {
            let (process, kind) = (exec.process, FailureKind::Guest);
            self.others.heard.push(GuestMessage::StartFailed { process, kind, detail: why.into() });
        }
    }

    /// Tells both sides what there is to tell.
    pub(super) fn hand_over(&mut self, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        if matches!(self.state, State::Running | State::Draining(_)) {
            std::mem::take(&mut self.others.orders).into_iter().try_for_each(|order| self.tell_of_another(order))?;
        }
        for (header, stream) in self.streams.as_mut().map(|streams| streams.take_others()).unwrap_or_default() {
            attendant.heard(Heard::Opened(header, stream));
        }
        for message in std::mem::take(&mut self.others.heard) {
            attendant.heard(Heard::Said(message));
        }
        Ok(())
    }
}
