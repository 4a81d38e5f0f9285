//! userfaultfd(2): the kernel asks user space for missing pages (Linux `admin-guide/mm/userfaultfd.rst`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iowr_nr};

/// UFFD_API.
const API: u64 = 0xaa;
/// UFFDIO_REGISTER_MODE_MISSING.
const MISSING: u64 = 1;
/// UFFD_EVENT_PAGEFAULT.
const PAGE_FAULT: u8 = 0x12;
/// Messages taken at a time.
const BATCH: usize = 16;

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
#[derive(Default)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// struct uffd_msg, as far as page faults need it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, 0xaa, 0x00);
ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, Register);
ioctl_iowr_nr!(UFFDIO_COPY, 0xaa, 0x03, Copy);
ioctl_iowr_nr!(UFFDIO_ZEROPAGE, 0xaa, 0x04, ZeroPage);

/// UFFDIO_COPY and UFFDIO_ZEROPAGE.
pub const IOCTLS: [u32; 2] = [0xc028_aa03, 0xc020_aa04];

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd(File);

/// How much of a range has been filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes from its start on, and the page after them, if that is in the range, is not missing any more.
    Bytes(usize),
    /// Not all of the range is this userfaultfd's any more: something else has been mapped there.
    Gone,
}

impl Uffd {
    /// Opens one that also gets the faults of the kernel on this process's behalf: those of KVM.
    pub fn open() -> io::Result<Self> {
        let uffd = Uffd(descriptor()?);
        let mut api = Api { api: API, ..Api::default() };
        // SAFETY: UFFDIO_API takes a struct uffdio_api, which `Api` is.
        check(unsafe { ioctl_with_mut_ref(&uffd.0, UFFDIO_API(), &mut api) })?;
        Ok(uffd)
    }

    /// Asks to be asked for the missing pages of a range of anonymous memory.
    pub fn register(&self, start: *mut u8, len: usize) -> io::Result<()> {
        let range = Range { start: start as u64, len: len as u64 };
        let mut register = Register { range, mode: MISSING, ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER takes a struct uffdio_register, which `Register` is; it changes no memory.
        check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_REGISTER(), &mut register) })
    }

    /// Fills missing pages at `start` with `bytes`, whole pages, and lets go on who waits for them.
    ///
    /// # Safety
    /// The range belongs to RAM that is registered here, and nobody relies on what is in its missing pages.
    pub unsafe fn copy(&self, start: *mut u8, bytes: &[u8]) -> io::Result<Filled> {
        let mut copy =
            Copy { dst: start as u64, src: bytes.as_ptr() as u64, len: bytes.len() as u64, mode: 0, copied: 0 };
        // SAFETY: UFFDIO_COPY takes a struct uffdio_copy, which `Copy` is; it reads `bytes`, and writes to missing pages only,
        // which the caller vouches for.
        let done = check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_COPY(), &mut copy) });
        filled(done, copy.copied, bytes.len())
    }

    /// Fills missing pages at `start` with zeros, `len` bytes, and lets go on who waits for them.
    ///
    /// # Safety
    /// As [`Uffd::copy`].
    pub unsafe fn zero(&self, start: *mut u8, len: usize) -> io::Result<Filled> {
        let mut zero = ZeroPage { range: Range { start: start as u64, len: len as u64 }, mode: 0, zeroed: 0 };
        // SAFETY: UFFDIO_ZEROPAGE takes a struct uffdio_zeropage, which `ZeroPage` is; it writes to missing pages only, which
        // the caller vouches for.
        let done = check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_ZEROPAGE(), &mut zero) });
        filled(done, zero.zeroed, len)
    }

    /// The addresses that somebody waits for, as far as they are known; none if there is nobody.
    pub fn faults(&self) -> io::Result<Vec<u64>> {
        let mut messages = [Message::default(); BATCH];
        let size = size_of_val(&messages);
        // SAFETY: read(2) writes at most `size` bytes into `messages`, for which all bit patterns are valid.
        let read = unsafe { libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), size) };
        let count = match usize::try_from(read) {
            Ok(bytes) => bytes / size_of::<Message>(),
            Err(_) => match io::Error::last_os_error() {
                e if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
                e => return Err(e),
            },
        };
        Ok(messages.iter().take(count).filter(|m| m.event == PAGE_FAULT).map(|m| m.address).collect())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// By /dev/userfaultfd, which is given to users as any device is, or by the system call, which wants a privilege or
/// `vm.unprivileged_userfaultfd`.
fn descriptor() -> io::Result<File> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
    let fd = match &device {
        // SAFETY: USERFAULTFD_IOC_NEW takes flags and returns a new descriptor.
        Ok(device) => unsafe { ioctl_with_val(device, USERFAULTFD_IOC_NEW(), flags as libc::c_ulong) },
        // SAFETY: userfaultfd(2) takes flags and returns a new descriptor, which fits an int.
        Err(_) => unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as libc::c_int },
    };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `count` is what the kernel says it filled, or an error as a negative number.
fn filled(done: io::Result<()>, count: i64, len: usize) -> io::Result<Filled> {
    match done {
        Ok(()) => Ok(Filled::Bytes(len)),
        Err(e) => match e.raw_os_error() {
            Some(libc::EEXIST) => Ok(Filled::Bytes(0)),
            Some(libc::EAGAIN) if count > 0 => Ok(Filled::Bytes(count as usize)),
            Some(libc::ENOENT) => Ok(Filled::Gone),
            _ => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_that_are_let_through_are_those_that_are_made() {
        assert_eq!(IOCTLS.map(libc::c_ulong::from), [UFFDIO_COPY(), UFFDIO_ZEROPAGE()]);
    }
}
