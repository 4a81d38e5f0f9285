//! Memory that devices show the guest besides RAM ([`devices::virtio::window`]), as read-only memory slots of KVM.
//!
//! Where a window is follows from the configuration alone, so that it is in the same place in a machine that goes on from a snapshot.
//! What is in it is no part of a snapshot.

use std::io;
use std::sync::Arc;

use devices::GuestRam;
use devices::virtio::VirtioDevice;
use devices::virtio::window::{AddressSpace, Window};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::{MemoryError, Ram};

/// Windows begin at multiples of this, bytes, above all RAM: they touch nothing, and pages of any size fit.
const STEP: u64 = 1 << 30;
/// Above this, bytes, not every processor has addresses.
const END: u64 = 1 << 39;

/// The windows of a machine. They outlive its vCPUs and devices.
#[derive(Debug)]
pub struct Windows {
    /// With their guest-physical starts.
    shown: Vec<(u64, Arc<Window>)>,
    /// Where there is room for the next.
    free: u64,
}

impl Windows {
    /// Those that `devices` of a machine with this RAM want to have shown.
    pub fn of(devices: &mut [Box<dyn VirtioDevice>], ram: &Ram) -> Result<Self, MemoryError> {
        let GuestAddress(last) = ram.guest().last_addr();
        let mut windows = Windows { shown: Vec::new(), free: after(last + 1).max(4 * STEP) };
        for device in devices {
            device.show(&mut windows).map_err(|source| MemoryError::Window { device: device.info().name, source })?;
        }
        Ok(windows)
    }

    /// Gives the VM a slot for each, numbered from 0; returns the number of the next.
    pub fn register(&self, vm: &VmFd) -> Result<u32, MemoryError> {
        for (slot, (start, window)) in (0..).zip(&self.shown) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: KVM_MEM_READONLY,
                guest_phys_addr: *start,
                memory_size: window.len(),
                userspace_addr: window.host_address(),
            };
            // SAFETY: the window is a mapping of that length, which stays for as long as a vCPU can run, as the machine keeps
            // `self`; it touches neither RAM nor another window.
            let set = unsafe { vm.set_user_memory_region(region) };
            set.map_err(|source| MemoryError::Slot { start: *start, source })?;
        }
        Ok(self.shown.len() as u32)
    }

    /// RAM and windows, as devices see them.
    pub fn beside(&self, ram: &GuestRam) -> Result<GuestRam, MemoryError> {
        let add = |mem: GuestRam, (start, window): &(u64, Arc<Window>)| window.beside(&mem, *start);
        let failed = |source| MemoryError::Window { device: "window", source };
        self.shown.iter().try_fold(ram.clone(), add).map_err(failed)
    }
}

/// The place for a window after something that ends at `end`, without touching it.
fn after(end: u64) -> u64 {
    (end / STEP + 1).saturating_mul(STEP)
}

impl AddressSpace for Windows {
    fn show(&mut self, window: Arc<Window>) -> io::Result<u64> {
        let start = self.free;
        let end = start.checked_add(window.len()).filter(|end| *end <= END);
        self.free = after(end.ok_or_else(|| io::Error::other("there is no room for it in the guest's addresses"))?);
        self.shown.push((start, window));
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(bytes: u64) -> Arc<Window> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Arc::new(Window::map(&file, bytes).unwrap())
    }

    #[test]
    fn windows_are_above_ram_and_touch_nothing() {
        for (mib, first) in [(128, 4), (3 << 10, 4), (4 << 10, 6)] {
            let ram = Ram::new(mib).unwrap();
            let mut windows = Windows::of(&mut [], &ram).unwrap();
            let starts = [1, 1 << 30, 5].map(|bytes| windows.show(window(bytes)).unwrap() / STEP);
            assert_eq!(starts, [first, first + 1, first + 3], "{mib} MiB");
            let mem = windows.beside(ram.guest()).unwrap();
            assert_eq!(mem.num_regions(), ram.guest().num_regions() + 3);
        }
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let ram = Ram::new(16).unwrap();
        let mut windows = Windows::of(&mut [], &ram).unwrap();
        windows.free = END - STEP;
        assert!(windows.show(window(STEP + 1)).is_err());
        assert_eq!(windows.show(window(STEP)).unwrap(), END - STEP);
        assert!(windows.show(window(1)).is_err());
    }

    #[test]
    fn kvm_takes_them_for_reading() {
        let Ok(kvm) = crate::host::open() else {
            println!("SKIP kvm_takes_them_for_reading: no /dev/kvm");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let ram = Ram::new(16).unwrap();
        let mut windows = Windows::of(&mut [], &ram).unwrap();
        windows.show(window(1)).unwrap();
        let next = windows.register(&vm).unwrap();
        assert_eq!(next, 1);
        crate::slots::register(&vm, &ram, next).unwrap();
    }
}
