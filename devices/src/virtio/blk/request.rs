//! What a block request asks for: a pure function of its header, its lengths and the disk's.

use super::super::chain::Chain;
use super::super::limit::Direction;
use super::flight::MOST_ZEROS;
use super::{ID_LEN, SECTOR};

/// Most bytes a request may move: far above what drivers ask for, and low enough that one request does not hold the
/// event loop.
pub const MOST: u32 = 64 << 20;
/// Most sectors that a request may discard: a file system has work with each.
pub const MOST_DISCARDED: u32 = ((4 << 30) / SECTOR) as u32;
/// Most sectors that a request may have made zero.
pub const MOST_ZEROED: u32 = (MOST_ZEROS / SECTOR) as u32;

/// Status byte of a request (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What the driver says it wants: the first bytes of a request's readable part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type, a reserved word, and the sector.
    header: [u8; Header::LEN],
    /// Of a discard or a write of zeros (5.2.6): sector, number of sectors, flags.
    segment: [u8; Header::LEN],
}

impl Header {
    pub const LEN: usize = 16;

    /// Copies it out of guest memory: zeros where the chain is too short, which [`Request::parse`] refuses.
    pub fn read(chain: &Chain) -> Self {
        let (mut header, mut segment) = ([0; Self::LEN], [0; Self::LEN]);
        let (first, rest) = chain.readable().split_at(Self::LEN);
        first.read(&mut header);
        if matches!(word(&header, 0), DISCARD | WRITE_ZEROES) {
            rest.read(&mut segment);
        }
        Header { header, segment }
    }

    fn kind(&self) -> u32 {
        word(&self.header, 0)
    }

    fn sector(&self) -> u64 {
        u64::from(word(&self.header, 8)) | u64::from(word(&self.header, 12)) << 32
    }
}

fn word(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    let byte = |i: usize| u32::from(bytes[at + i]) << (8 * i);
    byte(0) | byte(1) | byte(2) | byte(3)
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// File to guest.
    Read {
        /// Bytes from the start of the disk.
        offset: u64,
    },
    /// Guest to file.
    Write {
        /// Bytes from the start of the disk.
        offset: u64,
    },
    /// All finished writes to stable storage.
    Flush,
    /// The identity string to the guest.
    GetId,
    /// A run of bytes is not needed any more.
    Discard(Segment),
    /// A run of bytes becomes zeros.
    WriteZeroes {
        /// Which.
        segment: Segment,
        /// The zeros need no place in the file.
        unmap: bool,
    },
}

/// A run of bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A request that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub operation: Operation,
    /// Bytes of data that are moved.
    pub length: u32,
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// Flag of a segment.
const UNMAP: u32 = 1;

impl Request {
    /// Which way its data goes, and how much of it there is: zeros that are written count as well.
    pub fn traffic(&self) -> (Direction, u64) {
        match self.operation {
            Operation::Read { .. } | Operation::GetId => (Direction::ToGuest, self.length.into()),
            Operation::Write { .. } | Operation::Flush | Operation::Discard(_) => {
                (Direction::FromGuest, self.length.into())
            }
            Operation::WriteZeroes { segment, .. } => (Direction::FromGuest, segment.len),
        }
    }

    /// `readable` and `writable` are the lengths of the chain's parts, the latter without the status byte.
    pub fn parse(header: Header, readable: u32, writable: u32, sectors: u64, read_only: bool) -> Result<Self, Outcome> {
        let out = readable.checked_sub(Header::LEN as u32).ok_or(Outcome::IoError)?;
        let offset = |length: u32| {
            let whole = u64::from(length) % SECTOR == 0 && length <= MOST;
            let run = run(header.sector(), u64::from(length) / SECTOR, sectors).filter(|_| whole);
            run.map(|run| run.offset).ok_or(Outcome::IoError)
        };
        let (operation, length) = match header.kind() {
            IN => (Operation::Read { offset: offset(writable)? }, writable),
            OUT | DISCARD | WRITE_ZEROES if read_only => return Err(Outcome::IoError),
            OUT => (Operation::Write { offset: offset(out)? }, out),
            FLUSH => (Operation::Flush, 0),
            GET_ID if (writable as usize) < ID_LEN => return Err(Outcome::IoError),
            GET_ID => (Operation::GetId, ID_LEN as u32),
            // More segments than the device takes.
            DISCARD | WRITE_ZEROES if out != Header::LEN as u32 => return Err(Outcome::IoError),
            kind @ (DISCARD | WRITE_ZEROES) => (header.parse_segment(kind, sectors)?, 0),
            _ => return Err(Outcome::Unsupported),
        };
        Ok(Request { operation, length })
    }
}

/// A run of `count` sectors, if the disk has them.
fn run(sector: u64, count: u64, sectors: u64) -> Option<Segment> {
    sector.checked_add(count).filter(|end| *end <= sectors)?;
    Some(Segment { offset: sector * SECTOR, len: count * SECTOR })
}

impl Header {
    fn parse_segment(&self, kind: u32, sectors: u64) -> Result<Operation, Outcome> {
        let sector = u64::from(word(&self.segment, 0)) | u64::from(word(&self.segment, 4)) << 32;
        let (count, flags) = (word(&self.segment, 8), word(&self.segment, 12));
        // Unknown flags, and one that means nothing in a discard (5.2.6.2).
        if flags & !UNMAP != 0 || kind == DISCARD && flags != 0 {
            return Err(Outcome::Unsupported);
        }
        let most = if kind == DISCARD { MOST_DISCARDED } else { MOST_ZEROED };
        let segment = run(sector, count.into(), sectors).filter(|_| count <= most).ok_or(Outcome::IoError)?;
        Ok(match kind {
            DISCARD => Operation::Discard(segment),
            _ => Operation::WriteZeroes { segment, unmap: flags & UNMAP != 0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: u32, sector: u64, readable: u32, writable: u32) -> Result<Request, Outcome> {
        let mut header = [0xff; Header::LEN];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        Request::parse(Header { header, segment: [0; Header::LEN] }, readable, writable, 100, false)
    }

    #[test]
    fn sound_requests_are_what_they_say() {
        let read = Request { operation: Operation::Read { offset: 99 * 512 }, length: 512 };
        assert_eq!(parse(0, 99, 16, 512), Ok(read));
        let write = Request { operation: Operation::Write { offset: 0 }, length: 51_200 };
        assert_eq!(parse(1, 0, 16 + 51_200, 0), Ok(write));
        assert_eq!(parse(4, u64::MAX, 16, 0).map(|r| r.operation), Ok(Operation::Flush));
        assert_eq!(parse(8, 0, 16, 20).map(|r| r.length), Ok(20));
        assert_eq!(parse(0, 100, 16, 0).map(|r| r.length), Ok(0));
    }

    #[test]
    fn ranges_off_the_disk_are_io_errors() {
        for (sector, len) in [(100, 512), (99, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (1 << 55, 512), (101, 0)]
        {
            assert_eq!(parse(0, sector, 16, len), Err(Outcome::IoError), "{sector}");
            assert_eq!(parse(1, sector, 16 + len, 0), Err(Outcome::IoError), "{sector}");
        }
    }

    #[test]
    fn broken_lengths_and_types_are_refused() {
        for len in [1, 511, 513] {
            assert_eq!(parse(0, 0, 16, len), Err(Outcome::IoError));
            assert_eq!(parse(1, 0, 16 + len, 0), Err(Outcome::IoError));
        }
        assert_eq!(parse(0, 0, 15, 512), Err(Outcome::IoError));
        assert_eq!(parse(8, 0, 16, 19), Err(Outcome::IoError));
        for kind in [2, 3, 5, 10, 12, 14, 0x8000_0000, u32::MAX] {
            assert_eq!(parse(kind, 0, 16, 512), Err(Outcome::Unsupported), "{kind}");
        }
        let mut header = Header { header: [0; Header::LEN], segment: [0; Header::LEN] };
        assert_eq!(Request::parse(header, 16, MOST + 512, u64::MAX / SECTOR, false), Err(Outcome::IoError));
        for kind in [OUT, DISCARD, WRITE_ZEROES] {
            header.header[0] = kind as u8;
            let readable = if kind == OUT { 16 + 512 } else { 32 };
            assert!(Request::parse(header, readable, 0, 100, false).is_ok());
            assert_eq!(Request::parse(header, readable, 0, 100, true), Err(Outcome::IoError));
        }
    }

    #[test]
    fn segments_are_within_the_disk_and_the_limits() {
        let parse = |kind: u32, sector: u64, count: u32, flags: u32, readable: u32| {
            let (mut header, mut segment) = ([0; Header::LEN], [0; Header::LEN]);
            header[..4].copy_from_slice(&kind.to_le_bytes());
            segment[..8].copy_from_slice(&sector.to_le_bytes());
            segment[8..12].copy_from_slice(&count.to_le_bytes());
            segment[12..].copy_from_slice(&flags.to_le_bytes());
            Request::parse(Header { header, segment }, readable, 0, 1 << 40, false).map(|request| request.operation)
        };
        let segment = |sector: u64, count: u64| Segment { offset: sector * 512, len: count * 512 };
        assert_eq!(parse(DISCARD, 7, 9, 0, 32), Ok(Operation::Discard(segment(7, 9))));
        for unmap in [false, true] {
            let zeroes = Operation::WriteZeroes { segment: segment(1 << 33, 1), unmap };
            assert_eq!(parse(WRITE_ZEROES, 1 << 33, 1, unmap.into(), 32), Ok(zeroes));
        }
        assert_eq!(parse(DISCARD, 0, MOST_DISCARDED, 0, 32), Ok(Operation::Discard(segment(0, 8 << 20))));
        assert!(parse(WRITE_ZEROES, 0, MOST_ZEROED, 0, 32).is_ok());
        for (kind, sector, count) in [
            (DISCARD, 0, MOST_DISCARDED + 1),
            (WRITE_ZEROES, 0, MOST_ZEROED + 1),
            (DISCARD, 1 << 40, 1),
            (WRITE_ZEROES, u64::MAX, 1),
            (DISCARD, u64::MAX / 512, 8),
        ] {
            assert_eq!(parse(kind, sector, count, 0, 32), Err(Outcome::IoError), "{sector}+{count}");
        }
        for readable in [16, 31, 33, 48] {
            assert_eq!(parse(DISCARD, 0, 1, 0, readable), Err(Outcome::IoError), "{readable}");
        }
        for (kind, flags) in [(DISCARD, 1), (DISCARD, 2), (WRITE_ZEROES, 2), (WRITE_ZEROES, 0x8000_0001)] {
            assert_eq!(parse(kind, 0, 1, flags, 32), Err(Outcome::Unsupported), "{flags}");
        }
    }
}
