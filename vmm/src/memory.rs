//! Guest RAM and its KVM memory slots.
//!
//! RAM is anonymous, private, and not reserved: a page costs nothing before the guest touches it.

use devices::GuestRam;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// RAM that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size does not fit the layout.
    #[error("guest memory: {0}")]
    Layout(#[from] boot::layout::LayoutError),
    /// The host would not map it.
    #[error("guest memory: the host would not map {mib} MiB: {source}; ask for less memory")]
    Map {
        /// MiB asked for.
        mib: u64,
        /// The host's answer.
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM would not take a region.
    #[error("guest memory: KVM_SET_USER_MEMORY_REGION for {start:#x}: {source}")]
    Slot {
        /// Guest-physical start.
        start: u64,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
}

/// Maps `mib` MiB of RAM laid out around the hole below 4 GiB.
pub fn create(mib: u64) -> Result<GuestRam, MemoryError> {
    let ranges: Vec<(GuestAddress, usize)> =
        boot::layout::ram_regions(mib << 20)?.into_iter().map(|(start, len)| (start, len as usize)).collect();
    GuestRam::from_ranges(&ranges).map_err(|source| MemoryError::Map { mib, source })
}

/// Gives each region of `ram` to the VM as one slot, numbered from 0.
///
/// `ram` must outlive the VM's vCPUs: [`crate::Machine`] keeps both and drops the vCPUs first.
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), MemoryError> {
    for (slot, region) in ram.iter().enumerate() {
        let start = region.start_addr().0;
        let host = region.as_ptr() as u64;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start,
            memory_size: region.len(),
            userspace_addr: host,
        };
        // SAFETY: the range is a live mapping of exactly this length, owned by `ram`, which the caller keeps alive for
        // as long as a vCPU can run; slots do not overlap because the regions do not.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Slot { start, source })?;
    }
    Ok(())
}
