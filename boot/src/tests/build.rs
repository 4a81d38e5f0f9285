//! Small kernels of each format.

pub const PT_LOAD: u32 = 1;
pub const PT_NOTE: u32 = 4;
pub const TEXT: u64 = 0x100_0000;
pub const DATA: u64 = 0x180_0000;
pub const ENTRY: u64 = TEXT + 0x10;
pub const PVH_ENTRY: u64 = TEXT + 0x20;
pub const BSS: u64 = 0x3000;

/// A program header, with what it points to.
#[derive(Clone, Debug)]
pub struct Part {
    pub kind: u32,
    pub offset: u64,
    pub addr: u64,
    pub file_len: u64,
    pub memory_len: u64,
}

/// An ELF file that can be taken apart before it is written.
#[derive(Clone, Debug)]
pub struct ElfFile {
    pub entry: u64,
    pub parts: Vec<Part>,
    pub contents: Vec<u8>,
}

impl ElfFile {
    /// Text, data with bss, and notes with a PVH entry.
    pub fn kernel() -> ElfFile {
        let mut file = ElfFile { entry: ENTRY, parts: Vec::new(), contents: Vec::new() };
        file.part(PT_LOAD, TEXT, &[0x90; 64], 64);
        file.part(PT_LOAD, DATA, b"data", 4 + BSS);
        let notes = [note(b"Linux\0", 0x101, &[0; 4]), note(b"Xen\0", 18, &PVH_ENTRY.to_le_bytes())].concat();
        file.part(PT_NOTE, TEXT, &notes, notes.len() as u64);
        file
    }

    pub fn part(&mut self, kind: u32, addr: u64, contents: &[u8], memory_len: u64) {
        // Contents start at 0x400: room for 17 program headers.
        let offset = 0x400 + self.contents.len() as u64;
        self.parts.push(Part { kind, offset, addr, file_len: contents.len() as u64, memory_len });
        self.contents.extend(contents);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2_u16.to_le_bytes());
        file.extend(62_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(self.entry.to_le_bytes());
        file.extend(64_u64.to_le_bytes());
        file.extend([0; 12]); // e_shoff, e_flags
        file.extend(64_u16.to_le_bytes());
        file.extend(56_u16.to_le_bytes());
        file.extend((self.parts.len() as u16).to_le_bytes());
        file.extend([0; 6]); // no sections
        for part in &self.parts {
            file.extend(part.kind.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            for word in [part.offset, part.addr, part.addr, part.file_len, part.memory_len, 0x1000] {
                file.extend(word.to_le_bytes());
            }
        }
        assert!(file.len() <= 0x400);
        file.resize(0x400, 0);
        file.extend(&self.contents);
        file
    }
}

/// A note, padded.
pub fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((name.len() as u32).to_le_bytes());
    note.extend((descriptor.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    for field in [name, descriptor] {
        note.extend(field);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

pub const SETUP_SECTS: u8 = 2;
pub const PAYLOAD_LEN: usize = 0x400;
pub const PREFERRED: u64 = 0x100_0000;
pub const INIT_SIZE: u32 = 0x20_0000;
pub const CMDLINE_SIZE: u32 = 100;
pub const INITRD_MAX: u32 = 0x2ff_ffff;

/// A bzImage of protocol 2.15 with a setup of two sectors.
pub fn bzimage() -> Vec<u8> {
    let mut file = vec![0; (usize::from(SETUP_SECTS) + 1) * 512];
    set(&mut file, 0x1f1, &[SETUP_SECTS]);
    set(&mut file, 0x1f4, &((PAYLOAD_LEN / 16) as u32).to_le_bytes());
    set(&mut file, 0x1fe, &0xaa55_u16.to_le_bytes());
    set(&mut file, 0x200, &[0xeb, 0x6a]);
    set(&mut file, 0x202, b"HdrS");
    set(&mut file, 0x206, &0x020f_u16.to_le_bytes());
    set(&mut file, 0x211, &[0x01]);
    set(&mut file, 0x214, &0x10_0000_u32.to_le_bytes());
    set(&mut file, 0x22c, &INITRD_MAX.to_le_bytes());
    set(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
    set(&mut file, 0x234, &[1, 21]);
    set(&mut file, 0x236, &0x3f_u16.to_le_bytes());
    set(&mut file, 0x238, &CMDLINE_SIZE.to_le_bytes());
    set(&mut file, 0x258, &PREFERRED.to_le_bytes());
    set(&mut file, 0x260, &INIT_SIZE.to_le_bytes());
    set(&mut file, 0x264, &0x1234_u32.to_le_bytes());
    set(&mut file, 0x268, &0x5678_u32.to_le_bytes());
    file.extend([0x90; PAYLOAD_LEN]);
    file
}

pub fn set(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
