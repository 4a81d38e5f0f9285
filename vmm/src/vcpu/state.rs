//! The whole state of a vCPU, out of KVM and back into it.
//!
//! The order of the calls is part of the knowledge (Linux `virt/kvm/api.rst`): CPUID decides which MSRs and which XSAVE
//! area there are, SREGS hold the APIC base that the LAPIC needs, the LAPIC must be in TSC-deadline mode before its
//! deadline is armed, and pending events come last because SREGS would clear them.

use std::io;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::complete::{KvmVcpu, VcpuState, XsaveScratch};

/// Version of [`SavedVcpu`].
pub const VERSION: u32 = 1;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// What KVM_GET_MSR_INDEX_LIST leaves out and a guest can set: MTRRs (SDM vol. 3, 12.11.2), in fixed and variable ranges.
const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
];
/// MSRs a call: KVM takes 256.
const MSRS_A_CALL: usize = 200;

/// Everything that KVM keeps of one vCPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedVcpu {
    cpuid: Vec<kvm_cpuid_entry2>,
    /// `None` where KVM does not tell.
    tsc_khz: Option<u32>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Vec<u8>,
    lapic: kvm_lapic_state,
    debug_regs: kvm_debugregs,
    /// Index and value.
    msrs: Vec<(u32, u64)>,
    tsc_deadline: Option<u64>,
    events: kvm_vcpu_events,
}

/// State that could not be had, or that does not fit this host.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A KVM call failed.
    #[error("{call}: {source}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// The extended processor state.
    #[error("XSAVE state: {0}")]
    Xsave(io::Error),
    /// Saved XSAVE state of another size than this host's.
    #[error("XSAVE state: it has {saved} bytes, and {here} on this host")]
    XsaveSize {
        /// Bytes saved.
        saved: usize,
        /// Bytes here.
        here: usize,
    },
    /// More of something than KVM takes.
    #[error("{0}: more entries than KVM takes")]
    TooMany(&'static str),
    /// An MSR that cannot be set to its saved value here.
    #[error("MSR {index:#x} cannot be set to {value:#x} on this host")]
    Msr {
        /// Which.
        index: u32,
        /// To what.
        value: u64,
    },
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { call, source }
}

/// The MSRs that make up a vCPU's state on this host; to be asked for once a machine.
pub fn msr_indices(kvm_fd: &Kvm) -> Result<Vec<u32>, StateError> {
    let listed = kvm_fd.get_msr_index_list().map_err(kvm("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indices: Vec<u32> = listed.as_slice().iter().copied().chain(MTRRS).collect();
    // The deadline has a place of its own.
    indices.retain(|&index| index != MSR_IA32_TSC_DEADLINE);
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

impl SavedVcpu {
    /// Some state, as far as it matters to whoever stores it.
    #[cfg(test)]
    pub fn sample() -> Self {
        SavedVcpu {
            cpuid: vec![kvm_cpuid_entry2 { function: 1, eax: 2, ..Default::default() }; 3],
            tsc_khz: Some(2_000_000),
            mp_state: kvm_mp_state::default(),
            regs: kvm_regs { rip: 0x1000, ..Default::default() },
            sregs: kvm_sregs::default(),
            xcrs: kvm_xcrs::default(),
            xsave: vec![1; 4096],
            lapic: kvm_lapic_state::default(),
            debug_regs: kvm_debugregs::default(),
            msrs: vec![(0x10, 5), (0x174, 0)],
            tsc_deadline: None,
            events: kvm_vcpu_events::default(),
        }
    }

    /// Takes the state of a vCPU that is out of the guest, with nothing left to complete.
    pub fn save(fd: &mut VcpuFd, scratch: &mut XsaveScratch, msrs: &[u32]) -> Result<Self, StateError> {
        // First, because it makes KVM act on a pending INIT or SIPI.
        let mp_state = fd.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?;
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_CPUID2"))?.as_slice().to_vec();
        let xsave = KvmVcpu::new(fd, scratch).load_xsave().map_err(StateError::Xsave)?.to_vec();
        // Before the LAPIC: reading it could let an expired deadline become an interrupt, but not the other way round.
        let tsc_deadline = read_msrs(fd, &[MSR_IA32_TSC_DEADLINE])?.first().map(|&(_, value)| value);
        Ok(SavedVcpu {
            cpuid,
            tsc_khz: fd.get_tsc_khz().ok(),
            mp_state,
            regs: fd.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            xcrs: fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?,
            xsave,
            msrs: read_msrs(fd, msrs)?,
            tsc_deadline,
            debug_regs: fd.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?,
            events: fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// What this vCPU says it is.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Puts the state into a fresh vCPU, of which nothing has been set yet.
    pub fn restore(&self, fd: &mut VcpuFd, scratch: &mut XsaveScratch) -> Result<(), StateError> {
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| StateError::TooMany("CPUID"))?;
        fd.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        // Where it is the same anyway, KVM need not be able to scale.
        if let Some(khz) = self.tsc_khz.filter(|khz| fd.get_tsc_khz().ok() != Some(*khz)) {
            fd.set_tsc_khz(khz).map_err(kvm("KVM_SET_TSC_KHZ"))?;
        }
        fd.set_mp_state(self.mp_state).map_err(kvm("KVM_SET_MP_STATE"))?;
        fd.set_sregs(&self.sregs).map_err(kvm("KVM_SET_SREGS"))?;
        fd.set_regs(&self.regs).map_err(kvm("KVM_SET_REGS"))?;
        fd.set_xcrs(&self.xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        let mut state = KvmVcpu::new(fd, scratch);
        let buffer = state.xsave_buffer();
        if buffer.len() != self.xsave.len() {
            return Err(StateError::XsaveSize { saved: self.xsave.len(), here: buffer.len() });
        }
        buffer.copy_from_slice(&self.xsave);
        state.store_xsave().map_err(StateError::Xsave)?;
        fd.set_lapic(&self.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        fd.set_debug_regs(&self.debug_regs).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        write_msrs(fd, &self.msrs)?;
        self.arm_deadline(fd)?;
        fd.set_vcpu_events(&self.events).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// Arms the LAPIC's timer for as much later as the guest's TSC is ahead of the saved one. That is next to nothing
    /// where KVM has set the TSC; where guests see the host's own TSC, it is the time that the snapshot has been lying.
    fn arm_deadline(&self, fd: &VcpuFd) -> Result<(), StateError> {
        let Some(deadline) = self.tsc_deadline.filter(|&deadline| deadline != 0) else {
            return Ok(());
        };
        let saved = self.msrs.iter().find(|(index, _)| *index == MSR_IA32_TSC).map(|&(_, value)| value);
        let now = read_msrs(fd, &[MSR_IA32_TSC])?.first().map(|&(_, value)| value);
        let ahead = saved.zip(now).map_or(0, |(saved, now)| now.wrapping_sub(saved));
        write_msrs(fd, &[(MSR_IA32_TSC_DEADLINE, deadline.wrapping_add(ahead).max(1))])
    }
}

fn entries(msrs: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, StateError> {
    let entries: Vec<_> = msrs.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|_| StateError::TooMany("MSRs"))
}

/// Reads those of `indices` that this host has.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, StateError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(MSRS_A_CALL)];
        let mut msrs = entries(asked.iter().map(|&index| (index, 0)))?;
        let count = fd.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))?;
        values.extend(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)));
        // KVM stops at one that it does not have: go on behind that.
        let done = if count < asked.len() { count + 1 } else { count };
        rest = &rest[done..];
    }
    Ok(values)
}

/// Sets all of `msrs`. One that KVM refuses must have its value already: read-only ones do.
fn write_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), StateError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(MSRS_A_CALL)];
        let count = fd.set_msrs(&entries(asked.iter().copied())?).map_err(kvm("KVM_SET_MSRS"))?;
        let mut done = count;
        if let Some(&(index, value)) = asked.get(count) {
            if read_msrs(fd, &[index])?.first() != Some(&(index, value)) {
                return Err(StateError::Msr { index, value });
            }
            done += 1;
        }
        rest = &rest[done..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that does not have a register of the snapshot's, or not with that value, is no host for it.
    #[test]
    fn group_8_a_register_that_this_host_refuses_is_named() {
        let Ok(kvm) = Kvm::new() else {
            println!("SKIP group_8_a_register_that_this_host_refuses_is_named: there is no KVM");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        // EFER with a reserved bit (Intel SDM, volume 3, 2.2.1), between two that are sound.
        const EFER: u32 = 0xc000_0080;
        let sound = (MSR_IA32_TSC, 0);
        match write_msrs(&vcpu, &[sound, (EFER, 1 << 63), sound]) {
            Err(StateError::Msr { index, value }) => assert_eq!((index, value), (EFER, 1 << 63)),
            other => panic!("{other:?}"),
        }
        write_msrs(&vcpu, &[sound, (EFER, 0), sound]).unwrap();
    }
}
