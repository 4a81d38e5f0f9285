//! A machine of this process behind the control socket.

use serde_json::Value;

use super::{DeviceReport, DeviceUpdate, SnapshotReport, SnapshotRequest, Vm, VmState};
use crate::config::VmConfig;
use crate::machine::{Handle, RunState, VmmError};

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

    fn pause(&mut self) -> Result<(), VmmError> {
        self.handle.pause();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.handle.resume();
        Ok(())
    }

    fn snapshot(&mut self, request: &SnapshotRequest) -> Result<SnapshotReport, VmmError> {
        Ok(self.handle.snapshot(request)?)
    }

    fn device_state(&self, section: &'static str) -> Result<Value, VmmError> {
        self.handle.device_state(section)
    }

    fn update_device(&mut self, update: &DeviceUpdate) -> Result<(), VmmError> {
        self.handle.update_device(update)
    }

    fn stop(&mut self) {
        self.handle.stop();
    }
}
