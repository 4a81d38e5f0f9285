//! The control socket of a machine: HTTP over a unix socket, with Firecracker's API where the meaning is the same, and ours
//! beside it (`docs/control-api.md`).
//!
//! | module | what it does |
//! |---|---|
//! | [`server`], [`connection`] | clients on the event loop: bounded in number, memory and patience |
//! | [`http`] | HTTP/1.1 as pure functions |
//! | [`routes`], [`bodies`], [`json`] | from method, path and body to a typed request; pure |
//! | [`controller`] | what a request does: a configuration that grows, then a machine |
//! | [`draft`] | the configuration, from requests or from a file |
//! | [`metrics`], [`prometheus`] | what is counted and timed, and where it goes |
//! | [`vm`], [`live`] | what it needs of a machine, and a machine that has it |
//!
//! A request is answered on the event loop's thread, between two events of devices.

pub mod bodies;
pub mod connection;
pub mod controller;
pub mod draft;
pub mod http;
pub mod json;
pub mod live;
pub mod metrics;
pub mod prometheus;
pub mod routes;
pub mod server;
pub mod vm;

pub use connection::{Handler, Reply};
pub use controller::{Controller, Launch};
pub use draft::Draft;
pub use server::Server;
pub use vm::{DeviceReport, DeviceUpdate, SnapshotKind, SnapshotReport, SnapshotRequest, Vm, VmState};
