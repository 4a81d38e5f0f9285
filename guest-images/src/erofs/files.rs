//! Finds single files of an image, reading no more than the way there.

use super::format::{BLOCK, INODE_SIZE, SLOT, SUPER_OFFSET, summary};
use super::reader::{ReadError, Stored, entries, u16_at, u32_at};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Names looked up for one path, those in symbolic links included: an image may lead in circles.
const MAX_STEPS: usize = 200;
/// Longest target of a symbolic link, in bytes; the kernel's own limit (PATH_MAX).
const MAX_TARGET: u64 = 4096;
/// Largest directory that is read, in bytes: some ten thousand names.
const MAX_DIRECTORY: u64 = 256 << 10;
/// No directory is larger, in bytes.
const LARGEST_DIRECTORY: u64 = 256 << 20;
/// Directories of the root that a container has something else at.
const COVERED: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;

/// An image's file system, on the files that make up its disk.
#[derive(Debug)]
pub struct Files<'a> {
    /// In order, with the bytes that each has on the disk.
    extents: Vec<(&'a File, u64)>,
    /// Where inodes are counted from.
    meta_at: u64,
    root: u64,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing, or the way there leads through what is no directory.
    Missing,
    /// The image alone does not tell: a container has something else there, or it is not worth the while.
    Unclear,
    /// A file of this inode number.
    File {
        /// For [`Files::read`].
        nid: u64,
        /// Type and permissions.
        mode: u16,
    },
}

impl Entry {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(self) -> bool {
        matches!(self, Entry::File { mode, .. } if mode & 0o170_000 == REGULAR)
    }

    /// Whether it is a regular file that somebody may execute.
    #[must_use]
    pub fn is_program(self) -> bool {
        matches!(self, Entry::File { mode, .. } if self.is_regular() && mode & 0o111 != 0)
    }
}

impl<'a> Files<'a> {
    /// The file system at the beginning of a disk, of the image files that make it up.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(files: impl Iterator<Item = &'a File>) -> Result<Self, ReadError> {
        let sized = |file: &'a File| Ok((file, file.metadata()?.len().next_multiple_of(BLOCK as u64)));
        let mut files = Files { extents: files.map(sized).collect::<Result<_, ReadError>>()?, meta_at: 0, root: 0 };
        let mut block = [0; BLOCK];
        files.read_at(&mut block, 0)?;
        summary(&block).ok_or(ReadError::Damaged("it has no superblock"))?;
        let superblock = &block[SUPER_OFFSET..];
        files.meta_at = u64::from(u32_at(superblock, 40)?) * BLOCK as u64;
        files.root = u64::from(u16_at(superblock, 14)?);
        Ok(files)
    }

    /// What is at an absolute path, links followed as a process of the container would.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn look_up(&self, path: &[u8]) -> Result<Entry, ReadError> {
        let mut todo: VecDeque<Vec<u8>> = parts(path).map(Into::into).collect();
        let mut way = vec![self.root];
        for _ in 0..MAX_STEPS {
            let (last, is_root) = (*way.last().unwrap_or(&self.root), way.len() <= 1);
            let Some(name) = todo.pop_front() else {
                return Ok(Entry::File { nid: last, mode: self.mode(last)? });
            };
            if is_root && COVERED.contains(&&name[..]) {
                return Ok(Entry::Unclear);
            }
            if name == b".." {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            if self.mode(last)? & 0o170_000 != DIRECTORY {
                return Ok(Entry::Missing);
            }
            let Some(directory) = self.read(last, MAX_DIRECTORY)? else { return Ok(Entry::Unclear) };
            let found = entries(&directory)?.into_iter().find(|(entry, _)| *entry == name);
            let Some((_, nid)) = found else { return Ok(Entry::Missing) };
            match self.mode(nid)? & 0o170_000 {
                // Or a whiteout, which overlayfs does not show.
                0o020_000 => return Ok(Entry::Unclear),
                SYMLINK => {
                    let Some(target) = self.read(nid, MAX_TARGET)? else { return Ok(Entry::Unclear) };
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    parts(&target).rev().for_each(|part| todo.push_front(part.into()));
                }
                _ => way.push(nid),
            }
        }
        Ok(Entry::Unclear)
    }

    /// Whether there is something at an absolute path: links on the way are followed, one at its end is something.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn holds(&self, path: &[u8]) -> Result<bool, ReadError> {
        let parts: Vec<&[u8]> = parts(path).collect();
        let Some((name, way)) = parts.split_last() else { return Ok(true) };
        let Entry::File { nid, mode } = self.look_up(&way.join(&b'/'))? else { return Ok(false) };
        if mode & 0o170_000 != DIRECTORY {
            return Ok(false);
        }
        let directory = self.read(nid, LARGEST_DIRECTORY)?.ok_or(ReadError::Damaged("a directory's size"))?;
        Ok(entries(&directory)?.into_iter().any(|(entry, _)| entry == *name))
    }

    /// The bytes of a file, directory or symbolic link; `None` if they are more than `limit`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, nid: u64, limit: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let bytes = self.inode(nid)?;
        let inode = Stored { bytes: &bytes, after: INODE_SIZE };
        let size = inode.size()?;
        if size > limit {
            return Ok(None);
        }
        let length = usize::try_from(size).map_err(|_| ReadError::Damaged("a file's size"))?;
        let mut data = vec![0; length];
        let tail = if inode.is_inline()? { length % BLOCK } else { 0 };
        let (blocks, inline) = data.split_at_mut(length - tail);
        self.read_at(blocks, u64::from(inode.addr()?) * BLOCK as u64)?;
        let after = (INODE_SIZE + inode.xattr_bytes()?) as u64;
        self.read_at(inline, self.place(nid)?.checked_add(after).ok_or(OUTSIDE)?)?;
        Ok(Some(data))
    }

    fn mode(&self, nid: u64) -> Result<u16, ReadError> {
        Stored { bytes: &self.inode(nid)?, after: INODE_SIZE }.mode()
    }

    fn inode(&self, nid: u64) -> Result<[u8; INODE_SIZE], ReadError> {
        let mut bytes = [0; INODE_SIZE];
        self.read_at(&mut bytes, self.place(nid)?)?;
        Ok(bytes)
    }

    fn place(&self, nid: u64) -> Result<u64, ReadError> {
        nid.checked_mul(SLOT as u64).and_then(|at| at.checked_add(self.meta_at)).ok_or(OUTSIDE)
    }

    /// Reads from the disk; nothing that is read lies across two of its files.
    fn read_at(&self, bytes: &mut [u8], mut at: u64) -> Result<(), ReadError> {
        if bytes.is_empty() {
            return Ok(());
        }
        for (file, len) in &self.extents {
            match at.checked_sub(*len) {
                Some(beyond) => at = beyond,
                None => return Ok(file.read_exact_at(bytes, at)?),
            }
        }
        Err(OUTSIDE)
    }
}

const OUTSIDE: ReadError = ReadError::Damaged("something lies outside of it");

/// The names in a path.
fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && part != b".")
}
