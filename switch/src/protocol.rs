//! What is said over a switch's socket before there are frames: one message each way, a document of JSON behind its length (32 bits,
//! big-endian), as the frames are that follow.
//!
//! - `join`: the connection is a *lease* from the answer on. The address is its container's as long as it is open; nothing else is said.
//! - `attach`: the connection is the *port* of the lease with this MAC address from the answer on, which is an empty message. With it
//!   comes the socket of the *uplink*, if there is to be one, as a descriptor (SCM_RIGHTS, unix(7)). A lease has one port: a new
//!   one takes the old one's place.
//! - `list`: is answered, and closed.
//!
//! Both ends belong to the same user, who alone reaches the socket.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Raised when the two ends would not understand each other.
pub const VERSION: u32 = 1;
/// Bytes of a message's length, and of a frame's.
pub const PREFIX: usize = 4;
/// Longest request, in bytes.
pub const LONGEST_REQUEST: usize = 4 << 10;
/// Longest answer.
pub const LONGEST_ANSWER: usize = 1 << 20;
/// Most members of a network: each has three descriptors of the switch's, which has 1024.
pub const MOST_MEMBERS: usize = 300;

/// The network that a switch is for: its command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What it is called: `CONTAINER.NAME` is another name of each member.
    pub name: String,
    /// The switch's own address in it, where it answers DNS.
    pub gateway: Ipv4Addr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Nothing leads out of it.
    pub internal: bool,
}

impl Network {
    /// The bits that are the same for all of its addresses.
    pub fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    /// Whether an address is one of it.
    pub fn has(&self, ip: Ipv4Addr) -> bool {
        (u32::from(ip) ^ u32::from(self.gateway)) & self.mask() == 0
    }

    /// The MAC address of the switch itself: of a locally administered range, as docker makes them.
    pub fn gateway_mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.gateway.octets();
        [0x02, 0x42, a, b, c, d]
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A lease.
    Join(Join),
    /// A port for the lease with this MAC address.
    Attach {
        /// [`VERSION`].
        version: u32,
        /// Whose.
        mac: [u8; 6],
    },
    /// Who is there.
    List,
}

/// Somebody who wants to be a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// [`VERSION`].
    pub version: u32,
    /// The container's, whole.
    pub id: String,
    /// What it answers to: its name, the beginning of its id, others.
    pub names: Vec<String>,
    /// What its guest sends from.
    pub mac: [u8; 6],
    /// Its address; a free one if it does not say.
    pub ip: Option<Ipv4Addr>,
}

/// The answer to [`Request::Join`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Joined {
    /// The lease's address.
    Address(Ipv4Addr),
    /// There is no lease, and why.
    Refused(String),
}

/// A member, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The container's.
    pub id: String,
    /// What it answers to.
    pub names: Vec<String>,
    /// What its guest sends from.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its microVM is there.
    pub attached: bool,
    /// Frames that it has sent.
    pub sent: u64,
    /// Those that were not in its own name.
    pub denied: u64,
    /// Frames for it that it did not take in time.
    pub lost: u64,
}

/// The answer to [`Request::List`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Who is there.
    pub members: Vec<Member>,
    /// What the host did not give of the switch's sandbox, one line for each.
    pub missing: Vec<String>,
}
