//! Pages of guest RAM back to the host.
//!
//! RAM is a private mapping. A page that is given back has no memory behind it any more; when it is next used it is what
//! it was before anybody wrote to it: zeros, or what the snapshot has that RAM is a view of. So a snapshot that asks which
//! pages have been written to finds neither more nor less than there is.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::GuestRam;
use crate::virtio::DeviceFault;
use crate::virtio::chain::Buffers;

/// Bytes of a page, for the guest (virtio 1.3, 5.5.6) and for the host.
pub const PAGE: usize = 4096;
/// Most page numbers of a request: drivers send 256 or 1024.
const MOST: usize = 4096;
/// Page numbers that are sorted at a time.
const BATCH: usize = 1024;
/// Bytes of a page number.
const NUMBER: usize = 4;

/// Gives the pages back whose numbers `buffers` holds, in any order; what is left over at the end is no number.
pub fn give_back_numbered(buffers: Buffers, mem: &GuestRam) -> Result<(), DeviceFault> {
    if buffers.len() > MOST * NUMBER {
        return Err(DeviceFault::Guest("too many pages in one request of the balloon"));
    }
    let mut rest = buffers;
    while !rest.is_empty() {
        let (first, after) = rest.split_at(BATCH * NUMBER);
        let mut bytes = [0; BATCH * NUMBER];
        let count = first.read(&mut bytes) / NUMBER;
        let mut numbers = [0; BATCH];
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(NUMBER)) {
            *number = bytes.try_into().map_or(0, u32::from_le_bytes);
        }
        let numbers = &mut numbers[..count];
        // The driver takes pages as they come, which is mostly in a row, and a row costs one call.
        numbers.sort_unstable();
        numbers.chunk_by(|a, b| b - a <= 1).try_for_each(|run| give_back_run(run, mem))?;
        rest = after;
    }
    Ok(())
}

/// Gives back the pages from the first number to the last.
fn give_back_run(run: &[u32], mem: &GuestRam) -> Result<(), DeviceFault> {
    let (Some(&first), Some(&last)) = (run.first(), run.last()) else { return Ok(()) };
    let pages = (last - first) as usize + 1;
    // 32 bits of pages are 44 of addresses.
    let address = GuestAddress(u64::from(first) * PAGE as u64);
    for slice in mem.get_slices(address, pages * PAGE) {
        give_back(&slice.map_err(|_| DeviceFault::Guest("a page in the balloon that is no memory"))?);
    }
    Ok(())
}

/// Gives back the pages that lie in a piece of guest memory as a whole. A host that refuses keeps its memory: nobody else
/// need know.
pub fn give_back(slice: &VolatileSlice) {
    let guard = slice.ptr_guard_mut();
    let skip = guard.as_ptr().align_offset(PAGE);
    let len = guard.len().saturating_sub(skip) / PAGE * PAGE;
    if len == 0 {
        return;
    }
    // SAFETY: `skip` and `len` lie within the slice, which is guest RAM or a window: whole pages of a mapping, which stay
    // mapped. Only RAM's content changes, as it does when the guest writes, and which nobody here relies on.
    let done = unsafe { libc::madvise(guard.as_ptr().add(skip).cast(), len, libc::MADV_DONTNEED) };
    if done != 0 {
        tracing::debug!(len, "balloon: memory is not given back: {}", io::Error::last_os_error());
    }
}
