//! The registers of a vCPU at its first instruction.

use boot::{CpuMode, CpuState};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Reserved bit 1 of RFLAGS is always set (SDM vol. 1, 3.4.3).
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back (SDM vol. 3, 12.11.2.1).
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Puts the boot vCPU where the kernel's boot protocol wants it.
pub fn set_boot_state(vcpu: &VcpuFd, state: &CpuState) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let gdt = match &state.mode {
        CpuMode::Long { cr3, gdt } => {
            sregs.cr3 = *cr3;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
            gdt
        }
        CpuMode::Protected { gdt } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            gdt
        }
    };
    let descriptor = |selector: u16| gdt.entries.get(usize::from(selector / 8)).copied().unwrap_or(0);
    sregs.cs = segment(descriptor(gdt.code), gdt.code);
    let data = segment(descriptor(gdt.data), gdt.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = gdt.base;
    sregs.gdt.limit = gdt.limit;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: state.rip,
        rsp: state.rsp,
        rbp: state.rsp,
        rsi: state.rsi,
        rbx: state.rbx,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    })
}

/// State that every vCPU starts with, boot or not, where KVM's differs: write-back memory. (The FPU is as after FNINIT.)
pub fn set_common_state(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = kvm_msr_entry { index: MSR_MTRR_DEF_TYPE, data: MTRR_ENABLE_WRITE_BACK, ..Default::default() };
    if let Ok(msrs) = Msrs::from_entries(&[entry]) {
        // KVM says how many it took. A host without MTRR emulation takes none, which costs nothing: RAM is write-back there.
        let taken = vcpu.set_msrs(&msrs)?;
        tracing::debug!(taken, "MTRR default type");
    }
    Ok(())
}

/// A segment register from its descriptor (SDM vol. 3, 3.4.5).
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let bits = |low: u32, count: u32| (descriptor >> low) & ((1 << count) - 1);
    let granular = bits(55, 1) as u8;
    let limit = (bits(0, 16) | bits(48, 4) << 16) as u32;
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: if granular == 1 { limit << 12 | 0xfff } else { limit },
        selector,
        type_: bits(40, 4) as u8,
        present: bits(47, 1) as u8,
        dpl: bits(45, 2) as u8,
        db: bits(54, 1) as u8,
        s: bits(44, 1) as u8,
        l: bits(53, 1) as u8,
        g: granular,
        avl: bits(52, 1) as u8,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_long_mode_code_segment() {
        let got = segment(0x00af_9b00_0000_ffff, 0x10);
        assert_eq!((got.base, got.limit, got.selector), (0, 0xffff_ffff, 0x10));
        assert_eq!((got.type_, got.present, got.s, got.l, got.db, got.g, got.dpl), (0xb, 1, 1, 1, 0, 1, 0));
    }

    #[test]
    fn base_and_limit_come_from_their_scattered_bits() {
        let got = segment(0x1200_9234_5678_9abc, 8);
        assert_eq!((got.base, got.limit), (0x1234_5678, 0x9abc));
    }
}
