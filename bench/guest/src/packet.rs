//! Packets of a vsock (virtio 1.3, 5.10.6).

/// Its device id, and its queues.
pub(crate) const VSOCK: u32 = 19;
pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
pub(crate) const EVENT: usize = 2;

/// Bytes of a header.
pub(crate) const HEADER: usize = 44;
pub(crate) const REQUEST: u16 = 1;
pub(crate) const RESPONSE: u16 = 2;
pub(crate) const RESET: u16 = 3;
pub(crate) const DATA: u16 = 5;
pub(crate) const CREDIT_UPDATE: u16 = 6;
pub(crate) const CREDIT_REQUEST: u16 = 7;

const HOST: u64 = 2;
const STREAM: u16 = 1;

/// What differs between the headers that are sent.
pub(crate) struct Header {
    /// The guest's context id.
    pub cid: u64,
    /// This side's port, and the host's.
    pub port: u32,
    pub peer: u32,
    /// Bytes of data behind it.
    pub len: u32,
    pub op: u16,
    /// Bytes that the host may send ahead, and that were taken so far.
    pub credit: u32,
    pub taken: u32,
}

impl Header {
    /// As it is in memory.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&HOST.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.peer.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&STREAM.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.credit.to_le_bytes());
        bytes[40..].copy_from_slice(&self.taken.to_le_bytes());
        bytes
    }
}
