//! Reads the tree of an image back: what `finish` wrote, and only that.
//!
//! Images in the store were made here, but the disk they lie on may have failed meanwhile: whatever is in them, reading
//! ends, with an error at worst.

use super::format::{
    BLOCK, DIRENT_SIZE, INODE_SIZE, SLOT, SUPER_OFFSET, XATTR_HEADER, decode_device_number, join_xattr_name, summary,
};
use crate::tree::{Attrs, FileData, Kind, NodeId, Tree, TreeError, Xattrs};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// overlayfs's mark of an opaque directory.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Why an image cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading the file failed.
    #[error("cannot read the layer image: {0}")]
    Read(#[from] io::Error),
    /// It is not as `finish` leaves it.
    #[error("the layer image is damaged: {0}")]
    Damaged(&'static str),
    /// It holds more than one may.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// An inode as stored, and where its attributes begin.
pub(super) struct Stored<'a> {
    pub bytes: &'a [u8],
    pub after: usize,
}

struct Image<'a> {
    file: &'a File,
    /// All inodes, with what is stored beside them.
    meta: Vec<u8>,
    bytes: u64,
}

/// The tree of an image. Larger files' data stays where it is in the image ([`FileData::Blocks`]).
///
/// # Errors
/// See [`ReadError`]; more than `budget` bytes of metadata or `max_entries` files are refused.
pub fn read_tree(file: &File, budget: u64, max_entries: u64) -> Result<Tree, ReadError> {
    let mut block = [0; BLOCK];
    file.read_exact_at(&mut block, 0)?;
    let bytes = summary(&block).ok_or(ReadError::Damaged("it has no superblock"))?.bytes;
    let superblock = &block[SUPER_OFFSET..];
    let meta_at = u64::from(u32_at(superblock, 40)?) * BLOCK as u64;
    let meta_len = bytes.checked_sub(meta_at).filter(|len| *len <= budget).ok_or(ReadError::Damaged("its metadata"))?;
    let mut meta = vec![0; usize::try_from(meta_len).map_err(|_| ReadError::Damaged("its metadata"))?];
    file.read_exact_at(&mut meta, meta_at)?;
    let image = Image { file, meta, bytes };
    image.tree(u64::from(u16_at(superblock, 14)?), Tree::new(budget, max_entries))
}

fn part(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], ReadError> {
    at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or(ReadError::Damaged("something ends too early"))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ReadError> {
    Ok(u16::from_le_bytes(part(bytes, at, 2)?.try_into().unwrap_or_default()))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ReadError> {
    Ok(u32::from_le_bytes(part(bytes, at, 4)?.try_into().unwrap_or_default()))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ReadError> {
    Ok(u64::from_le_bytes(part(bytes, at, 8)?.try_into().unwrap_or_default()))
}

impl Stored<'_> {
    pub fn mode(&self) -> Result<u16, ReadError> {
        u16_at(self.bytes, 4)
    }

    pub fn size(&self) -> Result<u64, ReadError> {
        u64_at(self.bytes, 8)
    }

    pub fn addr(&self) -> Result<u32, ReadError> {
        u32_at(self.bytes, 16)
    }

    fn is_dir(&self) -> Result<bool, ReadError> {
        Ok(self.mode()? & 0o170_000 == 0o040_000)
    }

    /// Bytes of the attributes between the inode and what is stored beside it.
    pub fn xattr_bytes(&self) -> Result<usize, ReadError> {
        let count = usize::from(u16_at(self.bytes, 2)?);
        Ok(if count == 0 { 0 } else { XATTR_HEADER + 4 * (count - 1) })
    }

    pub fn is_inline(&self) -> Result<bool, ReadError> {
        match u16_at(self.bytes, 0)? {
            1 => Ok(false),
            5 => Ok(true),
            _ => Err(ReadError::Damaged("an inode's layout")),
        }
    }
}

impl Image<'_> {
    fn tree(&self, root: u64, mut tree: Tree) -> Result<Tree, ReadError> {
        let root_inode = self.inode(root)?;
        if !root_inode.is_dir()? {
            return Err(ReadError::Damaged("its root"));
        }
        (tree.node_mut(Tree::ROOT).attrs, _) = self.attrs(&root_inode)?;
        // A directory that is found twice would be a loop; a file is another link.
        let mut directories = HashSet::from([root]);
        let mut files: HashMap<u64, NodeId> = HashMap::new();
        let mut todo = vec![(root, Tree::ROOT)];
        while let Some((nid, dir)) = todo.pop() {
            let data = self.data(&self.inode(nid)?)?;
            for (name, child) in entries(&data)? {
                if let Some(known) = files.get(&child) {
                    tree.link(dir, name, *known)?;
                    continue;
                }
                let inode = self.inode(child)?;
                let (attrs, opaque) = self.attrs(&inode)?;
                let id = tree.insert(dir, name, attrs, self.kind(&inode, opaque)?)?;
                if !inode.is_dir()? {
                    files.insert(child, id);
                } else if directories.insert(child) {
                    todo.push((child, id));
                } else {
                    return Err(ReadError::Damaged("a directory has two names"));
                }
            }
        }
        Ok(tree)
    }

    fn inode(&self, nid: u64) -> Result<Stored<'_>, ReadError> {
        let at = usize::try_from(nid).ok().and_then(|nid| nid.checked_mul(SLOT));
        let at = at.ok_or(ReadError::Damaged("an inode number"))?;
        Ok(Stored { bytes: part(&self.meta, at, INODE_SIZE)?, after: at + INODE_SIZE })
    }

    fn kind(&self, inode: &Stored<'_>, opaque: bool) -> Result<Kind, ReadError> {
        Ok(match inode.mode()? & 0o170_000 {
            0o040_000 => match Kind::empty_dir() {
                Kind::Dir { entries, .. } => Kind::Dir { entries, opaque },
                other => other,
            },
            0o100_000 if inode.is_inline()? => Kind::File(FileData::Inline(self.data(inode)?.into())),
            0o100_000 => {
                let (start, size) = (inode.addr()?, inode.size()?);
                let end = (u64::from(start) * BLOCK as u64).checked_add(size);
                end.filter(|end| *end <= self.bytes).ok_or(ReadError::Damaged("a file lies outside of it"))?;
                Kind::File(FileData::Blocks { start, size })
            }
            0o120_000 => Kind::Symlink(self.data(inode)?.into()),
            0o020_000 if inode.addr()? == 0 => Kind::Whiteout,
            0o020_000 => {
                let (major, minor) = decode_device_number(inode.addr()?);
                Kind::Char { major, minor }
            }
            0o060_000 => {
                let (major, minor) = decode_device_number(inode.addr()?);
                Kind::Block { major, minor }
            }
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            _ => return Err(ReadError::Damaged("a file's type")),
        })
    }

    /// An inode's attributes, without overlayfs's mark, and whether it has that.
    fn attrs(&self, inode: &Stored<'_>) -> Result<(Attrs, bool), ReadError> {
        let mut xattrs = self.xattrs(inode)?;
        let opaque = xattrs.remove(OPAQUE).is_some();
        let attrs = Attrs {
            mode: inode.mode()? & 0o7777,
            uid: u32_at(inode.bytes, 24)?,
            gid: u32_at(inode.bytes, 28)?,
            mtime: u64_at(inode.bytes, 32)? as i64,
            mtime_nsec: u32_at(inode.bytes, 40)?,
            xattrs,
        };
        Ok((attrs, opaque))
    }

    fn xattrs(&self, inode: &Stored<'_>) -> Result<Xattrs, ReadError> {
        let area = part(&self.meta, inode.after, inode.xattr_bytes()?)?;
        let mut xattrs = Xattrs::new();
        let mut at = XATTR_HEADER;
        while at < area.len() {
            let head = part(area, at, 4)?;
            let (name_len, value_len) = (usize::from(head[0]), usize::from(u16_at(head, 2)?));
            let name = part(area, at + 4, name_len)?;
            let name = join_xattr_name(head[1], name).ok_or(ReadError::Damaged("an attribute's name"))?;
            xattrs.insert(name.into(), part(area, at + 4 + name_len, value_len)?.into());
            at = (at + 4 + name_len + value_len).next_multiple_of(4);
        }
        Ok(xattrs)
    }

    /// The bytes of a directory, symlink or small file.
    fn data(&self, inode: &Stored<'_>) -> Result<Vec<u8>, ReadError> {
        let size = inode.size()?;
        // Beyond what the image has it cannot be.
        let length = usize::try_from(size).ok().filter(|_| size <= self.bytes);
        let length = length.ok_or(ReadError::Damaged("a file's size"))?;
        let tail = if inode.is_inline()? { length % BLOCK } else { 0 };
        let mut data = vec![0; length - tail];
        self.file.read_exact_at(&mut data, u64::from(inode.addr()?) * BLOCK as u64)?;
        data.extend_from_slice(part(&self.meta, inode.after + inode.xattr_bytes()?, tail)?);
        Ok(data)
    }
}

/// A directory's names and inodes, without `.` and `..`.
pub(super) fn entries(data: &[u8]) -> Result<Vec<(&[u8], u64)>, ReadError> {
    const DAMAGED: ReadError = ReadError::Damaged("a directory");
    let mut all = Vec::new();
    for block in data.chunks(BLOCK) {
        let names_at = usize::from(u16_at(block, 8)?);
        for at in (0..names_at).step_by(DIRENT_SIZE) {
            let start = usize::from(u16_at(block, at + 8)?);
            let last = at + DIRENT_SIZE >= names_at;
            let end = if last { block.len() } else { usize::from(u16_at(block, at + DIRENT_SIZE + 8)?) };
            let name = block.get(start..end).ok_or(DAMAGED)?;
            // The last name of a block that is not the directory's last is followed by zeros.
            let name = name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty()).ok_or(DAMAGED)?;
            if name.contains(&b'/') {
                return Err(DAMAGED);
            }
            if name != b"." && name != b".." {
                all.push((name, u64_at(block, at)?));
            }
        }
    }
    Ok(all)
}
