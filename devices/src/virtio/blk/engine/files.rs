//! Jobs on files, as the system calls they are.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::{Job, List, Store, Work};

/// Files, by their numbers.
pub struct Files(pub Vec<Arc<File>>);

impl Store for Files {
    unsafe fn carry_out(&self, job: &Job) -> i32 {
        let Some(file) = self.0.get(job.file as usize) else { return -libc::EBADF };
        let fd = file.as_raw_fd();
        let offset = job.offset as libc::off_t;
        loop {
            // SAFETY: the list and its memory stay, says the caller; the kernel checks the rest, and the descriptor is open as
            // long as `file`.
            let result = unsafe {
                match job.work {
                    Work::Read(List { first, count }) => libc::preadv(fd, first, count as libc::c_int, offset),
                    Work::Write(List { first, count }) => libc::pwritev(fd, first, count as libc::c_int, offset),
                    Work::Sync => libc::fdatasync(fd) as isize,
                    Work::Allocate { mode, len } => libc::fallocate(fd, mode, offset, len as libc::off_t) as isize,
                }
            };
            match result {
                -1 => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    error => return -error.unwrap_or(libc::EIO),
                },
                moved => return moved as i32,
            }
        }
    }
}
