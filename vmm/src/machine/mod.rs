//! The one assembly recipe, and the event loop.
//!
//! The order is measured: what of KVM needs no configuration is made while that is read ([`ahead`]), and the descriptor table grown
//! before the first thread (growing it later waits for an RCU grace period).

mod ahead;
mod assembly;
mod ending;
mod error;
mod event_loop;
mod generation;
mod handle;
mod record;
mod restore;
mod save;
mod update;
mod vcpus;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::Bus;
use devices::legacy::{Ioapic, Serial};
use devices::virtio::metrics::DeviceMetrics;
use devices::virtio::{DeviceName, MmioTransport};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::{Kvm, VmFd};

use crate::chores::{Chores, Doing};
use crate::config::{ConfigError, Paging, VmConfig};
use crate::events::{Event, ExitReason, Phase, monotonic_ns};
use crate::host::{self, KvmKind};
use crate::irq::{IrqLines, KvmRoutes};
use crate::memory::Ram;
use crate::pager::Pager;
use crate::process;
use crate::sandbox::{self, Begun, Closed, EVENTS_STACK, Entered, Sandbox, Thread};
use crate::slots::{self, Rest, SLOTS};
use crate::snapshot::memory::Source;
use crate::snapshot::{self, Parent};
use crate::vcpu::{Driver, Shared, Vcpu};
use crate::waiting::{Running, Waiting};
use crate::windows::Windows;
pub use ahead::Ahead;
use assembly::{Assembly, IOAPIC_BASE};
use ending::{Ending, EndingEvent, on_end};
pub use error::VmmError;
use error::io_error;
use event_loop::{Closing, End, EventLoop, Serving};
pub use handle::{Handle, RunState};

/// Where the serial console comes from and goes to, when the process around the machine wants it otherwise than
/// [`SerialConfig`] says.
pub struct Console {
    /// Input: read by the event loop when it is readable, until its end.
    pub input: Option<OwnedFd>,
    /// Output.
    pub output: Box<dyn Write + Send>,
}

/// What a machine's process has to do besides when its machine ends.
pub type AtEnd = Box<dyn FnOnce() + Send>;

/// Where [`Machine`]s put what their event loop waits for.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// A machine that is built and not yet running.
///
/// Fields drop in order, after the vCPU threads have ended: devices go before the RAM they use.
pub struct Machine {
    end: End,
    vcpus: Vec<Vcpu>,
    resume: bool,
    /// What else is to be done at its end.
    at_end: Option<AtEnd>,
    /// RAM that has no memory slot yet.
    rest: Option<Rest>,
    /// What its threads enter before they do anything.
    sandbox: Option<Begun>,
    manager: EventManager<Subscriber>,
    parts: Arc<Parts>,
}

/// What a machine is made of, besides its vCPUs. Fields drop in order.
struct Parts {
    /// With the device sections and the size that it has, whatever it came from. The last lock to take.
    config: Mutex<VmConfig>,
    transports: Vec<Arc<Mutex<MmioTransport>>>,
    /// Of each transport.
    metrics: Vec<(DeviceName, Arc<DeviceMetrics>)>,
    /// What vCPUs have left to others of what devices are to do.
    chores: Arc<Chores>,
    serial: Arc<Mutex<Serial>>,
    ioapic: Arc<Mutex<Ioapic>>,
    lines: Arc<IrqLines>,
    kvm: Kvm,
    vm: Arc<VmFd>,
    /// Gives `memory` its pages, if a mapping does not.
    pager: Mutex<Option<Pager>>,
    memory: Ram,
    /// What devices show the guest besides.
    _windows: Windows,
    /// What `memory` is a private view of. Taken with the threads' lock held.
    base: Mutex<Base>,
    /// Disks that exist only for this machine.
    _disks: Vec<File>,
    /// What the host did not give for it, once its threads are confined.
    confined: OnceLock<sandbox::Missing>,
}

/// What RAM is a private view of.
#[derive(Default)]
struct Base {
    /// The files, the lowest first; none if it has its pages for itself.
    sources: Vec<Source>,
    /// The snapshot that they make up, with its absolute path; none if nobody can find it there.
    snapshot: Option<Parent>,
}

impl Base {
    /// RAM is a view of `source` now, as far as it has come: a failure half-way leaves parts that are views of what was before. What
    /// holds something, a later snapshot looks for in all of them. That it can be found by others is not known yet.
    fn came_to(&mut self, source: Source, rebased: std::io::Result<()>) -> std::io::Result<()> {
        if rebased.is_ok() && source.extents.is_none() {
            self.sources.clear();
        }
        self.sources.push(source);
        self.snapshot = None;
        rebased
    }
}

impl Parts {
    fn config(&self) -> VmConfig {
        lock(&self.config).clone()
    }

    fn set_config(&self, config: VmConfig) {
        *lock(&self.config) = config;
    }

    /// Ends what others could see of a machine that has ended: its vCPUs have.
    fn close(&self) {
        self.transports.iter().for_each(|transport| lock(transport).close());
        lock(&self.serial).close();
        drop(lock(&self.pager).take());
    }
}

impl Machine {
    /// Builds the machine that `config` describes; `console` replaces what its `serial` section says.
    pub fn build(
        config: &VmConfig,
        console: Option<Console>,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Self, VmmError> {
        Self::build_on(EventManager::new()?, config, console, None, None, on_event)
    }

    /// As [`Machine::build`], on an event loop that others wait on as well. With a `sandbox`, its threads are confined from the moment on in which
    /// it runs: with them this whole process, which can have no other machine, and of which the calling thread is the first. What is there
    /// `ahead` is used for it.
    pub fn build_on(
        mut manager: EventManager<Subscriber>,
        config: &VmConfig,
        console: Option<Console>,
        sandbox: Option<sandbox::Wanted>,
        mut ahead: Option<Ahead>,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Self, VmmError> {
        let mut phase = |phase| on_event(Event::Phase { phase, at_ns: monotonic_ns() });
        phase(Phase::Build);
        config.validate(host::memory_mib())?;
        let source = config.snapshot.as_ref();
        let saved = source.map(|source| snapshot::files::open(&source.path)).transpose()?;
        let (mut config, saved, base) = match (saved, source) {
            (Some((saved, sources)), Some(source)) => {
                let base = Base { sources, snapshot: restore::parent(&source.path, &saved.meta) };
                (config.clone().over(saved.config.clone()), Some(saved), base)
            }
            _ => (config.clone(), None, Base::default()),
        };
        config.validate(host::memory_mib())?;
        if let Some(ahead) = ahead.as_mut().filter(|_| !config.devices.is_empty()) {
            ahead.leave();
        }
        let disks = match config.snapshot.clone() {
            Some(source) => snapshot::disks::provide(&mut config.devices, &source.path)?,
            None => Vec::new(),
        };
        process::before_threads();
        let late_slots = saved.is_some() && config.machine.vcpu_count == 1 && host::kind() == KvmKind::SoftwareNested;
        let (thread, soon) = ahead.map(Ahead::thread).unzip();
        let begin = |wanted| Begun::begin(Sandbox::new(wanted, config.clone()), late_slots, thread);
        let mut sandbox = sandbox.map(begin).transpose()?;
        let (host_kvm, vm, first_vcpu) = soon.map_or_else(ahead::now, ahead::Soon::wait)?;
        if let Some(saved) = &saved {
            restore::check_host(saved, &host_kvm)?;
        }
        let mib = config.machine.mem_size_mib;
        let paged = config.snapshot.as_ref().filter(|source| source.paging == Paging::Userfault);
        let mapped = saved.is_some() && paged.is_none();
        let memory = if mapped { Ram::of_files(mib, &base.sources) } else { Ram::new(mib) }?;
        let mut built = devices::virtio::build_all(&config.devices)?;
        let windows = Windows::of(&mut built, &memory)?;
        let first_slot = windows.register(&vm)?;
        let rest = if late_slots {
            Some(slots::register_used(&vm, &memory, first_slot, &base.sources)?).filter(|rest| !rest.is_empty())
        } else {
            slots::register(&vm, &memory, first_slot)?;
            None
        };
        let ram = memory.guest();
        phase(Phase::Load);

        let ending = Arc::new(Ending::new().map_err(io_error("eventfd"))?);
        manager.add_subscriber(Arc::new(Mutex::new(EndingEvent::new(ending.clone()))));
        let pager = match (paged, &saved) {
            (Some(source), Some(saved)) => {
                match (restore::pager(&memory, &base.sources, source, saved, &ending), sandbox) {
                    (Err(error), Some(begun)) => return Err(begun.failed().map_or(error, VmmError::from)),
                    (pager, begun) => {
                        sandbox = begun;
                        Some(pager?)
                    }
                }
            }
            _ => None,
        };

        let (pio, mmio) = (Bus::default(), Bus::default());
        let lines = Arc::new(IrqLines::new(vm.clone()));
        let ioapic = Arc::new(Mutex::new(Ioapic::new(Box::new(KvmRoutes(lines.clone())))));
        mmio.insert(IOAPIC_BASE, 0x1000, ioapic.clone())?;
        let slow_interrupts = host::kind() == KvmKind::SoftwareNested;
        let mut assembly =
            Assembly { vm: &vm, lines: &lines, pio: &pio, mmio: &mmio, manager: &mut manager, slow_interrupts };
        let serial = assembly.legacy(&config, console, saved.as_ref().map(|saved| &saved.serial), &ending)?;
        let (transports, registers) = assembly.virtio(&config, built, &windows.beside(ram)?)?;
        let metrics = transports.iter().map(|transport| lock(transport).metrics());
        let metrics = devices::virtio::names(&config.devices).into_iter().zip(metrics).collect();
        let over = ending.over();
        let late = rest.as_ref().map(Rest::late);
        let (pio, mmio) = (Arc::new(pio), Arc::new(mmio));
        let chores = Arc::new(Chores::new(mmio.clone()).map_err(io_error("eventfd"))?);
        manager.add_subscriber(Arc::new(Mutex::new(Doing(chores.clone()))));
        let (ram, for_vcpus) = (ram.clone(), chores.clone());
        let shared = Shared { pio, mmio, chores: for_vcpus, ram, ioapic: ioapic.clone(), over, late };
        let resume = config.snapshot.as_ref().is_none_or(|source| source.resume);
        let config = Mutex::new(config);
        let parts = Parts {
            config,
            transports,
            metrics,
            chores,
            serial,
            ioapic,
            lines,
            kvm: host_kvm,
            vm,
            pager: Mutex::new(pager),
            memory,
            _windows: windows,
            base: Mutex::new(base),
            _disks: disks,
            confined: OnceLock::new(),
        };
        let vcpus = match &saved {
            Some(saved) => restore::restore(&parts, saved, &shared, first_vcpu)?,
            None => vcpus::boot(&parts, &registers, &shared, first_vcpu)?,
        };
        let parts = Arc::new(parts);
        let handle = Handle::new(ending, Arc::downgrade(&parts));
        Ok(Machine { end: End(handle), vcpus, resume, at_end: None, rest, sandbox, manager, parts })
    }

    /// A handle to steer it with.
    pub fn handle(&self) -> Handle {
        self.end.0.clone()
    }

    /// Has something done when it ends, on the thread of its event loop: on the one that runs the machine, which is a vCPU's, little may
    /// be done any more.
    pub fn at_end(&mut self, work: AtEnd) {
        self.at_end = Some(work);
    }

    /// Runs it to its end, and gives everything back.
    pub fn run(self, on_event: &mut dyn FnMut(Event)) -> Result<ExitReason, VmmError> {
        Ok(self.run_to_end(on_event)?.0)
    }

    /// Runs it to its end: its first vCPU on this thread, each other one and the event loop on threads of their own. So no
    /// thread need be woken for what is mostly the first vCPU's doing, the machine's first instruction and its end.
    ///
    /// Nobody sees anything of the machine afterwards, but its memory is still there, see [`Remains`].
    pub fn run_to_end(mut self, on_event: &mut dyn FnMut(Event)) -> Result<(ExitReason, Remains), VmmError> {
        let ending = self.end.0.ending.clone();
        let mut vcpus = self.vcpus.drain(..);
        let first = vcpus.next().ok_or(ConfigError::Vcpus(0))?;
        let (mut driver, first) = first.on_this_thread(on_end(ending.clone())).map_err(io_error("vCPU's signal"))?;
        let (events, slots, door, entered) = match self.sandbox.take().map(Begun::finish).transpose()? {
            Some(Closed { events, slots, door, entered, missing }) => {
                missing.iter().for_each(|what| tracing::warn!("the sandbox lacks {what}"));
                let _ = self.parts.confined.set(missing);
                (Ok(events), slots, Some(door), Some(entered))
            }
            None => (Waiting::start("events", EVENTS_STACK), None, None, None),
        };
        let others = vcpus.map(|vcpu| vcpu.spawn(on_end(ending.clone()), door.clone()));
        let threads = std::iter::once(Ok(first)).chain(others).collect::<Result<_, _>>();
        self.end.0.give_threads(threads.map_err(io_error("vCPU thread"))?);
        let closing = (!self.parts.transports.is_empty() || self.at_end.is_some())
            .then(|| Closing { parts: self.parts.clone(), at_end: self.at_end.take() });
        let events = events.map_err(io_error("event loop's thread"))?;
        let slots = self.rest.as_ref().map(|_| slots.map_or_else(|| Waiting::start_worker(&SLOTS), Ok)).transpose();
        let slots = slots.map_err(io_error("memory slots' thread"))?;
        if let Some(door) = door {
            door.enter(Thread::First)?;
        }
        entered.into_iter().for_each(Entered::wait);
        // Before anybody can steer it.
        self.end.0.start(self.resume);
        let events = EventLoop { manager: self.manager, handle: self.end.0.clone(), closing }.start(events);
        let coming = self.rest.take().zip(slots).map(|(rest, slots)| {
            let ending = ending.clone();
            rest.start(self.parts.vm.clone(), slots, move |error| ending.report(Err(error.into())))
        });
        // Dropped before those are, which wait for the end.
        let end = self.end;
        on_event(Event::Phase { phase: Phase::Run, at_ns: monotonic_ns() });
        driver.drive();
        let at_ns = monotonic_ns();
        end.0.end_threads();
        if !events.has_closed() {
            self.parts.close();
        }
        let remains = Remains { _coming: coming, _events: events, _first: driver, _parts: self.parts };
        let (how, counts) = ending.take();
        let reason = how?;
        on_event(Event::Exit { reason, at_ns, counts });
        Ok((reason, remains))
    }
}

/// What is left of a machine that has ended: memory, KVM's objects, and the thread of its event loop. Dropping it gives
/// them back; a process that is about to end may forget it instead, for the kernel does that faster.
#[must_use]
pub struct Remains {
    /// What gives RAM its slots.
    _coming: Option<Running>,
    /// Waited for: devices go before the RAM they use.
    _events: Serving,
    _first: Driver,
    _parts: Arc<Parts>,
}

/// Nothing that panics leaves these half-changed.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_that_fails_half_way_keeps_what_was_before() {
        let source = |extents| Source { file: tempfile::tempfile().unwrap(), extents };
        let parent = Parent { path: "/x".into(), memory_id: [0; snapshot::memory::ID_LEN] };
        let mut base = Base { sources: vec![source(None)], snapshot: Some(parent) };
        base.came_to(source(Some(vec![(0, 1)])), Ok(())).unwrap();
        assert!(base.sources.len() == 2 && base.snapshot.is_none());
        assert!(base.came_to(source(None), Err(std::io::ErrorKind::OutOfMemory.into())).is_err());
        assert_eq!(base.sources.len(), 3);
        base.came_to(source(None), Ok(())).unwrap();
        assert_eq!(base.sources.len(), 1);
    }
}
