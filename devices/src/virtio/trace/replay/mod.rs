//! A trace done again: a device behind its transport, on an event loop's thread of its own, in memory without a guest.
//!
//! The thread that calls is the driver and nothing else. It offers chains and notifies the device as the trace says, by the event
//! that a guest's notification signals, and goes on past `back` when the device has given as many chains back as it had then. So what
//! one request needs of another is kept, and how many are under way at a time. Chains that a device keeps until the host has
//! something for the guest (received packets, what is typed) are another matter ([`Kept`]): as with a driver, there are always as many
//! as the queue holds, of the shape that the trace has, and nobody waits for them.
//!
//! - this file: the driver;
//! - [`idle`]: a device to compare with;
//! - [`events`]: the thread and the interrupt.
//!
//! Addresses are not the guest's, but within requests: those speak of the first bytes of memory, where nothing of the driver's is.

mod events;
mod idle;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vm_memory::{GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

pub use events::THREAD;
use events::{Events, Line};
pub use idle::Idle;

use super::rings::{Negotiated, Ring, Scratch};
use super::{Part, Step, Trace};
use crate::virtio::metrics::DeviceReading;
use crate::virtio::mmio::{F_EVENT_IDX, F_INDIRECT_DESC, register};
use crate::virtio::window::Beside;
use crate::virtio::{DEVICES, DeviceError, MmioTransport, VirtioDevice};
use crate::{BusDevice, GuestRam};

/// Where the driver's own memory is: above all that a trace may speak of.
const OWN: u64 = 4 << 30;
/// Bytes of it for the data of chains, of which the host gives what is used.
const SCRATCH: u64 = 1 << 30;
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

/// A queue of which the device keeps chains until the host has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub queue: u16,
    /// How many chains the driver has there at the most.
    pub most: u16,
}

impl Kept {
    /// One that is always full.
    pub fn full(queue: u16) -> Self {
        Kept { queue, most: u16::MAX }
    }
}

/// The driver's side of a queue.
struct Queue {
    ring: Ring,
    kick: Arc<EventFd>,
    /// The device keeps chains until the host has something: so many, of this shape.
    kept: Option<usize>,
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
    pub fn start(trace: &Trace, device: Box<dyn VirtioDevice>, keeps: &[Kept]) -> Result<Self, ReplayError> {
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
        let line = Line::new()?;
        let transport = MmioTransport::new(mem.clone(), device, Arc::new(line)).map_err(host("events"))?;
        let transport = Arc::new(Mutex::new(transport));
        let events = Events::start(transport.clone())?;
        let scratch = Scratch::new(OWN + rings, SCRATCH);
        Ok(Replay { mem, scratch, sizes, queues: Vec::new(), events, transport, _beside: beside })
    }

    /// The whole way to DRIVER_OK (virtio 1.3, 3.1.1).
    fn bring_up(&mut self, wanted: u64, keeps: &[Kept]) -> Result<(), ReplayError> {
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
            let kept = keeps.iter().find(|kept| usize::from(kept.queue) == index).map(|kept| kept.most.into());
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
                Step::Chain(queue, parts) if self.queue(*queue, step_number)?.kept.is_none() => {
                    self.offer(*queue, parts, step_number)?;
                }
                Step::Back(queue, count) if self.queue(*queue, step_number)?.kept.is_none() => {
                    let queue = self.queue(*queue, step_number)?;
                    queue.awaited = queue.awaited.saturating_add((*count).into()).min(queue.added);
                    self.notify()?;
                    self.wait(step_number, |replay| replay.queues.iter().all(|queue| queue.returned >= queue.awaited))?;
                }
                Step::Chain(..) | Step::Back(..) => {}
            }
        }
        self.notify()?;
        self.wait(trace.steps.len(), |replay| {
            replay.queues.iter().all(|queue| queue.kept.is_some() || queue.ring.busy() == 0)
        })
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
            if queue.kept.is_some() && queue.shape.is_none() {
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
            while queue.ring.busy() < queue.kept.unwrap_or(0) && queue.ring.has_room(shape.len()) {
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
        self.events.end();
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

#[cfg(test)]
mod tests;
