//! The address bus: which device answers at which address.
//!
//! Used twice by a machine, for port I/O and for memory-mapped I/O. It does not know about widths or alignment beyond
//! the length of an access: devices judge those. An address where nobody answers reads as all ones and swallows
//! writes, as on a real bus.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Something with registers on a [`Bus`].
pub trait BusDevice: Send {
    /// Fills `data` from the registers at `offset` bytes from `base`, the start of the device's range.
    fn read(&mut self, base: u64, offset: u64, data: &mut [u8]);
    /// Takes `data` into the registers at `offset` bytes from `base`, the start of the device's range.
    fn write(&mut self, base: u64, offset: u64, data: &[u8]);
    /// Whether such a write, as the device is now, has it do something on the host, and not only set something up. Threads that run
    /// guests leave it to another then ([`Bus::write_or_leave`]).
    fn is_work(&self, _offset: u64, _data: &[u8]) -> bool {
        false
    }
}

/// What has become of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// A device has taken it.
    Taken,
    /// Nothing: it is work ([`BusDevice::is_work`]), for [`Bus::write`] on another thread.
    Left,
    /// No device answers there.
    Lost,
}

/// A range that a bus cannot take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Another device answers within the range.
    #[error("bus range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// Start of the range asked for.
        base: u64,
        /// Its length.
        len: u64,
        /// Start of the device that is there already.
        other: u64,
    },
    /// The range is empty, or goes past the last address.
    #[error("bus range {base:#x}+{len:#x} is empty or wraps")]
    Range {
        /// Start of the range asked for.
        base: u64,
        /// Its length.
        len: u64,
    },
}

struct Entry {
    base: u64,
    /// Last address of the range: so that a range may end at the last address there is.
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Devices by address. Lock order: the bus's own lock (held only for the look-up), then the device's.
#[derive(Default)]
pub struct Bus {
    /// Sorted by `base`; ranges do not overlap.
    entries: RwLock<Vec<Entry>>,
}

impl Bus {
    /// Lets `device` answer for `len` addresses from `base`.
    pub fn insert(&self, base: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
        let range = BusError::Range { base, len };
        let Some(last) = len.checked_sub(1).and_then(|rest| base.checked_add(rest)) else {
            return Err(range);
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let at = entries.partition_point(|entry| entry.last < base);
        if let Some(other) = entries.get(at).filter(|entry| entry.base <= last) {
            return Err(BusError::Overlap { base, len, other: other.base });
        }
        entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// The device that answers for all of `len` bytes at `address`, and its base.
    fn find(&self, address: u64, len: usize) -> Option<(u64, Arc<Mutex<dyn BusDevice>>)> {
        let end = address.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(entries.partition_point(|entry| entry.last < address))?;
        (entry.base <= address && end <= entry.last).then(|| (entry.base, entry.device.clone()))
    }

    /// Reads; tells whether a device answered. If none does, `data` becomes all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((base, device)) = self.find(address, data.len()) else {
            data.fill(0xff);
            return false;
        };
        device.lock().unwrap_or_else(PoisonError::into_inner).read(base, address - base, data);
        true
    }

    /// Writes what is not work for the device that answers.
    pub fn write_or_leave(&self, address: u64, data: &[u8]) -> Written {
        let Some((base, device)) = self.find(address, data.len()) else {
            return Written::Lost;
        };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        if device.is_work(address - base, data) {
            return Written::Left;
        }
        device.write(base, address - base, data);
        Written::Taken
    }

    /// Writes; tells whether a device answered.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((base, device)) = self.find(address, data.len()) else {
            return false;
        };
        device.lock().unwrap_or_else(PoisonError::into_inner).write(base, address - base, data);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads back the offset of the access; keeps the last write.
    #[derive(Default)]
    struct Echo(Vec<u8>);

    impl BusDevice for Echo {
        fn read(&mut self, _: u64, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, _: u64, _: u64, data: &[u8]) {
            self.0 = data.to_vec();
        }
        fn is_work(&self, offset: u64, data: &[u8]) -> bool {
            offset == 1 && data == [9]
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::default()
    }

    #[test]
    fn each_address_reaches_its_device_only() {
        let bus = Bus::default();
        let (low, high) = (echo(), echo());
        bus.insert(0x200, 0x10, high.clone()).unwrap();
        bus.insert(0x100, 0x10, low.clone()).unwrap();
        let mut byte = [0];
        for (address, expect) in [(0xff, None), (0x100, Some(0)), (0x10f, Some(15)), (0x110, None), (0x205, Some(5))] {
            assert_eq!(bus.read(address, &mut byte), expect.is_some(), "{address:#x}");
            assert_eq!(byte[0], expect.unwrap_or(0xff), "{address:#x}");
        }
        assert!(bus.write(0x20f, &[7]));
        assert_eq!((low.lock().unwrap().0.len(), high.lock().unwrap().0.as_slice()), (0, &[7][..]));
    }

    #[test]
    fn work_is_left_and_nothing_else_is() {
        let bus = Bus::default();
        let device = echo();
        bus.insert(0x100, 4, device.clone()).unwrap();
        assert_eq!(bus.write_or_leave(0x101, &[9]), Written::Left);
        assert!(device.lock().unwrap().0.is_empty());
        for (address, value) in [(0x101, 8), (0x102, 9)] {
            assert_eq!(bus.write_or_leave(address, &[value]), Written::Taken);
            assert_eq!(device.lock().unwrap().0, [value]);
        }
        assert_eq!(bus.write_or_leave(0x104, &[9]), Written::Lost);
        assert!(bus.write(0x101, &[9]));
        assert_eq!(device.lock().unwrap().0, [9]);
    }

    #[test]
    fn accesses_across_an_edge_reach_nobody() {
        let bus = Bus::default();
        bus.insert(0x100, 4, echo()).unwrap();
        let mut four = [0; 4];
        assert!(!bus.read(0x102, &mut four) && four == [0xff; 4]);
        assert!(!bus.read(0xfe, &mut four));
        assert!(!bus.write(u64::MAX, &[0; 8]) && !bus.write(0x100, &[]));
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let bus = Bus::default();
        bus.insert(0x100, 0x10, echo()).unwrap();
        for (base, len) in [(0x100, 1), (0x10f, 1), (0xf0, 0x11), (0, u64::MAX)] {
            let overlap = BusError::Overlap { base, len, other: 0x100 };
            assert_eq!(bus.insert(base, len, echo()), Err(overlap));
        }
        assert_eq!(bus.insert(5, 0, echo()), Err(BusError::Range { base: 5, len: 0 }));
        assert_eq!(bus.insert(u64::MAX, 2, echo()), Err(BusError::Range { base: u64::MAX, len: 2 }));
        bus.insert(0x110, 1, echo()).unwrap();
        bus.insert(u64::MAX, 1, echo()).unwrap();
        assert!(bus.read(u64::MAX, &mut [0]));
    }
}
