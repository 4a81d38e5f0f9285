//! The control socket of a machine: HTTP over a unix socket, with Firecracker's API where the meaning is the same.
//!
//! | module | what it does |
//! |---|---|
//! | [`server`], [`connection`] | clients on the event loop: bounded in number, memory and patience |
//! | [`http`] | HTTP/1.1 as pure functions |
//! | [`vm`] | what it needs of a machine |
//!
//! A request is answered on the event loop's thread, between two events of devices.

pub mod connection;
pub mod http;
pub mod server;
pub mod vm;

pub use connection::{Handler, Reply};
pub use server::Server;
pub use vm::{DeviceUpdate, SnapshotKind, SnapshotReport, SnapshotRequest, Vm, VmState};
