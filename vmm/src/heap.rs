//! The allocator of programs that are linked against musl, whose own is made to be small: it asks the kernel for a few pages at a time.
//!
//! What is small comes from dlmalloc. What is large is memory of its own, as in glibc: it costs nothing before it is touched, has not to
//! be cleared, grows without being copied, and is the host's again at once. Who frees says how large it was, so nothing is kept of it.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

use dlmalloc::GlobalDlmalloc;

/// Bytes from which on memory is mapped: glibc's M_MMAP_THRESHOLD.
const LARGE: usize = 128 << 10;
/// Alignment of what is mapped, bytes.
const PAGE: usize = 4096;

/// The allocator.
pub struct Heap;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

/// Zeroed pages; null if there are none.
fn map(size: usize) -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: it is where nothing else is.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if address == libc::MAP_FAILED { ptr::null_mut() } else { address.cast() }
}

// SAFETY: each allocation is dlmalloc's or a mapping, which its layout tells, so it is given back to where it came from; mappings are
// page-aligned, and as long as is asked for. Nothing here panics.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: as the caller says.
        unsafe { GlobalDlmalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: as the caller says.
        unsafe { GlobalDlmalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: it came from there, with this layout, as the caller says.
        unsafe {
            if is_large(layout) {
                libc::munmap(memory.cast(), layout.size());
            } else {
                GlobalDlmalloc.dealloc(memory, layout);
            }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller says that the size may be one of a layout with this alignment, and that the memory has this layout; both
        // allocations are as long as what is copied.
        unsafe {
            let wanted = Layout::from_size_align_unchecked(size, layout.align());
            match (is_large(layout), is_large(wanted)) {
                (false, false) => GlobalDlmalloc.realloc(memory, layout, size),
                (true, true) => {
                    let moved = libc::mremap(memory.cast(), layout.size(), size, libc::MREMAP_MAYMOVE);
                    if moved == libc::MAP_FAILED { ptr::null_mut() } else { moved.cast() }
                }
                _ => {
                    let other = self.alloc(wanted);
                    if !other.is_null() {
                        ptr::copy_nonoverlapping(memory, other, layout.size().min(size));
                        self.dealloc(memory, layout);
                    }
                    other
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of it that are in memory.
    fn resident(memory: *mut u8, size: usize) -> usize {
        let mut pages = vec![0u8; size.div_ceil(PAGE)];
        // SAFETY: it is a mapping of that size, and there is a byte for each page.
        assert_eq!(unsafe { libc::mincore(memory.cast(), size, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn what_is_large_takes_nothing_before_it_is_touched() {
        let layout = Layout::from_size_align(64 * PAGE, 16).unwrap();
        // SAFETY: what is written is within it, and it is given back once.
        unsafe {
            let memory = Heap.alloc_zeroed(layout);
            assert_eq!(resident(memory, layout.size()), 0);
            memory.write(1);
            assert_eq!((resident(memory, layout.size()), memory.add(PAGE).read()), (1, 0));
            Heap.dealloc(memory, layout);
        }
    }

    #[test]
    fn what_grows_and_shrinks_keeps_what_is_in_it() {
        let sizes = [1, 100, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE, LARGE, LARGE - 1, 3 * LARGE + 7, 50];
        for align in [1, 8, PAGE, 2 * PAGE] {
            let layout = |size| Layout::from_size_align(size, align).unwrap();
            let byte = |at: usize| (at * 7 % 251) as u8;
            // SAFETY: only what has been allocated is touched, and it has the layout that is said.
            unsafe {
                let mut memory = Heap.alloc(layout(sizes[0]));
                memory.write(byte(0));
                for pair in sizes.windows(2) {
                    memory = Heap.realloc(memory, layout(pair[0]), pair[1]);
                    assert!(!memory.is_null() && memory.addr().is_multiple_of(align), "{align} {pair:?}");
                    (0..pair[0].min(pair[1])).for_each(|at| assert_eq!(memory.add(at).read(), byte(at)));
                    (0..pair[1]).for_each(|at| memory.add(at).write(byte(at)));
                }
                Heap.dealloc(memory, layout(50));
            }
        }
    }

    #[test]
    fn too_much_is_none() {
        let layout = Layout::from_size_align(isize::MAX as usize & !0xfff, 16).unwrap();
        // SAFETY: nothing is done with it.
        unsafe {
            assert!(Heap.alloc(layout).is_null() && Heap.alloc_zeroed(layout).is_null());
            let small = Layout::from_size_align(2 * LARGE, 16).unwrap();
            let memory = Heap.alloc(small);
            assert!(Heap.realloc(memory, small, layout.size()).is_null());
            memory.write(1);
            Heap.dealloc(memory, small);
        }
    }
}
