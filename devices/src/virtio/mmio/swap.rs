//! Another device behind the same window, while the driver goes on: how a disk gets another file.

use super::*;
use crate::virtio::DeviceError;

impl MmioTransport {
    /// Has the device go on as its configuration says now, between two of the driver's requests.
    pub fn adjust(&mut self, config: &serde_json::Value) -> Result<(), DeviceError> {
        self.device.adjust(config)
    }

    /// Puts `device` in the place of the one there is, between two of the driver's requests: those in flight come to
    /// their end first. It must be of the same kind and offer what the driver was offered. What the driver has written to
    /// the configuration space stays; it is told that the configuration has changed. After an error nothing has.
    pub fn replace(&mut self, mut device: Box<dyn VirtioDevice>) -> Result<(), StateError> {
        let info = device.info();
        if info != self.info {
            let reason =
                "it cannot be replaced by another kind of device, or one that offers the driver something else";
            return Err(StateError { device: self.info.name, reason: reason.into() });
        }
        if self.status.was_activated() {
            self.with_device(|device, io| device.quiesce(io, true));
        }
        if self.status.may_write_config() {
            // A device takes what is the driver's to write, and leaves the rest.
            device.write_config(0, self.device.config());
        }
        self.fds = device.fds();
        self.fds_until_reset = device.fds_until_reset();
        // Its descriptors stay open until the loop has stopped watching them.
        self.retired.push(std::mem::replace(&mut self.device, device));
        if self.status.is_live() {
            self.activate();
            self.config_generation = self.config_generation.wrapping_add(1);
            self.interrupt(CONFIG_CHANGE);
        }
        signal(&self.control);
        Ok(())
    }
}
