//! A sandbox that is made while the machine is built: to make namespaces and a root directory takes the host half as long as to make a
//! machine, and starting threads, of which each has to be woken and to take its filter, not less. So the event loop's thread is
//! started first of all. It makes the [`Inside`], starts there what others start or are, is confined, and waits; what is left for the first
//! thread, when the machine is built, is to come there.
//!
//! ```text
//!  main: ─┬─► reads what it is to be ─┬─► builds the machine ─────────► joins ─► privileges away, filter ──┬─► is the first vCPU
//!         ▼                           ▼                                   ▲                 ▲              │
//!      events: KVM's VM and vCPU ───► namespaces, root directory ─────────┴─► privileges ───┴──► filter ───┴─► waits for the machine
//! ```
//!
//! Only who may have namespaces in a process with several threads can have it so, which who needs a user namespace for them cannot:
//! then the first thread does the same when the machine is built, and starts the other one after that.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use devices::worker::{self, Nursery};
use rustix::process::{Pid, getpid};
use rustix::thread::{CapabilitySet, capabilities};

use super::inside::Inside;
use super::privileges::{self, Keep, Who};
use super::{Door, Entered, Missing, Mode, Sandbox, SandboxError, Thread, WHO_STARTED, host, or_end};
use crate::elsewhere::{Elsewhere, Places};
use crate::pager::PAGER;
use crate::process::Lineage;
use crate::slots::SLOTS;
use crate::waiting::{Waiting, Waits};

/// Stack of the event loop's thread: what runs on it keeps its buffers on the heap. Small, so that no host backs it with a 2 MiB page.
pub const EVENTS_STACK: usize = 512 << 10;

/// A sandbox, perhaps in the making. Dropped, it is none: the threads that it has started end.
pub struct Begun {
    sandbox: Arc<Sandbox>,
    /// Whether there is to be a thread that gives RAM its slots.
    slots: bool,
    /// None if all is yet to be done.
    early: Option<Early>,
}

/// A process that is confined but for the filter of its first thread.
pub struct Closed {
    /// The event loop's thread.
    pub events: Waiting,
    /// The one that gives RAM its slots, if it was asked for.
    pub slots: Option<Waiting>,
    /// For the first thread, and for each that it starts.
    pub door: Door,
    /// All doors.
    pub entered: Entered,
    /// What the host did not give.
    pub missing: Missing,
}

/// The event loop's thread, and what it says.
struct Early {
    events: Waiting,
    slots: Option<Waiting>,
    inside: Receiver<Result<Arc<Inside>, SandboxError>>,
    /// Its own privileges are gone.
    closed: Receiver<Result<(), SandboxError>>,
    /// All threads that it starts are there.
    started: Receiver<Result<(), SandboxError>>,
    door: Door,
    entered: Entered,
    places: Option<Places>,
}

/// Whether a process like this one, with these privileges, may have namespaces when it has several threads, and its first thread join them.
pub fn may_begin_early() -> bool {
    let takes = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_CHROOT;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(takes))
}

impl Begun {
    /// Begins. To be called on the process's first thread before anything of the machine is there. There will be a thread for `slots`. The
    /// event loop's may be there already, if it [may](may_begin_early).
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn begin(sandbox: Arc<Sandbox>, slots: bool, events: Option<Elsewhere>) -> Result<Self, SandboxError> {
        // That of a machine that could not be built.
        Nursery::none();
        let may = events.is_some() || may_begin_early() || sandbox.mode == Mode::Log;
        let early = may.then(|| Early::start(&sandbox, slots, false, events)).transpose()?;
        Ok(Begun { sandbox, slots, early })
    }

    /// Why there is no sandbox, if there is none: the better reason for what could not be built because of that. Waits until it is known.
    pub fn failed(self) -> Option<SandboxError> {
        let early = self.early?;
        let said = |step: &Receiver<Result<(), SandboxError>>| step.recv().unwrap_or_else(|_| Err(gone()));
        let made = early.inside.recv().unwrap_or_else(|_| Err(gone()));
        made.and_then(|_| said(&early.closed)).and_then(|()| said(&early.started)).err()
    }

    /// Confines the process but for the filter of the calling thread, its first, whose machine is built.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn finish(self) -> Result<Closed, SandboxError> {
        let Begun { sandbox, slots, early } = self;
        let lineage = sandbox.user().map(|_| Lineage::open()).transpose().map_err(host(WHO_STARTED))?;
        let who = Who::Process(lineage.as_ref());
        let (early, mut missing) = match early {
            Some(early) => {
                // Who is waited for goes on where it is.
                let _here = early.places.map(Places::stay);
                let inside = early.inside.recv().unwrap_or_else(|_| Err(gone()))?;
                let mut missing = inside.missing.clone();
                missing.extend(inside.join());
                inside.narrow()?;
                // What is the process's as a whole comes after what the other one does to it: who changes its user has the kernel forget
                // who may look into the process, which is the first thread's to say.
                early.closed.recv().unwrap_or_else(|_| Err(gone()))?;
                missing.extend(inside.close(who, Keep::Nothing)?);
                (early, missing)
            }
            None => begin_late(&sandbox, slots, who)?,
        };
        // Here, since nobody may tell of it any more who has a filter.
        early.started.recv().unwrap_or_else(|_| Err(gone()))?;
        if sandbox.mode == Mode::Enforce && sandbox.apart && getpid() != Pid::INIT {
            missing.push("a namespace of processes: who started this one cannot make it".into());
        }
        if let Some(what) = missing.first().filter(|_| sandbox.all) {
            return Err(SandboxError::Missing(what.clone()));
        }
        let Early { events, slots, door, entered, .. } = early;
        Ok(Closed { events, slots, door, entered, missing })
    }
}

/// All of it, on the process's first thread.
fn begin_late(sandbox: &Arc<Sandbox>, slots: bool, who: Who<'_>) -> Result<(Early, Missing), SandboxError> {
    let inside = sandbox.inside()?;
    inside.narrow()?;
    let mut missing = inside.missing.clone();
    missing.extend(inside.close(who, sandbox.keep())?);
    if sandbox.workers.iter().any(|work| std::ptr::eq(*work, &PAGER)) {
        missing.push("all but a filter, for the thread that gives RAM its pages".into());
    }
    drop(inside);
    let early = Early::start(sandbox, slots, true, None)?;
    privileges::give_up(Keep::Nothing).map_err(host("give up capabilities"))?;
    Ok((early, missing))
}

impl Early {
    /// Has the event loop's thread, which is started if it is not there, begin; it is inside with the calling one, or makes that.
    fn start(
        sandbox: &Arc<Sandbox>,
        slots: bool,
        is_inside: bool,
        thread: Option<Elsewhere>,
    ) -> Result<Self, SandboxError> {
        let (waited_for, all) = channel();
        let door = Door { sandbox: sandbox.clone(), _waited_for: waited_for };
        let nursery = (!sandbox.workers.is_empty()).then(Nursery::announce);
        let (events, its_work) = Waiting::new();
        let (slots, slots_work) = slots.then(Waiting::new).unzip();
        let ((tell, inside), (say_closed, closed), (say_started, started)) = (channel(), channel(), channel());
        let thread = thread.map_or_else(|| Elsewhere::start("events", EVENTS_STACK, || ()), Ok);
        let thread = thread.map_err(host("the event loop's thread"))?;
        let places = thread.places();
        let start = Start { door: door.clone(), nursery, slots: slots_work, is_inside, places };
        thread.begin(move || {
            if let Some(door) = start.go(&Says { inside: tell, closed: say_closed, started: say_started }) {
                let _ = places.map(Places::allow_all);
                or_end("events", door.enter(Thread::Events).map_err(io::Error::other));
                its_work.serve();
            }
        });
        Ok(Early { events, slots, inside, closed, started, door, entered: Entered(all), places })
    }
}

/// What the event loop's thread begins with.
struct Start {
    door: Door,
    nursery: Option<Nursery>,
    slots: Option<Waits>,
    /// As who has started it.
    is_inside: bool,
    places: Option<Places>,
}

/// Whom the event loop's thread tells how far it is.
struct Says {
    inside: Sender<Result<Arc<Inside>, SandboxError>>,
    closed: Sender<Result<(), SandboxError>>,
    started: Sender<Result<(), SandboxError>>,
}

/// Tells it. Whether it has come there, and somebody wants to know.
fn come(to: &Sender<Result<(), SandboxError>>, result: Result<(), SandboxError>) -> Option<()> {
    let is_there = result.is_ok();
    (to.send(result).is_ok() && is_there).then_some(())
}

impl Start {
    /// Its way to the door. None if it has not come there, which the first thread has been told.
    fn go(self, says: &Says) -> Option<Door> {
        if !self.is_inside {
            let sandbox = &self.door.sandbox;
            let made = sandbox.inside().map(Arc::new);
            let inside = made.as_ref().ok().cloned();
            // The first thread may come now, and gives its own privileges up at the same time.
            says.inside.send(made).ok()?;
            let inside = inside?;
            // What is missing of this one's, the first thread misses as well.
            let closed = inside.narrow().and_then(|()| inside.close(Who::Thread, sandbox.keep()).map(drop));
            come(&says.closed, closed)?;
        }
        let door = self.door.clone();
        come(&says.started, self.start_others())?;
        Some(door)
    }

    /// The threads that are inside because this one is; and then its own privileges go. The one for slots, which has one thing to do while
    /// the guest begins, stays away from that's processor.
    fn start_others(self) -> Result<(), SandboxError> {
        if let Some(nursery) = self.nursery {
            let (its, places) = (self.door.clone(), self.places);
            let confine = move || {
                let _ = places.map(Places::allow_all);
                or_end("nursery", its.enter(Thread::Nursery).map_err(io::Error::other));
            };
            nursery.start(confine).map_err(host("the thread that starts others"))?;
        }
        privileges::give_up(Keep::Nothing).map_err(host("give up capabilities"))?;
        if let Some(slots) = self.slots {
            // A worker is confined before it does anything: then it has been waited for.
            let its = self.door;
            let wait = move || {
                drop(its);
                slots.serve();
            };
            worker::spawn_here(&SLOTS, wait).map_err(host("memory slots' thread"))?;
        }
        Ok(())
    }
}

fn gone() -> SandboxError {
    SandboxError::Host { what: "the event loop's thread", source: io::ErrorKind::BrokenPipe.into() }
}
