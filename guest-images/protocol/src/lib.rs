//! What the host (the CLI) and PID 1 of a container's guest say to each other.
//!
//! - [`message`]: the messages of the control connection and the plain data in them.
//! - [`process`]: what a process is to be, and how it ended.
//! - [`settings`]: what it is to have besides, and what not.
//! - [`account`]: which user and groups a process gets, from an image's files.
//! - [`files`]: files on their way in or out of a container, and what else init does for the host.
//! - [`audit`]: what a process says that finds out what it can reach.
//! - [`contained`]: where init finds things in a container of the host's own kernel.
//! - [`frame`]: how a message becomes bytes and back: `u32` little-endian length, then postcard.
//! - [`stream`]: the eight bytes that open a stream connection; after them the stream is raw bytes.
//!
//! The guest connects to the host (vsock CID [`HOST_CID`]): once to [`CONTROL_PORT`], and once to [`STREAM_PORT`] for
//! each standard stream of a process. Both sides say `Hello` first and go on only if the versions agree; `Hello` keeps
//! its encoding from version 2 on.
//!
//! Neither side trusts the other: lengths are bounded before anything is kept, a frame must be used up by its message,
//! and nothing here panics on any input.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod account;
pub mod audit;
pub mod contained;
pub mod files;
pub mod frame;
pub mod message;
pub mod process;
pub mod settings;
pub mod stream;

pub use account::Account;
pub use frame::{FrameBuffer, FrameError, encode};
pub use message::*;
pub use process::*;
pub use settings::*;
pub use stream::{StreamHeader, StreamKind};

/// Version of everything in this crate; both sides must have the same.
pub const VERSION: u32 = 19;
/// Tag of the virtio-fs device whose file system holds the host's directories ([`Volume`]).
pub const VOLUMES: &str = "bulkhead";
/// The host's vsock context id.
pub const HOST_CID: u32 = 2;
/// Port of the one control connection.
pub const CONTROL_PORT: u32 = 1024;
/// Port of the stream connections.
pub const STREAM_PORT: u32 = 1025;
/// Most containers that share a guest.
pub const MAX_PLACES: u8 = 7;
/// The port that stands for `port` to the container at `place` of a guest that several share.
#[must_use]
pub const fn port_at(place: u8, port: u32) -> u32 {
    port + (STREAM_PORT - CONTROL_PORT + 1) * (place as u32 + 1)
}
/// Largest body of a frame from host to guest, in bytes: arguments and environment travel in one.
pub const MAX_HOST_FRAME: usize = 1 << 20;
/// Largest body of a frame from guest to host, in bytes: it carries at most one line of text.
pub const MAX_GUEST_FRAME: usize = 16 << 10;
