//! Verbs that have business with a container's files, whether it runs or not. In one that does not run, its own microVM does the work,
//! with its layers, its disk and its volumes, but no process of the container: only a helper ([`guest_protocol::files::Helper`]).
//!
//! ```text
//! lock, record, layers ─► run directory, sockets ─► per-VM process ─► session: the helper ─► end the VM
//!                                                                        └─ its streams ─ the verb's work, on a thread
//! ```
//!
//! The container's lock is taken meanwhile, so that nobody starts or removes it. But for its files it stays what it was: record, log and
//! events tell nothing of this, and after SIGKILL there is nothing of it to be cleaned up but the run directory.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use guest_images::{Keeper, KeptLayers, Store};
use guest_protocol::Settings;
use guest_protocol::files::Helper;
use serde_json::Value;
use vmm::config::SerialConfig;
use vmm::host;

use crate::args::Isolation;
use crate::cgroup::Limits;
use crate::container::{Done, devices, end};
use crate::containers::{Containers, Held, Id, Record, Status};
use crate::failure::{Failure, Interrupted};
use crate::helping::Helping;
use crate::launch::Launch;
use crate::life;
use crate::life::contained::{conclude, start_contained};
use crate::monitor;
use crate::oci::{self, Alive};
use crate::paths;
use crate::rates::Rates;
use crate::rundir::RunDir;
use crate::session::attend::NoAttendant;
use crate::session::{Io, Session};
use crate::signals::{Guard, Holding};
use crate::templates::Templates;
use crate::upper;
use crate::volumes::{self, Volumes};

/// How long a pod may take to let go of the files of a container that has ended.
const LET_GO: Duration = Duration::from_secs(60);

/// What a signal takes away before there is a guest.
type Kept = (RunDir, Held);

/// The container that a word means, if it is one that does not run.
pub fn idle(word: &str) -> Option<Id> {
    let entry = Containers::existing(&paths::store())?.find(word).ok()?;
    (entry.record.state.status != Status::Running).then_some(entry.record.id)
}

/// Has a helper work in a container, and does `work` with it. With `input`, the helper is told more.
///
/// # Errors
/// There is no such container, or it is in use; the helper cannot be had, or cannot do it; [`Interrupted`], by a signal to this process
/// while the container's microVM works for this alone: what `work` does then ends with the process.
pub fn helped<T: Send + 'static>(
    container: &str,
    helper: Helper,
    input: bool,
    work: impl FnOnce(Helping) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let Some(id) = idle(container) else { return work(Helping::begin(container, helper, input)?) };
    let guard: Guard<Kept> = Guard::new().context("cannot wait for signals")?;
    let holding = guard.hold();
    let visit = Visit::begin(&id, container, &helper)?;
    let (helping, io) = streams(container, input)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let working = move || {
        // Nobody listens any more where the guest has failed: that is the better error.
        let _ = sender.send(work(helping));
    };
    thread::Builder::new().name("helped".into()).spawn(working).context("cannot start a thread")?;
    visit.live(&guard, holding, helper, io)?;
    // What is left to do may wait for whoever takes what comes out.
    let _guard: Guard<()> = Guard::new().context("cannot wait for signals")?;
    receiver.recv().context("a thread of this program ended")?
}

/// The helper's streams, from both sides.
fn streams(container: &str, input: bool) -> anyhow::Result<(Helping, Io)> {
    let make = || -> std::io::Result<_> {
        let (ours, theirs) = UnixStream::pair()?;
        let (input, stdin) = input.then(UnixStream::pair).transpose()?.unzip();
        let stderr = File::options().write(true).open("/dev/null")?.into();
        let stdin = stdin.map(OwnedFd::from);
        let io = Io { stdin, stdout: theirs.into(), stderr, terminal: false, size: None, recorder: None };
        Ok((Helping::over(container, input, ours), io))
    };
    make().context("a way to the container's microVM")
}

/// A container that is looked into.
struct Visit {
    held: Held,
    record: Record,
    layers: KeptLayers,
}

impl Visit {
    fn begin(id: &Id, name: &str, helper: &Helper) -> anyhow::Result<Self> {
        let store = Store::open(paths::store())?;
        let (held, record) = Containers::of(store.dir())?.visit(id)?;
        if matches!(helper, Helper::Unpack { .. }) && !record.flags.on_disk() {
            return Err(anyhow!(
                "container {name}: with --rm it has its files in guest memory, so they last no longer than it runs: start it first"
            ));
        }
        let layers = store.kept(Keeper::Container(id.as_str()))?;
        let layers = layers.ok_or_else(|| anyhow!("container {name}: it has no list of layers"))?;
        Ok(Visit { held, record, layers })
    }

    /// Has the helper do its work.
    ///
    /// # Errors
    /// The guest has not come to the helper's end in order. What the helper could not do it says itself.
    fn live(self, guard: &Guard<Kept>, holding: Holding<'_, Kept>, helper: Helper, io: Io) -> anyhow::Result<()> {
        if self.record.flags.isolation == Isolation::Container {
            return self.live_contained(guard, holding, helper, io);
        }
        let volumes = self.volumes(&helper)?;
        let Visit { held, record, layers } = self;
        let flags = &record.flags;
        if flags.require_jail {
            monitor::require_jail();
        }
        let mut config = life::machine(flags)?;
        config.validate(host::memory_mib())?;
        let directory = RunDir::create(&paths::run(), None)?;
        let (initrd, uds, control) = (directory.file("initrd"), directory.file("vsock"), directory.file("api"));
        let session = Session::listen(&uds)?;
        let mut devices = devices(layers.layers.iter(), &uds)?;
        let upper = life::upper_of(&record, &held.dir());
        if let Some(path) = upper.as_ref().filter(|_| flags.pod.is_some()) {
            drop(upper::wait_for(path, LET_GO)?);
        }
        if let Some(drives) = devices.get_mut("drives").and_then(Value::as_array_mut) {
            drives.push(upper::drive(upper.as_deref())?);
        }
        devices.extend(volumes.section()?.map(|section| (volumes::SECTION.into(), section)));
        let mut start = life::start(&record, &layers.layers, None)?;
        // Nothing runs that they would be for; and what is mounted in memory would hide where files are to stay.
        start.settings = Settings::default();
        start.volumes = volumes.for_guest();
        start.helper = Some(helper);
        start.changes = false;
        config.serial = SerialConfig::Log { path: directory.file("console.log") };
        config.devices = devices;
        if let Some(source) = &mut config.boot_source {
            source.initrd_path = Some(initrd.clone());
        }
        holding.keep((directory, held));
        let templates = if flags.cold { None } else { Templates::of(&paths::store()).ok() };
        // Nothing of the image runs that a quota would be for.
        let limits = Limits { quota: None, ..flags.machine.limits() };
        let launch =
            Launch { config, templates: templates.as_ref(), control, session: &session, limits, verbose: false };
        let kept = RefCell::new(None);
        let started = || {
            if let Some(passed) = guard.pass() {
                kept.replace(Some(passed));
            }
        };
        let result = launch.run(start, io, &|| life::write_initrd(&initrd), &started, &mut NoAttendant)?;
        outcome(end(result))
    }

    /// The same of one that has no microVM.
    fn live_contained(
        self,
        guard: &Guard<Kept>,
        holding: Holding<'_, Kept>,
        helper: Helper,
        io: Io,
    ) -> anyhow::Result<()> {
        let volumes = self.volumes(&helper)?;
        let Visit { held, record, layers } = self;
        let mut start = start_contained(&record, &volumes, None)?;
        start.settings = oci::for_init(Settings::default());
        start.helper = Some(helper);
        start.changes = false;
        let directory = RunDir::create(&paths::run(), None)?;
        let (dir, run_dir) = (held.dir(), directory.path());
        holding.keep((directory, held));
        // Nobody else is to have it before the runtime has let go of it.
        let kept = RefCell::new(None);
        let (alive, output) =
            Alive::prepare(&record, &dir, &run_dir, &layers.layers, &volumes, None, Rates::default())?;
        let mut conversation = alive.session.begin(alive.ended())?;
        kept.replace(guard.pass());
        alive.start(output)?;
        let result = match conversation.arrive() {
            Ok(()) => conversation.start(start, io, &mut NoAttendant),
            Err(error) => Err(error),
        };
        outcome(conclude(result, &alive))
    }

    /// What it has of the host's. What has changed is looked for beside that.
    fn volumes(&self, helper: &Helper) -> anyhow::Result<Volumes> {
        match helper {
            Helper::Changes { .. } => Ok(Volumes::default()),
            _ => Volumes::find(&self.record.flags.volume),
        }
    }
}

fn outcome(result: Result<Done, Failure>) -> anyhow::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(Failure { error: Some(error), .. }) => Err(error),
        Err(Failure { code, error: None }) => Err(Interrupted(code.saturating_sub(128)).into()),
    }
}
