//! What an attendant wants of a conversation: to have the container's processes frozen for a while, or to end it.

use super::super::SessionError;
use super::super::attend::{Attendant, FreezeError, Wish};
use super::{Conversation, State};
use guest_protocol::{HostMessage, MAIN_PROCESS};
use rustix::event::Timespec;
use std::time::{Duration, Instant};

/// How long a container may take to start, if it has not, and to stand still. A guest on an emulated processor takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the guest may take to say what did not stand still.
const ANSWER: Duration = Duration::from_secs(10);

const SIGKILL: u8 = 9;

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
    /// It is late, and the guest has been told to forget it: its answer says why.
    TakenBack,
}

/// Freezes of one conversation, one at a time.
#[derive(Debug)]
pub(super) struct Freezing {
    progress: Progress,
    /// When the one that is wished for is late.
    deadline: Option<Instant>,
    /// How long after the wish that is.
    pub(super) patience: Duration,
    /// Answers still to come to freezes that were given up: the guest answers each, in order.
    stale: u32,
    /// Why the last one did not come about, until the attendant knows.
    refused: Option<FreezeError>,
    /// The attendant has asked for the end.
    pub(super) leaving: bool,
}

impl Freezing {
    pub(super) const NONE: Self =
        Self { progress: Progress::Idle, deadline: None, patience: PATIENCE, stale: 0, refused: None, leaving: false };

    /// How long what is wished for may still take; none if nothing is, or for ever.
    pub(super) fn left(&self) -> Option<Timespec> {
        let waits = matches!(self.progress, Progress::Wanted | Progress::Asked | Progress::TakenBack);
        let deadline = self.deadline.filter(|_| waits)?;
        let left = deadline.saturating_duration_since(Instant::now());
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    fn is_late(&self) -> bool {
        self.left().is_some_and(|left| left.tv_sec == 0 && left.tv_nsec == 0)
    }

    /// The guest has answered. False: nobody had asked.
    pub(super) fn answered(&mut self, result: Result<(), FreezeError>) -> bool {
        if let Some(stale) = self.stale.checked_sub(1) {
            self.stale = stale;
            return true;
        }
        match (self.progress, result) {
            (Progress::Asked, Ok(())) => self.progress = Progress::Frozen,
            (Progress::Asked, Err(reason)) => self.refuse(reason),
            (Progress::TakenBack, Err(FreezeError::Guest(what))) => self.refuse(self.late(what)),
            (Progress::TakenBack, _) => self.refuse(self.late("it did a moment later".into())),
            _ => return false,
        }
        true
    }

    fn late(&self, what: String) -> FreezeError {
        FreezeError::Late { seconds: self.patience.as_secs(), what }
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
                self.freezing.deadline = Instant::now().checked_add(self.freezing.patience);
                Ok(())
            }
            Some(Wish::GiveUp) => self.give_up(),
            Some(Wish::Signal(signal)) => self.tell_guest(&HostMessage::Signal { process: MAIN_PROCESS, signal }),
            Some(Wish::End) => Err(SessionError::Interrupted(SIGKILL)),
            Some(Wish::Tell(message)) => self.tell_of_another(message),
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
        self.take_back()
    }

    /// The one that is under way is over; an answer to it will mean nothing.
    fn take_back(&mut self) -> Result<(), SessionError> {
        let was = std::mem::replace(&mut self.freezing.progress, Progress::Idle);
        if !matches!(was, Progress::Asked | Progress::TakenBack) {
            return Ok(());
        }
        self.freezing.stale += 1;
        if was == Progress::Asked { self.tell_guest(&HostMessage::Thaw(None)) } else { Ok(()) }
    }

    /// One that is late: what did not stand still, the guest says when it is told to forget it, if it says anything.
    fn call_off(&mut self) -> Result<(), SessionError> {
        let what = match self.freezing.progress {
            Progress::Asked => {
                self.freezing.progress = Progress::TakenBack;
                self.freezing.deadline = Instant::now().checked_add(self.freezing.patience.min(ANSWER));
                return self.tell_guest(&HostMessage::Thaw(None));
            }
            Progress::TakenBack => "its guest does not answer",
            _ => "its process has not started",
        };
        self.take_back()?;
        self.freezing.refuse(self.freezing.late(what.into()));
        Ok(())
    }

    /// Takes a freeze one step further, if there is one.
    pub(super) fn pursue_freeze(&mut self, attendant: &mut dyn Attendant) -> Result<(), SessionError> {
        if self.freezing.is_late() {
            self.call_off()?;
        }
        match (self.freezing.progress, self.state) {
            (Progress::Wanted | Progress::Asked | Progress::TakenBack, State::Draining(_)) => {
                self.freezing.refuse(FreezeError::Ended)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_told_with_the_guests_reason() {
        let taken_back = || Freezing { progress: Progress::TakenBack, ..Freezing::NONE };
        let said = |result| {
            let mut freezing = taken_back();
            assert!(freezing.answered(result) && freezing.progress == Progress::Idle);
            freezing.refused.unwrap().to_string()
        };
        let late = "the container did not come to a standstill within 60 s: ";
        assert_eq!(said(Err(FreezeError::Guest("sh (1) is in state D".into()))), format!("{late}sh (1) is in state D"));
        assert_eq!(said(Ok(())), format!("{late}it did a moment later"));
        // The answer to one before it is not its own.
        let mut freezing = Freezing { stale: 1, ..taken_back() };
        assert!(freezing.answered(Ok(())) && freezing.progress == Progress::TakenBack);
    }
}
