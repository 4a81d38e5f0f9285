//! A device's host side changed while its machine is there.

use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use devices::virtio::limit::Limits;
use devices::virtio::{DEVICES, DeviceError, DeviceKind, VirtioDevice, place};
use serde_json::Value;

use super::error::{VmmError, io_error};
use super::handle::Handle;
use crate::api::DeviceUpdate;
use crate::snapshot::SnapshotError;

impl Handle {
    /// State of the device of a section that is no list, as it is now, while it works.
    pub fn device_state(&self, section: &'static str) -> Result<Value, VmmError> {
        let parts = self.parts()?;
        let missing = || VmmError::Device(DeviceError::Invalid { section, reason: "there is no such device".into() });
        let index = place(&parts.config().devices, section, "").ok_or_else(missing)?;
        let transport = parts.transports.get(index).ok_or_else(missing)?;
        let transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(transport.device_state().map_err(SnapshotError::Device)?)
    }

    /// Gives a device another host side: builds it anew with the changes, and puts it in the place of the old one between
    /// two of the guest's requests; or only tells it, if it can go on with what changes. A snapshot that is taken later knows the new one. After an error nothing has changed.
    /// What the client has `given` of what the device is made of is not opened here.
    pub fn update_device(&self, update: &DeviceUpdate, given: Vec<OwnedFd>) -> Result<(), VmmError> {
        let parts = self.parts()?;
        // Held to the end, so that a snapshot sees a device and its configuration that belong together.
        let _threads = self.threads();
        let invalid = |reason: String| VmmError::Device(DeviceError::Invalid { section: update.section, reason });
        let name = if update.id.is_empty() { String::new() } else { format!(" '{}'", update.id) };
        let missing = || invalid(format!("there is no device{name}"));
        let mut config = parts.config();
        let kind = DEVICES.iter().find(|kind| kind.config_key == update.section).ok_or_else(missing)?;
        let index = place(&config.devices, update.section, &update.id).ok_or_else(missing)?;
        let section = config.devices.get_mut(update.section).ok_or_else(missing)?;
        let device = match (section, kind.id_key) {
            (Value::Array(list), Some(key)) => {
                list.iter_mut().find(|device| device.get(key).and_then(Value::as_str) == Some(&update.id))
            }
            (section, _) => Some(section),
        };
        let device = device.and_then(Value::as_object_mut).ok_or_else(missing)?;
        let old: Value = device.clone().into();
        let before = Limits::of(kind, &old)?;
        let limits_something = |key: &str| kind.limiters.iter().any(|(limiter, _)| *limiter == key);
        for (key, value) in &update.changes {
            match (device.get_mut(key), value) {
                (_, Value::Null) => drop(device.remove(key)),
                // What a limiter is not told stays.
                (Some(Value::Object(old)), Value::Object(new)) if limits_something(key) => old.extend(new.clone()),
                _ => drop(device.insert(key.clone(), value.clone())),
            }
        }
        let alone: Value = device.clone().into();
        let limits = Limits::of(kind, &alone)?;
        let whole = |device: Value| if kind.id_key.is_some() { Value::Array(vec![device]) } else { device };
        let section = whole(alone.clone());
        (kind.check)(&section)?;
        if (kind.works)(&section) != (kind.works)(&whole(old)) {
            // The process has been confined to what its devices had to do.
            return Err(invalid(format!(
                "the device{name} has nothing behind it as long as it lives, or always something"
            )));
        }
        // A device goes on if nothing changes but its limits, and what it takes itself.
        let stays = |key: &String| limits_something(key) || kind.adjustable.contains(&key.as_str());
        let goes_on = !update.changes.is_empty() && update.changes.keys().all(stays);
        let built = if goes_on { None } else { Some(self.build_anew(kind, &section, given)?) };
        let transport = parts.transports.get(index).ok_or_else(|| VmmError::from(SnapshotError::Ended))?;
        let mut transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
        transport.set_limits(&limits).map_err(io_error("timer"))?;
        let changed = match built {
            Some(built) => transport.replace(built).map_err(|e| invalid(format!("the device{name}: {}", e.reason))),
            None => transport.adjust(&alone).map_err(VmmError::from),
        };
        if changed.is_err() {
            // There is a timer, if it needs one: this cannot fail.
            let _ = transport.set_limits(&before);
            return changed;
        }
        parts.set_config(config);
        Ok(())
    }

    /// The one device of a section.
    fn build_anew(
        &self,
        kind: &DeviceKind,
        section: &Value,
        given: Vec<OwnedFd>,
    ) -> Result<Box<dyn VirtioDevice>, DeviceError> {
        let invalid = |reason: String| DeviceError::Invalid { section: kind.config_key, reason };
        let (came, confined) = (given.len(), self.parts().is_ok_and(|parts| parts.confined.get().is_some()));
        let built = match &kind.given {
            Some(how) if came > 0 || confined && !how.opens => match (how.count)(section)? {
                wanted if wanted == came => (how.build)(section, given),
                wanted => {
                    let why = if confined { "the microVM's process opens none itself, and " } else { "" };
                    Err(invalid(format!("{why}{came} of {wanted} descriptors came with the request (SCM_RIGHTS)")))
                }
            },
            None if came > 0 => Err(invalid("it is not made of descriptors".into())),
            _ => (kind.build)(section),
        };
        built?.pop().ok_or_else(|| invalid("there is no such device".into()))
    }
}
