//! Memory that a device shows the guest besides RAM: a file, for reading, in place.
//!
//! A device maps the file ([`Window::map`]) and asks the machine to show it ([`AddressSpace::show`]), which says where the guest
//! finds it. All that map the same file share its pages. Devices see windows as they see RAM ([`GuestRam`]), because a driver may
//! name a page there as the source of a request; [`is_writable`] tells the two apart.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};

use crate::GuestRam;

/// Windows start at multiples of this, and have a length that is one: what guests can add to their memory, and the size of a
/// large page.
pub const ALIGNMENT: u64 = 2 << 20;

const PROTECTION: libc::c_int = libc::PROT_READ;

/// A file mapped for reading, with zeros behind its end.
#[derive(Debug)]
pub struct Window {
    start: NonNull<u8>,
    len: usize,
    /// What has been mapped, to align it.
    mapped: (*mut libc::c_void, usize),
}

// SAFETY: nothing is read or written through the addresses here; whoever drops it last unmaps them.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

/// Where a machine has room for windows.
pub trait AddressSpace {
    /// Shows the guest a window for as long as the machine lives, and returns its guest-physical start. It touches neither RAM
    /// nor another window.
    fn show(&mut self, window: Arc<Window>) -> io::Result<u64>;
}

impl Window {
    /// Maps the first `bytes` of `file`, which must have been opened for reading.
    ///
    /// A file that somebody cuts short afterwards ends a machine that uses what is missing.
    pub fn map(file: &File, bytes: u64) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::EFBIG);
        let len = bytes.checked_next_multiple_of(ALIGNMENT).and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| *len > 0).ok_or_else(too_large)?;
        let total = len.checked_add(ALIGNMENT as usize).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), total, PROTECTION, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let head = mapped.cast::<u8>().align_offset(ALIGNMENT as usize);
        // SAFETY: `head` is less than ALIGNMENT, by which the mapping is longer than `len`.
        let start = unsafe { mapped.cast::<u8>().add(head) };
        let window = Window { start: NonNull::new(start).ok_or_else(too_large)?, len, mapped: (mapped, total) };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range is part of the mapping just made, which nobody uses yet.
        let over = unsafe { libc::mmap(start.cast(), bytes as usize, PROTECTION, flags, file.as_raw_fd(), 0) };
        if over == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(window) }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// There is always something.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address in this process.
    pub fn host_address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// `ram` with the window in it, at `start`: for devices, which must drop it before the window. Fails if something else is
    /// there.
    pub fn beside(&self, ram: &GuestRam, start: u64) -> io::Result<GuestRam> {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: the mapping is `len` bytes long and stays as long as the window, which the region does not outlive. It is only
        // for reading, as the region says; nobody writes to one that is not [`is_writable`].
        let region = unsafe { MmapRegion::build_raw(self.start.as_ptr(), self.len, PROTECTION, flags) };
        let region = GuestRegionMmap::new(region.map_err(io::Error::other)?, GuestAddress(start));
        let region = region.ok_or_else(|| io::Error::other("it would wrap around"))?;
        ram.insert_region(Arc::new(region)).map_err(io::Error::other)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to the window alone, and nobody uses it any more.
        unsafe { libc::munmap(self.mapped.0, self.mapped.1) };
    }
}

/// Memory with room for one window, where there is no machine.
pub(super) struct Beside {
    mem: GuestRam,
    start: u64,
    // Outlives what sees it.
    window: Option<Arc<Window>>,
}

impl Beside {
    /// A window would be at `start` in what is `mem` otherwise.
    pub(super) fn new(mem: GuestRam, start: u64) -> Self {
        Beside { mem, start, window: None }
    }

    /// What devices see.
    pub(super) fn memory(&self) -> &GuestRam {
        &self.mem
    }
}

impl AddressSpace for Beside {
    fn show(&mut self, window: Arc<Window>) -> io::Result<u64> {
        self.mem = window.beside(&self.mem, self.start)?;
        self.window = Some(window);
        Ok(self.start)
    }
}

/// Whether bytes that are in `mem` from `address` on may be written to: those of a window may not. As no window touches anything
/// else, this is the same for all of them.
pub fn is_writable(mem: &GuestRam, address: GuestAddress) -> bool {
    mem.find_region(address).is_some_and(|region| region.prot() & libc::PROT_WRITE != 0)
}
