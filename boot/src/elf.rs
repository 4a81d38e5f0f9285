//! `vmlinux`: ELF header, program headers, and the PVH note (System V ABI, "ELF-64 Object File Format"; Xen, `elfnote.h`).
//!
//! Parses and checks; [`Elf::load`] then copies exactly what was checked. Section headers and symbols are not read.

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::{ByteValued, GuestMemoryBackend};

use crate::{
    image::{Image, ImageError},
    layout::{PlaceError, Ram},
};

const EHDR_SIZE: u64 = size_of::<Elf64_Ehdr>() as u64;
const PHDR_SIZE: usize = size_of::<Elf64_Phdr>();
/// Kernels have about five. More is a mistake, and `PN_XNUM` (0xffff) an escape we do not follow.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Kernels have less than a KiB.
const MAX_NOTES: u64 = 0x1_0000;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Size of a note's three header words.
const NOTE_HEADER: usize = 12;

/// A malformed ELF kernel.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Shorter than its own header.
    #[error("ELF header: the file has {size:#x} bytes, and the header alone {EHDR_SIZE:#x}")]
    TruncatedHeader {
        /// Size of the file.
        size: u64,
    },
    /// A header field has a value we cannot work with.
    #[error("ELF header: {field} is {value:#x}, expected {expected}")]
    Header {
        /// The field.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// More or fewer program headers than can be.
    #[error("ELF header: e_phnum is {count}, expected 1 to {MAX_PROGRAM_HEADERS}")]
    ProgramHeaderCount {
        /// How many it says.
        count: u16,
    },
    /// Program headers that are not in the file.
    #[error("ELF header: e_phoff {offset:#x} puts {count} program headers outside the file ({size:#x} bytes)")]
    ProgramHeadersOutside {
        /// Offset of the first.
        offset: u64,
        /// How many.
        count: u16,
        /// Size of the file.
        size: u64,
    },
    /// A segment that is not in the file.
    #[error(
        "program header {index}: p_filesz {len:#x} at p_offset {offset:#x} runs past the end of the file ({size:#x} bytes)"
    )]
    SegmentOutside {
        /// Which, from 0.
        index: usize,
        /// Offset in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Size of the file.
        size: u64,
    },
    /// More in the file than in memory.
    #[error("program header {index}: p_filesz {file:#x} is more than p_memsz {memory:#x}")]
    FileLargerThanMemory {
        /// Which, from 0.
        index: usize,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// A segment beyond the last address there is.
    #[error("program header {index}: p_memsz {len:#x} from p_paddr {addr:#x} wraps around the address space")]
    SegmentWraps {
        /// Which, from 0.
        index: usize,
        /// Guest-physical start.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// A segment where no kernel can be.
    #[error("program header {index}: p_paddr {addr:#x} with p_memsz {len:#x} {source}")]
    SegmentPlace {
        /// Which, from 0.
        index: usize,
        /// Guest-physical start.
        addr: u64,
        /// Bytes.
        len: u64,
        /// Why not there.
        source: PlaceError,
    },
    /// Two segments in one place.
    #[error("program headers {first} and {second}: both put something at p_paddr {addr:#x}")]
    SegmentsOverlap {
        /// One.
        first: usize,
        /// The other.
        second: usize,
        /// Guest-physical address that both cover.
        addr: u64,
    },
    /// Nothing to load.
    #[error("program headers: none is PT_LOAD with contents")]
    NoSegments,
    /// An entry with no code behind it.
    #[error("{field} {entry:#x} is outside every segment's contents")]
    EntryOutside {
        /// `e_entry`, or the note's.
        field: &'static str,
        /// Guest-physical address.
        entry: u64,
    },
    /// No PVH entry.
    #[error("notes: no XEN_ELFNOTE_PHYS32_ENTRY, so no boot by PVH; build it with CONFIG_PVH or use the 64-bit entry")]
    NoPvhNote,
    /// Notes beyond any kernel's.
    #[error("program header {index}: p_filesz {len:#x} of PT_NOTE is more than {MAX_NOTES:#x}")]
    NotesTooLarge {
        /// Which, from 0.
        index: usize,
        /// Bytes.
        len: u64,
    },
    /// A note that says it is longer than what holds it.
    #[error("program header {index}: note at {offset:#x}: {field} {len:#x} runs past the notes ({size:#x} bytes)")]
    NoteOutside {
        /// Which program header, from 0.
        index: usize,
        /// Offset of the note in the notes.
        offset: usize,
        /// `header`, `n_namesz` or `n_descsz`.
        field: &'static str,
        /// What it says.
        len: u32,
        /// Bytes of all notes.
        size: usize,
    },
    /// A PVH note that cannot hold an address, or whose address is not a 32-bit one.
    #[error("program header {index}: XEN_ELFNOTE_PHYS32_ENTRY: {reason}")]
    PvhNote {
        /// Which program header, from 0.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// One loadable segment, inside the file and inside RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of its program header.
    pub index: usize,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Guest-physical start.
    pub addr: u64,
    /// Bytes in memory, at least `file_len`; the rest is zeros.
    pub memory_len: u64,
}

/// A checked ELF kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// Where it is entered, guest-physical.
    pub entry: u64,
    /// What to load, by ascending address, no two overlapping, at least one with contents.
    pub segments: Vec<Segment>,
}

impl Elf {
    /// Checks `image` for the 64-bit entry (`e_entry`) in a guest with this RAM.
    pub fn parse_linux(image: &Image<'_>, ram: &Ram) -> Result<Elf, ElfError> {
        let (header, program_headers) = headers(image)?;
        let segments = segments(image, &program_headers, ram)?;
        check_entry("ELF header: e_entry", header.e_entry, &segments)?;
        Ok(Elf { entry: header.e_entry, segments })
    }

    /// Checks `image` for the PVH entry, named by a note.
    pub fn parse_pvh(image: &Image<'_>, ram: &Ram) -> Result<Elf, ElfError> {
        let (_, program_headers) = headers(image)?;
        let segments = segments(image, &program_headers, ram)?;
        let entry = pvh_entry(image, &program_headers)?;
        check_entry("notes: XEN_ELFNOTE_PHYS32_ENTRY", entry, &segments)?;
        Ok(Elf { entry, segments })
    }

    /// Guest-physical range from the first segment's start to the last one's end, zeros included.
    pub fn extent(&self) -> (u64, u64) {
        let start = self.segments.first().map_or(0, |s| s.addr);
        let end = self.segments.last().map_or(0, |s| s.addr + s.memory_len);
        (start, end)
    }

    /// Copies the segments of `image` into `mem`, whose pages must still be zero: bss is not written.
    pub fn load<M: GuestMemoryBackend>(&self, mem: &M, image: &Image<'_>) -> Result<(), ImageError> {
        self.segments.iter().try_for_each(|s| image.load(mem, s.offset, s.file_len, s.addr))
    }
}

/// The ELF header and the program headers, each field checked that the rest relies on.
fn headers(image: &Image<'_>) -> Result<(Elf64_Ehdr, Vec<Elf64_Phdr>), ElfError> {
    let size = image.size();
    if size < EHDR_SIZE {
        return Err(ElfError::TruncatedHeader { size });
    }
    let mut header = Elf64_Ehdr::default();
    image.read_at(header.as_mut_slice(), 0)?;
    check_header(&header)?;
    let (count, offset) = (header.e_phnum, header.e_phoff);
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(ElfError::ProgramHeaderCount { count });
    }
    let mut bytes = vec![0; usize::from(count) * PHDR_SIZE];
    if offset < EHDR_SIZE || !inside(offset, bytes.len() as u64, size) {
        return Err(ElfError::ProgramHeadersOutside { offset, count, size });
    }
    image.read_at(&mut bytes, offset)?;
    let parse = |bytes: &[u8]| {
        let mut header = Elf64_Phdr::default();
        header.as_mut_slice().copy_from_slice(bytes);
        header
    };
    Ok((header, bytes.chunks_exact(PHDR_SIZE).map(parse).collect()))
}

fn check_header(header: &Elf64_Ehdr) -> Result<(), ElfError> {
    let ident = &header.e_ident;
    let magic = u32::from_be_bytes([ident[0], ident[1], ident[2], ident[3]]);
    let fields = [
        ("magic number", u64::from(magic), magic == 0x7f45_4c46, "0x7f454c46"),
        ("EI_CLASS", ident[4].into(), ident[4] == ELFCLASS64, "2 (64-bit)"),
        ("EI_DATA", ident[5].into(), ident[5] == ELFDATA2LSB, "1 (little-endian)"),
        ("e_machine", header.e_machine.into(), header.e_machine == EM_X86_64, "0x3e (x86-64)"),
        ("e_type", header.e_type.into(), [ET_EXEC, ET_DYN].contains(&header.e_type), "2 (ET_EXEC) or 3 (ET_DYN)"),
        ("e_phentsize", header.e_phentsize.into(), usize::from(header.e_phentsize) == PHDR_SIZE, "0x38"),
    ];
    match fields.into_iter().find(|field| !field.2) {
        Some((field, value, _, expected)) => Err(ElfError::Header { field, value, expected }),
        None => Ok(()),
    }
}

/// The loadable segments by ascending address.
fn segments(image: &Image<'_>, headers: &[Elf64_Phdr], ram: &Ram) -> Result<Vec<Segment>, ElfError> {
    let mut segments = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        if header.p_type == PT_LOAD && header.p_memsz.max(header.p_filesz) > 0 {
            segments.push(segment(index, header, image.size(), ram)?);
        }
    }
    if segments.iter().all(|s| s.file_len == 0) {
        return Err(ElfError::NoSegments);
    }
    segments.sort_unstable_by_key(|s| (s.addr, s.index));
    for pair in segments.windows(2) {
        if pair[0].addr + pair[0].memory_len > pair[1].addr {
            let (first, second) = (pair[0].index.min(pair[1].index), pair[0].index.max(pair[1].index));
            return Err(ElfError::SegmentsOverlap { first, second, addr: pair[1].addr });
        }
    }
    Ok(segments)
}

fn segment(index: usize, header: &Elf64_Phdr, size: u64, ram: &Ram) -> Result<Segment, ElfError> {
    let (offset, file_len, addr, memory_len) = (header.p_offset, header.p_filesz, header.p_paddr, header.p_memsz);
    if file_len > memory_len {
        return Err(ElfError::FileLargerThanMemory { index, file: file_len, memory: memory_len });
    }
    check_inside(index, header, size)?;
    let wraps = || ElfError::SegmentWraps { index, addr, len: memory_len };
    let end = addr.checked_add(memory_len).ok_or_else(wraps)?;
    ram.place(addr, end).map_err(|source| ElfError::SegmentPlace { index, addr, len: memory_len, source })?;
    Ok(Segment { index, offset, file_len, addr, memory_len })
}

fn check_inside(index: usize, header: &Elf64_Phdr, size: u64) -> Result<(), ElfError> {
    let (offset, len) = (header.p_offset, header.p_filesz);
    if len > 0 && !inside(offset, len, size) {
        return Err(ElfError::SegmentOutside { index, offset, len, size });
    }
    Ok(())
}

fn inside(offset: u64, len: u64, size: u64) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= size)
}

fn check_entry(field: &'static str, entry: u64, segments: &[Segment]) -> Result<(), ElfError> {
    let holds = |s: &Segment| (s.addr..s.addr + s.file_len).contains(&entry);
    if segments.iter().any(holds) { Ok(()) } else { Err(ElfError::EntryOutside { field, entry }) }
}

/// The address in the first `XEN_ELFNOTE_PHYS32_ENTRY` of any `PT_NOTE`.
fn pvh_entry(image: &Image<'_>, headers: &[Elf64_Phdr]) -> Result<u64, ElfError> {
    for (index, header) in headers.iter().enumerate().filter(|(_, header)| header.p_type == PT_NOTE) {
        check_inside(index, header, image.size())?;
        if header.p_filesz > MAX_NOTES {
            return Err(ElfError::NotesTooLarge { index, len: header.p_filesz });
        }
        let mut notes = vec![0; header.p_filesz as usize];
        if !notes.is_empty() {
            image.read_at(&mut notes, header.p_offset)?;
        }
        if let Some(entry) = pvh_note(index, &notes)? {
            return Ok(entry);
        }
    }
    Err(ElfError::NoPvhNote)
}

/// Walks the notes of one segment: three words, name, descriptor, each padded to 4 bytes.
///
/// Each step goes on by the 12 bytes of a header at least, so the walk ends.
fn pvh_note(index: usize, notes: &[u8]) -> Result<Option<u64>, ElfError> {
    let size = notes.len();
    let mut at = 0;
    while at < size {
        let outside = |field, len| ElfError::NoteOutside { index, offset: at, field, len, size };
        let Some(words) = notes.get(at..at + NOTE_HEADER) else {
            return Err(outside("header", NOTE_HEADER as u32));
        };
        let word = |n: usize| u32::from_le_bytes([words[n], words[n + 1], words[n + 2], words[n + 3]]);
        let (name_len, desc_len, kind) = (word(0), word(4), word(8));
        let body = &notes[at + NOTE_HEADER..];
        let name = body.get(..name_len as usize).ok_or_else(|| outside("n_namesz", name_len))?;
        // The padding after the last field may be missing, so where the next one starts is clamped to the end.
        let body = &body[name.len().next_multiple_of(4).min(body.len())..];
        let descriptor = body.get(..desc_len as usize).ok_or_else(|| outside("n_descsz", desc_len))?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            return pvh_descriptor(index, descriptor).map(Some);
        }
        at += NOTE_HEADER + name.len().next_multiple_of(4) + descriptor.len().next_multiple_of(4);
    }
    Ok(None)
}

/// The entry is 4 bytes, or 8 in kernels that write a native word; it must be a 32-bit address either way.
fn pvh_descriptor(index: usize, descriptor: &[u8]) -> Result<u64, ElfError> {
    let error = |reason| ElfError::PvhNote { index, reason };
    let entry = match *descriptor {
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => return Err(error("n_descsz is neither 4 nor 8")),
    };
    if entry > u32::MAX.into() {
        return Err(error("the entry is not a 32-bit address"));
    }
    Ok(entry)
}
