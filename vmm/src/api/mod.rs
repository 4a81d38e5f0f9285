//! The control socket of a machine: HTTP over a unix socket, with Firecracker's API where the meaning is the same.
//!
//! | module | what it does |
//! |---|---|
//! | [`vm`] | what it needs of a machine |

pub mod vm;

pub use vm::{DeviceUpdate, SnapshotKind, SnapshotReport, SnapshotRequest, Vm, VmState};
