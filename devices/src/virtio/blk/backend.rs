//! Where a disk's bytes are: a raw file, or read-only files one after the other.
//!
//! Reads and writes go straight between the file and guest memory. A read of bytes that are gone (a file truncated
//! beneath) is an error, never zeros.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use super::super::chain::Buffers;
use super::super::iovec::{Direction, Target, transfer};

/// Each extent starts at a multiple of this.
pub const EXTENT_ALIGN: u64 = 4096;

/// Bytes at offsets. Each call moves all of `buffers` or fails.
pub trait Backend: Send {
    /// Bytes there are, fixed for the backend's life.
    fn bytes(&self) -> u64;
    /// Fills `buffers` from `offset`.
    fn read_at(&mut self, buffers: Buffers, offset: u64) -> io::Result<()>;
    /// Stores `buffers` at `offset`.
    fn write_at(&mut self, buffers: Buffers, offset: u64) -> io::Result<()>;
    /// Brings finished writes to stable storage.
    fn flush(&mut self) -> io::Result<()>;
}

fn transfer_all(file: &File, direction: Direction, mut buffers: Buffers, mut offset: u64) -> io::Result<()> {
    while !buffers.is_empty() {
        let moved = transfer(file.as_fd(), direction, Target::At(offset), buffers)?;
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffers = buffers.split_at(moved).1;
        offset += moved as u64;
    }
    Ok(())
}

/// A raw file or block device.
pub struct RawFile {
    pub file: File,
    /// Bytes.
    pub len: u64,
}

impl Backend for RawFile {
    fn bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, buffers: Buffers, offset: u64) -> io::Result<()> {
        transfer_all(&self.file, Direction::ToGuest, buffers, offset)
    }

    fn write_at(&mut self, buffers: Buffers, offset: u64) -> io::Result<()> {
        transfer_all(&self.file, Direction::FromGuest, buffers, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Read-only files one after the other, each padded with zeros to [`EXTENT_ALIGN`], and zeros after the last.
pub struct Extents {
    /// File, first byte of the disk, bytes of the file; in order.
    files: Vec<(File, u64, u64)>,
    len: u64,
}

impl Extents {
    /// Takes files with their lengths in bytes; none if the sum is beyond counting.
    pub fn new(parts: Vec<(File, u64)>) -> Option<Self> {
        let mut len = 0u64;
        let mut files = Vec::new();
        for (file, bytes) in parts {
            files.push((file, len, bytes));
            len = len.checked_add(bytes.checked_next_multiple_of(EXTENT_ALIGN)?)?;
        }
        Some(Extents { files, len })
    }

    /// The same with zeros up to `len` bytes; none if it is longer already.
    pub fn padded_to(self, len: u64) -> Option<Self> {
        (self.len <= len).then_some(Extents { len, ..self })
    }
}

impl Backend for Extents {
    fn bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, mut buffers: Buffers, mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let next = self.files.partition_point(|(_, start, _)| *start <= offset);
            let end = self.files.get(next).map_or(self.len, |(_, start, _)| *start);
            // Empty files share their start with the next one, which the search prefers.
            let file = next.checked_sub(1).and_then(|at| self.files.get(at));
            let (stop, source) = match file {
                Some((file, start, bytes)) if offset - start < *bytes => (start + bytes, Some((file, offset - start))),
                _ => (end, None),
            };
            let most = stop.checked_sub(offset).filter(|most| *most > 0).ok_or(io::ErrorKind::UnexpectedEof)?;
            let (part, rest) = buffers.split_at(usize::try_from(most).unwrap_or(usize::MAX));
            match source {
                None => part.zero(),
                Some((file, within)) => transfer_all(file, Direction::ToGuest, part, within)?,
            }
            offset += part.len() as u64;
            buffers = rest;
        }
        Ok(())
    }

    fn write_at(&mut self, _: Buffers, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
