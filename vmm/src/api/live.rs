//! A machine of this process behind the control socket.

use std::os::fd::OwnedFd;

use devices::worker;
use serde_json::Value;

use super::{DeviceReport, DeviceUpdate, SnapshotReport, SnapshotRequest, Vm, VmState};
use crate::config::VmConfig;
use crate::machine::{Handle, RunState, VmmError};
use crate::sandbox::{Missing, REQUESTS};

/// The machine, as long as it lives.
pub struct Live {
    handle: Handle,
    /// What it was last made of, for one that has ended.
    config: VmConfig,
}

impl Live {
    /// Steers the machine of `handle`, which was built from `config`.
    pub fn new(handle: Handle, config: VmConfig) -> Self {
        let config = handle.config().unwrap_or(config);
        Live { handle, config }
    }
}

/// Has a thread do it that may open files, which the event loop's may not.
fn by_worker<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> Result<T, VmmError> {
    worker::run(&REQUESTS, task).map_err(|source| VmmError::Io { what: "a thread for a request", source })
}

impl Vm for Live {
    fn state(&self) -> VmState {
        match self.handle.state() {
            RunState::Running => VmState::Running,
            RunState::Paused | RunState::Ended => VmState::Paused,
        }
    }

    fn config(&self) -> VmConfig {
        self.handle.config().unwrap_or_else(|_| self.config.clone())
    }

    fn devices(&self) -> Vec<DeviceReport> {
        self.handle.devices()
    }

    fn confined(&self) -> Option<Missing> {
        self.handle.confined()
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        self.handle.pause();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.handle.resume();
        Ok(())
    }

    fn snapshot(&mut self, request: &SnapshotRequest) -> Result<SnapshotReport, VmmError> {
        let (handle, request) = (self.handle.clone(), request.clone());
        Ok(by_worker(move || handle.snapshot(&request))??)
    }

    fn device_state(&self, section: &'static str) -> Result<Value, VmmError> {
        self.handle.device_state(section)
    }

    fn update_device(&mut self, update: &DeviceUpdate, given: Vec<OwnedFd>) -> Result<(), VmmError> {
        let (handle, update) = (self.handle.clone(), update.clone());
        by_worker(move || handle.update_device(&update, given))?
    }

    fn stop(&mut self) {
        self.handle.stop();
    }
}
