//! Guest memory as the host's `iovec`s, and the vectored calls on them.
//!
//! The kernel copies between a file and guest RAM directly. The lists have a bound, so no call allocates.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::chain::Buffers;

/// Entries of one call; a longer run takes several calls.
const BATCH: usize = 64;

/// Where a vectored call reads or writes.
#[derive(Clone, Copy)]
pub enum Target {
    /// At a byte offset of a file.
    At(u64),
    /// At a stream's own position.
    Stream,
    /// To a device that takes a packet with each call: all of `buffers`, or an error. Only [`Direction::FromGuest`].
    Packet,
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
    let mut list = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
    if matches!(target, Target::Packet) && buffers.slices().nth(BATCH).is_some() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut count = 0;
    for (entry, slice) in list.iter_mut().zip(buffers.slices()) {
        *entry = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    let (fd, list, count) = (fd.as_raw_fd(), list.as_ptr(), count as libc::c_int);
    let offset = match target {
        Target::At(offset) => Some(libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?),
        Target::Stream | Target::Packet => None,
    };
    loop {
        // SAFETY: `list` holds `count` initialised entries. Each is a part of guest RAM, which `buffers` borrows, so it
        // stays mapped; the guest may touch it at the same time, which only changes the bytes. The kernel checks all else.
        let moved = unsafe {
            match (direction, offset) {
                (Direction::ToGuest, Some(offset)) => libc::preadv(fd, list, count, offset),
                (Direction::FromGuest, Some(offset)) => libc::pwritev(fd, list, count, offset),
                (Direction::ToGuest, None) => libc::readv(fd, list, count),
                (Direction::FromGuest, None) if matches!(target, Target::Packet) => libc::writev(fd, list, count),
                // As writev, and a closed peer is an error and not a signal.
                (Direction::FromGuest, None) => {
                    let mut message: libc::msghdr = std::mem::zeroed();
                    message.msg_iov = list.cast_mut();
                    message.msg_iovlen = count as usize;
                    libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
                }
            }
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}
