//! What an entry of a tar stream is, and the fields of its header.

use crate::layer::sparse::Segment;
use crate::tree::Attrs;
use ::tar::Header;
use std::io;

/// Bytes in a header, and what data is padded to.
pub(super) const BLOCK: u64 = 512;

/// What is wrong with a tar stream.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading the stream failed (also: it does not decompress).
    #[error("cannot read the layer: {0}")]
    Read(#[source] io::Error),
    /// The stream ends in the middle of an entry.
    #[error("the layer is truncated")]
    Truncated,
    /// Not a tar header, or a damaged one.
    #[error("the layer is not a tar archive or is damaged (header at byte {0} has a wrong checksum)")]
    Checksum(u64),
    /// A number in a header is not one, or out of range.
    #[error("tar header at byte {0}: bad field '{1}'")]
    Field(u64, &'static str),
    /// An extension header is longer than anyone needs.
    #[error("tar header at byte {0}: extension of more than 1 MiB")]
    Extension(u64),
    /// Malformed PAX records.
    #[error("malformed PAX header")]
    Pax,
    /// A sparse file's map is wrong.
    #[error("malformed map of a sparse file")]
    Sparse,
    /// An entry of a kind that cannot be in an image.
    #[error("entry '{0}' has the unsupported type {1:?}")]
    Type(String, char),
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symlink to this target.
    Symlink(Vec<u8>),
    /// One more name of the file of this path.
    HardLink(Vec<u8>),
    /// Character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
}

/// One file in the archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name as it stands in the archive: untrusted.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, time, extended attributes.
    pub attrs: Attrs,
    /// The file's size in bytes (0 for anything but a regular file).
    pub size: u64,
    /// Which parts of the file follow in the archive, checked: in order, within `size`.
    pub segments: Vec<Segment>,
    /// Where in the stream the data starts.
    pub position: u64,
}

impl Entry {
    /// Whether the archive has the file's bytes in one piece.
    pub fn is_whole(&self) -> bool {
        matches!(self.segments[..], [Segment { offset: 0, len }] if len == self.size)
    }
}

pub(super) fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// A device entry's numbers.
pub(super) fn device(at: u64, header: &Header) -> Result<(u32, u32), TarError> {
    let ustar = &header.as_bytes()[..];
    // Offsets 329 and 337, 8 bytes each, in ustar and GNU headers alike.
    let field = |range: std::ops::Range<usize>, name| {
        number(&ustar[range]).and_then(|n| u32::try_from(n).ok()).ok_or(TarError::Field(at, name))
    };
    Ok((field(329..337, "devmajor")?, field(337..345, "devminor")?))
}

/// A number that cannot be negative, of up to 63 bits.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    u64::try_from(signed(field)?).ok()
}

/// A header's number: octal text (blank: 0), or big-endian two's complement where the first byte's top bit is set.
pub(super) fn signed(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The bit after the marker is the sign.
        let negative = first & 0x40 != 0;
        let start = if negative { -1i64 } else { 0 };
        let top = if negative { i64::from(first | 0x80) - 256 } else { i64::from(first & 0x7f) };
        let mut value = if field.len() > 8 { start } else { top };
        if field.len() > 8 && top != start {
            return None;
        }
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i64::from(*byte))?;
        }
        return Some(value);
    }
    let text = until_nul(field).trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    i64::from_str_radix(std::str::from_utf8(text).ok().filter(|t| !t.starts_with('+'))?, 8).ok()
}
