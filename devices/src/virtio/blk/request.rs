//! What a block request asks for: a pure function of its header, its lengths and the disk's.

use super::super::chain::Chain;
use super::{ID_LEN, SECTOR};

/// Most bytes a request may move: far above what drivers ask for, and low enough that one request does not hold the
/// event loop.
pub const MOST: u32 = 64 << 20;

/// Status byte of a request (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The first bytes of a request's readable part: type, a reserved word, and the sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header([u8; Header::LEN]);

impl Header {
    pub const LEN: usize = 16;

    /// Copies it out of guest memory: zeros where the chain is too short, which [`Request::parse`] refuses.
    pub fn read(chain: &Chain) -> Self {
        let mut bytes = [0; Self::LEN];
        chain.readable().read(&mut bytes);
        Header(bytes)
    }

    fn kind(self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }

    fn sector(self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
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
}

/// A request that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub operation: Operation,
    /// Bytes of data.
    pub length: u32,
}

impl Request {
    /// `readable` and `writable` are the lengths of the chain's parts, the latter without the status byte.
    pub fn parse(header: Header, readable: u32, writable: u32, sectors: u64, read_only: bool) -> Result<Self, Outcome> {
        let out = readable.checked_sub(Header::LEN as u32).ok_or(Outcome::IoError)?;
        let offset = |length: u32| {
            let count = u64::from(length) / SECTOR;
            let whole = u64::from(length) % SECTOR == 0 && length <= MOST;
            let end = header.sector().checked_add(count).filter(|end| *end <= sectors && whole);
            end.map(|_| header.sector() * SECTOR).ok_or(Outcome::IoError)
        };
        let (operation, length) = match header.kind() {
            0 => (Operation::Read { offset: offset(writable)? }, writable),
            1 if read_only => return Err(Outcome::IoError),
            1 => (Operation::Write { offset: offset(out)? }, out),
            4 => (Operation::Flush, 0),
            8 if (writable as usize) < ID_LEN => return Err(Outcome::IoError),
            8 => (Operation::GetId, ID_LEN as u32),
            _ => return Err(Outcome::Unsupported),
        };
        Ok(Request { operation, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: u32, sector: u64, readable: u32, writable: u32) -> Result<Request, Outcome> {
        let mut bytes = [0xff; Header::LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        Request::parse(Header(bytes), readable, writable, 100, false)
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
        for kind in [2, 3, 5, 11, 13, 0x8000_0000, u32::MAX] {
            assert_eq!(parse(kind, 0, 16, 512), Err(Outcome::Unsupported), "{kind}");
        }
        let header = Header([0; Header::LEN]);
        assert_eq!(Request::parse(header, 16, MOST + 512, u64::MAX / SECTOR, false), Err(Outcome::IoError));
        let write = Header([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Request::parse(write, 16 + 512, 0, 100, true), Err(Outcome::IoError));
    }
}
