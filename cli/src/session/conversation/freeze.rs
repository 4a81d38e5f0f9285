//! What an attendant wants of a conversation: to have the container's processes frozen for a while, or to end it.

use super::super::SessionError;
use super::super::attend::{Attendant, FreezeError, Wish};
use super::{Conversation, State};
use guest_protocol::HostMessage;

/// Where a freeze is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nobody wants one.
    Idle,
    /// Until the process runs.
    Wanted,
    /// The guest has been asked.
    Asked,
    /// The guest has said `Frozen`.
    Frozen,
}

/// Freezes of one conversation, one at a time.
#[derive(Debug)]
pub(super) struct Freezing {
    progress: Progress,
    /// Answers still to come to freezes that were given up: the guest answers each, in order.
    stale: u32,
    /// Why the last one did not come about, until the attendant knows.
    refused: Option<FreezeError>,
    /// The attendant has asked for the end.
    pub(super) leaving: bool,
}

impl Freezing {
    pub(super) const NONE: Self = Self { progress: Progress::Idle, stale: 0, refused: None, leaving: false };

    /// The guest has answered. False: nobody had asked.
    pub(super) fn answered(&mut self, result: Result<(), FreezeError>) -> bool {
        if let Some(stale) = self.stale.checked_sub(1) {
            self.stale = stale;
            return true;
        }
        if self.progress != Progress::Asked {
            return false;
        }
        match result {
            Ok(()) => self.progress = Progress::Frozen,
            Err(reason) => self.refuse(reason),
        }
        true
    }

    fn refuse(&mut self, reason: FreezeError) {
        self.progress = Progress::Idle;
        self.refused = Some(reason);
    }
}

impl Conversation<'_> {
    /// Asks the attendant what it wants.
    pub(super) fn attend(&mut self, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        match attendant.wish() {
            None => Ok(()),
            Some(Wish::Freeze) if self.freezing.progress != Progress::Idle => {
                attendant.over(Err(FreezeError::Already));
                Ok(())
            }
            Some(Wish::Freeze) => {
                self.freezing.progress = Progress::Wanted;
                Ok(())
            }
            Some(Wish::GiveUp) => self.give_up(),
            Some(Wish::Leave) => {
                self.freezing.leaving = true;
                self.raw = None;
                if let Some(streams) = &mut self.streams {
                    streams.cut();
                }
                Ok(())
            }
        }
    }

    fn give_up(&mut self) -> Result<(), SessionError> {
        self.freezing.refused = None;
        let was = std::mem::replace(&mut self.freezing.progress, Progress::Idle);
        if was != Progress::Asked {
            return Ok(());
        }
        self.freezing.stale += 1;
        self.tell_guest(&HostMessage::Thaw(None))
    }

    /// Takes a freeze one step further, if there is one.
    pub(super) fn pursue_freeze(&mut self, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        match (self.freezing.progress, self.state) {
            (Progress::Wanted | Progress::Asked, State::Draining(_)) => self.freezing.refuse(FreezeError::Ended),
            (Progress::Wanted, State::Running) => {
                self.freezing.progress = Progress::Asked;
                self.tell_guest(&HostMessage::Freeze)?;
            }
            (Progress::Frozen, _) => {
                attendant.frozen();
                self.freezing.progress = Progress::Idle;
                self.tell_guest(&HostMessage::Thaw(None))?;
                attendant.over(Ok(()));
            }
            _ => {}
        }
        if let Some(reason) = self.freezing.refused.take() {
            attendant.over(Err(reason));
        }
        Ok(())
    }

    /// The conversation is at its end: no freeze will come about.
    pub(super) fn abandon_freeze(&mut self, attendant: &mut dyn Attendant) {
        if self.freezing.progress != Progress::Idle {
            self.freezing.refuse(FreezeError::Gone);
        }
        if let Some(reason) = self.freezing.refused.take() {
            attendant.over(Err(reason));
        }
    }
}
