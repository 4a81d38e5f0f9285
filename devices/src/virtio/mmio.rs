//! The MMIO transport (virtio 1.3, 4.2; modern only).
//!
//! Owns feature negotiation, queue set-up, the status machine, interrupts and events; knows nothing of requests.
//!
//! - [`registers`](self): this file, the window as the driver sees it;
//! - [`status`]: the status machine as a table;
//! - [`events`]: kicks and device descriptors on the event loop;
//! - [`state`]: saved state;
//! - [`swap`]: another device in the place of the one there is;
//! - [`close`]: none in its place.
//!
//! The driver's accesses come on vCPU threads and only set things up; queues are worked on by the event loop, or, if it has
//! been told so ([`MmioTransport::answer_at_once`]), on the vCPU thread whose write to QueueNotify arrives there. Both
//! take the one lock around the transport, the loop once per event.

mod close;
mod events;
mod state;
mod status;
mod swap;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use state::TransportState;
use status::{Status, Step};

use super::queue::{Features, QueueSetup, VirtQueue};
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};
use crate::{BusDevice, GuestRam, InterruptLine};

/// Length of the register window.
pub const WINDOW: u64 = 0x1000;
/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "BULK".
const VENDOR: u32 = 0x4b4c_5542;
const CONFIG: u64 = 0x100;

const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;
const TRANSPORT_FEATURES: u64 = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1;

const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// Register offsets (virtio 1.3, 4.2.2).
mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
}

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
    /// One per queue: KVM or a register write signals it, the event loop reads it.
    kicks: Vec<Arc<EventFd>>,
    /// A write to QueueNotify is answered before it returns.
    at_once: bool,
    interrupt_status: u32,
    config_generation: u32,
    /// Tells the event loop that the descriptors to watch may have changed.
    control: EventFd,
    fds: Vec<DeviceFd>,
    /// What of `fds` the loop watches.
    watched: Vec<DeviceFd>,
    /// Devices that were replaced while the loop watched their descriptors.
    retired: Vec<Box<dyn VirtioDevice>>,
}

impl MmioTransport {
    /// Puts `device` behind a window. Fails only for lack of descriptors.
    pub fn new(mem: GuestRam, device: Box<dyn VirtioDevice>, line: Arc<dyn InterruptLine>) -> io::Result<Self> {
        let info = device.info();
        let event = || EventFd::new(EFD_NONBLOCK);
        let kicks = info.queue_sizes.iter().map(|_| event().map(Arc::new)).collect::<io::Result<_>>()?;
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
            queues: info.queue_sizes.iter().map(|max| VirtQueue::new(*max)).collect(),
            kicks,
            at_once: false,
            interrupt_status: 0,
            config_generation: 0,
            control: event()?,
            fds: device.fds(),
            watched: Vec::new(),
            retired: Vec::new(),
            device,
        };
        transport.forget_driver();
        Ok(transport)
    }

    /// One event per queue, in order: to be signalled by a 4-byte write of the queue's index to QueueNotify (0x050).
    pub fn queue_events(&self) -> Vec<Arc<EventFd>> {
        self.kicks.clone()
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
        let mut io = Io { mem: &self.mem, queues: &mut self.queues, config_changed: false, at_once: self.at_once };
        let mut result = work(self.device.as_mut(), &mut io);
        let mut interrupt = 0;
        if io.config_changed {
            self.config_generation = self.config_generation.wrapping_add(1);
            interrupt |= CONFIG_CHANGE;
        }
        for (queue, kick) in self.queues.iter_mut().zip(&self.kicks) {
            match queue.wants_interrupt(&self.mem) {
                Ok(true) => interrupt |= USED_BUFFER,
                Ok(false) => {}
                Err(e) => result = result.and(Err(e.into())),
            }
            if queue.exhausted() {
                signal(kick);
            }
        }
        if interrupt != 0 {
            self.interrupt(interrupt);
        }
        if let Err(fault) = result {
            self.fail(&fault);
        }
    }

    fn interrupt(&mut self, cause: u32) {
        self.interrupt_status |= cause;
        if let Err(e) = self.line.trigger() {
            tracing::error!(device = self.info.name, "interrupt was not delivered: {e}");
        }
    }

    /// Stops the device until the driver resets it (2.1.2).
    fn fail(&mut self, fault: &DeviceFault) {
        tracing::warn!(device = self.info.name, "device needs reset, {fault}");
        let live = self.status.is_live();
        self.status.set_needs_reset();
        signal(&self.control);
        if live {
            self.interrupt(CONFIG_CHANGE);
        }
    }

    /// Nothing the device does may touch guest RAM after this.
    fn quiesce(&mut self, forget: bool) {
        let mut io = Io { mem: &self.mem, queues: &mut self.queues, config_changed: false, at_once: self.at_once };
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
        match self.device.activate(self.driver_features) {
            // Kicks that came before were not answered.
            Ok(()) => self.kicks.iter().for_each(|kick| signal(kick)),
            Err(fault) => self.fail(&fault),
        }
        signal(&self.control);
    }

    fn write_status(&mut self, value: u32) {
        let acceptable = self.driver_features & !self.offered() == 0
            && self.driver_features & F_VERSION_1 != 0
            && !self.foreign_features;
        match self.status.step(value, acceptable) {
            Step::Reset => self.reset(),
            Step::Activate => self.activate(),
            Step::Quiet => {}
            Step::Refused => tracing::debug!(device = self.info.name, value, "status write refused"),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if !self.status.may_negotiate() {
            return;
        }
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            _ => self.foreign_features |= value != 0,
        }
    }

    /// The selected queue's set-up, as long as the driver may change it.
    fn setup(&mut self) -> Option<&mut QueueSetup> {
        let index = self.queue_sel as usize;
        let changeable = self.status.may_configure() && !self.queues.get(index)?.is_ready();
        self.setups.get_mut(index).filter(|_| changeable)
    }

    fn write_ready(&mut self, ready: bool) {
        let index = self.queue_sel as usize;
        let features = self.ring_features();
        if ready {
            let Some(&mut setup) = self.setup() else {
                return;
            };
            if let Err(e) = self.queues[index].start(&self.mem, &setup, features, (0, 0)) {
                self.fail(&e.into());
            }
        } else if self.queues.get(index).is_some_and(VirtQueue::is_ready) {
            if self.status.is_live() {
                self.quiesce(false);
            }
            self.queues[index].stop();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        use register::*;
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => self::VERSION,
            DEVICE_ID => self.info.id,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => match self.device_features_sel {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            QUEUE_READY => queue.is_some_and(VirtQueue::is_ready).into(),
            INTERRUPT_STATUS => self.interrupt_status,
            STATUS => self.status.bits(),
            // No shared memory region exists, whichever is selected (4.2.2).
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        use register::*;
        let low = |field: &mut u64| *field = *field & !0xffff_ffff | u64::from(value);
        let high = |field: &mut u64| *field = *field & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES => self.write_driver_features(value),
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_SIZE => drop(self.setup().map(|setup| setup.size = value)),
            QUEUE_DESC_LOW => drop(self.setup().map(|setup| low(&mut setup.descriptors))),
            QUEUE_DESC_HIGH => drop(self.setup().map(|setup| high(&mut setup.descriptors))),
            QUEUE_DRIVER_LOW => drop(self.setup().map(|setup| low(&mut setup.available))),
            QUEUE_DRIVER_HIGH => drop(self.setup().map(|setup| high(&mut setup.available))),
            QUEUE_DEVICE_LOW => drop(self.setup().map(|setup| low(&mut setup.used))),
            QUEUE_DEVICE_HIGH => drop(self.setup().map(|setup| high(&mut setup.used))),
            QUEUE_READY => self.write_ready(value & 1 != 0),
            QUEUE_NOTIFY if self.at_once => self.kicked(value as usize),
            QUEUE_NOTIFY => drop(self.kicks.get(value as usize).map(|kick| signal(kick))),
            INTERRUPT_ACK => self.interrupt_status &= !value,
            STATUS => self.write_status(value),
            _ => {}
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

/// Control registers are 32 bits wide and aligned (4.2.2.2); any other access to them reads 0 and writes nothing. The
/// configuration space takes every width; past its end it reads 0.
impl BusDevice for MmioTransport {
    fn read(&mut self, _: u64, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = usize::try_from(at).ok().and_then(|at| self.device.config().get(at..)).unwrap_or(&[]);
            data.fill(0);
            data.iter_mut().zip(config).for_each(|(to, from)| *to = *from);
        } else if data.len() == 4 && offset % 4 == 0 {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            data.fill(0);
        }
    }

    fn write(&mut self, _: u64, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let end = at.checked_add(data.len()).filter(|end| *end <= self.device.config().len());
            if end.is_some() && self.status.may_write_config() {
                self.device.write_config(at, data);
            }
        } else if let (Ok(bytes), 0) = (data.try_into(), offset % 4) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
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
