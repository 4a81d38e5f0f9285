//! What connects the microVMs of one network: a process that takes Ethernet frames from each of them and gives them to those that
//! they are for, that knows who is who, and that tells by DNS. It needs no privileges, no network and no files: all that it has are unix
//! sockets that others have connected.
//!
//! ```text
//!  microVM ─ port ──┐                         ┌── port ─ microVM
//!                   ├── switch: ARP, DNS ─────┤
//!  passt ─ uplink ──┘      ▲  ▲               └── uplink ─ passt
//!                     lease│  │lease
//!                    container's owners
//! ```
//!
//! - [`protocol`]: what is said before frames are; [`client`]: by whom;
//! - [`frame`]: what a frame of a guest's is, and whether it is in its own name; what the switch itself sends;
//! - [`handshake`]: what passt leaves out of one, for devices that have it at their other end as well;
//! - [`dns`]: names of members;
//! - [`link`]: a socket with frames, and what waits for it;
//! - [`members`]: who is there; [`server`]: the process's loop.
//!
//! Nothing is learnt from what guests send: each port has one MAC and one IPv4 address from the moment that somebody took a lease, and
//! what comes in by it in another name is counted and goes nowhere. A guest hears no other's broadcasts of ARP, since the switch answers
//! for all of them. What waits for one that does not read is bounded, and lost beyond that: nobody waits for anybody else.
#![forbid(unsafe_code)]

pub mod client;
pub mod dns;
pub mod frame;
pub mod handshake;
mod link;
mod members;
pub mod protocol;
mod server;

pub use server::{CALLS, serve};
