//! Guest memory as the host's `iovec`s, and the vectored calls on them.
//!
//! The kernel copies between a file and guest RAM directly. The lists have a bound, so no call allocates.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use super::chain::Buffers;

/// Entries of one call; a longer run takes several calls.
pub const MOST_SLICES: usize = 64;

/// Where a vectored call reads or writes.
#[derive(Clone, Copy)]
pub enum Target {
    /// At a byte offset of a file.
    At(u64),
    /// At a stream's own position.
    Stream,
}

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the descriptor into guest memory.
    ToGuest,
    /// From guest memory to the descriptor.
    FromGuest,
}

/// One vectored call over the first entries of `buffers`; returns the bytes moved, as the system call does. Repeats
/// what a signal interrupted.
pub fn transfer(fd: BorrowedFd, direction: Direction, target: Target, buffers: Buffers) -> io::Result<usize> {
    let offset = match target {
        Target::At(offset) => Some(libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?),
        Target::Stream => None,
    };
    let fd = fd.as_raw_fd();
    call(buffers.slices(), |list, count| {
        // SAFETY: `call` gives a list that is sound; the kernel checks all else.
        unsafe {
            match (direction, offset) {
                (Direction::ToGuest, Some(offset)) => libc::preadv(fd, list, count, offset),
                (Direction::FromGuest, Some(offset)) => libc::pwritev(fd, list, count, offset),
                (Direction::ToGuest, None) => libc::readv(fd, list, count),
                // As writev, and a closed peer is an error and not a signal.
                (Direction::FromGuest, None) => {
                    let mut message: libc::msghdr = std::mem::zeroed();
                    message.msg_iov = list.cast_mut();
                    message.msg_iovlen = count as _;
                    libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
                }
            }
        }
    })
}

/// One packet from or to a device that has one with each call, in up to [`MOST_SLICES`].
pub fn packet(fd: BorrowedFd, direction: Direction, slices: &[VolatileSlice]) -> io::Result<usize> {
    if slices.len() > MOST_SLICES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let fd = fd.as_raw_fd();
    call(slices.iter().copied(), |list, count| {
        // SAFETY: `call` gives a list that is sound; the kernel checks all else.
        unsafe {
            match direction {
                Direction::ToGuest => libc::readv(fd, list, count),
                Direction::FromGuest => libc::writev(fd, list, count),
            }
        }
    })
}

/// Makes a system call with the first slices as its list, again if a signal interrupts it. The list is good during the call:
/// so many initialised entries, each memory that somebody borrows, so that it stays mapped. A guest may touch it at the same time,
/// which only changes the bytes.
fn call<'a>(
    slices: impl Iterator<Item = VolatileSlice<'a>>,
    call: impl Fn(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let mut list = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST_SLICES];
    let mut count = 0;
    for (entry, slice) in list.iter_mut().zip(slices) {
        *entry = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    loop {
        let moved = call(list.as_ptr(), count);
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}
