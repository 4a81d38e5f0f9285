//! The container format of a snapshot's `state` file: a header, then records of `{kind, version, bytes}`.
//!
//! Described in `docs/snapshot-format.md`. Nothing is parsed before magic, version, architecture, length and digest have
//! been checked; what the records hold is for others to know.

use sha2::{Digest, Sha256};

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"BULKSNAP";
/// Version of the container format.
pub const FORMAT_VERSION: u32 = 1;
/// EM_X86_64 (System V ABI).
pub const ARCH_X86_64: u32 = 62;
/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Most bytes that a `state` file may have. 32 vCPUs with 8 KiB of XSAVE state take less than 1 MiB.
pub const MAX_STATE: u64 = 64 << 20;

/// Where the digest lies in the header.
const DIGEST: std::ops::Range<usize> = 32..HEADER_LEN;
/// Bytes in front of each record's own: kind, version, length.
const RECORD_HEADER: usize = 16;
/// Records begin at multiples of this.
const ALIGN: usize = 8;

/// A file that is not a snapshot's state, or not one that this program can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Shorter than its header or longer than any.
    #[error("{0} bytes are not the length of a snapshot's state")]
    Length(u64),
    /// It begins with something else.
    #[error("not a snapshot: the file does not begin with \"BULKSNAP\"")]
    Magic,
    /// Written by another version of the format.
    #[error("format version {0}, but this program reads version {FORMAT_VERSION}")]
    Version(u32),
    /// Taken on another architecture.
    #[error("taken on another architecture (ELF machine {0}, not x86-64)")]
    Arch(u32),
    /// The length in the header is not the file's.
    #[error("truncated or extended: it has {actual} bytes and should have {stated}")]
    Truncated {
        /// What the header says.
        stated: u64,
        /// What the file has.
        actual: u64,
    },
    /// The content does not match its digest.
    #[error("damaged: the content does not match its SHA-256 digest")]
    Digest,
    /// The digest matches, but a record does not fit; whoever wrote it did so on purpose.
    #[error("record {index}: {problem}")]
    Record {
        /// Which record, from 0.
        index: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it is about.
    pub kind: u32,
    /// Version of its content.
    pub version: u32,
    /// Its content.
    pub bytes: &'a [u8],
}

/// A file's bytes, from records.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    records: u32,
}

impl Default for Writer {
    fn default() -> Self {
        Writer { bytes: vec![0; HEADER_LEN], records: 0 }
    }
}

impl Writer {
    /// Adds a record.
    pub fn push(&mut self, kind: u32, version: u32, bytes: &[u8]) {
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&version.to_le_bytes());
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self.records += 1;
    }

    /// The whole file.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u64;
        self.bytes[..8].copy_from_slice(&MAGIC);
        self.bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&ARCH_X86_64.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&length.to_le_bytes());
        self.bytes[24..28].copy_from_slice(&self.records.to_le_bytes());
        let digest = digest(&self.bytes);
        self.bytes[DIGEST].copy_from_slice(&digest);
        self.bytes
    }
}

/// The digest of everything but the digest itself.
fn digest(file: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(&file[..DIGEST.start]);
    hash.update(&file[DIGEST.end..]);
    hash.finalize().into()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The records of a file, once all of it has been verified.
///
/// # Errors
/// Everything that makes the file another one than [`Writer::finish`] gave.
pub fn parse(file: &[u8]) -> Result<Vec<Record<'_>>, FormatError> {
    let actual = file.len() as u64;
    if file.len() < HEADER_LEN || actual > MAX_STATE {
        return Err(FormatError::Length(actual));
    }
    if file[..8] != MAGIC {
        return Err(FormatError::Magic);
    }
    let (version, arch, stated) = (u32_at(file, 8), u32_at(file, 12), u64_at(file, 16));
    if version != FORMAT_VERSION {
        return Err(FormatError::Version(version));
    }
    if arch != ARCH_X86_64 {
        return Err(FormatError::Arch(arch));
    }
    if stated != actual {
        return Err(FormatError::Truncated { stated, actual });
    }
    if digest(file) != file[DIGEST] {
        return Err(FormatError::Digest);
    }
    records(&file[HEADER_LEN..], u32_at(file, 24))
}

fn records(mut rest: &[u8], count: u32) -> Result<Vec<Record<'_>>, FormatError> {
    let mut records = Vec::new();
    for index in 0..count {
        let wrong = |problem| FormatError::Record { index, problem };
        let (header, after) =
            rest.split_at_checked(RECORD_HEADER).ok_or(wrong("it lies beyond the end of the file"))?;
        let length = usize::try_from(u64_at(header, 8)).map_err(|_| wrong("its length is impossible"))?;
        let padded = length.checked_next_multiple_of(ALIGN).ok_or(wrong("its length is impossible"))?;
        let (bytes, after) = after.split_at_checked(padded).ok_or(wrong("it reaches beyond the end of the file"))?;
        records.push(Record { kind: u32_at(header, 0), version: u32_at(header, 4), bytes: &bytes[..length] });
        rest = after;
    }
    if rest.is_empty() {
        Ok(records)
    } else {
        Err(FormatError::Record { index: count, problem: "it is not counted in the header" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(records: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
        let mut writer = Writer::default();
        records.iter().for_each(|(kind, version, bytes)| writer.push(*kind, *version, bytes));
        writer.finish()
    }

    /// With a digest that matches whatever has been done to the file.
    fn signed(mut file: Vec<u8>) -> Vec<u8> {
        let digest = digest(&file);
        file[DIGEST].copy_from_slice(&digest);
        file
    }

    fn sample() -> Vec<u8> {
        file(&[(1, 1, b"meta".to_vec()), (2, 3, vec![]), (3, 1, vec![7; 100])])
    }

    #[test]
    fn group_8_every_flipped_bit_is_noticed() {
        let good = sample();
        parse(&good).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(parse(&bad).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn group_8_every_truncation_and_extension_is_noticed() {
        let good = sample();
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len}");
        }
        let long = [&good[..], &[0; 8]].concat();
        let (stated, actual) = (good.len() as u64, long.len() as u64);
        assert_eq!(parse(&long), Err(FormatError::Truncated { stated, actual }));
        assert_eq!(parse(b"BULKSNAP"), Err(FormatError::Length(8)));
    }

    #[test]
    fn group_8_the_header_says_what_is_wrong() {
        let with = |at: usize, value: u32| {
            let mut file = sample();
            file[at..at + 4].copy_from_slice(&value.to_le_bytes());
            parse(&signed(file)).unwrap_err()
        };
        assert_eq!(with(0, 0), FormatError::Magic);
        assert_eq!(with(8, 9), FormatError::Version(9));
        assert_eq!(with(12, 183), FormatError::Arch(183));
        assert_eq!(with(24, 2), FormatError::Record { index: 2, problem: "it is not counted in the header" });
        assert!(matches!(with(24, u32::MAX), FormatError::Record { index: 3, .. }));
    }

    #[test]
    fn group_8_lengths_of_records_are_bounded_by_the_file_even_if_signed() {
        for length in [5u64, 4096, u64::MAX, u64::MAX - 7, 1 << 63] {
            let mut file = sample();
            file[HEADER_LEN + 8..HEADER_LEN + 16].copy_from_slice(&length.to_le_bytes());
            // The first record has 4 bytes; 5 to 8 are its padding.
            assert_eq!(parse(&signed(file)).is_ok(), length == 5, "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in prop::collection::vec((any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..64)), 0..8)) {
            let file = file(&records);
            let read: Vec<_> = parse(&file).unwrap().iter().map(|r| (r.kind, r.version, r.bytes.to_vec())).collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn group_8_any_bytes_are_refused_or_read(mut bytes in prop::collection::vec(any::<u8>(), 0..512), signed_too in any::<bool>()) {
            if signed_too && bytes.len() >= HEADER_LEN {
                let length = bytes.len() as u64;
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
                bytes[12..16].copy_from_slice(&ARCH_X86_64.to_le_bytes());
                bytes[16..24].copy_from_slice(&length.to_le_bytes());
                bytes = signed(bytes);
            }
            let total: usize = parse(&bytes).map_or(0, |records| records.iter().map(|r| r.bytes.len()).sum());
            prop_assert!(total <= bytes.len());
        }
    }
}
