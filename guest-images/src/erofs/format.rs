//! The on-disk structures, little-endian (kernel: fs/erofs, Documentation/filesystems/erofs.rst).

use super::ErofsError;
use crate::tree::{Attrs, Xattrs};

/// Bytes in a block.
pub const BLOCK: usize = 4096;
pub(super) const BLOCK_BITS: u8 = 12;
/// Where the superblock is.
pub(super) const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// `feature_compat`: inodes carry modification times.
const COMPAT_MTIME: u32 = 2;
/// Inode numbers count slots of this many bytes from the start of the metadata.
pub(super) const SLOT: usize = 32;
pub(super) const INODE_SIZE: usize = 64;
pub(super) const DIRENT_SIZE: usize = 12;

/// How an inode's data is stored (bits 1..3 of `i_format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In whole blocks.
    Plain = 0,
    /// The last partial block, or everything, follows the inode.
    Inline = 2,
}

/// File types as directory entries and mode bits name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    Char = 3,
    Block = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

impl FileType {
    /// The `S_IFMT` part of the mode.
    pub(super) fn mode_bits(self) -> u16 {
        match self {
            FileType::Fifo => 0o010_000,
            FileType::Char => 0o020_000,
            FileType::Directory => 0o040_000,
            FileType::Block => 0o060_000,
            FileType::Regular => 0o100_000,
            FileType::Symlink => 0o120_000,
            FileType::Socket => 0o140_000,
        }
    }
}

/// A device number as the kernel's 32-bit `new_encode_dev` has it.
pub(super) fn device_number(major: u32, minor: u32) -> Result<u32, ErofsError> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(ErofsError::DeviceNumber(major, minor));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The major and minor of a device number as [`device_number`] makes it.
pub(super) fn decode_device_number(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & !0xff))
}

pub(super) struct Inode<'a> {
    pub layout: Layout,
    pub file_type: FileType,
    pub attrs: &'a Attrs,
    pub xattr_bytes: usize,
    pub size: u64,
    /// First block of the data, or the device number.
    pub addr: u32,
    /// A small number for 32-bit `stat`.
    pub ino: u32,
    pub nlink: u32,
}

impl Inode<'_> {
    pub(super) fn encode(&self) -> [u8; INODE_SIZE] {
        let mut b = [0u8; INODE_SIZE];
        // Bit 0: the 64-byte kind of inode.
        let format = 1u16 | ((self.layout as u16) << 1);
        // The header of 12 bytes counts as one, each further 4 bytes as one more.
        let icount = if self.xattr_bytes == 0 { 0 } else { 1 + (self.xattr_bytes - XATTR_HEADER) / 4 };
        b[0..2].copy_from_slice(&format.to_le_bytes());
        b[2..4].copy_from_slice(&(icount as u16).to_le_bytes());
        let mode = (self.attrs.mode & 0o7777) | self.file_type.mode_bits();
        b[4..6].copy_from_slice(&mode.to_le_bytes());
        b[8..16].copy_from_slice(&self.size.to_le_bytes());
        b[16..20].copy_from_slice(&self.addr.to_le_bytes());
        b[20..24].copy_from_slice(&self.ino.to_le_bytes());
        b[24..28].copy_from_slice(&self.attrs.uid.to_le_bytes());
        b[28..32].copy_from_slice(&self.attrs.gid.to_le_bytes());
        b[32..40].copy_from_slice(&self.attrs.mtime.to_le_bytes());
        b[40..44].copy_from_slice(&self.attrs.mtime_nsec.to_le_bytes());
        b[44..48].copy_from_slice(&self.nlink.to_le_bytes());
        b
    }
}

/// The inline attribute area starts with a header of this size.
pub(super) const XATTR_HEADER: usize = 12;

/// Attribute name prefixes that are stored as a number. A name under none of them cannot be stored.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Splits an attribute name into its prefix's number and the rest; `None` where the format cannot hold it.
pub(crate) fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (prefix, index) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    let is_acl = matches!(index, 2 | 3);
    (rest.is_empty() == is_acl && rest.len() <= 255).then_some((*index, rest))
}

/// The name that [`split_xattr_name`] split.
pub(super) fn join_xattr_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let (prefix, _) = PREFIXES.iter().find(|(_, known)| *known == index)?;
    Some([prefix, rest].concat())
}

/// The inline attribute area of an inode; empty if there are none. `opaque` adds overlayfs's mark of an opaque directory.
pub(super) fn encode_xattrs(xattrs: &Xattrs, opaque: bool) -> Result<Vec<u8>, ErofsError> {
    let mut out = Vec::new();
    let mark: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");
    let all = xattrs.iter().map(|(k, v)| (&**k, &**v)).chain(opaque.then_some(mark));
    for (name, value) in all {
        let Some((index, rest)) = split_xattr_name(name) else {
            continue;
        };
        if out.is_empty() {
            out.resize(XATTR_HEADER, 0);
        }
        let len = u16::try_from(value.len()).map_err(|_| ErofsError::Xattrs)?;
        // `split_xattr_name` keeps the rest within 255 bytes.
        out.extend_from_slice(&[rest.len() as u8, index]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
        if out.len() > usize::from(u16::MAX) {
            return Err(ErofsError::Xattrs);
        }
    }
    Ok(out)
}

pub(super) struct SuperBlock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub meta_block: u32,
    pub uuid: [u8; 16],
}

impl SuperBlock {
    /// Block 0 of the image.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0u8; BLOCK];
        let b = &mut block[SUPER_OFFSET..];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[8..12].copy_from_slice(&COMPAT_MTIME.to_le_bytes());
        b[12] = BLOCK_BITS;
        b[14..16].copy_from_slice(&self.root_nid.to_le_bytes());
        b[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        b[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        b[40..44].copy_from_slice(&self.meta_block.to_le_bytes());
        b[48..64].copy_from_slice(&self.uuid);
        block
    }
}

/// What an image's superblock says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Inodes; 1 means an empty root directory.
    pub inodes: u64,
    /// Length of the image in bytes.
    pub bytes: u64,
}

/// Reads block 0 of an image made here; `None` if it is not one.
pub fn summary(block: &[u8; BLOCK]) -> Option<Summary> {
    let b = &block[SUPER_OFFSET..];
    let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let inodes = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    let ours = u32_at(0) == MAGIC && b[12] == BLOCK_BITS;
    ours.then(|| Summary { inodes, bytes: u64::from(u32_at(36)) * BLOCK as u64 })
}
