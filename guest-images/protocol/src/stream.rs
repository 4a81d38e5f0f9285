//! The header of a stream connection: which process, which stream. Raw bytes follow; end of file is a shutdown.

use crate::ProcessId;

/// A standard stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Host to guest.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
    /// Both ways, instead of the three.
    Terminal,
}

/// Names a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHeader {
    /// Whose stream.
    pub process: ProcessId,
    /// Which one.
    pub kind: StreamKind,
}

impl StreamHeader {
    /// Length of a header in bytes.
    pub const LEN: usize = 8;

    /// Process id as `u32` little-endian, stream 0…3, three zeros.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let kind = match self.kind {
            StreamKind::Stdin => 0,
            StreamKind::Stdout => 1,
            StreamKind::Stderr => 2,
            StreamKind::Terminal => 3,
        };
        let [a, b, c, d] = self.process.to_le_bytes();
        [a, b, c, d, kind, 0, 0, 0]
    }

    /// The header these bytes are, if they are one.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Option<Self> {
        let [a, b, c, d, kind, 0, 0, 0] = bytes else {
            return None;
        };
        let kind = match kind {
            0 => StreamKind::Stdin,
            1 => StreamKind::Stdout,
            2 => StreamKind::Stderr,
            3 => StreamKind::Terminal,
            _ => return None,
        };
        Some(Self { process: u32::from_le_bytes([a, b, c, d]), kind })
    }
}
