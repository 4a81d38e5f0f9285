//! Saved state of a transport with its queues and device: plain data, as untrusted as the network.

use serde::{Deserialize, Serialize};

use super::*;

/// Version of [`TransportState`].
const STATE_VERSION: u32 = 1;

/// A transport's state. Taken between events, with the device quiesced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    version: u32,
    device_id: u32,
    status: u32,
    features_sel: [u32; 2],
    driver_features: u64,
    foreign_features: bool,
    queue_sel: u32,
    queues: Vec<SavedQueue>,
    interrupt_status: u32,
    config_generation: u32,
    device: serde_json::Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    setup: QueueSetup,
    /// Positions in the available and the used ring, if ready.
    ready: Option<(u16, u16)>,
}

impl MmioTransport {
    /// Brings requests in flight to their end and returns the state. The vCPUs must be paused. Fails if the device has
    /// something that cannot be saved, and nothing has changed then.
    pub fn save(&mut self) -> Result<TransportState, StateError> {
        if self.status.was_activated() {
            self.with_device(|device, io| device.quiesce(io, false));
        }
        let queue = |(setup, queue): (&QueueSetup, &VirtQueue)| SavedQueue {
            setup: *setup,
            ready: queue.is_ready().then(|| queue.position()),
        };
        Ok(TransportState {
            version: STATE_VERSION,
            device_id: self.info.id,
            status: self.status.bits(),
            features_sel: [self.device_features_sel, self.driver_features_sel],
            driver_features: self.driver_features,
            foreign_features: self.foreign_features,
            queue_sel: self.queue_sel,
            queues: self.setups.iter().zip(&self.queues).map(queue).collect(),
            interrupt_status: self.interrupt_status,
            config_generation: self.config_generation,
            device: self.device.save()?,
        })
    }

    /// State of the device alone, while it works: for one that has something to tell ([`DeviceKind::told`]).
    ///
    /// [`DeviceKind::told`]: crate::virtio::DeviceKind::told
    pub fn device_state(&self) -> Result<serde_json::Value, StateError> {
        self.device.save()
    }

    /// Takes over a saved state, into a transport fresh from [`Self::new`], before or after it is on the event loop.
    /// After an error the transport is as fresh as before.
    pub fn load(&mut self, state: &TransportState) -> Result<(), StateError> {
        let result = self.try_load(state);
        if result.is_err() {
            self.forget_driver();
        }
        signal(&self.control);
        result
    }

    fn try_load(&mut self, state: &TransportState) -> Result<(), StateError> {
        let device = self.info.name;
        let wrong = |reason: String| StateError { device, reason };
        if state.version != STATE_VERSION {
            return Err(wrong(format!("version {} is not {STATE_VERSION}", state.version)));
        }
        if state.device_id != self.info.id {
            return Err(wrong("it is another device's".into()));
        }
        let (saved, here) = (state.queues.len(), self.queues.len());
        if saved != here {
            let why = "it is of another version of this program, or of a device with another configuration";
            return Err(wrong(format!("it has {saved} queues, and here there are {here}: {why}")));
        }
        let status =
            Status::restore(state.status).ok_or_else(|| wrong(format!("status {:#x} is impossible", state.status)))?;
        let negotiated = status.bits() & status::FEATURES_OK != 0;
        if negotiated && state.driver_features & !self.offered() != 0 {
            return Err(wrong("it has features that this host does not offer".into()));
        }
        self.device_features_sel = state.features_sel[0];
        self.driver_features_sel = state.features_sel[1];
        self.driver_features = state.driver_features;
        self.foreign_features = state.foreign_features;
        self.queue_sel = state.queue_sel;
        self.interrupt_status = state.interrupt_status & (USED_BUFFER | CONFIG_CHANGE);
        self.config_generation = state.config_generation;
        let features = self.ring_features();
        for (saved, (setup, queue)) in state.queues.iter().zip(self.setups.iter_mut().zip(&mut self.queues)) {
            *setup = saved.setup;
            if let Some(position) = saved.ready {
                if !negotiated {
                    return Err(wrong("a queue is ready before features are".into()));
                }
                queue.start(&self.mem, setup, features, position).map_err(|e| wrong(e.to_string()))?;
            }
        }
        self.device.load(&state.device)?;
        self.status = status;
        if status.is_live() {
            self.activate();
            // An edge may have been lost between the two machines.
            if self.interrupt_status != 0 {
                self.interrupt(0);
            }
        }
        Ok(())
    }
}
