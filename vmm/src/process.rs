//! What Rust's runtime does at the start of a program, for one with an entry of its own; and what a process does before a machine has
//! it start threads.

use std::io;

/// Descriptors to have room for before the first thread starts; more than a machine has without clients.
const FD_ROOM: libc::c_int = 255;

/// Closes every descriptor but the first three: whatever this process was started with beside them. To be called before it
/// opens any of its own.
pub fn close_inherited() {
    close_inherited_but([None, None]);
}

/// The same, but for these two.
pub fn close_inherited_but(mut kept: [Option<u32>; 2]) {
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept.into_iter().flatten().filter(|kept| *kept >= 3) {
        if first < kept {
            close(first, kept - 1);
        }
        first = kept.saturating_add(1);
    }
    close(first, libc::c_uint::MAX);
}

fn close(first: u32, last: u32) {
    // SAFETY: nothing in this process has any of them yet. A kernel that cannot (before 5.9) leaves them open.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Prepares this process: its first three descriptors are open, so that no other file comes to be where output goes, and
/// writing to a pipe that nobody reads is an error instead of the end. To be called before anything else.
pub fn prepare() -> io::Result<()> {
    for descriptor in 0..3 {
        // SAFETY: a plain descriptor call.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } >= 0 {
            continue;
        }
        // The lowest that is free: this one, since those below are open. It stays open as long as the process lives.
        // SAFETY: the path is a valid C string.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: no handler is installed, so none can be wrong.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Grows the descriptor table while there is one thread, which is free; later it waits for an RCU grace period.
pub(crate) fn reserve_descriptors() {
    // SAFETY: plain descriptor calls; a descriptor that comes back is ours alone, and is closed at once. A limit too
    // low for it only means that the table grows later.
    unsafe {
        let high = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, FD_ROOM);
        if high >= 0 {
            libc::close(high);
        }
    }
}

/// Has all threads allocate from one heap: the others would reserve 64 MiB each at their first allocation, and vCPU threads
/// hardly allocate.
pub(crate) fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number; the allocator takes its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
