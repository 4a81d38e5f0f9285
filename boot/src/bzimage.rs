//! `bzImage`: the setup header and the protected-mode kernel behind it (Documentation/arch/x86/boot.rst).
//!
//! Only kernels with the 64-bit entry are taken: protocol 2.12 (Linux 3.8) and later. The real-mode code is never run.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestMemoryBackend};

use crate::{
    image::{Image, ImageError},
    layout::{PlaceError, Ram},
};

/// Where the setup header is in the file, and in `boot_params`.
pub const HEADER_OFFSET: u64 = 0x1f1;
/// Where `HdrS` is.
pub const MAGIC_OFFSET: u64 = 0x202;
/// `HdrS`, little-endian.
pub const MAGIC: u32 = 0x5372_6448;
/// The jump at 0x200 says where the header ends: its displacement counts from here.
const JUMP_FROM: u64 = 0x202;
/// End of the header in protocol 2.12: up to and with `handover_offset`.
const LEAST_HEADER_END: u64 = 0x268;
const BOOT_FLAG: u16 = 0xaa55;
const LEAST_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry is this far into the protected-mode kernel.
const ENTRY_64_OFFSET: u64 = 0x200;

/// A malformed or unsuitable bzImage.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// It cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Shorter than its own header.
    #[error("setup header: it ends at {end:#x}, and the file has {size:#x} bytes")]
    TruncatedHeader {
        /// Where the header ends in the file.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// A header field has a value we cannot work with.
    #[error("setup header: {field} is {value:#x}, expected {expected}")]
    Header {
        /// The field.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// The protected-mode kernel is not all there.
    #[error(
        "setup header: setup_sects {sects} and syssize {syssize:#x} want {wanted:#x} bytes, and the file has {size:#x}"
    )]
    Truncated {
        /// Sectors of real-mode code (4 stands for 0).
        sects: u8,
        /// Protected-mode code in units of 16 bytes.
        syssize: u32,
        /// Bytes the file should have.
        wanted: u64,
        /// Bytes it has.
        size: u64,
    },
    /// More in the file than the kernel wants of memory.
    #[error("setup header: init_size {init_size:#x} is less than the kernel's {len:#x} bytes in the file")]
    InitSize {
        /// Memory the kernel says it needs.
        init_size: u64,
        /// Bytes of protected-mode kernel.
        len: u64,
    },
    /// The kernel's place is no place for it.
    #[error("setup header: pref_address {addr:#x} with init_size {len:#x} {source}")]
    Place {
        /// Where it must be, aligned.
        addr: u64,
        /// Memory it needs there.
        len: u64,
        /// Why not there.
        source: PlaceError,
    },
}

/// A checked bzImage.
#[derive(Clone, Debug)]
pub struct BzImage {
    /// The header as the file has it, zero beyond the end it declares.
    pub header: setup_header,
    /// Offset of the protected-mode kernel in the file.
    pub offset: u64,
    /// Its bytes there.
    pub len: u64,
    /// Where it is loaded, guest-physical.
    pub addr: u64,
    /// End of the memory it uses before it has read the memory map.
    pub end: u64,
}

impl BzImage {
    /// Whether `image` says that it is one.
    pub fn is_one(image: &Image<'_>) -> Result<bool, ImageError> {
        let mut magic = [0; 4];
        if image.size() < MAGIC_OFFSET + magic.len() as u64 {
            return Ok(false);
        }
        image.read_at(&mut magic, MAGIC_OFFSET)?;
        Ok(u32::from_le_bytes(magic) == MAGIC)
    }

    /// Checks `image` for the 64-bit entry in a guest with this RAM.
    pub fn parse(image: &Image<'_>, ram: &Ram) -> Result<BzImage, BzImageError> {
        let header = read_header(image)?;
        check_header(&header)?;
        let (offset, len) = payload(&header, image.size())?;
        let (addr, end) = place(&header, len, ram)?;
        Ok(BzImage { header, offset, len, addr, end })
    }

    /// The 64-bit entry, guest-physical.
    pub fn entry(&self) -> u64 {
        self.addr + ENTRY_64_OFFSET
    }

    /// Copies the protected-mode kernel of `image` into `mem`.
    pub fn load<M: GuestMemoryBackend>(&self, mem: &M, image: &Image<'_>) -> Result<(), ImageError> {
        image.load(mem, self.offset, self.len, self.addr)
    }
}

/// The header, up to the end that it declares.
fn read_header(image: &Image<'_>) -> Result<setup_header, BzImageError> {
    let size = image.size();
    let mut header = setup_header::default();
    let full = header.as_slice().len() as u64;
    if size < LEAST_HEADER_END {
        return Err(BzImageError::TruncatedHeader { end: LEAST_HEADER_END, size });
    }
    image.read_at(&mut header.as_mut_slice()[..(LEAST_HEADER_END - HEADER_OFFSET) as usize], HEADER_OFFSET)?;
    // The magic number and version come first: without them the jump's displacement means nothing.
    check_identity(&header)?;
    let displacement = header.jump >> 8;
    let declared = JUMP_FROM + u64::from(displacement);
    if declared < LEAST_HEADER_END {
        let field = "jump (end of the header)";
        return Err(BzImageError::Header { field, value: displacement.into(), expected: "0x66 or more" });
    }
    if declared > size {
        return Err(BzImageError::TruncatedHeader { end: declared, size });
    }
    let len = (declared - HEADER_OFFSET).min(full) as usize;
    image.read_at(&mut header.as_mut_slice()[..len], HEADER_OFFSET)?;
    // Again, because the bytes may not be those of the first read.
    check_identity(&header)?;
    Ok(header)
}

type Check = (&'static str, u64, bool, &'static str);

fn check<const N: usize>(fields: [Check; N]) -> Result<(), BzImageError> {
    match fields.into_iter().find(|field| !field.2) {
        Some((field, value, _, expected)) => Err(BzImageError::Header { field, value, expected }),
        None => Ok(()),
    }
}

fn check_identity(header: &setup_header) -> Result<(), BzImageError> {
    let (flag, magic, version) = (header.boot_flag, header.header, header.version);
    check([
        ("boot_flag", flag.into(), flag == BOOT_FLAG, "0xaa55"),
        ("header", magic.into(), magic == MAGIC, "0x53726448 (HdrS)"),
        ("version", version.into(), version >= LEAST_VERSION, "0x20c or later (Linux 3.8)"),
    ])
}

fn check_header(header: &setup_header) -> Result<(), BzImageError> {
    let (load, xload) = (header.loadflags, header.xloadflags);
    let (relocatable, alignment, cmdline) = (header.relocatable_kernel, header.kernel_alignment, header.cmdline_size);
    let aligned = relocatable == 0 || alignment.is_power_of_two();
    check([
        ("loadflags", load.into(), load & LOADED_HIGH != 0, "bit 0 set (a bzImage, not a zImage)"),
        ("xloadflags", xload.into(), xload & XLF_KERNEL_64 != 0, "bit 0 set (a kernel with a 64-bit entry)"),
        ("kernel_alignment", alignment.into(), aligned, "a power of two"),
        ("cmdline_size", cmdline.into(), cmdline > 0, "more than 0"),
    ])
}

/// Offset and length of the protected-mode kernel.
fn payload(header: &setup_header, size: u64) -> Result<(u64, u64), BzImageError> {
    // "If this field is 0, the real value is 4", for the sake of very old kernels.
    let sects = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    let syssize = header.syssize;
    let offset = (u64::from(sects) + 1) * 512;
    // The size is rounded up to 16 bytes, the file need not be.
    let least = (u64::from(syssize) * 16).saturating_sub(15).max(ENTRY_64_OFFSET + 1);
    if size < offset + least {
        return Err(BzImageError::Truncated { sects, syssize, wanted: offset + least, size });
    }
    Ok((offset, size - offset))
}

/// Where the kernel goes, and the end of what it needs there.
///
/// A kernel loaded below `pref_address` moves itself there, and one loaded above it needs more RAM, so that is the one
/// place worth trying; a relocatable one is aligned up from there.
fn place(header: &setup_header, len: u64, ram: &Ram) -> Result<(u64, u64), BzImageError> {
    let init_size = u64::from(header.init_size);
    if init_size < len {
        return Err(BzImageError::InitSize { init_size, len });
    }
    let preferred = header.pref_address;
    let error = |addr| move |source| BzImageError::Place { addr, len: init_size, source };
    let not_ram = PlaceError::NotRam { low_end: ram.low_end() };
    let alignment = if header.relocatable_kernel == 0 { 1 } else { u64::from(header.kernel_alignment) };
    let addr = preferred.checked_next_multiple_of(alignment).ok_or(not_ram).map_err(error(preferred))?;
    let end = addr.checked_add(init_size).ok_or(not_ram).map_err(error(addr))?;
    ram.place(addr, end).map_err(error(addr))?;
    Ok((addr, end))
}
