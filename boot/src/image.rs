//! Kernel and initrd files: opened without hanging, read in place.
//!
//! Knows no format. An image is never read whole: parsers read the headers they need, and contents go straight from
//! the file into guest memory.

use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("cannot open: {0}")]
    Open(io::Error),
    /// It is a directory, FIFO, device or socket.
    #[error("is {0}, not a regular file")]
    NotRegular(&'static str),
    /// It has nothing in it.
    #[error("is empty")]
    Empty,
    /// Its headers cannot be read.
    #[error("cannot read {len:#x} bytes at offset {offset:#x}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// How many.
        len: usize,
        /// Why not.
        source: io::Error,
    },
    /// Its contents cannot be read into the guest.
    #[error("cannot load {len:#x} bytes from offset {offset:#x} to guest address {addr:#x}: {source}")]
    Load {
        /// Where in the file.
        offset: u64,
        /// How many.
        len: u64,
        /// Where to.
        addr: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

/// An open image.
#[derive(Debug)]
pub struct Image<'a> {
    name: Cow<'a, str>,
    size: u64,
    data: Data<'a>,
}

#[derive(Debug)]
enum Data<'a> {
    File(File),
    Bytes(&'a [u8]),
}

impl<'a> Image<'a> {
    /// Opens a regular file, which is held open and not read.
    ///
    /// Anything else is refused before it is opened, because opening a device can have effects; and the file that was
    /// opened is checked again, because the name may mean another by then. `O_NONBLOCK` keeps a FIFO from blocking.
    pub fn open(path: &'a Path) -> Result<Image<'a>, ImageError> {
        check_regular(&fs::metadata(path).map_err(ImageError::Open)?)?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        let file = file.map_err(ImageError::Open)?;
        let metadata = file.metadata().map_err(ImageError::Open)?;
        check_regular(&metadata)?;
        let size = metadata.len();
        if size == 0 {
            return Err(ImageError::Empty);
        }
        Ok(Image { name: path.to_string_lossy(), size, data: Data::File(file) })
    }

    /// An image in memory; `name` is what errors call it.
    pub fn from_bytes(name: &'a str, bytes: &'a [u8]) -> Result<Image<'a>, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        Ok(Image { name: name.into(), size: bytes.len() as u64, data: Data::Bytes(bytes) })
    }

    /// What errors call it: the path, for a file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes, as they were when it was opened; not 0.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads exactly `buf.len()` bytes at `offset`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let len = buf.len();
        match &self.data {
            Data::File(file) => file.read_exact_at(buf, offset),
            Data::Bytes(bytes) => part(bytes, offset, len as u64).map(|part| buf.copy_from_slice(part)),
        }
        .map_err(|source| ImageError::Read { offset, len, source })
    }

    /// Puts `len` bytes from `offset` at `addr` of guest memory.
    pub fn load<M: GuestMemoryBackend>(&self, mem: &M, offset: u64, len: u64, addr: u64) -> Result<(), ImageError> {
        let error = |source| ImageError::Load { offset, len, addr, source };
        let io_error = |source| error(GuestMemoryError::IOError(source));
        match &self.data {
            Data::File(file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(offset)).map_err(io_error)?;
                mem.read_exact_volatile_from(GuestAddress(addr), &mut file, len as usize).map_err(error)
            }
            Data::Bytes(bytes) => {
                mem.write_slice(part(bytes, offset, len).map_err(io_error)?, GuestAddress(addr)).map_err(error)
            }
        }
    }
}

fn part(bytes: &[u8], offset: u64, len: u64) -> io::Result<&[u8]> {
    let end = offset.checked_add(len);
    let range = end.and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
    range.and_then(|range| bytes.get(range)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn check_regular(metadata: &fs::Metadata) -> Result<(), ImageError> {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    Err(ImageError::NotRegular(match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () => "something else",
    }))
}
