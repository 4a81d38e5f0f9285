//! What the control socket needs of a machine: the seam between it and [`crate::machine`], so that it can be tested
//! without one.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use devices::virtio::DeviceName;
use devices::virtio::metrics::DeviceReading;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::VmConfig;
use crate::machine::VmmError;
use crate::sandbox::Missing;

/// Whether a machine's vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// They do.
    Running,
    /// They are all out of the guest, and stay there until the machine is resumed.
    Paused,
}

/// How much of the memory a snapshot holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All of it.
    #[default]
    Full,
    /// What changed since the last snapshot of this machine that was made a base, or the one that it was restored from.
    Diff,
}

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// The snapshot's directory.
    pub path: PathBuf,
    /// How much of the memory it holds.
    pub kind: SnapshotKind,
    /// Make it the one that the next of kind [`SnapshotKind::Diff`] is a change to, as each is with `track_dirty_pages`.
    pub base_of_next: bool,
}

/// What making a snapshot came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Bytes written to storage.
    pub bytes: u64,
    /// For how long the vCPUs were out of the guest because of it, in nanoseconds; 0 if the machine was paused before.
    pub pause_ns: u64,
}

/// A change to a device of a machine that is there already.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceUpdate {
    /// Key of the device's section ([`devices::virtio::DeviceKind::config_key`]).
    pub section: &'static str,
    /// Its id within the section.
    pub id: String,
    /// The members of its configuration to replace.
    pub changes: Map<String, Value>,
}

/// What a device of a machine has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceReport {
    /// Which one it is.
    #[serde(flatten)]
    pub name: DeviceName,
    /// Its numbers.
    #[serde(flatten)]
    pub reading: DeviceReading,
}

/// A machine that has been started, seen from the control socket.
///
/// All calls come on the event loop's thread, which is also the thread that devices are worked on: while a call runs, no
/// device does. A call that fails leaves the machine as it was.
pub trait Vm: Send {
    /// Whether it runs.
    fn state(&self) -> VmState;

    /// What it is made of, updates included.
    fn config(&self) -> VmConfig;

    /// What its devices have done so far, in order of their windows.
    fn devices(&self) -> Vec<DeviceReport>;

    /// What the host did not give for the sandbox of its process; `None` if it has no sandbox, or not yet.
    fn confined(&self) -> Option<Missing>;

    /// Brings all vCPUs out of the guest, and returns when they are. Nothing happens to one that is paused.
    fn pause(&mut self) -> Result<(), VmmError>;

    /// Lets all vCPUs run. Nothing happens to one that runs.
    fn resume(&mut self) -> Result<(), VmmError>;

    /// Makes a snapshot. A machine that runs is paused for it, and runs again afterwards, also when it failed.
    fn snapshot(&mut self, request: &SnapshotRequest) -> Result<SnapshotReport, VmmError>;

    /// State of the device of a section: of one that has something to tell ([`devices::virtio::DeviceKind::told`]).
    fn device_state(&self, section: &'static str) -> Result<Value, VmmError>;

    /// Replaces what is behind a device, between two of the guest's requests; with what the client has `given` of the host, if it has.
    fn update_device(&mut self, update: &DeviceUpdate, given: Vec<OwnedFd>) -> Result<(), VmmError>;

    /// Ends the machine as soon as the call has returned to the event loop.
    fn stop(&mut self);
}
