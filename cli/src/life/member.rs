//! A container's life in a pod: no microVM of its own, but a place in one; all else as it is.

use std::cell::RefCell;

use anyhow::Context;

use super::{Kept, Running, done, facts, start, upper_of};
use crate::container::{Done, place_of_none};
use crate::failure::Failure;
use crate::owner::{History, Owner, Shared};
use crate::paths;
use crate::pods::member::Told;
use crate::pods::place::Place;
use crate::rundir::RunDir;
use crate::session::{Ended, SessionError};
use crate::signals::{Guard, Holding};

impl Running {
    /// The same as [`Running::run`], in the pod of this id.
    pub(super) fn run_in_pod(
        self,
        pod: &str,
        guard: &Guard<Kept>,
        holding: Holding<'_, Kept>,
        held: &mut Option<crate::containers::Held>,
        kept: &RefCell<Option<Kept>>,
        tracked: &Shared,
    ) -> Result<Done, Failure> {
        let directory = RunDir::create(&paths::run(), Some(self.record.id.short()))?;
        let mut owner = Owner::listen(
            &directory,
            facts(&self.name, &self.record, self.keys.clone()),
            History::new()?,
            place_of_none(&directory),
        )?;
        owner.track(tracked.clone()).context("cannot listen to whoever it is started for")?;
        let upper = upper_of(&self.record, &tracked.borrow().dir);
        if let Some(held) = held.take() {
            holding.keep((directory, held));
        }
        let place = Place::take(pod)?;
        owner.is_in_pod(&place.pod().name);
        let mut start = start(&self.record, &self.layers, None)?;
        start.volumes = crate::volumes::Volumes::find(&self.record.flags.volume)?.for_guest();
        Told::find(&place.pod().directory)?.tell(&mut start, &self.record.flags);
        let converse = || -> anyhow::Result<Result<Ended, SessionError>> {
            let mut conversation = place.session.begin(place.ended())?;
            // Kept here from the moment on in which a signal is for the session.
            if let Some(passed) = guard.pass() {
                kept.replace(Some(passed));
            }
            if let Err(error) = conversation.arrive() {
                return Ok(Err(error));
            }
            place.furnish(&self.layers, upper.as_deref())?;
            Ok(conversation.start(start, self.io, &mut owner))
        };
        match converse() {
            Ok(Ok(Ended::Exited(outcome))) => {
                place.leave();
                Ok(done(outcome))
            }
            Ok(Ok(Ended::Left(_))) => {
                place.leave();
                Err(anyhow::anyhow!("the place in the pod was given up for nothing").into())
            }
            Ok(Err(SessionError::VmEnded(_) | SessionError::GuestClosed)) => Err(place.why().into()),
            Ok(Err(error)) => {
                place.leave();
                Err(match error {
                    SessionError::Interrupted(_) => Failure::silent(error.exit_code()),
                    error => Failure::with_code(error.exit_code(), error),
                })
            }
            Err(error) => {
                place.leave();
                Err(error.into())
            }
        }
    }
}
