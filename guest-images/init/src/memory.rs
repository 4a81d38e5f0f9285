//! Memory of the program: an allocator over a fixed range, and the functions that compilers expect to find.
//!
//! What init allocates it needs until the end, so memory is handed out from one end and only the last piece can be given back
//! or grow in place. A page that is never touched costs nothing.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A `Start` of the greatest size, decoded, more than once over.
const SIZE: usize = 32 << 20;

#[repr(align(4096))]
struct Arena {
    bytes: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

// SAFETY: init has one thread. A child in the same memory runs only while that thread waits for it.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena { bytes: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0) };

impl Arena {
    /// Where a piece ends that starts at `pointer`, counted from the start of the arena.
    fn end_of(&self, pointer: *mut u8, size: usize) -> usize {
        (pointer as usize).wrapping_sub(self.bytes.get() as usize).wrapping_add(size)
    }
}

// SAFETY: pieces lie within the arena and do not overlap: each starts at or after the end of all that are in use.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.used.load(Relaxed).next_multiple_of(layout.align());
        // The arena is aligned to a page, so an offset is as aligned as an address up to that.
        let end = match start.checked_add(layout.size()) {
            Some(end) if end <= SIZE && layout.align() <= 4096 => end,
            _ => return ptr::null_mut(),
        };
        self.used.store(end, Relaxed);
        // SAFETY: start is within the arena.
        unsafe { self.bytes.get().cast::<u8>().add(start) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let end = self.end_of(pointer, layout.size());
        if end == self.used.load(Relaxed) {
            self.used.store(end - layout.size(), Relaxed);
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let end = self.end_of(pointer, layout.size());
        let start = end - layout.size();
        if end == self.used.load(Relaxed) && start.checked_add(new_size).is_some_and(|end| end <= SIZE) {
            self.used.store(start + new_size, Relaxed);
            return pointer;
        }
        if new_size <= layout.size() {
            return pointer;
        }
        // SAFETY: the size is not zero (the caller's promise) and the alignment is one that was valid before.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both pieces have at least layout.size() bytes and do not overlap.
            unsafe { ptr::copy_nonoverlapping(pointer, new, layout.size()) };
        }
        new
    }
}

// The functions below are called by compiled code under these names, with C's promises. Written with string instructions, since
// loops would be compiled into calls of themselves.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: C's promise: count bytes at both, not overlapping. The direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _, options(nostack))
    };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the destination does not begin within the source, so forward is right; count bytes at both.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: count bytes at both, at least one here (or the branch above would have been taken); from the last to the first,
    // and the direction flag is put back.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _,
            inout("rcx") count => _,
            options(nostack),
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: C's promise: count bytes there.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value.to_le_bytes()[0], inout("rcx") count => _, options(nostack))
    };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: C's promise: count bytes at both.
        let (left, right) = unsafe { (left.add(at).read(), right.add(at).read()) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(left, right, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let left: usize;
    // SAFETY: C's promise: there is a zero. The direction flag is clear by the ABI.
    unsafe {
        asm!("repne scasb", inout("rdi") text => _, in("al") 0u8, inout("rcx") usize::MAX => left, options(nostack, readonly))
    };
    // All but the zero itself and one more.
    usize::MAX - left - 1
}
