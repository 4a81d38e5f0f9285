//! Puts a Linux kernel into guest memory and says where the first vCPU starts.
//!
//! | module | does |
//! |---|---|
//! | [`layout`] | guest-physical addresses; RAM around the hole below 4 GiB; the memory map the guest is told |
//! | [`image`] | kernel and initrd files: opened without hanging, read in place |
//! | [`elf`] | `vmlinux`: headers, segments, the PVH note |
//! | [`bzimage`] | `bzImage`: the setup header |
//! | [`cmdline`] | the kernel command line, checked while it is built |
//! | [`initrd`] | where the initial RAM disk goes |
//! | `linux` | `boot_params` of the 64-bit Linux boot protocol |
//! | `pvh` | `hvm_start_info` of the PVH boot protocol |
//! | [`cpu`] | GDT, page tables, and the registers to start from |
//! | [`acpi`] | ACPI tables, for kernels that read no MP tables |
//! | [`mptable`] | the MP tables that tell an SMP guest its CPUs and interrupts |
//!
//! The parsers check every field before they use it and load only what they checked: a file that changes meanwhile
//! yields other contents in the same places, never another layout. linux-loader supplies the layouts of the boot
//! structures; its loaders are not used, because they do not say which field of a malformed file is wrong, and read the
//! headers again while they load.
//!
//! This crate knows nothing of KVM or devices, and needs neither.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bzimage;
pub mod cmdline;
pub mod cpu;
pub mod elf;
mod error;
pub mod image;
pub mod initrd;
pub mod layout;
mod linux;
mod load;
pub mod mptable;
mod pvh;
#[cfg(test)]
mod tests;

pub use cmdline::CommandLine;
pub use cpu::{CpuMode, CpuState, Gdt};
pub use error::{BootError, KernelError};
pub use image::Image;
pub use load::{load, load_images};
pub use mptable::Platform;

use std::path::Path;

/// An initial RAM disk, from where it is.
#[derive(Clone, Copy, Debug)]
pub enum Initrd<'a> {
    /// A regular file.
    File(&'a Path),
    /// Contents made by the caller.
    Bytes(&'a [u8]),
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// As the file wants it: the 64-bit Linux entry, for ELF and bzImage alike.
    #[default]
    Auto,
    /// The 64-bit entry of the Linux boot protocol.
    Linux64,
    /// The PVH entry named by the ELF note `XEN_ELFNOTE_PHYS32_ENTRY`; ELF files only.
    Pvh,
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootSource<'a> {
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: &'a Path,
    /// The initial RAM disk, if there is one.
    pub initrd: Option<Initrd<'a>>,
    /// The whole kernel command line: printable ASCII.
    pub cmdline: &'a str,
    /// How to enter the kernel.
    pub protocol: Protocol,
}
