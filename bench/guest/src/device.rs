//! A virtio device's registers (virtio 1.3, 4.2.2), as its driver uses them.

/// Register offsets.
pub(crate) mod register {
    pub const DEVICE_ID: usize = 0x008;
    pub const DRIVER_FEATURES: usize = 0x020;
    pub const DRIVER_FEATURES_SEL: usize = 0x024;
    pub const QUEUE_SEL: usize = 0x030;
    pub const QUEUE_SIZE: usize = 0x038;
    pub const QUEUE_READY: usize = 0x044;
    pub const QUEUE_NOTIFY: usize = 0x050;
    pub const INTERRUPT_STATUS: usize = 0x060;
    pub const INTERRUPT_ACK: usize = 0x064;
    pub const STATUS: usize = 0x070;
    /// Low halves; the high ones follow.
    pub const QUEUE_AREAS: [usize; 3] = [0x080, 0x090, 0x0a0];
    pub const CONFIG: usize = 0x100;
}

/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, each with those before it.
const STEPS: [u32; 4] = [1, 3, 11, 15];
/// VIRTIO_F_VERSION_1, in the upper half of the features.
const VERSION_1: u32 = 1;

/// A device's window.
pub struct Device(*mut u32);

impl Device {
    /// The device in the window at `registers`.
    ///
    /// # Safety
    /// They are those of a virtio device that nobody else drives.
    pub unsafe fn new(registers: *mut u32) -> Self {
        Device(registers)
    }

    /// Reads a register.
    pub fn get(&self, offset: usize) -> u32 {
        // SAFETY: a register of the window that `new` was given.
        unsafe { self.0.byte_add(offset).read_volatile() }
    }

    /// Writes a register.
    pub fn set(&mut self, offset: usize, value: u32) {
        // SAFETY: a register of the window that `new` was given.
        unsafe { self.0.byte_add(offset).write_volatile(value) }
    }

    /// Eight bytes of the configuration space.
    pub fn config(&self, at: usize) -> u64 {
        let half = |at: usize| u64::from(self.get(register::CONFIG + at));
        half(at) | half(at + 4) << 32
    }

    /// Brings it up with these of the first 32 features and queues of `size` entries whose descriptor tables, available and used rings are at these (physical)
    /// addresses. False if it is not of the kind `id`, or does not come up.
    pub fn bring_up(&mut self, id: u32, features: u32, size: usize, queues: &[[u64; 3]]) -> bool {
        if self.get(register::DEVICE_ID) != id {
            return false;
        }
        self.set(register::STATUS, 0);
        self.set(register::STATUS, STEPS[0]);
        self.set(register::STATUS, STEPS[1]);
        for (half, features) in [features, VERSION_1].into_iter().enumerate() {
            self.set(register::DRIVER_FEATURES_SEL, half as u32);
            self.set(register::DRIVER_FEATURES, features);
        }
        self.set(register::STATUS, STEPS[2]);
        for (index, areas) in queues.iter().enumerate() {
            self.set(register::QUEUE_SEL, index as u32);
            self.set(register::QUEUE_SIZE, size as u32);
            for (register, address) in register::QUEUE_AREAS.into_iter().zip(areas) {
                self.set(register, *address as u32);
                self.set(register + 4, (address >> 32) as u32);
            }
            self.set(register::QUEUE_READY, 1);
        }
        self.set(register::STATUS, STEPS[3]);
        self.get(register::STATUS) == STEPS[3]
    }
}
