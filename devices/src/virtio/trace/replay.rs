//! A trace done again: a device behind its transport, on an event loop's thread of its own, in memory without a guest.
//!
//! The thread that calls is the driver and nothing else. It offers chains and notifies the device as the trace says, by the event
//! that a guest's notification signals, and goes on past `back` when the device has given as many chains back as it had then. So what
//! one request needs of another is kept, and how many are under way at a time. Chains that a device keeps until the host has
//! something for the guest (received packets, what is typed) are another matter: as a driver does, there are always as many as the
//! queue holds, of the shape that the trace has, and nobody waits for them.
//!
//! Addresses are not the guest's, but within requests: those speak of the first bytes of memory, where nothing of the driver's is.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use serde_json::Value;
use vm_memory::{GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rings::{Negotiated, Ring, Scratch};
use super::{Part, Step, Trace};
use crate::virtio::metrics::DeviceReading;
use crate::virtio::mmio::{F_EVENT_IDX, F_INDIRECT_DESC, register};
use crate::virtio::window::Beside;
use crate::virtio::{DEVICES, DeviceError, DeviceFault, DeviceInfo, Io, MmioTransport, StateError, VirtioDevice};
use crate::{BusDevice, GuestRam, InterruptLine};

/// What the thread of the event loop is called.
pub const THREAD: &str = "events";
/// Where the driver's own memory is: above all that a trace may speak of.
const OWN: u64 = 4 << 30;
/// Bytes of it for the data of chains.
const SCRATCH: u64 = 64 << 20;
/// Where memory is that the device shows.
const WINDOW: u64 = 8 << 30;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK (virtio 1.3, 2.1).
const STATUS: [u32; 4] = [1, 3, 11, 15];
/// The longest time in which nothing happens while something should.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at the rings between two at the clock.
const LOOKS: u32 = 256;

/// Why a trace cannot be done again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It is of no device that there is.
    #[error("the trace is of a device '{}'; there are {}", .0.escape_debug(), DEVICES.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", "))]
    Unknown(String),
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host failed.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// Memory is not where it was put: not the trace's fault.
    #[error("memory of the replay: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The device does not start with these features.
    #[error("the device does not work with the features {0:#x}")]
    Features(u64),
    /// It has no such queue.
    #[error("step {step}: the device has {count} queues, and no queue {queue}")]
    Queue {
        /// Counted from 1.
        step: usize,
        /// Which.
        queue: u16,
        /// How many it has.
        count: usize,
    },
    /// A chain is too long for its queue.
    #[error("step {step}: a chain of {parts} parts is too long for queue {queue}")]
    Chain {
        /// Counted from 1.
        step: usize,
        /// Its queue.
        queue: u16,
        /// Its parts.
        parts: usize,
    },
    /// The device has stopped: the trace broke a rule.
    #[error("step {0}: the device needs a reset")]
    Stopped(usize),
    /// The device does not answer.
    #[error("step {0}: the device has not answered for {PATIENCE:?}")]
    Stalled(usize),
}

/// For `map_err`: what the host said to what was tried.
fn host(what: &'static str) -> impl FnOnce(io::Error) -> ReplayError {
    move |source| ReplayError::Host { what, source }
}

/// The device of a trace, made from its section of a configuration, or, if there are any, of descriptors that somebody has opened.
///
/// # Errors
/// There is no such device, or the host does not give what it needs.
pub fn device(trace: &Trace, section: &Value, given: Vec<OwnedFd>) -> Result<Box<dyn VirtioDevice>, ReplayError> {
    let unknown = || ReplayError::Unknown(trace.device.chars().take(32).collect());
    let kind = DEVICES.iter().find(|kind| kind.name == trace.device).ok_or_else(unknown)?;
    let built = match &kind.given {
        Some(how) if !given.is_empty() => (how.build)(section, given)?,
        _ => (kind.build)(section)?,
    };
    built.into_iter().next().ok_or_else(unknown)
}

/// A device that does nothing: it gives each chain back as it comes. What it takes is what queues and transport take.
pub struct Idle {
    info: DeviceInfo,
    keeps: Vec<u16>,
}

impl Idle {
    /// One with the queues of `device`, that keeps the chains of some.
    pub fn like(device: &dyn VirtioDevice, keeps: &[u16]) -> Self {
        Idle { info: device.info(), keeps: keeps.to_vec() }
    }
}

impl VirtioDevice for Idle {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        if self.keeps.iter().any(|kept| usize::from(*kept) == index) {
            return Ok(());
        }
        while let Some(chain) = io.queues[index].pop(io.mem)? {
            io.queues[index].push(io.mem, chain.head(), 0)?;
        }
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        Ok(Value::Null)
    }

    fn load(&mut self, _: &Value) -> Result<(), StateError> {
        Ok(())
    }
}

/// An interrupt is a system call, as it is where KVM injects it.
struct Line(EventFd);

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The driver's side of a queue.
struct Queue {
    ring: Ring,
    kick: Arc<EventFd>,
    /// The device keeps chains until the host has something, of this shape.
    kept: bool,
    shape: Option<Vec<Part>>,
    added: u64,
    returned: u64,
    /// How many had been given back in the trace.
    awaited: u64,
}

/// A device that works, and its driver.
pub struct Replay {
    mem: GuestRam,
    scratch: Scratch,
    /// Entries of each queue.
    sizes: &'static [u16],
    queues: Vec<Queue>,
    // Dropped in this order: the loop's thread, the device, and then what it shows.
    events: Events,
    transport: Arc<Mutex<MmioTransport>>,
    _beside: Beside,
}

impl Replay {
    /// Starts `device` with what the trace's driver accepted. It keeps the chains of the queues `keeps`.
    ///
    /// # Errors
    /// The host gives no memory, descriptors or thread, or the device does not take the features.
    pub fn start(trace: &Trace, device: Box<dyn VirtioDevice>, keeps: &[u16]) -> Result<Self, ReplayError> {
        let mut replay = Replay::assemble(trace, device)?;
        replay.bring_up(trace.features, keeps)?;
        Ok(replay)
    }

    /// A device that no driver has touched.
    fn assemble(trace: &Trace, mut device: Box<dyn VirtioDevice>) -> Result<Self, ReplayError> {
        let sizes = device.info().queue_sizes;
        let rings: u64 = sizes.iter().map(|size| Ring::bytes(*size)).sum();
        let below = Some((GuestAddress(0), trace.memory as usize)).filter(|_| trace.memory > 0);
        let own = (GuestAddress(OWN), (rings + SCRATCH) as usize);
        let ranges: Vec<_> = below.into_iter().chain([own]).collect();
        let mem = GuestRam::from_ranges(&ranges).map_err(|error| host("memory")(io::Error::other(error)))?;
        let mut beside = Beside::new(mem, WINDOW);
        device.show(&mut beside).map_err(host("memory of the device"))?;
        let mem = beside.memory().clone();
        let line = Line(EventFd::new(EFD_NONBLOCK).map_err(host("event"))?);
        let transport = MmioTransport::new(mem.clone(), device, Arc::new(line)).map_err(host("events"))?;
        let transport = Arc::new(Mutex::new(transport));
        let events = Events::start(transport.clone())?;
        let scratch = Scratch::new(OWN + rings, SCRATCH);
        Ok(Replay { mem, scratch, sizes, queues: Vec::new(), events, transport, _beside: beside })
    }

    /// The whole way to DRIVER_OK (virtio 1.3, 3.1.1).
    fn bring_up(&mut self, wanted: u64, keeps: &[u16]) -> Result<(), ReplayError> {
        let mut offered = 0;
        for half in 0..2 {
            self.set(register::DEVICE_FEATURES_SEL, half);
            offered |= u64::from(self.get(register::DEVICE_FEATURES)) << (32 * half);
        }
        let features = wanted & offered;
        STATUS[..2].iter().for_each(|status| self.set(register::STATUS, *status));
        for half in 0..2 {
            self.set(register::DRIVER_FEATURES_SEL, half);
            self.set(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.set(register::STATUS, STATUS[2]);
        let negotiated =
            Negotiated { indirect: features & F_INDIRECT_DESC != 0, event_idx: features & F_EVENT_IDX != 0 };
        let mut at = OWN;
        let kicks = self.lock().queue_events();
        for (index, (size, kick)) in self.sizes.iter().zip(kicks).enumerate() {
            let ring = Ring::at(at, *size, negotiated);
            at += Ring::bytes(*size);
            self.set(register::QUEUE_SEL, index as u32);
            self.set(register::QUEUE_SIZE, u32::from(*size));
            let registers = [register::QUEUE_DESC_LOW, register::QUEUE_DRIVER_LOW, register::QUEUE_DEVICE_LOW];
            for (low, address) in registers.into_iter().zip(ring.parts()) {
                self.set(low, address as u32);
                self.set(low + 4, (address >> 32) as u32);
            }
            self.set(register::QUEUE_READY, 1);
            let kept = keeps.iter().any(|kept| usize::from(*kept) == index);
            self.queues.push(Queue { ring, kick, kept, shape: None, added: 0, returned: 0, awaited: 0 });
        }
        self.set(register::STATUS, STATUS[3]);
        let works = self.get(register::STATUS) == STATUS[3];
        if works { Ok(()) } else { Err(ReplayError::Features(features)) }
    }

    /// Does all steps of the trace, and waits until the device has answered all that it does not keep.
    ///
    /// # Errors
    /// The trace is not one of such a device, or the device stops or does not answer.
    pub fn run(&mut self, trace: &Trace) -> Result<(), ReplayError> {
        self.open(trace)?;
        for (index, step) in trace.steps.iter().enumerate() {
            let step_number = index + 1;
            match step {
                Step::Kick(_) => self.notify()?,
                Step::Chain(queue, parts) if !self.queue(*queue, step_number)?.kept => {
                    self.offer(*queue, parts, step_number)?;
                }
                Step::Back(queue, count) if !self.queue(*queue, step_number)?.kept => {
                    let queue = self.queue(*queue, step_number)?;
                    queue.awaited = queue.awaited.saturating_add((*count).into()).min(queue.added);
                    self.notify()?;
                    self.wait(step_number, |replay| replay.queues.iter().all(|queue| queue.returned >= queue.awaited))?;
                }
                Step::Chain(..) | Step::Back(..) => {}
            }
        }
        self.notify()?;
        self.wait(trace.steps.len(), |replay| replay.queues.iter().all(|queue| queue.kept || !queue.ring.is_busy()))
    }

    /// What the device has done.
    pub fn reading(&self) -> DeviceReading {
        self.lock().metrics().read()
    }

    fn queue(&mut self, queue: u16, step: usize) -> Result<&mut Queue, ReplayError> {
        let count = self.queues.len();
        self.queues.get_mut(usize::from(queue)).ok_or(ReplayError::Queue { step, queue, count })
    }

    /// Gives the device chains to keep: of each queue's first shape in the trace.
    fn open(&mut self, trace: &Trace) -> Result<(), ReplayError> {
        for (index, step) in trace.steps.iter().enumerate() {
            let Step::Chain(number, parts) = step else { continue };
            let queue = self.queue(*number, index + 1)?;
            if !queue.ring.holds(parts.len()) {
                return Err(ReplayError::Chain { step: index + 1, queue: *number, parts: parts.len() });
            }
            if queue.kept && queue.shape.is_none() {
                queue.shape = Some(parts.clone());
            }
        }
        self.look()
    }

    fn offer(&mut self, queue: u16, parts: &[Part], step: usize) -> Result<(), ReplayError> {
        if !self.queue(queue, step)?.ring.has_room(parts.len()) {
            self.notify()?;
            self.wait(step, |replay| {
                replay.queues.get(usize::from(queue)).is_some_and(|queue| queue.ring.has_room(parts.len()))
            })?;
        }
        let Replay { mem, scratch, queues, .. } = self;
        if let Some(queue) = queues.get_mut(usize::from(queue)) {
            queue.ring.add(mem, scratch, parts)?;
            queue.added += 1;
        }
        Ok(())
    }

    /// Notifies the device of what has been added, where it wants to know.
    fn notify(&mut self) -> Result<(), ReplayError> {
        for queue in &mut self.queues {
            queue.notify(&self.mem)?;
        }
        Ok(())
    }

    /// Takes back what there is, and has the device keep as much as it can.
    fn look(&mut self) -> Result<(), ReplayError> {
        let Replay { mem, scratch, queues, .. } = self;
        for queue in queues {
            queue.returned += u64::from(queue.ring.take_back(mem)?);
            let Some(shape) = &queue.shape else { continue };
            let mut some = false;
            while queue.ring.has_room(shape.len()) {
                queue.ring.add(mem, scratch, shape)?;
                some = true;
            }
            if some {
                queue.notify(mem)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, step: usize, done: impl Fn(&Replay) -> bool) -> Result<(), ReplayError> {
        let mut deadline = None;
        for looks in 1u32.. {
            self.look()?;
            if done(self) {
                break;
            }
            if looks % LOOKS != 0 {
                std::hint::spin_loop();
                continue;
            }
            // Others may need the processor, the device's thread among them.
            thread::yield_now();
            if self.get(register::STATUS) != STATUS[3] {
                return Err(ReplayError::Stopped(step));
            }
            let now = Instant::now();
            if now > *deadline.get_or_insert(now + PATIENCE) {
                return Err(ReplayError::Stalled(step));
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, MmioTransport> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.lock().read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn set(&self, offset: u64, value: u32) {
        self.lock().write(0, offset, &value.to_le_bytes());
    }
}

impl Drop for Replay {
    /// The loop looks whether it is to end when a reset wakes it.
    fn drop(&mut self) {
        self.events.over.store(true, Ordering::Release);
        self.set(register::STATUS, 0);
    }
}

impl Queue {
    fn notify(&mut self, mem: &GuestRam) -> Result<(), ReplayError> {
        if self.ring.wants_kick(mem)? {
            self.kick.write(1).map_err(host("event"))?;
        }
        Ok(())
    }
}

/// The thread of the event loop. Dropping it waits for its end.
struct Events {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    fn start(transport: Arc<Mutex<MmioTransport>>) -> Result<Self, ReplayError> {
        let failed = |error: event_manager::Error| host("event loop")(io::Error::other(error.to_string()));
        let mut manager = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new().map_err(failed)?;
        manager.add_subscriber(transport);
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let work = move || {
            while !until.load(Ordering::Acquire) {
                if let Err(error) = manager.run()
                    && !matches!(&error, event_manager::Error::Epoll(e) if e.errno() == libc::EINTR)
                {
                    tracing::error!("event loop of a replay: {error}");
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name(THREAD.into()).spawn(work).map_err(host("thread"))?;
        Ok(Events { over, thread: Some(thread) })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Nobody else wants to hear of a panic, which has been told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop_assert};
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    fn trace(device: &str, steps: &str) -> Trace {
        format!(
            "bulkhead queue trace 1\ndevice {device}\nfeatures 0xffffffffffffffff\nmemory 1048576\nconfig \n{steps}"
        )
        .parse()
        .unwrap()
    }

    fn rng(steps: &str) -> Result<DeviceReading, ReplayError> {
        let trace = trace("rng", steps);
        let device = device(&trace, &serde_json::json!({}), Vec::new())?;
        let mut replay = Replay::start(&trace, device, &[])?;
        replay.run(&trace)?;
        Ok(replay.reading())
    }

    #[test]
    fn a_device_does_what_the_trace_asks() {
        let reading = rng("kick 0\nchain 0 w64\nback 0 1\nchain 0 w100 w28\nchain 0 w8\nback 0 2\n").unwrap();
        let queue = &reading.queues[0];
        assert_eq!((queue.operations, queue.bytes_to_guest, queue.errors), (3, 64 + 128 + 8, 0));
        assert!(queue.kicks >= 2 && queue.kicks <= 3, "{queue:?}");
    }

    #[test]
    fn more_than_the_queue_holds_waits_for_its_turn() {
        let many = 1000;
        let reading = rng(&"chain 0 w16\n".repeat(many)).unwrap();
        assert_eq!(reading.queues[0].operations, many as u64);
    }

    #[test]
    fn a_trace_that_does_not_fit_is_an_error() {
        assert!(matches!(rng("chain 1 w1\n"), Err(ReplayError::Queue { step: 1, queue: 1, count: 1 })));
        assert!(matches!(rng("kick 0\nback 9 1\n"), Err(ReplayError::Queue { step: 2, queue: 9, .. })));
        let long = format!("chain 0{}\n", " w1".repeat(1024));
        assert!(matches!(rng(&long), Err(ReplayError::Chain { step: 1, queue: 0, parts: 1024 })));
        let other = trace("toaster", "");
        let error = device(&other, &Value::Null, Vec::new()).err().unwrap().to_string();
        assert!(error.contains("'toaster'; there are rng, vsock, blk"), "{error}");
    }

    #[test]
    fn what_the_trace_had_back_and_never_offered_is_not_waited_for() {
        let reading = rng("back 0 100\nchain 0 w16\nback 0 100\n").unwrap();
        assert_eq!(reading.queues[0].operations, 1);
    }

    #[test]
    fn the_idle_device_gives_back_what_it_does_not_keep() {
        let trace = trace("net", "chain 0 w1500\nkick 1\nchain 1 r12= r60=ff\nback 1 1\nchain 1 r12=\n");
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let section = serde_json::json!([{ "iface_id": "a", "user": {} }]);
        let net = device(&trace, &section, vec![ours.into()]).unwrap();
        let mut replay = Replay::start(&trace, Box::new(Idle::like(net.as_ref(), &[0])), &[0]).unwrap();
        replay.run(&trace).unwrap();
        let reading = replay.reading();
        assert_eq!((reading.queues[0].operations, reading.queues[1].operations), (0, 2));
    }

    #[test]
    fn whatever_a_trace_asks_ends() {
        // Rooms and bytes where the device wants the other, none at all, queues that there are not, and what was never offered.
        let part = proptest::sample::select(vec!["r0=", "r3=01", "r64=", "w0", "w1", "w70000"]);
        let chain = proptest::collection::vec(part, 0..5).prop_map(|mut parts| {
            parts.sort_unstable();
            format!("chain {} {}", parts.len() % 3, parts.join(" ")).trim_end().to_owned()
        });
        let other =
            proptest::sample::select(vec!["kick 0", "kick 1", "kick 63", "back 0 2", "back 1 4294967295", "back 2 1"]);
        let step = proptest::prop_oneof![chain, other.prop_map(str::to_owned)];
        let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
        let steps = proptest::collection::vec(step, 0..12);
        let name = proptest::sample::select(vec!["rng", "console"]);
        let done = runner.run(&(name, steps), |(name, steps)| {
            let trace = trace(name, &(steps.join("\n") + "\n"));
            let section = if name == "console" { serde_json::json!({ "mode": "off" }) } else { serde_json::json!({}) };
            let device = device(&trace, &section, Vec::new()).unwrap();
            let keeps: &[u16] = if name == "console" { &[0] } else { &[] };
            let result = Replay::start(&trace, device, keeps).unwrap().run(&trace);
            prop_assert!(!matches!(result, Err(ReplayError::Stalled(_) | ReplayError::Memory(_))), "{result:?}");
            Ok(())
        });
        done.unwrap();
    }

    #[test]
    fn what_is_recorded_is_what_is_done_again() {
        let (tape, written) = super::super::tape::tests::tape();
        let first = trace("rng", "kick 0\nchain 0 w64\nchain 0 w32\nback 0 2\n");
        let rng = device(&first, &serde_json::json!({}), Vec::new()).unwrap();
        let mut replay = Replay::assemble(&first, rng).unwrap();
        replay.lock().record(tape);
        replay.bring_up(first.features, &[]).unwrap();
        replay.run(&first).unwrap();
        drop(replay);
        let again: Trace = written.text().parse().unwrap();
        let chains = |trace: &Trace| {
            trace.steps.iter().filter(|step| matches!(step, Step::Chain(..))).cloned().collect::<Vec<_>>()
        };
        assert_eq!(chains(&again), chains(&first));
        assert_eq!((again.device.as_str(), again.memory), ("rng", 1048576));
    }
}
