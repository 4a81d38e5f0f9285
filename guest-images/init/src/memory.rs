//! Memory of the program: an allocator over a fixed range ([`guest_init::heap`] knows what is free), and the functions that
//! compilers expect to find.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use guest_init::heap::Heap;

/// A `Start` of the greatest size, decoded, more than once over.
const SIZE: usize = 32 << 20;

#[repr(align(4096))]
struct Arena {
    bytes: UnsafeCell<[u8; SIZE]>,
    heap: UnsafeCell<Heap<SIZE>>,
}

// SAFETY: init has one thread. A child in the same memory runs only while that thread waits for it.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena { bytes: UnsafeCell::new([0; SIZE]), heap: UnsafeCell::new(Heap::new()) };

impl Arena {
    /// Calls `with` with what is known of the range.
    fn heap<T>(&self, with: impl FnOnce(&mut Heap<SIZE>) -> T) -> T {
        // SAFETY: there is one thread, and nothing that is called here allocates.
        with(unsafe { &mut *self.heap.get() })
    }

    /// Where a piece is, counted from the start of the arena.
    fn place(&self, pointer: *mut u8) -> usize {
        (pointer as usize).wrapping_sub(self.bytes.get() as usize)
    }
}

// SAFETY: pieces lie within the arena and do not overlap, which is what the heap is for.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The arena is aligned to a page, so an offset is as aligned as an address up to that.
        if layout.align() > 4096 {
            return ptr::null_mut();
        }
        match self.heap(|heap| heap.take(layout.size(), layout.align())) {
            // SAFETY: the place is within the arena.
            Some(place) => unsafe { self.bytes.get().cast::<u8>().add(place) },
            None => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.heap(|heap| heap.give(self.place(pointer), layout.size()));
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.heap(|heap| heap.resize(self.place(pointer), layout.size(), new_size)) {
            return pointer;
        }
        // SAFETY: the size is not zero (the caller's promise) and the alignment is one that was valid before.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !new.is_null() {
            // SAFETY: it has grown, or it would have stayed: both pieces have at least layout.size() bytes, and do not overlap.
            unsafe { ptr::copy_nonoverlapping(pointer, new, layout.size()) };
            // SAFETY: the caller gives it up.
            unsafe { self.dealloc(pointer, layout) };
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
