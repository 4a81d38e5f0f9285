//! Where the initial RAM disk goes.

use vm_memory::GuestMemoryBackend;

use crate::{
    image::{Image, ImageError},
    layout::{HIGH_MEMORY_START, PAGE_SIZE},
};

/// The last address an initial RAM disk may use where no setup header says so: what 64-bit kernels put there.
pub const DEFAULT_MAX_ADDRESS: u64 = 0x7fff_ffff;

/// An initial RAM disk that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is no room.
    #[error(
        "{len:#x} bytes find no room below {limit:#x} beside the kernel, which takes {kernel_start:#x}..{kernel_end:#x}; give the guest more memory"
    )]
    NoRoom {
        /// Size of the file.
        len: u64,
        /// End of RAM below the hole, or of what the kernel can reach.
        limit: u64,
        /// First address the kernel uses.
        kernel_start: u64,
        /// End of what the kernel uses.
        kernel_end: u64,
    },
}

/// A range for an initial RAM disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Guest-physical start, page aligned.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// Finds room for `len` bytes: as high as they may go, above the kernel if possible, else below it.
///
/// `kernel` is the range that the kernel uses before it reads the memory map, `max_address` the last address that it
/// lets an initial RAM disk use.
pub fn place(len: u64, kernel: (u64, u64), max_address: u64, low_end: u64) -> Result<Placement, InitrdError> {
    let limit = low_end.min(max_address.saturating_add(1));
    let fit = |bottom: u64, top: u64| {
        let addr = top.checked_sub(len)? & !(PAGE_SIZE - 1);
        // The pages after the image's last byte are its own: kernels free it by whole pages.
        let pages = len.checked_next_multiple_of(PAGE_SIZE)?;
        let fits = addr >= bottom && addr.checked_add(pages)? <= top.checked_next_multiple_of(PAGE_SIZE)?;
        fits.then_some(Placement { addr, len })
    };
    let above = || fit(kernel.1.checked_next_multiple_of(PAGE_SIZE)?, limit);
    let below = || fit(HIGH_MEMORY_START, limit.min(kernel.0) & !(PAGE_SIZE - 1));
    let no_room = InitrdError::NoRoom { len, limit, kernel_start: kernel.0, kernel_end: kernel.1 };
    above().or_else(below).ok_or(no_room)
}

/// Copies it there.
pub fn load<M: GuestMemoryBackend>(mem: &M, image: &Image<'_>, at: Placement) -> Result<(), InitrdError> {
    Ok(image.load(mem, 0, at.len, at.addr)?)
}
