//! Guest RAM that is nobody's but the adversary's.

use core::fmt::Debug;

/// End of RAM.
pub const END: u64 = 16 << 20;
/// Where rings begin.
pub const RINGS: u64 = 4 << 20;
/// Where requests' headers and data are, a part for each device.
pub const REQUESTS: u64 = 8 << 20;
/// Bytes of each part.
pub const PART: u64 = 128 << 10;
/// Indirect tables of attacks.
pub const TABLE: u64 = 21 << 19;
/// What attacks read and write. There is nothing but zeros behind it: a balloon that were told of pages by what is there would take
/// the program's own.
pub const DATA: u64 = 11 << 20;
const PAGE: usize = 4096;

/// A number of a size that processors and devices read and write at once.
pub trait Word: Copy + Debug + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

impl<T: sealed::Sealed + Copy + Debug> Word for T {}

fn place<T: Word>(at: u64) -> *mut T {
    assert!(at >= RINGS && at + size_of::<T>() as u64 <= END && at % align_of::<T>() as u64 == 0);
    at as *mut T
}

/// Reads a number. Devices and the other processor change it at any time.
pub fn read<T: Word>(at: u64) -> T {
    // SAFETY: in RAM that no object of this program is in, aligned, and any bits are a number.
    unsafe { place::<T>(at).read_volatile() }
}

/// Writes a number.
pub fn write<T: Word>(at: u64, value: T) {
    // SAFETY: as in `read`.
    unsafe { place::<T>(at).write_volatile(value) }
}

/// Writes the same byte so often.
pub fn fill(at: u64, byte: u8, count: u64) {
    (at..at + count).for_each(|at| write(at, byte));
}

/// Uses all of it once, so that the host gives no more of it later.
pub fn touch() {
    (RINGS..END).step_by(PAGE).for_each(|at| write(at, 0u64));
}
