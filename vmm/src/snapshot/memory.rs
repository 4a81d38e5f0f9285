//! Guest RAM into a file: only pages that hold something.
//!
//! The file has the length of RAM, its regions one after the other, and a last page that says whose it is. Zero and
//! never-touched pages are holes. Which pages can hold something, `/proc/self/pagemap` tells without touching them, and
//! for RAM that is a view of another snapshot's file, that file's own holes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::Ram;

/// Bytes of a page of the host.
pub const PAGE: usize = 4096;
/// First bytes of the last page.
const MAGIC: [u8; 8] = *b"BULKMEM1";
/// Bytes of an identity.
pub const ID_LEN: usize = 16;
/// pagemap: in memory, or in swap (Linux `admin-guide/mm/pagemap.rst`).
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
/// Pages whose pagemap entries are read at a time.
const BATCH: usize = 16 << 10;

/// What has been written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of pages that hold something.
    pub bytes: u64,
}

/// Bytes of the file for `ram_bytes` of RAM.
pub fn file_len(ram_bytes: u64) -> u64 {
    ram_bytes.saturating_add(PAGE as u64)
}

/// Writes all of `ram` into the empty `file`, and `id` behind it. Nothing may write to RAM meanwhile.
///
/// `base` is the file that RAM is a private view of, if it is one.
pub fn write(ram: &Ram, base: Option<&File>, file: &File, id: &[u8; ID_LEN]) -> io::Result<Written> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut written = Written::default();
    let mut offset = 0;
    for region in ram.guest().iter() {
        let (start, len) = (region.as_ptr(), region.len() as usize);
        let mut candidates = touched(&pagemap, start as usize, len / PAGE)?;
        if let Some(base) = base {
            mark_data(base, offset, &mut candidates)?;
        }
        // SAFETY: the region is a live mapping of `len` readable bytes, and its vCPUs are paused and its devices locked:
        // nobody writes to it while the slice lives.
        let bytes = unsafe { std::slice::from_raw_parts(start, len) };
        written.bytes += write_pages(bytes, &candidates, file, offset)?;
        offset += region.len();
    }
    file.set_len(file_len(offset))?;
    let mut trailer = [0; PAGE];
    trailer[..8].copy_from_slice(&MAGIC);
    trailer[8..8 + ID_LEN].copy_from_slice(id);
    file.write_all_at(&trailer, offset)?;
    Ok(written)
}

/// Whether `file` is the one that was written with `id`, for `ram_bytes` of RAM.
pub fn belongs(file: &File, ram_bytes: u64, id: &[u8; ID_LEN]) -> io::Result<bool> {
    if file.metadata()?.len() != file_len(ram_bytes) {
        return Ok(false);
    }
    let mut trailer = [0; 8 + ID_LEN];
    file.read_exact_at(&mut trailer, ram_bytes)?;
    Ok(trailer[..8] == MAGIC && trailer[8..] == *id)
}

/// For each page from `start` on: whether this process has it in memory or in swap.
fn touched(pagemap: &File, start: usize, pages: usize) -> io::Result<Vec<bool>> {
    let mut touched = Vec::with_capacity(pages);
    let mut entries = vec![0; BATCH.min(pages) * 8];
    while touched.len() < pages {
        let count = BATCH.min(pages - touched.len());
        let batch = &mut entries[..count * 8];
        pagemap.read_exact_at(batch, ((start / PAGE + touched.len()) * 8) as u64)?;
        let entry = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        touched.extend(batch.chunks_exact(8).map(|bytes| entry(bytes) & PRESENT_OR_SWAPPED != 0));
    }
    Ok(touched)
}

/// Marks the pages for which `file` has data in the range from `offset` on.
fn mark_data(file: &File, offset: u64, pages: &mut [bool]) -> io::Result<()> {
    let end = offset + (pages.len() * PAGE) as u64;
    let mut at = offset;
    while at < end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // Nothing but a hole is left.
            Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(end);
        let (first, last) = ((data - offset) as usize / PAGE, ((hole - offset) as usize).div_ceil(PAGE));
        pages.get_mut(first..last).ok_or(ErrorKind::InvalidData)?.fill(true);
        at = hole;
    }
    Ok(())
}

/// Writes the candidates that are not all zeros, in runs; returns their bytes.
fn write_pages(bytes: &[u8], candidates: &[bool], file: &File, offset: u64) -> io::Result<u64> {
    let holds = |page: usize| candidates[page] && !is_zero(&bytes[page * PAGE..(page + 1) * PAGE]);
    let mut total = 0;
    let mut page = 0;
    while page < candidates.len() {
        if !holds(page) {
            page += 1;
            continue;
        }
        let first = page;
        while page < candidates.len() && holds(page) {
            page += 1;
        }
        let run = &bytes[first * PAGE..page * PAGE];
        file.write_all_at(run, offset + (first * PAGE) as u64)?;
        total += run.len() as u64;
    }
    Ok(total)
}

/// Whether all bytes are zeros, a few cache lines at a time.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, GuestAddress};

    const ID: [u8; ID_LEN] = [7; ID_LEN];

    fn byte(ram: &Ram, at: u64) -> u8 {
        ram.guest().read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn only_what_holds_something_is_written_and_all_of_it_comes_back() {
        let ram = Ram::new(32).unwrap();
        for (page, value) in [(0u64, 1u8), (1, 2), (5, 6), (8191, 8)] {
            ram.guest().write_obj(value, GuestAddress(page * PAGE as u64 + 17)).unwrap();
        }
        // Touched and zero again.
        ram.guest().write_obj(0u8, GuestAddress(100 * PAGE as u64)).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write(&ram, None, &file, &ID).unwrap(), Written { bytes: 4 * PAGE as u64 });
        assert!(file.metadata().unwrap().blocks() * 512 < 64 * PAGE as u64, "not sparse");
        assert!(belongs(&file, 32 << 20, &ID).unwrap());
        assert!(!belongs(&file, 32 << 20, &[8; ID_LEN]).unwrap() && !belongs(&file, 31 << 20, &ID).unwrap());

        let copy = Ram::of_file(32, &file).unwrap();
        assert_eq!([byte(&copy, 17), byte(&copy, 5 * 4096 + 17), byte(&copy, 8191 * 4096 + 17)], [1, 6, 8]);

        // A snapshot of the copy has what it changed and what it did not.
        copy.guest().write_obj(9u8, GuestAddress(300 * PAGE as u64)).unwrap();
        copy.guest().write_obj(0u8, GuestAddress(17)).unwrap();
        let second = tempfile::tempfile().unwrap();
        let bytes = write(&copy, Some(&file), &second, &ID).unwrap().bytes;
        let again = Ram::of_file(32, &second).unwrap();
        assert_eq!(bytes, 4 * PAGE as u64);
        assert_eq!([byte(&again, 17), byte(&again, 4096 + 17), byte(&again, 300 * 4096)], [0, 2, 9]);
        // The first file is as it was.
        assert_eq!(byte(&Ram::of_file(32, &file).unwrap(), 17), 1);
    }

    #[test]
    fn a_write_that_fails_is_an_error() {
        let ram = Ram::new(16).unwrap();
        ram.guest().write_obj(1u8, GuestAddress(0)).unwrap();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert!(write(&ram, None, &full, &ID).is_err());
    }
}
