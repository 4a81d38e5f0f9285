//! The MMIO transport (virtio 1.3, 4.2; modern only).
//!
//! Owns feature negotiation, queue set-up, the status machine, interrupts and events; knows nothing of requests.
//!
//! - [`registers`]: the window as the driver sees it;
//! - [`doorbell`]: how the driver says that a queue has something;
//! - [`status`]: the status machine as a table;
//! - [`events`]: kicks and device descriptors on the event loop;
//! - [`record`]: what the driver asks, written down;
//! - [`limits`]: queues that wait because of the device's limits;
//! - [`state`]: saved state;
//! - [`swap`]: another device in the place of the one there is;
//! - [`close`]: none in its place.
//!
//! The driver's accesses come on vCPU threads and only set things up: what starts or stops the device is work
//! ([`BusDevice::is_work`]), which those leave to the event loop. Queues are worked on by the event loop, or, if it has
//! been told so ([`MmioTransport::answer_at_once`]), on the vCPU thread whose write to QueueNotify arrives there. Both
//! take the one lock around the transport, the loop once per event.

mod close;
mod doorbell;
mod events;
mod limits;
mod record;
mod registers;
mod state;
mod status;
mod swap;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use doorbell::Doorbell;
use limits::Throttle;
pub(super) use registers::register;
pub use state::TransportState;
use status::{Status, Step};

use super::metrics::DeviceMetrics;
use super::queue::{Features, QueueSetup, VirtQueue};
use super::trace::tape::Tape;
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};
use crate::{BusDevice, GuestRam, InterruptLine};

/// Length of the register window.
pub const WINDOW: u64 = 0x1000;

pub(super) const F_INDIRECT_DESC: u64 = 1 << 28;
pub(super) const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;
const TRANSPORT_FEATURES: u64 = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1;

const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// One device's window of registers, its queues and its place on the event loop.
pub struct MmioTransport {
    mem: GuestRam,
    device: Box<dyn VirtioDevice>,
    info: DeviceInfo,
    line: Arc<dyn InterruptLine>,
    status: Status,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver asked for a feature beyond bit 63, which nobody offers.
    foreign_features: bool,
    queue_sel: u32,
    setups: Vec<QueueSetup>,
    queues: Vec<VirtQueue>,
    /// One per queue.
    kicks: Vec<Doorbell>,
    /// A write to QueueNotify is answered before it returns.
    at_once: bool,
    interrupt_status: u32,
    config_generation: u32,
    metrics: Arc<DeviceMetrics>,
    throttle: Throttle,
    /// Tells the event loop that the descriptors to watch may have changed.
    control: EventFd,
    fds: Vec<DeviceFd>,
    /// What the loop watches while the device waits for a reset.
    fds_until_reset: Vec<DeviceFd>,
    /// What of these the loop watches now.
    watched: Vec<DeviceFd>,
    /// Where what the driver does is recorded.
    tape: Option<Tape>,
    /// Devices that were replaced while the loop watched their descriptors.
    retired: Vec<Box<dyn VirtioDevice>>,
}

impl MmioTransport {
    /// Puts `device` behind a window. Fails only for lack of descriptors.
    pub fn new(mem: GuestRam, device: Box<dyn VirtioDevice>, line: Arc<dyn InterruptLine>) -> io::Result<Self> {
        let info = device.info();
        let queues: Vec<_> = info.queue_sizes.iter().map(|max| VirtQueue::new(*max)).collect();
        let kicks = queues.iter().map(Doorbell::new).collect::<io::Result<_>>()?;
        let queue_metrics = queues.iter().map(|queue| queue.metrics().clone()).collect();
        let mut transport = MmioTransport {
            mem,
            info,
            line,
            status: Status::default(),
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            foreign_features: false,
            queue_sel: 0,
            setups: Vec::new(),
            queues,
            kicks,
            at_once: false,
            interrupt_status: 0,
            config_generation: 0,
            metrics: Arc::new(DeviceMetrics { queues: queue_metrics, ..DeviceMetrics::default() }),
            throttle: Throttle::default(),
            control: EventFd::new(EFD_NONBLOCK)?,
            fds: device.fds(),
            fds_until_reset: device.fds_until_reset(),
            watched: Vec::new(),
            tape: None,
            retired: Vec::new(),
            device,
        };
        transport.forget_driver();
        Ok(transport)
    }

    /// One event per queue, in order: to be signalled by a 4-byte write of the queue's index to QueueNotify (0x050).
    pub fn queue_events(&self) -> Vec<Arc<EventFd>> {
        self.kicks.iter().map(|kick| kick.event().clone()).collect()
    }

    /// Has writes to QueueNotify answered before they return, for drivers that look at the used ring right after. To be
    /// used where an interrupt costs more than the wait; only with a device that is [`DeviceInfo::prompt`].
    pub fn answer_at_once(&mut self) {
        self.at_once = self.info.prompt;
    }

    /// Whether [`Self::answer_at_once`] has had an effect: then nobody else need signal [`Self::queue_events`].
    pub fn answers_at_once(&self) -> bool {
        self.at_once
    }

    /// What the device has done since it was made, and does.
    pub fn metrics(&self) -> Arc<DeviceMetrics> {
        self.metrics.clone()
    }

    /// The device's name, for messages.
    pub fn name(&self) -> &'static str {
        self.info.name
    }

    /// Everything the driver set, as after power-on.
    fn forget_driver(&mut self) {
        self.status = Status::default();
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.foreign_features = false;
        self.queue_sel = 0;
        self.interrupt_status = 0;
        self.throttle.limiter.take_waiting();
        self.setups = self.queues.iter().map(|queue| setup_of(queue.max_size())).collect();
        self.queues.iter_mut().for_each(VirtQueue::stop);
    }

    fn offered(&self) -> u64 {
        self.info.features | TRANSPORT_FEATURES
    }

    fn ring_features(&self) -> Features {
        Features {
            event_idx: self.driver_features & F_EVENT_IDX != 0,
            indirect: self.driver_features & F_INDIRECT_DESC != 0,
        }
    }

    /// Lets the device work, then sends the interrupts it caused.
    fn with_device(&mut self, work: impl FnOnce(&mut dyn VirtioDevice, &mut Io) -> Result<(), DeviceFault>) {
        self.queues.iter_mut().for_each(VirtQueue::refill);
        let at_once = self.at_once && !self.throttle.limiter.is_limited();
        let limiter = &mut self.throttle.limiter;
        let mut io = Io { mem: &self.mem, queues: &mut self.queues, config_changed: false, limiter, at_once };
        let mut result = work(self.device.as_mut(), &mut io);
        let mut interrupt = 0;
        if io.config_changed {
            self.config_generation = self.config_generation.wrapping_add(1);
            interrupt |= CONFIG_CHANGE;
        }
        for (queue, kick) in self.queues.iter_mut().zip(&mut self.kicks) {
            match queue.wants_interrupt(&self.mem) {
                Ok(true) => interrupt |= USED_BUFFER,
                Ok(false) => {}
                Err(e) => result = result.and(Err(e.into())),
            }
            if queue.exhausted() {
                kick.ring();
            }
        }
        self.throttle.arm();
        if interrupt != 0 {
            self.interrupt(interrupt);
        }
        if let Err(fault) = result {
            self.fail(&fault);
        }
    }

    fn interrupt(&mut self, cause: u32) {
        self.interrupt_status |= cause;
        self.metrics.interrupts.add(1);
        if let Err(e) = self.line.trigger() {
            tracing::error!(device = self.info.name, "interrupt was not delivered: {e}");
        }
    }

    /// Stops the device until the driver resets it (2.1.2).
    fn fail(&mut self, fault: &DeviceFault) {
        tracing::warn!(device = self.info.name, "device needs reset, {fault}");
        self.metrics.faults.add(1);
        let live = self.status.is_live();
        self.status.set_needs_reset();
        signal(&self.control);
        if live {
            self.interrupt(CONFIG_CHANGE);
        }
    }

    /// Nothing the device does may touch guest RAM after this.
    fn quiesce(&mut self, forget: bool) {
        let (at_once, limiter) = (self.at_once, &mut self.throttle.limiter);
        let mut io = Io { mem: &self.mem, queues: &mut self.queues, config_changed: false, limiter, at_once };
        if let Err(fault) = self.device.quiesce(&mut io, forget) {
            tracing::warn!(device = self.info.name, "quiesce: {fault}");
        }
    }

    fn reset(&mut self) {
        if self.status.was_activated() {
            self.quiesce(true);
        }
        self.forget_driver();
        signal(&self.control);
    }

    fn activate(&mut self) {
        self.record_start();
        match self.device.activate(self.driver_features) {
            // Kicks that came before were not answered.
            Ok(()) => self.kicks.iter_mut().for_each(Doorbell::ring),
            Err(fault) => self.fail(&fault),
        }
        signal(&self.control);
    }

    /// The features that the driver has chosen are what it may choose.
    fn acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & F_VERSION_1 != 0 && !self.foreign_features
    }

    fn write_status(&mut self, value: u32) {
        let acceptable = self.acceptable();
        match self.status.step(value, acceptable) {
            Step::Reset => self.reset(),
            Step::Activate => self.activate(),
            Step::GivenUp => signal(&self.control),
            Step::Quiet => {}
            Step::Refused => tracing::debug!(device = self.info.name, value, "status write refused"),
        }
    }
}

/// A queue's set-up before the driver touched it.
fn setup_of(max: u16) -> QueueSetup {
    QueueSetup { size: max.into(), ..QueueSetup::default() }
}

/// Adds to an event. Only a full counter fails, and that wakes the reader as well.
fn signal(event: &EventFd) {
    let _ = event.write(1);
}

impl Drop for MmioTransport {
    /// Ends requests in flight before guest RAM goes away.
    fn drop(&mut self) {
        if self.status.was_activated() {
            self.quiesce(true);
        }
    }
}

#[cfg(test)]
mod tests;
