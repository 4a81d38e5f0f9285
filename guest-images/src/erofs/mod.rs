//! Writes EROFS images: uncompressed, read-only file systems that a Linux kernel mounts as they are.
//!
//! The layout follows the kernel's Documentation/filesystems/erofs.rst: 4 KiB blocks, 64-byte ("extended") inodes, the
//! data of larger files in consecutive whole blocks ("flat plain", so that it can be mapped straight into a guest), that
//! of small files, symlinks and the tails of directories beside their inode ("flat inline"). One pass: file data goes out
//! as it arrives, all metadata follows at the end, and the superblock in block 0 is written last. There is no superblock
//! checksum: images are only used after their content's digest was verified, and computing it costs boot time where the
//! guest kernel is emulated.
//!
//! [`Files`] finds single files of an image again. [`merge`] makes one image of several: all of their metadata, while the data stays in them.
//!
//! Not here: compression, chunks, shared attributes, multiple devices.

mod blocks;
mod dirents;
mod files;
mod format;
mod merge;
mod reader;
mod writer;

pub use blocks::BlockWriter;
pub use files::{Entry, Files};
pub(crate) use format::split_xattr_name;
pub use format::{BLOCK, Summary, summary};
pub(crate) use merge::stacked;
pub use merge::{MergeError, merge};
pub use reader::{ReadError, read_tree};
pub use writer::finish;

/// Files up to this many bytes are stored beside their inode: one block read brings both.
pub const INLINE_MAX: u64 = 2048;

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// Writing the image file failed (disk full, for one).
    #[error("cannot write the layer image: {0}")]
    Write(#[source] std::io::Error),
    /// The layer holds more than it may.
    #[error("the layer's files take more than the limit of {0} bytes")]
    TooLarge(u64),
    /// A device number that does not fit (12 bits of major, 20 bits of minor).
    #[error("device number {0}:{1} is out of range")]
    DeviceNumber(u32, u32),
    /// Extended attributes beyond what one inode can hold.
    #[error("a file's extended attributes take more than 65535 bytes")]
    Xattrs,
}
