//! The control queue (virtio 1.3, 5.1.6.5): the number of pairs in use, and the MAC address.
//!
//! What of a packet is received is not the driver's choice here (VIRTIO_NET_F_CTRL_RX): all that comes is for it.

use crate::virtio::chain::Chain;

const CLASS_MAC: u8 = 1;
const MAC_ADDR_SET: u8 = 1;
const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
/// Bytes of the longest command that there is.
const LONGEST: usize = 2 + 6;

/// VIRTIO_NET_OK.
pub(super) const OK: u8 = 0;
/// VIRTIO_NET_ERR.
pub(super) const ERR: u8 = 1;

/// What the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// The interface has another address.
    Mac([u8; 6]),
    /// So many pairs of queues are in use.
    Pairs(u16),
}

impl Command {
    /// The command in a chain; none if it is none of these.
    pub fn of(chain: &Chain) -> Option<Self> {
        let mut bytes = [0; LONGEST + 1];
        let len = chain.readable().read(&mut bytes);
        match bytes[..len] {
            [CLASS_MAC, MAC_ADDR_SET, a, b, c, d, e, f] => Some(Command::Mac([a, b, c, d, e, f])),
            [CLASS_MQ, MQ_VQ_PAIRS_SET, low, high] => Some(Command::Pairs(u16::from_le_bytes([low, high]))),
            _ => None,
        }
    }
}
