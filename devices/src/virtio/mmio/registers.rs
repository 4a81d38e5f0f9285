//! The window as the driver sees it (virtio 1.3, 4.2.2).

use super::*;

/// "virt".
pub(super) const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "BULK".
const VENDOR: u32 = 0x4b4c_5542;
const CONFIG: u64 = 0x100;

/// Register offsets (virtio 1.3, 4.2.2).
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod register {
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

impl MmioTransport {
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
            QUEUE_NOTIFY => self.notified(value as usize),
            INTERRUPT_ACK => self.interrupt_status &= !value,
            STATUS => self.write_status(value),
            _ => {}
        }
    }
}

/// Control registers are 32 bits wide and aligned (4.2.2.2); any other access to them reads 0 and writes nothing. The
/// configuration space takes every width; past its end it reads 0.
impl BusDevice for MmioTransport {
    /// What the device itself has a part in: its start, and what has it stop.
    fn is_work(&self, offset: u64, data: &[u8]) -> bool {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return false };
        match offset {
            register::STATUS => match self.status.clone().step(value, self.acceptable()) {
                Step::Activate => true,
                Step::Reset => self.status.was_activated(),
                Step::Quiet | Step::GivenUp | Step::Refused => false,
            },
            register::QUEUE_READY => {
                let queue = self.queues.get(self.queue_sel as usize);
                value & 1 == 0 && self.status.is_live() && queue.is_some_and(VirtQueue::is_ready)
            }
            _ => false,
        }
    }

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
