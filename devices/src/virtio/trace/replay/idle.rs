//! A device that does nothing.

use serde_json::Value;

use super::Kept;
use crate::virtio::{DeviceFault, DeviceInfo, Io, StateError, VirtioDevice};

/// A device that does nothing: it gives each chain back as it comes. What it takes is what queues and transport take.
pub struct Idle {
    info: DeviceInfo,
    keeps: Vec<Kept>,
}

impl Idle {
    /// One with the queues of `device`, that keeps the chains of some.
    pub fn like(device: &dyn VirtioDevice, keeps: &[Kept]) -> Self {
        Idle { info: device.info(), keeps: keeps.to_vec() }
    }
}

impl VirtioDevice for Idle {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        if self.keeps.iter().any(|kept| usize::from(kept.queue) == index) {
            return Ok(());
        }
        while let Some(chain) = io.queues[index].pop(io.mem)? {
            io.queues[index].push(io.mem, chain.head(), 0)?;
        }
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        Ok(Value::Null)
    }

    fn load(&mut self, _: &Value) -> Result<(), StateError> {
        Ok(())
    }
}
