//! A container that a runtime has started: what a microVM is to one that has such.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use anyhow::Context;
use guest_images::{Layer, Store};
use rustix::pipe::{PipeFlags, pipe_with};

use super::cable::Cable;
use super::{Bundle, Controls, Group, Keeper, disks};
use crate::containers::Record;
use crate::net::Connection;
use crate::paths;
use crate::rates::Rates;
use crate::session::Session;
use crate::volumes::Volumes;

/// The directory of the sockets for init, in a run directory. There is nothing else in it, since the container has it.
const SOCKETS: &str = "guest";

/// Its first process, init, is gone, and with it all others.
#[derive(Debug, thiserror::Error)]
#[error("the first process of the container's namespaces ended unexpectedly ({0})")]
pub struct Lost(String);

/// It ends when this is dropped.
pub struct Alive {
    bundle: Bundle,
    /// Where init connects.
    pub session: Session,
    /// At its end when init is.
    ended: OwnedFd,
    controls: Controls,
    /// The rates that it begins with.
    wanted: Rates,
    /// Its network, if it has one.
    _cable: Option<Cable>,
}

impl Alive {
    /// Has all ready for a life of a container with this record, whose directory is `container` and whose run directory `directory`, with
    /// what it has of this host, at these rates; the caller has its layers in use. Also returns what [`Self::start`] takes.
    ///
    /// # Errors
    /// Something cannot be made.
    pub fn prepare(
        record: &Record,
        container: &Path,
        directory: &Path,
        layers: &[Layer],
        volumes: &Volumes,
        network: Option<&Connection>,
        rates: Rates,
    ) -> anyhow::Result<(Self, OwnedFd)> {
        let (bundle, id) = (Bundle::find(container)?, record.id.as_str());
        // It is there already, since the container was made, unless somebody has cleared it away.
        let image = Store::open(paths::store())?.unpacked(layers, &mut ())?;
        if bundle.runtime.state.join(id).exists() {
            // That of a life whose owner was killed.
            bundle.runtime.delete(id);
        }
        let sockets = directory.join(SOCKETS);
        fs::create_dir(&sockets).with_context(|| sockets.display().to_string())?;
        let session = Session::listen(&sockets.join("vsock"))?;
        let interface = network.map(|network| {
            let mut interface = network.section[0].clone();
            rates.limit_interface(&mut interface);
            interface
        });
        let cable = interface.as_ref().map(|interface| Cable::lay(interface, &sockets)).transpose()?;
        bundle.configure(&record.flags, &image, &sockets, volumes, network.is_some())?;
        let (ended, output) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let own = [image.as_path(), container];
        let keeper = Keeper {
            group: Rc::default(),
            disks: disks::beneath(own.into_iter().chain(volumes.binds().map(|(path, _)| path))),
            interface: interface.zip(cable.as_ref().map(Cable::rates)),
        };
        let controls = Controls { runtime: bundle.runtime.clone(), id: id.to_owned(), rates: keeper };
        Ok((Alive { bundle, session, ended, controls, wanted: rates, _cable: cable }, output))
    }

    /// Starts it, with what was returned beside this.
    ///
    /// # Errors
    /// The runtime cannot, and says why.
    pub fn start(&self, output: OwnedFd) -> anyhow::Result<()> {
        self.bundle.start(&self.controls.id, output)?;
        let rates = &self.controls.rates;
        if let Some(pid) = self.bundle.pid() {
            let _ = rates.group.set(Group::of(pid, std::process::id()));
        }
        // Nothing of the image runs before init is told what.
        rates.limit_disks(self.wanted)
    }

    /// Hung up when it has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// What it can be told beside what init is.
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// How many of its processes have been killed for lack of memory. To be asked while it is there.
    pub fn killed_for_memory(&self) -> u64 {
        self.controls.rates.group.get().map_or(0, Group::killed)
    }

    /// Why it has ended before its process did.
    pub fn lost(&self) -> Lost {
        Lost(self.bundle.said("no reason was given"))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.bundle.runtime.delete(&self.controls.id);
    }
}
