//! Guest-virtual to guest-physical, as the processor does it (SDM vol. 3, 4.5 and 4.7), for supervisor accesses.
//!
//! The tables are the guest's, and it may rewrite them meanwhile: each entry is read once, and an accessed or dirty bit
//! is set only in the entry that was read (compare-exchange; a lost race walks again). Protection keys are not
//! looked at, nor is the TLB: a mapping that the guest changed but did not flush is already its new self here.

use std::sync::atomic::{AtomicU64, Ordering};

use devices::GuestRam;
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::flags;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a page fault's error code (SDM vol. 3, 4.7).
pub(super) mod fault_code {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const RESERVED: u32 = 1 << 3;
}

const PAGE_SIZE: u64 = 4096;
/// Walks of one address before a guest that keeps changing its tables is given up.
const MAX_WALKS: u32 = 1000;

/// What the access is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// A load by the instruction.
    Read,
    /// A store, or a load and a store.
    Write,
    /// Our own look: checks no permission and leaves no trace.
    Peek,
}

/// Why an address has no page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WalkError {
    /// The guest is to get a page fault with this error code.
    Fault(u32),
    /// The address is not canonical.
    NotCanonical,
    /// A table or the page is at a physical address without RAM.
    OutsideRam(u64),
    /// The guest changed the entries under [`MAX_WALKS`] walks.
    Contended,
}

/// The paging mode and root of a vCPU in 64-bit mode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging {
    root: u64,
    levels: u32,
    write_protect: bool,
    /// User pages may not be touched: CR4.SMAP without RFLAGS.AC.
    user_forbidden: bool,
    no_execute: bool,
}

impl Paging {
    /// `None` where the vCPU is not in long mode with paging.
    pub fn new(regs: &kvm_regs, sregs: &kvm_sregs) -> Option<Paging> {
        let long = sregs.efer & flags::EFER_LMA != 0 && sregs.cr0 & flags::CR0_PG != 0;
        long.then_some(Paging {
            root: sregs.cr3 & ADDRESS,
            levels: if sregs.cr4 & flags::CR4_LA57 != 0 { 5 } else { 4 },
            write_protect: sregs.cr0 & flags::CR0_WP != 0,
            user_forbidden: sregs.cr4 & flags::CR4_SMAP != 0 && regs.rflags & flags::AC == 0,
            no_execute: sregs.efer & flags::EFER_NXE != 0,
        })
    }

    /// Whether the upper bits of `address` are the sign of those that are translated.
    pub fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - (12 + 9 * self.levels);
        (((address << unused) as i64) >> unused) as u64 == address
    }

    /// The guest-physical address of `address`; the page around it is RAM. Sets accessed and dirty bits unless peeking.
    pub fn translate(&self, ram: &GuestRam, address: u64, access: Access) -> Result<GuestAddress, WalkError> {
        if !self.is_canonical(address) {
            return Err(WalkError::NotCanonical);
        }
        for _ in 0..MAX_WALKS {
            if let Some(physical) = self.walk(ram, address, access)? {
                let page = GuestAddress(physical.0 & !(PAGE_SIZE - 1));
                ram.get_slice(page, PAGE_SIZE as usize).map_err(|_| WalkError::OutsideRam(physical.0))?;
                return Ok(physical);
            }
        }
        Err(WalkError::Contended)
    }

    /// One walk; `None` where an entry changed before its accessed or dirty bit could be set.
    fn walk(&self, ram: &GuestRam, address: u64, access: Access) -> Result<Option<GuestAddress>, WalkError> {
        let write = if access == Access::Write { fault_code::WRITE } else { 0 };
        let mut seen = [(None, 0u64); 5];
        let mut rights = USER | WRITABLE;
        let mut table = self.root;
        let mut level = self.levels - 1;
        loop {
            let shift = 12 + 9 * level;
            let cell = entry(ram, table + (address >> shift & 511) * 8)?;
            let value = cell.load(Ordering::Acquire);
            if value & PRESENT == 0 {
                return Err(WalkError::Fault(write));
            }
            let leaf = level == 0 || value & LARGE != 0;
            if self.has_reserved_bits(value, level) {
                return Err(WalkError::Fault(write | fault_code::PRESENT | fault_code::RESERVED));
            }
            rights &= value;
            seen[level as usize] = (Some(cell), value);
            if leaf {
                if access != Access::Peek && !self.allows(rights, access) {
                    return Err(WalkError::Fault(write | fault_code::PRESENT));
                }
                let offset = (1 << shift) - 1;
                let physical = GuestAddress(value & ADDRESS & !offset | address & offset);
                let marked = access == Access::Peek || mark(&seen, level as usize, access);
                return Ok(marked.then_some(physical));
            }
            table = value & ADDRESS;
            level -= 1;
        }
    }

    fn allows(&self, rights: u64, access: Access) -> bool {
        let user_ok = rights & USER == 0 || !self.user_forbidden;
        let write_ok = access != Access::Write || rights & WRITABLE != 0 || !self.write_protect;
        user_ok && write_ok
    }

    /// Bits that are reserved whatever the physical address width is (SDM vol. 3, 4.5.4).
    fn has_reserved_bits(&self, value: u64, level: u32) -> bool {
        let large = match level {
            0 => 0,
            // Below a large page's address, bit 12 is PAT and the rest is reserved.
            1 if value & LARGE != 0 => 0x1f_e000,
            2 if value & LARGE != 0 => 0x3fff_e000,
            1 | 2 => 0,
            _ => LARGE,
        };
        value & large != 0 || value & NO_EXECUTE != 0 && !self.no_execute
    }
}

/// Sets the accessed bits and, for a write, the dirty bit of the leaf. False if an entry is not what was read.
fn mark(seen: &[(Option<&AtomicU64>, u64)], leaf: usize, access: Access) -> bool {
    seen.iter().enumerate().rev().all(|(level, (cell, value))| {
        let Some(cell) = cell else { return true };
        let dirty = if level == leaf && access == Access::Write { DIRTY } else { 0 };
        let marked = value | ACCESSED | dirty;
        marked == *value || cell.compare_exchange(*value, marked, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })
}

/// The paging-structure entry at `physical`, which is a multiple of 8.
fn entry(ram: &GuestRam, physical: u64) -> Result<&AtomicU64, WalkError> {
    let outside = WalkError::OutsideRam(physical);
    let slice = ram.get_slice(GuestAddress(physical), 8).map_err(|_| outside)?;
    let pointer = slice.ptr_guard_mut().as_ptr().cast::<AtomicU64>();
    if !pointer.is_aligned() {
        return Err(outside);
    }
    // SAFETY: the slice is 8 bytes of a mapping that lives as long as `ram` is borrowed, aligned as just checked. The guest
    // writes there too, which is why it is an atomic.
    Ok(unsafe { &*pointer })
}
