//! A container's life without a microVM, in a container of this host's kernel; all else as it is.

use std::cell::RefCell;

use anyhow::{Context, anyhow};
use guest_protocol::{Layer, LayerFs, Start, Upper};

use super::{Kept, Running, done, facts, start};
use crate::container::{Done, place_of_none};
use crate::containers::{Held, Record};
use crate::failure::Failure;
use crate::net;
use crate::oci::{self, Alive};
use crate::owner::{History, Owner, Shared};
use crate::paths;
use crate::rundir::RunDir;
use crate::session::{Ended, SessionError};
use crate::signals::{Guard, Holding};
use crate::volumes::Volumes;

/// What init is told of a container that has no microVM.
pub fn start_contained(record: &Record, volumes: &Volumes, network: Option<&net::Connection>) -> anyhow::Result<Start> {
    let mut start = start(record, &[], network)?;
    // Its files are a directory, wherever the layers are.
    start.root.layers = vec![Layer { start_sector: 0, sectors: 0, fs: LayerFs::Erofs }];
    // With --rm as well: that directory goes, too, and memory is what its processes have a limit of.
    start.root.upper = Upper::Disk;
    start.volumes = volumes.for_guest();
    start.settings = oci::for_init(start.settings);
    Ok(start)
}

/// How it came to its end.
pub fn conclude(result: Result<Ended, SessionError>, alive: &Alive) -> Result<Done, Failure> {
    match result {
        Ok(Ended::Exited(outcome)) => Ok(done(outcome)),
        Ok(Ended::Left(_)) => Err(anyhow!("the container was given up for nothing").into()),
        Err(SessionError::VmEnded(_) | SessionError::GuestClosed) => Err(anyhow::Error::from(alive.lost()).into()),
        Err(error @ SessionError::Interrupted(_)) => Err(Failure::silent(error.exit_code())),
        Err(error) => Err(Failure::with_code(error.exit_code(), error)),
    }
}

impl Running {
    /// The same as [`Running::run`], by a runtime.
    pub(super) fn run_contained(
        self,
        guard: &Guard<Kept>,
        holding: Holding<'_, Kept>,
        held: &mut Option<Held>,
        kept: &RefCell<Option<Kept>>,
        tracked: &Shared,
    ) -> Result<Done, Failure> {
        let network = self.connection()?;
        let volumes = Volumes::find(&self.record.flags.volume)?;
        let start = start_contained(&self.record, &volumes, network.as_ref())?;
        let directory = RunDir::create(&paths::run(), Some(self.record.id.short()))?;
        let facts = facts(&self.name, &self.record, self.keys.clone());
        let mut owner = Owner::listen(&directory, facts, History::new()?, place_of_none(&directory))?;
        owner.track(tracked.clone()).context("cannot listen to whoever it is started for")?;
        let (dir, run_dir) = (tracked.borrow().dir.clone(), directory.path());
        if let Some(held) = held.take() {
            holding.keep((directory, held));
        }
        let (network, rates) = (network.as_ref(), self.record.flags.rates);
        let (alive, output) = Alive::prepare(&self.record, &dir, &run_dir, &self.layers, &volumes, network, rates)?;
        owner.has_runtime(alive.controls());
        let converse = || -> anyhow::Result<Result<Ended, SessionError>> {
            let mut conversation = alive.session.begin(alive.ended())?;
            // Kept here from the moment on in which a signal is for the session.
            if let Some(passed) = guard.pass() {
                kept.replace(Some(passed));
            }
            alive.start(output)?;
            if let Err(error) = conversation.arrive() {
                return Ok(Err(error));
            }
            Ok(conversation.start(start, self.io, &mut owner))
        };
        let result = converse()?;
        match alive.killed_for_memory() {
            0 => {}
            1 => tracked.borrow_mut().out_of_memory("one of its processes"),
            several => tracked.borrow_mut().out_of_memory(&format!("{several} of its processes")),
        }
        conclude(result, &alive)
    }
}
