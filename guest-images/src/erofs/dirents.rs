//! Directory blocks: 12-byte entries, then their names, in byte order over the whole directory.

use super::format::{BLOCK, DIRENT_SIZE, FileType};

/// One entry to be stored.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: FileType,
}

/// How the entries spread over blocks: the index of each block's first entry, and the bytes used in the last block.
/// Names are at most 255 bytes, so a block always takes several.
fn split<'a>(names: impl Iterator<Item = &'a [u8]>) -> (Vec<usize>, usize) {
    let (mut starts, mut used) = (Vec::new(), BLOCK);
    for (i, name) in names.enumerate() {
        let need = DIRENT_SIZE + name.len();
        if used + need > BLOCK {
            starts.push(i);
            used = 0;
        }
        used += need;
    }
    (starts, used)
}

/// The size of the directory in bytes: full blocks and what the last one uses.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (starts, last) = split(names);
    (starts.len().saturating_sub(1) * BLOCK + last) as u64
}

/// The directory's bytes; the last block is not padded.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let (starts, _) = split(entries.iter().map(|e| e.name));
    let mut out = Vec::new();
    for (i, &start) in starts.iter().enumerate() {
        out.resize(i * BLOCK, 0);
        let end = starts.get(i + 1).copied().unwrap_or(entries.len());
        encode_block(&entries[start..end], &mut out);
    }
    out
}

fn encode_block(entries: &[Entry<'_>], out: &mut Vec<u8>) {
    let mut offset = entries.len() * DIRENT_SIZE;
    for entry in entries {
        out.extend_from_slice(&entry.nid.to_le_bytes());
        // Offsets are within a block of 4096 bytes.
        out.extend_from_slice(&(offset as u16).to_le_bytes());
        out.extend_from_slice(&[entry.file_type as u8, 0]);
        offset += entry.name.len();
    }
    for entry in entries {
        out.extend_from_slice(entry.name);
    }
}
