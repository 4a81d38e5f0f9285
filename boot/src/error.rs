//! Why a guest could not be prepared: each error with the file and the field.

use vm_memory::GuestMemoryError;

use crate::{
    bzimage::BzImageError, cmdline::CommandLineError, elf::ElfError, image::ImageError, initrd::InitrdError,
    layout::LayoutError, mptable::MpTableError,
};

/// Why [`crate::load`] failed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Guest memory is not laid out as [`crate::layout`] has it.
    #[error("guest memory: {0}")]
    Layout(#[from] LayoutError),
    /// The kernel cannot be used.
    #[error("kernel {name}: {source}")]
    Kernel {
        /// The file.
        name: String,
        /// Why not.
        source: KernelError,
    },
    /// The initial RAM disk cannot be used.
    #[error("initrd {name}: {source}")]
    Initrd {
        /// The file.
        name: String,
        /// Why not.
        source: InitrdError,
    },
    /// The command line cannot be used.
    #[error("kernel command line: {0}")]
    CommandLine(#[from] CommandLineError),
    /// The platform cannot be described.
    #[error("MP table: {0}")]
    MpTable(#[from] MpTableError),
    /// A boot structure could not be written.
    #[error("{what} at {addr:#x}: cannot write guest memory: {source}")]
    Write {
        /// Which structure.
        what: &'static str,
        /// Guest-physical address.
        addr: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

/// What is wrong with a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is neither of the formats.
    #[error("magic number {magic:02x?}: neither an ELF vmlinux nor a bzImage")]
    Format {
        /// The first four bytes.
        magic: [u8; 4],
    },
    /// It is an ELF file, and malformed.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// It is a bzImage, and malformed.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// PVH was asked of a format that has no such entry.
    #[error("a bzImage has no PVH entry; use the vmlinux it was made from, or the 64-bit entry")]
    BzImagePvh,
}
