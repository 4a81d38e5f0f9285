//! What the threads of a machine's process may still do once its guest runs: a guest that breaks out finds itself in one of them.
//!
//! ```text
//!  main: reads its configuration ─┬─► builds the machine ──► joins ─► privileges away ─┬─► is the first vCPU
//!                                 │    (opens all files)       ▲                       └─► other vCPUs
//!                                 ▼                            │
//!                            event loop: namespaces, root, privileges away ─┬─► nursery ── starts ─► workers (output, disk, fs, requests)
//!                                                                           └─► slots                     each: its own system-call filter
//! ```
//!
//! Everything that needs the host's files, programs or privileges happens before, on the main thread ([`begun`] has the order). Then:
//!
//! - a user of its own, where root starts it ([`user`]);
//! - no capabilities, no way to get any (`no_new_privs`), nothing of it in core dumps ([`privileges`]);
//! - a filter for each thread ([`calls`], [`filter`]): a call that is not on its list ends the process with SIGSYS. Lists of devices
//!   and workers are theirs ([`DeviceKind`](devices::virtio::DeviceKind), [`Work`]);
//! - of the host's files, what is below a few directories, if it is said which: in a root directory of its own ([`jail`]), and by
//!   [`landlock`], which keeps networks away as well.
//!
//! Threads share memory: who has taken over one of them can make the others do what they may. So what counts against such a
//! guest is all lists together; that none of them starts programs, opens connections to a network, traces processes or sends them
//! signals. What can open files is a worker for requests of the control socket, as long as one is carried out.

mod begun;
mod calls;
mod filter;
mod inside;
mod jail;
mod landlock;
mod privileges;
mod reached;
mod user;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use devices::worker::{self, Work};

pub use begun::{Begun, Closed, EVENTS_STACK, may_begin_early};
pub use calls::{Calls, REQUESTS};
pub use filter::FilterError;
use inside::Inside;
pub(crate) use jail::map_alone;
use libc::c_long;
use privileges::{Keep, Who};
use reached::Reached;

use crate::config::{Paging, SerialConfig, VmConfig};
use crate::pager::PAGER;
use crate::process::Lineage;
use crate::slots::SLOTS;

/// What becomes of a thread that does what it must not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// The process ends with SIGSYS.
    #[default]
    Enforce,
    /// The kernel's log tells of it, and it goes on: to find out what a list lacks.
    Log,
}

/// A sandbox that is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What it does.
    pub mode: Mode,
    /// The directories below which requests of the control socket may name files; anywhere if it does not say.
    pub files: Option<Vec<PathBuf>>,
    /// Where the host cannot give all of it, there is no machine.
    pub all: bool,
    /// Who started this process has put it into a namespace of processes ([`birth`](crate::birth)), if the host could.
    pub apart: bool,
    /// Clients of a control socket may ask for something.
    pub requests: bool,
}

/// Whether the process of a microVM that this one starts can have a user of its own, with files in these directories: tried. None: it
/// cannot be another than this process's, which is not root's.
pub fn own_user(directories: &[PathBuf]) -> Option<io::Result<()>> {
    user::own().map(|_| jail::can_own(directories))
}

/// What cannot be asked where there is no /proc.
const WHO_STARTED: &str = "tell who has started this process";

/// What the host did not give of a sandbox, one line for each.
pub type Missing = Vec<String>;

/// A process that cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A filter cannot be made.
    #[error("system-call filter of the {thread} thread: {source}; --sandbox off runs a microVM without")]
    Filter {
        /// Whose.
        thread: &'static str,
        /// Why.
        source: FilterError,
    },
    /// The kernel refuses something.
    #[error("{what}: {source}; --sandbox off runs a microVM without")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The host cannot give all of it.
    #[error("the sandbox lacks {0}; without --require-jail the microVM runs without that")]
    Missing(String),
}

/// The sandbox of a machine's process, entered by each thread as it starts.
#[derive(Debug)]
pub struct Sandbox {
    mode: Mode,
    /// Directories that the process reaches; all of them if none.
    files: Option<Vec<PathBuf>>,
    /// Nothing of it may be missing.
    all: bool,
    /// See [`Wanted`].
    apart: bool,
    config: VmConfig,
    /// Clients of a control socket may ask for something.
    requests: bool,
    /// What workers there may be.
    workers: Vec<&'static Work>,
}

/// A thread of a machine that is no worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The process's first, on which the first vCPU runs.
    First,
    /// Another vCPU's.
    Vcpu,
    /// The event loop's.
    Events,
    /// Where workers start.
    Nursery,
}

impl Thread {
    fn name(self) -> &'static str {
        match self {
            Thread::First => "first",
            Thread::Vcpu => "vcpu",
            Thread::Events => "events",
            Thread::Nursery => "nursery",
        }
    }
}

impl Sandbox {
    /// For a process with the machine of `config`, as `wanted`.
    pub fn new(Wanted { mode, files, all, apart, requests }: Wanted, config: VmConfig) -> Arc<Self> {
        let workers = workers(&config, requests);
        Arc::new(Sandbox { mode, files, all, apart, config, requests, workers })
    }

    /// Where its threads will be: made by the calling one, which is there then.
    fn inside(&self) -> Result<Inside, SandboxError> {
        if self.mode == Mode::Log {
            return Ok(Inside::nowhere_else());
        }
        let reached = self.files.as_ref().map(|files| Reached::of(files, &self.config, self.requests));
        Inside::make(reached.as_ref(), self.user(), self.connects())
    }

    /// What some worker needs.
    fn keep(&self) -> Keep {
        let for_users = self.workers.iter().find(|work| work.for_users);
        for_users.map_or(Keep::Nothing, |work| Keep::for_work(work))
    }

    /// Some thread may connect to unix sockets.
    fn connects(&self) -> bool {
        let mut all = self.workers.iter().map(|work| calls::worker(work)).chain([self.calls(Thread::Events)]);
        all.any(|calls| calls.numbers().any(|number| number == libc::SYS_connect))
    }

    /// The user that the process is to be, if it is to be another: not one that acts on files for their owners, nor one of which nobody
    /// knows what files it will be asked for.
    fn user(&self) -> Option<u32> {
        user::own().filter(|_| self.keep() == Keep::Nothing && self.files.is_some())
    }

    /// What a thread may do.
    pub fn calls(&self, thread: Thread) -> Calls {
        match thread {
            Thread::First => calls::first(&self.config),
            Thread::Vcpu => calls::vcpu(&self.config),
            Thread::Events => calls::events(&self.config),
            Thread::Nursery => calls::nursery(&self.workers),
        }
    }
}

/// What the filter of a thread lets through.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct List {
    /// The thread's name: `main`, `vcpu` (all but the first), `events`, `nursery`, or a worker's.
    pub thread: &'static str,
    /// System calls.
    pub syscalls: usize,
    /// Of one of them, ioctl(2): requests.
    pub ioctls: usize,
}

/// The lists of all threads that the process with the machine of `config` and a control socket may have.
pub fn lists(config: &VmConfig) -> Vec<List> {
    let workers = workers(config, true);
    let threads = [
        ("main", calls::first(config)),
        ("vcpu", calls::vcpu(config)),
        ("events", calls::events(config)),
        ("nursery", calls::nursery(&workers)),
    ];
    // That one starts beside the event loop, and ends soon.
    let slots = config.snapshot.is_some().then_some(&SLOTS);
    let workers = workers.into_iter().chain(slots).map(|work| (work.name, calls::worker(work)));
    let list = |(thread, calls): (_, Calls)| List {
        thread,
        syscalls: calls.numbers().count(),
        ioctls: calls.ioctls().count(),
    };
    threads.into_iter().chain(workers).map(list).collect()
}

/// A thread's way into the sandbox.
#[derive(Debug, Clone)]
pub struct Door {
    sandbox: Arc<Sandbox>,
    /// Goes when it has been used.
    _waited_for: Sender<()>,
}

impl Door {
    /// Confines the calling thread, for good.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn enter(self, thread: Thread) -> Result<(), SandboxError> {
        enter(self.sandbox.mode, thread.name(), &self.sandbox.calls(thread))
    }
}

/// All doors of a sandbox.
#[derive(Debug)]
pub struct Entered(Receiver<()>);

impl Entered {
    /// Waits until every thread that was given a door has used it, or has failed to: no guest code runs before.
    pub fn wait(self) {
        // Nothing is ever sent: this is the end of the last sender.
        let _ = self.0.recv();
    }
}

/// From now on workers of this process are confined when they start. To be called before a machine is built that will be.
pub fn prepare(mode: Mode) {
    worker::confine_by(Box::new(move |work| {
        or_end(work.name, privileges::give_up(Keep::for_work(work)));
        or_end(work.name, enter(mode, work.name, &calls::worker(work)).map_err(io::Error::other));
    }));
}

/// Confines a process for good that has one thread, and needs no files and no network: all that it has is open. It makes the system calls
/// `numbers`, and those that any thread does. Tells what the host does not have for that.
///
/// # Errors
/// [`SandboxError`].
pub fn confine(name: &'static str, numbers: &[c_long]) -> Result<Missing, SandboxError> {
    // What is open for that is closed at its end.
    let missing = {
        let user = user::own();
        let lineage = user.map(|_| Lineage::open()).transpose().map_err(host(WHO_STARTED))?;
        let inside = Inside::make(Some(&Reached::default()), user, true)?;
        inside.narrow()?;
        let closed = inside.close(Who::Process(lineage.as_ref()), Keep::Nothing)?;
        inside.missing.into_iter().chain(closed).collect()
    };
    enter(Mode::Enforce, name, &Calls::of(numbers, &[]))?;
    Ok(missing)
}

fn enter(mode: Mode, thread: &'static str, calls: &Calls) -> Result<(), SandboxError> {
    let entered = filter::compile(calls, mode).and_then(|filter| Ok(seccompiler::apply_filter(&filter)?));
    entered.map_err(|source| SandboxError::Filter { thread, source })
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Host { what, source }
}

/// A thread that could not be confined does nothing.
fn or_end(thread: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!("thread '{thread}' cannot be confined: {error}");
        std::process::abort();
    }
}

/// The workers that a process may have.
fn workers(config: &VmConfig, requests: bool) -> Vec<&'static Work> {
    let mut workers: Vec<_> = calls::kinds(config).flat_map(|kind| kind.workers).copied().collect();
    if requests {
        // A device can be built anew by a request, but no new kind of device.
        workers.push(&REQUESTS);
    }
    if config.serial != SerialConfig::Off {
        workers.push(&devices::legacy::serial::OUTPUT);
    }
    if config.snapshot.as_ref().is_some_and(|source| source.paging == Paging::Userfault) {
        workers.push(&PAGER);
    }
    workers
}

#[cfg(test)]
mod tests;
