//! Guest RAM. Its KVM memory slots are [`crate::slots`]' business.
//!
//! RAM is private and not reserved: anonymous, so that a page costs nothing before the guest touches it; or a private view
//! of a snapshot's file, so that a page costs nothing before the guest changes it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::snapshot::memory::{self as snapshot, Source};
use devices::GuestRam;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// RAM that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size does not fit the layout.
    #[error("guest memory: {0}")]
    Layout(#[from] boot::layout::LayoutError),
    /// The host would not map it.
    #[error("guest memory: the host would not map {mib} MiB: {problem}; ask for less memory")]
    Map {
        /// MiB asked for.
        mib: u64,
        /// The host's answer.
        problem: String,
    },
    /// It cannot come page by page.
    #[error(transparent)]
    Pager(#[from] crate::pager::PagerError),
    /// A device's memory cannot be shown.
    #[error("memory of device {device}: {source}")]
    Window {
        /// The device.
        device: &'static str,
        /// What is in the way.
        source: io::Error,
    },
    /// KVM would not take a region.
    #[error("guest memory: KVM_SET_USER_MEMORY_REGION for {start:#x}: {source}")]
    Slot {
        /// Guest-physical start.
        start: u64,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
}

/// Host mappings are aligned to this, the size of a large page, so that the host can back RAM with large pages.
const ALIGNMENT: usize = 2 << 20;

const PAGE: u64 = snapshot::PAGE as u64;
/// Runs of this many pages or less are cheaper to read than to map.
const LONE_PAGES: u64 = 8;
/// With more extents than this, none is mapped.
const MOST_MAPPINGS: usize = 8192;

/// Maps `len` bytes of `file` from `offset` on over what is mapped at `start`, which belongs to the caller.
fn map_over(start: *mut u8, len: usize, file: &File, offset: u64) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the range is part of a mapping of RAM, which stays readable and writable memory of the same length.
    let mapped = unsafe { libc::mmap(start.cast(), len, protection, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    keep_out_of_dumps(start, len);
    Ok(())
}

/// A core dump of this process is no place for a guest's memory.
fn keep_out_of_dumps(start: *mut u8, len: usize) {
    // SAFETY: it changes nothing but what a core dump has. A kernel that cannot leaves that to RLIMIT_CORE.
    unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTDUMP) };
}

/// One mapping of the host, given back when dropped.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the pointer is only an address to unmap, by whoever drops it last.
unsafe impl Send for Mapping {}
// SAFETY: nothing is done through a shared reference.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by a constructor, belongs to it alone, and is no longer used: `Ram` says so.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

impl Mapping {
    /// Maps `len` bytes, a multiple of the page size, of `file` from `offset` on. What is written stays in this process.
    fn of_file(len: usize, file: &File, offset: u64) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        keep_out_of_dumps(mapped.cast(), len);
        Ok(Mapping { start: mapped.cast(), len })
    }

    /// Maps `len` bytes, a multiple of the page size, at an address that is a multiple of [`ALIGNMENT`].
    fn anonymous(len: usize) -> io::Result<Self> {
        let total = len.checked_add(ALIGNMENT).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), total, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = mapped.cast::<u8>();
        let head = mapped.align_offset(ALIGNMENT);
        // SAFETY: `head` is less than ALIGNMENT, so that head, `len` bytes and the tail make up the mapping, which is
        // ours and untouched; head and tail are whole pages.
        unsafe {
            let start = mapped.add(head);
            if head > 0 {
                libc::munmap(mapped.cast(), head);
            }
            libc::munmap(start.add(len).cast(), ALIGNMENT - head);
            keep_out_of_dumps(start, len);
            Ok(Mapping { start, len })
        }
    }
}

/// Guest RAM with the host mappings it lies in.
///
/// Whoever keeps a clone of [`Ram::guest`] must drop it before this.
#[derive(Debug)]
pub struct Ram {
    guest: GuestRam,
    _mappings: Vec<Mapping>,
}

impl Ram {
    /// Maps `mib` MiB of RAM, all zeros, laid out around the hole below 4 GiB.
    pub fn new(mib: u64) -> Result<Self, MemoryError> {
        Self::map(mib, &mut |len, _| Mapping::anonymous(len))
    }

    /// Maps `mib` MiB of RAM as a private view of files, of which the first has all pages and each other one lies over those
    /// before it. There must be one.
    ///
    /// A file that somebody cuts short afterwards ends this process with SIGBUS when the guest uses what is missing.
    pub fn of_files(mib: u64, sources: &[Source]) -> Result<Self, MemoryError> {
        let failed = |problem: String| MemoryError::Map { mib, problem };
        let (first, over) = sources.split_first().ok_or_else(|| failed("there is no file".into()))?;
        let ram = Self::map(mib, &mut |len, offset| Mapping::of_file(len, &first.file, offset))?;
        for source in over {
            ram.lay_over(source, true).map_err(|e| failed(e.to_string()))?;
        }
        Ok(ram)
    }

    /// Makes RAM a private view of a file that holds what RAM holds: all of it, or in the given extents. Nothing may use RAM
    /// meanwhile. Short extents may stay as they are: then they still count as changed.
    pub fn rebase(&self, source: &Source) -> io::Result<()> {
        self.lay_over(source, false)
    }

    /// Maps the extents, or reads those that are short, if `read` says so.
    fn lay_over(&self, source: &Source, read: bool) -> io::Result<()> {
        // Each mapping may cost two more, and a process has 65530 at most where nobody has changed that.
        let many = source.extents.as_ref().is_some_and(|extents| extents.len() > MOST_MAPPINGS);
        let lone = if many { u64::MAX } else { LONE_PAGES };
        let mut offset = 0;
        for region in self.guest.iter() {
            let end = offset + region.len();
            let whole = [(offset / PAGE, region.len() / PAGE)];
            for &(first, count) in source.extents.as_deref().unwrap_or(&whole) {
                let (from, to) = ((first * PAGE).max(offset), (first + count) * PAGE);
                let to = to.min(end);
                if from >= to {
                    continue;
                }
                let len = (to - from) as usize;
                // SAFETY: `from` lies in the region, which is mapped as a whole.
                let start = unsafe { region.as_ptr().add((from - offset) as usize) };
                if count <= lone {
                    if !read {
                        continue;
                    }
                    // SAFETY: `len` bytes from `start` on lie in the region, and nobody else uses it yet.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(start, len) };
                    source.file.read_exact_at(bytes, from)?;
                } else {
                    map_over(start, len, &source.file, from)?;
                }
            }
            offset = end;
        }
        Ok(())
    }

    /// `map` gets the length of each region and its place among all of RAM.
    fn map(mib: u64, map: &mut dyn FnMut(usize, u64) -> io::Result<Mapping>) -> Result<Self, MemoryError> {
        let failed = |problem: String| MemoryError::Map { mib, problem };
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        let mut offset = 0;
        for (start, len) in boot::layout::ram_regions(mib << 20)? {
            let mapping = map(len as usize, offset).map_err(|e| failed(e.to_string()))?;
            offset += len;
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            // SAFETY: the mapping is `len` bytes long, readable and writable, and outlives the region, as `Ram` says.
            let region = unsafe { MmapRegion::build_raw(mapping.start, mapping.len, protection, flags) };
            let region = region.map_err(|e| failed(e.to_string()))?;
            let region = GuestRegionMmap::new(region, start).ok_or_else(|| failed("it would wrap around".into()))?;
            mappings.push(mapping);
            regions.push(region);
        }
        let guest = GuestRam::from_regions(regions).map_err(|e| failed(e.to_string()))?;
        Ok(Ram { guest, _mappings: mappings })
    }

    /// The RAM as devices and boot see it.
    pub fn guest(&self) -> &GuestRam {
        &self.guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_aligned_for_large_pages_and_goes_around_the_hole() {
        let ram = Ram::new(4096).unwrap();
        let regions: Vec<_> = ram.guest().iter().map(|r| (r.start_addr().0, r.len(), r.as_ptr() as usize)).collect();
        assert_eq!(regions.len(), 2);
        assert!(regions.iter().all(|(_, _, host)| host % ALIGNMENT == 0));
        assert_eq!((regions[1].0, regions[1].1), (4 << 30, 1 << 30));
    }

    #[test]
    fn what_the_host_cannot_map_is_an_error() {
        assert!(matches!(Ram::new(1 << 30), Err(MemoryError::Map { .. })));
    }
}
