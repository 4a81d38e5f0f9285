//! [`VcpuState`] on a KVM vCPU.
//!
//! With register sync ([`enable_register_sync`]) the general and system registers travel in the shared `kvm_run` page,
//! which leaves an XSAVE with two system calls instead of five.

use std::io;
use std::mem::size_of;
use std::ops::Deref;

use kvm_bindings::{
    KVM_CAP_XSAVE2, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Msrs, Xsave,
    kvm_msr_entry, kvm_regs, kvm_run, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{Cap, SyncReg, VcpuFd, VmFd};

use super::exec::MAX_INSTRUCTION;
use super::layout::XsaveLayout;
use super::state::VcpuState;

const MSR_IA32_XSS: u32 = 0xda0;

/// Has KVM exchange general and system registers of `vcpu` through `kvm_run`; false where this KVM cannot.
///
/// From then on, what [`complete`](super::complete) sets reaches KVM with the next KVM_RUN: read registers with an ioctl
/// only after a KVM_RUN with `immediate_exit` (the one that also finishes a pending PIO or MMIO).
pub fn enable_register_sync(vm: &VmFd, vcpu: &mut VcpuFd) -> bool {
    let both = (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS) as i32;
    let supported = vm.check_extension_int(Cap::SyncRegs) & both == both;
    if supported {
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
    }
    supported
}

/// Buffers that a vCPU keeps, so that no completion allocates. 4 KiB and more, by what KVM says.
pub struct XsaveScratch {
    area: Xsave,
    /// KVM_GET_XSAVE2 is there; otherwise the state fits KVM_GET_XSAVE.
    variable_size: bool,
    xss: Msrs,
}

impl XsaveScratch {
    /// Buffers for a vCPU of `vm`.
    ///
    /// # Errors
    /// Only where memory is short.
    pub fn new(vm: &VmFd) -> io::Result<Self> {
        // Zero where KVM does not know the capability.
        let size = usize::try_from(vm.check_extension_raw(KVM_CAP_XSAVE2.into())).unwrap_or(0);
        let words = size.saturating_sub(size_of::<kvm_xsave>()).div_ceil(size_of::<u32>());
        let area = Xsave::new(words).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let xss = Msrs::from_entries(&[kvm_msr_entry { index: MSR_IA32_XSS, ..Default::default() }])
            .map_err(|e| io::Error::other(format!("{e:?}")))?;
        Ok(XsaveScratch { area, variable_size: size != 0, xss })
    }

    fn bytes(&mut self) -> &mut [u8] {
        let extra = self.area.as_fam_struct_ref().len * size_of::<u32>();
        let header = self.area.as_mut_fam_struct_ptr();
        // SAFETY: the wrapper allocated a `kvm_xsave2` and `len` words behind it, and `header` points to all of that; it is
        // borrowed mutably for as long as the slice lives, and any bytes are valid in it.
        unsafe {
            let start = (&raw mut (*header).xsave).cast::<u8>();
            std::slice::from_raw_parts_mut(start, size_of::<kvm_xsave>() + extra)
        }
    }
}

/// A KVM vCPU that has just come back from KVM_RUN.
pub struct KvmVcpu<'a> {
    fd: &'a mut VcpuFd,
    scratch: &'a mut XsaveScratch,
}

impl<'a> KvmVcpu<'a> {
    /// Borrows the vCPU and the buffers that belong to it.
    pub fn new(fd: &'a mut VcpuFd, scratch: &'a mut XsaveScratch) -> Self {
        KvmVcpu { fd, scratch }
    }

    fn synced(&mut self, which: u32) -> bool {
        self.fd.get_kvm_run().kvm_valid_regs & u64::from(which) != 0
    }
}

impl VcpuState for KvmVcpu<'_> {
    fn regs(&mut self) -> io::Result<kvm_regs> {
        if self.synced(KVM_SYNC_X86_REGS) {
            return Ok(self.fd.sync_regs_mut().regs);
        }
        Ok(self.fd.get_regs()?)
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()> {
        if self.synced(KVM_SYNC_X86_REGS) {
            self.fd.sync_regs_mut().regs = *regs;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        Ok(self.fd.set_regs(regs)?)
    }

    fn sregs(&mut self) -> io::Result<kvm_sregs> {
        if self.synced(KVM_SYNC_X86_SREGS) {
            return Ok(self.fd.sync_regs_mut().sregs);
        }
        Ok(self.fd.get_sregs()?)
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()> {
        if self.synced(KVM_SYNC_X86_SREGS) {
            self.fd.sync_regs_mut().sregs = *sregs;
            self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
            return Ok(());
        }
        Ok(self.fd.set_sregs(sregs)?)
    }

    fn events(&mut self) -> io::Result<kvm_vcpu_events> {
        Ok(self.fd.get_vcpu_events()?)
    }

    fn set_events(&mut self, events: &kvm_vcpu_events) -> io::Result<()> {
        Ok(self.fd.set_vcpu_events(events)?)
    }

    fn xcr0(&mut self) -> io::Result<u64> {
        let xcrs = self.fd.get_xcrs()?;
        let named = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|entry| entry.xcr == 0);
        named.map(|entry| entry.value).ok_or_else(|| io::Error::other("KVM_GET_XCRS did not return XCR0"))
    }

    fn xss(&mut self) -> io::Result<u64> {
        let read = self.fd.get_msrs(&mut self.scratch.xss)?;
        let value = self.scratch.xss.as_slice().first().filter(|_| read == 1).map(|entry| entry.data);
        // A KVM that does not have the MSR has no supervisor state to enable in it.
        Ok(value.unwrap_or(0))
    }

    fn load_xsave(&mut self) -> io::Result<&mut [u8]> {
        if self.scratch.variable_size {
            // SAFETY: the buffer has the size that KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2) gave for this VM.
            unsafe { self.fd.get_xsave2(&mut self.scratch.area) }?;
        } else {
            let state = self.fd.get_xsave()?;
            for (to, from) in self.scratch.bytes().chunks_exact_mut(4).zip(state.region) {
                to.copy_from_slice(&from.to_le_bytes());
            }
        }
        Ok(self.scratch.bytes())
    }

    fn xsave_buffer(&mut self) -> &mut [u8] {
        self.scratch.bytes()
    }

    fn store_xsave(&mut self) -> io::Result<()> {
        // SAFETY: KVM reads as many bytes as it said KVM_GET_XSAVE2 writes, which the buffer has.
        Ok(unsafe { self.fd.set_xsave2(&self.scratch.area) }?)
    }

    fn layout(&self) -> &'static XsaveLayout {
        XsaveLayout::host()
    }
}

/// The bytes that KVM's emulator gave up on, from RIP on; possibly more or less than one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructionBytes {
    bytes: [u8; MAX_INSTRUCTION],
    len: usize,
}

impl Deref for InstructionBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What an emulation failure's `kvm_run` tells of the instruction (api.rst, KVM_CAP_EXIT_ON_EMULATION_FAILURE), if anything.
pub fn instruction_bytes(run: &kvm_run) -> Option<InstructionBytes> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: for this exit reason KVM filled this member, as far as the checks below go; all bit patterns are valid.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    // The flags and the bytes are the first three words of the data.
    let told = failure.suberror == KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    // SAFETY: the only member of its union, plain bytes.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let len = usize::from(instruction.insn_size).min(MAX_INSTRUCTION);
    (told && len > 0).then_some(InstructionBytes { bytes: instruction.insn_bytes, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(suberror: u32, ndata: u32, flags: u64, size: u8) -> kvm_run {
        let mut run = kvm_run { exit_reason: KVM_EXIT_INTERNAL_ERROR, ..Default::default() };
        let failure =
            kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14 { suberror, ndata, flags, ..Default::default() };
        run.__bindgen_anon_1.emulation_failure = failure;
        // SAFETY: plain bytes, just initialised with the struct around them.
        let instruction = unsafe { &mut run.__bindgen_anon_1.emulation_failure.__bindgen_anon_1.__bindgen_anon_1 };
        instruction.insn_size = size;
        instruction.insn_bytes[0] = 0xcc;
        run
    }

    #[test]
    fn bytes_are_taken_only_where_kvm_says_so() {
        assert_eq!(instruction_bytes(&failure(1, 8, 1, 1)).as_deref(), Some(&[0xcc][..]));
        assert_eq!(instruction_bytes(&failure(1, 8, 1, 255)).map(|b| b.len()), Some(15));
        assert_eq!(instruction_bytes(&failure(1, 8, 0, 1)), None);
        assert_eq!(instruction_bytes(&failure(1, 2, 1, 1)), None);
        assert_eq!(instruction_bytes(&failure(3, 8, 1, 1)), None);
        assert_eq!(instruction_bytes(&failure(1, 8, 1, 0)), None);
        assert_eq!(instruction_bytes(&kvm_run { exit_reason: 2, ..failure(1, 8, 1, 1) }), None);
    }
}
