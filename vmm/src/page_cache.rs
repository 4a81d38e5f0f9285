//! A program's file in the page cache, in large pages.
//!
//! A process maps its program as it comes to it, by page faults, and the kernel reads a file that is asked for so in single pages. From
//! those a microVM's process takes 0.25 ms longer to its guest's first instruction than from pages of 2 MiB, as long as they stay there.
//! So what is not there is read in large pages, before the process begins, if who starts it may write to the file: of others the kernel
//! says that all is there. That is where a file system can have large pages (ext4 since Linux 6.16, XFS since 5.18); of the others, some
//! forget a file whenever it is opened (FUSE), or have no page cache (DAX), and would read it at each start.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::null_mut;

use rustix::fs::{Advice, fadvise, fstatfs};
use rustix::mm::{self, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::snapshot::memory::PAGE;

/// Bytes of a page that a page table has no table for.
const LARGE: usize = 2 << 20;

/// File systems with large pages, and what containers see of them (linux/magic.h): ext4, XFS, btrfs, overlays.
const FILE_SYSTEMS: [libc::c_long; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x794c_7630];

/// Reads a file of which not all is in the page cache, to its end. Tells whether there was anything to do. What others have mapped stays
/// as it is.
///
/// # Errors
/// It cannot be mapped, or read.
pub fn fill(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let len = usize::try_from(metadata.len()).map_err(io::Error::other)?;
    if len == 0 || !metadata.is_file() || !FILE_SYSTEMS.contains(&fstatfs(file)?.f_type) {
        return Ok(false);
    }
    let mapping = Mapping::of(file, len)?;
    if mapping.cached()? == len.div_ceil(PAGE) {
        return Ok(false);
    }
    // Nothing is dropped that could not be read again.
    mapping.advise(0, mm::Advice::LinuxPopulateRead)?;
    // Where there is a page, no large one can be.
    fadvise(file, 0, None, Advice::DontNeed)?;
    mapping.read()?;
    Ok(true)
}

/// Addresses with a file at a multiple of [`LARGE`].
struct Mapping {
    start: *mut libc::c_void,
    len: usize,
    file: *mut libc::c_void,
    file_len: usize,
}

impl Mapping {
    fn of(file: &File, file_len: usize) -> io::Result<Self> {
        let len = file_len.checked_add(LARGE).ok_or(io::ErrorKind::FileTooLarge)?;
        // SAFETY: the kernel chooses where.
        let start =
            unsafe { mmap_anonymous(null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE) }?;
        let at = start.wrapping_byte_add(start.align_offset(LARGE));
        let mapping = Mapping { start, len, file: at, file_len };
        // SAFETY: it takes the place of addresses that are this mapping's: `at` is less than LARGE behind their start.
        unsafe { mmap(at, file_len, ProtFlags::READ, MapFlags::PRIVATE | MapFlags::FIXED, file.as_fd(), 0) }?;
        Ok(mapping)
    }

    /// How many of its pages are in the page cache. (Of a mapping, since cachestat(2) sees nothing of files that an overlay shows.)
    fn cached(&self) -> io::Result<usize> {
        let mut pages = vec![0; self.file_len.div_ceil(PAGE)];
        // SAFETY: the file's addresses are this mapping's, and there is a byte for each of their pages.
        if unsafe { libc::mincore(self.file, self.file_len, pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages.iter().filter(|page| **page & 1 != 0).count())
    }

    /// Has the kernel read all of it. A file that has become shorter is an error, not a signal: nothing is looked at.
    fn read(&self) -> io::Result<()> {
        // A kernel that has no large pages reads others.
        let _ = self.advise(self.file_len, mm::Advice::LinuxHugepage);
        self.advise(self.file_len, mm::Advice::LinuxPopulateRead)
    }

    /// Of the first bytes; of none at all, it tells whether the kernel knows the advice.
    fn advise(&self, len: usize, advice: mm::Advice) -> io::Result<()> {
        // SAFETY: the file's addresses are this mapping's, and neither advice changes what is there.
        Ok(unsafe { madvise(self.file, len.min(self.file_len), advice) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody else knows these addresses.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn cached(file: &File) -> usize {
        let len = file.metadata().unwrap().len() as usize;
        Mapping::of(file, len).unwrap().cached().unwrap()
    }

    /// A file of this length, no page of which is in the page cache; none if the kernel keeps it there.
    fn away(len: usize) -> Option<File> {
        // Temporary files may be in memory.
        let beside = std::env::current_exe().unwrap();
        let mut file = tempfile::tempfile_in(beside.parent().unwrap()).unwrap();
        file.write_all(&vec![1; len]).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let there = cached(&file);
        let may = there == 0 && FILE_SYSTEMS.contains(&fstatfs(&file).unwrap().f_type);
        if !may {
            println!(
                "SKIP page_cache: {there} pages of a file that is not needed are there, or its file system is another"
            );
        }
        may.then_some(file)
    }

    #[test]
    fn what_is_not_there_is_read_to_the_end_and_once() {
        for (len, pages) in [(2 * LARGE + 5 * 4096 + 1, 1030), (1, 1), (LARGE, 512)] {
            let Some(file) = away(len) else { return };
            assert!(fill(&file).unwrap());
            assert_eq!((cached(&file), fill(&file).unwrap()), (pages, false), "{len}");
        }
    }

    #[test]
    fn a_part_is_not_enough() {
        use std::os::unix::fs::FileExt;
        let Some(file) = away(3 * LARGE) else { return };
        file.read_exact_at(&mut [0], LARGE as u64).unwrap();
        let there = cached(&file);
        assert!(there > 0 && fill(&file).unwrap() == (there < 3 * 512));
        assert_eq!(cached(&file), 3 * 512);
    }

    #[test]
    fn an_empty_file_and_none_at_all_are_nothing_to_do() {
        assert!(!fill(&tempfile::tempfile().unwrap()).unwrap());
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        assert!(!fill(&File::from(pipe)).unwrap_or(false));
    }
}
