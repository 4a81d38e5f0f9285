//! The vCPU as a completer sees it: a trait, so that the instructions can be tested without KVM.

use std::io;

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};

use super::layout::XsaveLayout;

/// Access to the registers of a vCPU that is out of the guest.
///
/// Each call may cost a system call (on a software-nested KVM 5–7 µs), so a completer asks for nothing twice.
/// Errors are the hypervisor's own.
pub trait VcpuState {
    /// General registers, RIP and RFLAGS.
    fn regs(&mut self) -> io::Result<kvm_regs>;
    /// Sets what [`Self::regs`] reads.
    fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()>;
    /// Segments, descriptor tables, control registers.
    fn sregs(&mut self) -> io::Result<kvm_sregs>;
    /// Sets what [`Self::sregs`] reads.
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()>;
    /// Pending and injected exceptions and interrupts.
    fn events(&mut self) -> io::Result<kvm_vcpu_events>;
    /// Sets what [`Self::events`] reads.
    fn set_events(&mut self, events: &kvm_vcpu_events) -> io::Result<()>;
    /// XCR0: the state components that XSAVE manages.
    fn xcr0(&mut self) -> io::Result<u64>;
    /// The IA32_XSS MSR: the supervisor state components that XSAVES manages.
    fn xss(&mut self) -> io::Result<u64>;
    /// Reads the extended state into the buffer and returns that: an XSAVE area in the standard form, at least 576 bytes,
    /// whose components not in XSTATE_BV hold their initial values.
    fn load_xsave(&mut self) -> io::Result<&mut [u8]>;
    /// The buffer of [`Self::load_xsave`], whatever it holds.
    fn xsave_buffer(&mut self) -> &mut [u8];
    /// Makes the buffer's content the vCPU's extended state.
    fn store_xsave(&mut self) -> io::Result<()>;
    /// Where the components are in an XSAVE area of this processor.
    fn layout(&self) -> &'static XsaveLayout;
}
