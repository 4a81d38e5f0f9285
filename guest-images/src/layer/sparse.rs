//! Sparse files in tar: which parts of a file the archive has, in GNU's old format and its three PAX formats.

use super::tar::TarError;

/// A stretch of a file whose bytes are in the archive; between segments there are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// Most segments of one file.
pub(super) const MAX_SEGMENTS: usize = 1 << 20;

/// Checks that segments are in order, do not overlap, lie within `size` and add up to `stored` bytes of archive data.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), TarError> {
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in segments {
        let next = segment.offset.checked_add(segment.len).ok_or(TarError::Sparse)?;
        if segment.offset < end || next > size {
            return Err(TarError::Sparse);
        }
        end = next;
        sum += segment.len;
    }
    if sum == stored { Ok(()) } else { Err(TarError::Sparse) }
}

/// Reads `offset,length,offset,length…` (PAX sparse format 0.1; 0.0 is brought into this form by the caller).
pub(super) fn parse_list(list: &[u8]) -> Result<Vec<Segment>, TarError> {
    let mut numbers = Vec::new();
    for number in list.split(|b| *b == b',').filter(|n| !n.is_empty()) {
        numbers.push(super::pax::decimal(number).ok_or(TarError::Sparse)?);
        if numbers.len() > 2 * MAX_SEGMENTS {
            return Err(TarError::Sparse);
        }
    }
    pairs(&numbers)
}

/// Makes segments of offset, length, offset, length…
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, TarError> {
    if numbers.len() % 2 != 0 {
        return Err(TarError::Sparse);
    }
    Ok(numbers.chunks(2).map(|pair| Segment { offset: pair[0], len: pair[1] }).collect())
}
