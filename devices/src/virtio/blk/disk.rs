//! Where a disk's bytes are: in one file, in read-only files one after the other, or in an image of a format.
//!
//! A run of bytes that one file has goes to an [`engine`](super::engine); the others (where files meet, or zeros are) are
//! read right here. A read of bytes that are gone (a file truncated beneath) is an error, never zeros.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::chain::Buffers;
use super::super::iovec::{Direction, Target, transfer};
use super::engine::{self, Choice, Engine, Files, Pool};
use super::qcow2::Image;

/// Each extent starts at a multiple of this.
pub const EXTENT_ALIGN: u64 = 4096;

/// A disk's files.
pub struct Disk {
    /// In order.
    extents: Vec<Extent>,
    /// What has all of it, instead.
    image: Option<Arc<Image>>,
    len: u64,
}

struct Extent {
    file: Arc<File>,
    /// First byte of the disk.
    start: u64,
    /// Bytes of the file.
    bytes: u64,
}

/// A byte of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the disk's files.
    pub file: u32,
    /// Bytes from the file's start.
    pub offset: u64,
}

impl Disk {
    /// A raw file or block device of `len` bytes.
    pub fn raw(file: File, len: u64) -> Self {
        Disk { extents: vec![Extent { file: Arc::new(file), start: 0, bytes: len }], image: None, len }
    }

    /// A disk in an image.
    pub fn of_image(image: Image) -> Self {
        Disk { extents: Vec::new(), len: image.bytes(), image: Some(Arc::new(image)) }
    }

    /// Files with their lengths in bytes, each padded with zeros to [`EXTENT_ALIGN`]; none if the sum is beyond counting.
    pub fn of_extents(parts: Vec<(File, u64)>) -> Option<Self> {
        let mut len = 0u64;
        let mut extents = Vec::new();
        for (file, bytes) in parts {
            extents.push(Extent { file: Arc::new(file), start: len, bytes });
            len = len.checked_add(bytes.checked_next_multiple_of(EXTENT_ALIGN)?)?;
        }
        Some(Disk { extents, image: None, len })
    }

    /// The same with zeros up to `len` bytes; none if it is longer already.
    pub fn padded_to(self, len: u64) -> Option<Self> {
        (self.len <= len).then_some(Disk { len, ..self })
    }

    /// Bytes there are, fixed for the disk's life.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// There is no file: all of it is zeros, and nothing can be written.
    pub fn is_blank(&self) -> bool {
        self.extents.is_empty() && self.image.is_none()
    }

    /// The image that has all of it, if there is one.
    pub fn image(&self) -> Option<&Arc<Image>> {
        self.image.as_ref()
    }

    /// Who carries out what is asked of it, and signals `event`.
    pub fn engine(&self, choice: Choice, event: Arc<EventFd>) -> Box<dyn Engine> {
        match &self.image {
            Some(image) => Box::new(Pool::new(image.clone(), event)),
            None => engine::open(choice, Files(self.extents.iter().map(|extent| extent.file.clone()).collect()), event),
        }
    }

    /// Where `offset` is, none for zeros, and how many bytes are there.
    fn find(&self, offset: u64) -> (Option<Place>, u64) {
        let next = self.extents.partition_point(|extent| extent.start <= offset);
        let end = self.extents.get(next).map_or(self.len, |extent| extent.start);
        // Empty files share their start with the next one, which the search prefers.
        let extent = next.checked_sub(1).and_then(|at| Some((at, self.extents.get(at)?)));
        match extent {
            Some((at, extent)) if offset - extent.start < extent.bytes => {
                let within = offset - extent.start;
                (Some(Place { file: at as u32, offset: within }), extent.bytes - within)
            }
            _ => (None, end.saturating_sub(offset)),
        }
    }

    /// Where the `len` bytes from `offset` are, if one file has them all.
    pub fn place(&self, offset: u64, len: u64) -> Option<Place> {
        if self.image.is_some() {
            return Some(Place { file: 0, offset })
                .filter(|_| offset.checked_add(len).is_some_and(|end| end <= self.len));
        }
        let (place, there) = self.find(offset);
        place.filter(|_| len <= there)
    }

    /// Fills `buffers` from `offset`, on this thread.
    pub fn read_at(&self, mut buffers: Buffers, mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let (place, there) = self.find(offset);
            if there == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (part, rest) = buffers.split_at(usize::try_from(there).unwrap_or(usize::MAX));
            match place {
                None => part.zero(),
                Some(place) => read_all(&self.extents[place.file as usize].file, part, place.offset)?,
            }
            offset += part.len() as u64;
            buffers = rest;
        }
        Ok(())
    }
}

fn read_all(file: &File, mut buffers: Buffers, mut offset: u64) -> io::Result<()> {
    while !buffers.is_empty() {
        let moved = transfer(file.as_fd(), Direction::ToGuest, Target::At(offset), buffers)?;
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffers = buffers.split_at(moved).1;
        offset += moved as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_bytes_is_in_one_file_or_in_none() {
        let file = |bytes: u64| (tempfile::tempfile().unwrap(), bytes);
        let disk = Disk::of_extents(vec![file(5000), file(0), file(4096)]).unwrap().padded_to(1 << 20).unwrap();
        let place = |file, offset| Some(Place { file, offset });
        assert_eq!(disk.place(0, 5000), place(0, 0));
        assert_eq!(disk.place(4999, 1), place(0, 4999));
        assert_eq!(disk.place(4096, 1024), None, "the file's end and its padding");
        assert_eq!(disk.place(8192, 4096), place(2, 0));
        assert_eq!((disk.place(8192, 4097), disk.place(12_288, 1), disk.place(1 << 20, 1)), (None, None, None));
        let raw = Disk::raw(file(0).0, 1 << 20);
        assert_eq!((raw.place(512, (1 << 20) - 512), raw.place(512, 1 << 20)), (place(0, 512), None));
    }
}
