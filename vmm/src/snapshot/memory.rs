//! Guest RAM into a file: only pages that hold something.
//!
//! The file has the length of RAM, its regions one after the other, and a last page that says whose it is. Zero and
//! never-touched pages are holes. Which pages can hold something, `/proc/self/pagemap` tells without touching them, and
//! for RAM that is a view of another snapshot's file, that file's own holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::behind::Behind;
use crate::memory::Ram;

/// Bytes of a page of the host.
pub const PAGE: usize = 4096;
/// First bytes of the last page.
const MAGIC: [u8; 8] = *b"BULKMEM1";
/// Bytes of an identity.
pub const ID_LEN: usize = 16;
/// pagemap: in memory, or in swap (Linux `admin-guide/mm/pagemap.rst`).
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
/// pagemap: a page of a file, or of shared memory. A page of a private mapping that has been written to is not.
const OF_FILE: u64 = 1 << 61;
/// Pages whose pagemap entries are read at a time.
const BATCH: usize = 16 << 10;

/// Most pages that are looked at before they are written: they are still in the processor's cache then.
const PIECE: usize = (1 << 20) / PAGE;

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

/// Pages one after the other: the first, and how many.
pub type Extent = (u64, u64);

/// A file that RAM is a private view of.
#[derive(Debug)]
pub struct Source {
    /// With RAM's pages at their places.
    pub file: File,
    /// The pages that are in it, where it does not have all.
    pub extents: Option<Vec<Extent>>,
}

/// Writes all of `ram` into the empty `file`, and `id` behind it. Nothing may write to RAM meanwhile.
///
/// `sources` are what RAM is a private view of, if it is one.
pub fn write(ram: &Ram, sources: &[Source], file: &File, id: &[u8; ID_LEN]) -> io::Result<Written> {
    let (mut written, mut behind) = (Written::default(), Behind::new(file));
    for_each_region(ram, PRESENT_OR_SWAPPED, 0, &mut |bytes, candidates, offset| {
        for source in sources {
            match &source.extents {
                None => mark_data(&source.file, offset, candidates)?,
                Some(extents) => mark_extents(extents, offset, candidates),
            }
        }
        written.bytes += write_pages(bytes, candidates, file, offset, &mut behind)?;
        Ok(())
    })?;
    finish(ram, file, id)?;
    Ok(written)
}

/// Writes the pages of `ram` that are no longer those of the files that it is a private view of; returns which they are.
/// Otherwise as [`write()`]. What vCPUs and devices write is found alike: both write through the one mapping.
pub fn write_changed(ram: &Ram, file: &File, id: &[u8; ID_LEN]) -> io::Result<(Written, Vec<Extent>)> {
    let (mut written, mut extents, mut behind) = (Written::default(), Vec::new(), Behind::new(file));
    for_each_region(ram, PRESENT_OR_SWAPPED, OF_FILE, &mut |bytes, changed, offset| {
        written.bytes += write_pages(bytes, changed, file, offset, &mut behind)?;
        extents.extend(runs(changed, offset / PAGE as u64));
        Ok(())
    })?;
    finish(ram, file, id)?;
    Ok((written, extents))
}

/// Gets the bytes of a region, which of its pages have been asked for, and its place among all of RAM.
type WithRegion<'a> = dyn FnMut(&[u8], &mut [bool], u64) -> io::Result<()> + 'a;

/// Calls `with` for each region, with the pages that have a flag of `any` and none of `none` in the pagemap.
fn for_each_region(ram: &Ram, any: u64, none: u64, with: &mut WithRegion<'_>) -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut offset = 0;
    for region in ram.guest().iter() {
        let (start, len) = (region.as_ptr(), region.len() as usize);
        let mut pages = flagged(&pagemap, start as usize, len / PAGE, any, none)?;
        // SAFETY: the region is a live mapping of `len` readable bytes, and its vCPUs are paused and its devices locked:
        // nobody writes to it while the slice lives.
        let bytes = unsafe { std::slice::from_raw_parts(start, len) };
        with(bytes, &mut pages, offset)?;
        offset += region.len();
    }
    Ok(())
}

/// The last page.
fn finish(ram: &Ram, file: &File, id: &[u8; ID_LEN]) -> io::Result<()> {
    let length = ram.guest().iter().map(GuestMemoryRegion::len).sum();
    file.set_len(file_len(length))?;
    let mut trailer = [0; PAGE];
    trailer[..8].copy_from_slice(&MAGIC);
    trailer[8..8 + ID_LEN].copy_from_slice(id);
    file.write_all_at(&trailer, length)
}

/// The pages that are marked, as extents; `first` is the number of the first page.
pub fn runs(pages: &[bool], first: u64) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (page, _) in (first..).zip(pages).filter(|(_, marked)| **marked) {
        match extents.last_mut() {
            Some((start, count)) if *start + *count == page => *count += 1,
            _ => extents.push((page, 1)),
        }
    }
    extents
}

/// Whether these are extents of a file of so many pages, in order.
pub fn are_sound(extents: &[Extent], pages: u64) -> bool {
    let mut end = 0;
    extents.iter().all(|&(first, count)| {
        let sound = first >= end && count > 0 && first.checked_add(count).is_some_and(|end| end <= pages);
        end = first.saturating_add(count);
        sound
    })
}

/// Marks the pages of extents that are among those from `offset` on.
fn mark_extents(extents: &[Extent], offset: u64, pages: &mut [bool]) {
    let base = offset / PAGE as u64;
    for &(first, count) in extents {
        let place =
            |page: u64| usize::try_from(page.saturating_sub(base)).map_or(pages.len(), |at| at.min(pages.len()));
        let (from, to) = (place(first), place(first.saturating_add(count)));
        if let Some(marked) = pages.get_mut(from..to) {
            marked.fill(true);
        }
    }
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

/// For each page from `start` on: whether its pagemap entry has a flag of `any` and none of `none`.
fn flagged(pagemap: &File, start: usize, pages: usize, any: u64, none: u64) -> io::Result<Vec<bool>> {
    let mut flagged = Vec::with_capacity(pages);
    let mut entries = vec![0; BATCH.min(pages) * 8];
    while flagged.len() < pages {
        let count = BATCH.min(pages - flagged.len());
        let batch = &mut entries[..count * 8];
        pagemap.read_exact_at(batch, ((start / PAGE + flagged.len()) * 8) as u64)?;
        let entry = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        flagged.extend(batch.chunks_exact(8).map(entry).map(|entry| entry & any != 0 && entry & none == 0));
    }
    Ok(flagged)
}

/// The first place at or behind `offset` of RAM that there is something of `source` for.
pub fn next_data(source: &Source, offset: u64) -> io::Result<Option<u64>> {
    if let Some(extents) = &source.extents {
        let place = |(first, count): &Extent| {
            let (start, end) = (first * PAGE as u64, (first + count) * PAGE as u64);
            (end > offset).then(|| start.max(offset))
        };
        return Ok(extents.iter().filter_map(place).min());
    }
    match rustix::fs::seek(&source.file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Marks the pages for which `file` has data in the range from `offset` on.
fn mark_data(file: &File, offset: u64, pages: &mut [bool]) -> io::Result<()> {
    data_runs(file, offset, pages.len(), &mut |run| pages.get_mut(run).unwrap_or_default().fill(true))
}

/// Calls `with` for each run of pages, of `pages` from `offset` on, for which `file` has data.
pub fn data_runs(file: &File, offset: u64, pages: usize, with: &mut dyn FnMut(Range<usize>)) -> io::Result<()> {
    let end = offset + (pages * PAGE) as u64;
    let mut at = offset;
    while at < end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // Nothing but a hole is left.
            Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(end);
        with((data - offset) as usize / PAGE..((hole - offset) as usize).div_ceil(PAGE));
        at = hole;
    }
    Ok(())
}

/// Writes the candidates that are not all zeros, in runs; returns their bytes.
fn write_pages(bytes: &[u8], candidates: &[bool], file: &File, offset: u64, behind: &mut Behind) -> io::Result<u64> {
    let holds = |page: usize| candidates[page] && !is_zero(&bytes[page * PAGE..(page + 1) * PAGE]);
    let mut total = 0;
    let mut page = 0;
    while page < candidates.len() {
        if !holds(page) {
            page += 1;
            continue;
        }
        let first = page;
        while page < candidates.len() && page - first < PIECE && holds(page) {
            page += 1;
        }
        let run = &bytes[first * PAGE..page * PAGE];
        let at = offset + (first * PAGE) as u64;
        file.write_all_at(run, at)?;
        behind.written(at, run.len() as u64);
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
        assert_eq!(write(&ram, &[], &file, &ID).unwrap(), Written { bytes: 4 * PAGE as u64 });
        assert!(file.metadata().unwrap().blocks() * 512 < 64 * PAGE as u64, "not sparse");
        assert!(belongs(&file, 32 << 20, &ID).unwrap());
        assert!(!belongs(&file, 32 << 20, &[8; ID_LEN]).unwrap() && !belongs(&file, 31 << 20, &ID).unwrap());

        let source = |file: &File| Source { file: file.try_clone().unwrap(), extents: None };
        let sources = [source(&file)];
        let copy = Ram::of_files(32, &sources).unwrap();
        assert_eq!([byte(&copy, 17), byte(&copy, 5 * 4096 + 17), byte(&copy, 8191 * 4096 + 17)], [1, 6, 8]);

        // A snapshot of the copy has what it changed and what it did not.
        copy.guest().write_obj(9u8, GuestAddress(300 * PAGE as u64)).unwrap();
        copy.guest().write_obj(0u8, GuestAddress(17)).unwrap();
        let second = tempfile::tempfile().unwrap();
        let bytes = write(&copy, &sources, &second, &ID).unwrap().bytes;
        let again = Ram::of_files(32, &[source(&second)]).unwrap();
        assert_eq!(bytes, 4 * PAGE as u64);
        assert_eq!([byte(&again, 17), byte(&again, 4096 + 17), byte(&again, 300 * 4096)], [0, 2, 9]);
        // The first file is as it was.
        assert_eq!(byte(&Ram::of_files(32, &sources).unwrap(), 17), 1);
    }

    #[test]
    fn what_has_changed_is_written_and_laid_over_what_has_not() {
        let page = PAGE as u64;
        let ram = Ram::new(32).unwrap();
        for at in 0..200 {
            ram.guest().write_obj(1u8, GuestAddress(at * page)).unwrap();
        }
        let base = tempfile::tempfile().unwrap();
        write(&ram, &[], &base, &ID).unwrap();
        let base = || Source { file: base.try_clone().unwrap(), extents: None };

        // Twice in a row: a machine on its base, and one on top of both. Lone pages are read, long runs are mapped.
        let mut files: Vec<(File, Vec<Extent>)> = Vec::new();
        for round in 2..4u8 {
            let layers = |files: &[(File, Vec<Extent>)]| -> Vec<Source> {
                let over = files
                    .iter()
                    .map(|(file, extents)| Source { file: file.try_clone().unwrap(), extents: Some(extents.clone()) });
                [base()].into_iter().chain(over).collect()
            };
            let ram = Ram::of_files(32, &layers(&files)).unwrap();
            assert_eq!(byte(&ram, 3 * page), if round == 2 { 1 } else { 2 });
            for at in [3, 5000].into_iter().chain(40..140) {
                ram.guest().write_obj(round, GuestAddress(at * page)).unwrap();
            }
            ram.guest().write_obj(0u8, GuestAddress(7 * page)).unwrap();
            let file = tempfile::tempfile().unwrap();
            let (written, extents) = write_changed(&ram, &file, &ID).unwrap();
            assert_eq!((written.bytes, &extents[..]), (102 * page, &[(3, 1), (7, 1), (40, 100), (5000, 1)][..]));
            files.push((file, extents));
            let again = Ram::of_files(32, &layers(&files)).unwrap();
            let seen = [0, 3, 7, 39, 40, 139, 140, 5000, 5001].map(|at| byte(&again, at * page));
            assert_eq!(seen, [1, round, 0, 1, round, round, 1, round, 0]);
            // All of it in one file again.
            let whole = tempfile::tempfile().unwrap();
            write(&again, &layers(&files), &whole, &ID).unwrap();
            let whole = Ram::of_files(32, &[Source { file: whole, extents: None }]).unwrap();
            assert_eq!([0, 3, 7, 139, 5000].map(|at| byte(&whole, at * page)), [1, round, 0, round, round]);
        }
    }

    #[test]
    fn ram_goes_on_as_a_view_of_what_was_written() {
        let page = PAGE as u64;
        let ram = Ram::new(32).unwrap();
        ram.guest().write_obj(1u8, GuestAddress(page)).unwrap();
        let first = tempfile::tempfile().unwrap();
        write(&ram, &[], &first, &ID).unwrap();
        ram.rebase(&Source { file: first, extents: None }).unwrap();
        for at in 9..30 {
            ram.guest().write_obj(2u8, GuestAddress(at * page)).unwrap();
        }
        let second = tempfile::tempfile().unwrap();
        let (_, extents) = write_changed(&ram, &second, &ID).unwrap();
        assert_eq!((byte(&ram, page), &extents[..]), (1, &[(9, 21)][..]));
        ram.rebase(&Source { file: second, extents: Some(extents) }).unwrap();
        let third = tempfile::tempfile().unwrap();
        assert_eq!(write_changed(&ram, &third, &ID).unwrap(), (Written { bytes: 0 }, vec![]));
        assert_eq!([byte(&ram, page), byte(&ram, 9 * page)], [1, 2]);
    }

    #[test]
    fn pages_that_were_given_back_are_those_of_the_snapshot_again() {
        let page = PAGE as u64;
        // What the balloon does.
        let give_back = |ram: &Ram, first: u64, count: usize| {
            let start = ram.guest().get_host_address(GuestAddress(first * page)).unwrap();
            // SAFETY: whole pages of RAM that nobody else uses.
            assert_eq!(unsafe { libc::madvise(start.cast(), count * PAGE, libc::MADV_DONTNEED) }, 0);
        };
        let fill = |ram: &Ram, pages: Range<u64>, value: u8| {
            pages.for_each(|at| ram.guest().write_obj(value, GuestAddress(at * page)).unwrap());
        };
        let ram = Ram::new(32).unwrap();
        fill(&ram, 0..40, 1);
        give_back(&ram, 10, 10);
        let base = tempfile::tempfile().unwrap();
        assert_eq!(write(&ram, &[], &base, &ID).unwrap().bytes, 30 * page);
        let source = |file: &File, extents| Source { file: file.try_clone().unwrap(), extents };
        let ram = Ram::of_files(32, &[source(&base, None)]).unwrap();
        fill(&ram, 0..60, 2);
        give_back(&ram, 5, 10);
        give_back(&ram, 50, 5);
        let seen = |ram: &Ram| [0, 5, 9, 10, 14, 15, 49, 50, 54, 55].map(|at| byte(ram, at * page));
        let expected = [2, 1, 1, 0, 0, 2, 2, 0, 0, 2];
        assert_eq!(seen(&ram), expected);
        // In a change to the snapshot they are not, and in one of their own as they are.
        let (diff, full) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (written, extents) = write_changed(&ram, &diff, &ID).unwrap();
        assert_eq!((written.bytes, &extents[..]), (45 * page, &[(0, 5), (15, 35), (55, 5)][..]));
        write(&ram, &[source(&base, None)], &full, &ID).unwrap();
        let both = [source(&base, None), source(&diff, Some(extents))];
        assert_eq!(seen(&Ram::of_files(32, &both).unwrap()), expected);
        assert_eq!(seen(&Ram::of_files(32, &[source(&full, None)]).unwrap()), expected);
    }

    #[test]
    fn extents_that_lead_out_of_ram_or_back_are_not_sound() {
        for (extents, sound) in [
            (&[(0, 4), (4, 4)][..], true),
            (&[], true),
            (&[(0, 9)], false),
            (&[(4, 2), (5, 1)], false),
            (&[(4, 2), (0, 1)], false),
            (&[(1, 0)], false),
            (&[(u64::MAX, 2)], false),
        ] {
            assert_eq!(are_sound(extents, 8), sound, "{extents:?}");
        }
    }

    #[test]
    fn a_write_that_fails_is_an_error() {
        let ram = Ram::new(16).unwrap();
        ram.guest().write_obj(1u8, GuestAddress(0)).unwrap();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert!(write(&ram, &[], &full, &ID).is_err());
    }
}
