//! A virtio device's registers (virtio 1.3, 4.2.2).

use ring3::{WINDOW, WINDOWS};

use crate::memory::Word;

/// "virt".
const MAGIC: u32 = 0x7472_6976;

/// Register offsets.
pub mod register {
    #![expect(missing_docs, reason = "the specification's names")]
    pub const MAGIC_VALUE: usize = 0x000;
    pub const DEVICE_ID: usize = 0x008;
    pub const DEVICE_FEATURES: usize = 0x010;
    pub const DEVICE_FEATURES_SEL: usize = 0x014;
    pub const DRIVER_FEATURES: usize = 0x020;
    pub const DRIVER_FEATURES_SEL: usize = 0x024;
    pub const QUEUE_SEL: usize = 0x030;
    pub const QUEUE_SIZE_MAX: usize = 0x034;
    pub const QUEUE_SIZE: usize = 0x038;
    pub const QUEUE_READY: usize = 0x044;
    pub const QUEUE_NOTIFY: usize = 0x050;
    pub const INTERRUPT_STATUS: usize = 0x060;
    pub const INTERRUPT_ACK: usize = 0x064;
    pub const STATUS: usize = 0x070;
    pub const QUEUE_DESC: usize = 0x080;
    pub const QUEUE_DRIVER: usize = 0x090;
    pub const QUEUE_DEVICE: usize = 0x0a0;
    pub const CONFIG_GENERATION: usize = 0x0fc;
    pub const CONFIG: usize = 0x100;
}

/// A device's window.
#[derive(Debug, Clone, Copy)]
pub struct Window(usize);

impl Window {
    /// The window of this number, if a device is there.
    pub fn find(number: usize) -> Option<Self> {
        let window = Window(WINDOWS + number * WINDOW);
        (window.get(register::MAGIC_VALUE) == MAGIC).then_some(window)
    }

    /// Reads at any offset. Where the width or the place is wrong, that is the device's business.
    pub fn read<T: Word>(self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= WINDOW);
        // SAFETY: within a page of device registers, which are no object of this program. x86 has no alignment there.
        unsafe { read_unaligned((self.0 + offset) as *const T) }
    }

    /// Writes at any offset.
    pub fn write<T: Word>(self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= WINDOW);
        // SAFETY: as in `read`.
        unsafe { write_unaligned((self.0 + offset) as *mut T, value) }
    }

    /// Reads a register.
    pub fn get(self, offset: usize) -> u32 {
        self.read(offset)
    }

    /// Writes a register.
    pub fn set(self, offset: usize, value: u32) {
        self.write(offset, value);
    }

    /// Writes a register that has a low and a high half.
    pub fn set_wide(self, offset: usize, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }
}

/// One access of the width of `T`, wherever it is. Volatile accesses want alignment, and have none here.
///
/// # Safety
/// `at` can be read.
unsafe fn read_unaligned<T: Word>(at: *const T) -> T {
    let value: u64;
    // SAFETY: the caller's promise; each reads as many bytes as `T` has.
    unsafe {
        match size_of::<T>() {
            1 => core::arch::asm!("movzx {v:e}, byte ptr [{at}]", v = out(reg) value, at = in(reg) at),
            2 => core::arch::asm!("movzx {v:e}, word ptr [{at}]", v = out(reg) value, at = in(reg) at),
            4 => core::arch::asm!("mov {v:e}, [{at}]", v = out(reg) value, at = in(reg) at),
            _ => core::arch::asm!("mov {v}, [{at}]", v = out(reg) value, at = in(reg) at),
        }
    }
    // SAFETY: a `Word` is a number of at most eight bytes, the low ones of `value`.
    unsafe { (&raw const value).cast::<T>().read() }
}

/// The same for a write.
///
/// # Safety
/// `at` can be written.
unsafe fn write_unaligned<T: Word>(at: *mut T, value: T) {
    let mut wide = 0u64;
    // SAFETY: as in `read_unaligned`.
    unsafe { (&raw mut wide).cast::<T>().write(value) };
    // SAFETY: the caller's promise; each writes as many bytes as `T` has.
    unsafe {
        match size_of::<T>() {
            1 => core::arch::asm!("mov [{at}], {v}", v = in(reg_byte) wide as u8, at = in(reg) at),
            2 => core::arch::asm!("mov [{at}], {v:x}", v = in(reg) wide, at = in(reg) at),
            4 => core::arch::asm!("mov [{at}], {v:e}", v = in(reg) wide, at = in(reg) at),
            _ => core::arch::asm!("mov [{at}], {v}", v = in(reg) wide, at = in(reg) at),
        }
    }
}
