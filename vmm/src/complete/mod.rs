//! Completion in user space of instructions that a software-nested KVM cannot emulate.
//!
//! Such a KVM runs guest ring 3 on the processor and emulates guest ring 0. Where its emulator does not know an
//! instruction, KVM_RUN returns KVM_EXIT_INTERNAL_ERROR with suberror 1 and RIP at the instruction. [`complete`] does what
//! the processor would have done, on the vCPU's registers and guest memory, or raises the exception it would have raised.
//! What it does not know ends the VM, and [`describe_failure`] says what the guest was doing. Every success moves RIP or
//! raises an exception, so a guest cannot make a vCPU spin here without running.
//!
//! | module | what it does |
//! |---|---|
//! | `exec` | one instruction in flight: registers, operands, retirement, exceptions |
//! | `integer` | POPCNT, CRC32, CMPXCHG16B, CLAC/STAC, cache hints |
//! | `segments` | LAR, LSL, VERR, VERW |
//! | `fpu` | x87 control, MXCSR, XGETBV |
//! | `xsave`, `layout` | the XSAVE family |
//! | `walk`, `area` | guest-virtual memory: page tables, faults, operands across pages |
//! | `state`, `kvm` | the vCPU behind a trait, and KVM behind that |
//! | `failure` | the report on what could not be completed |
//!
//! Not done: SIMD arithmetic, 32-bit and real mode, single-stepping (RFLAGS.TF raises no #DB after a completed
//! instruction), protection keys. Stores made here are not in KVM's dirty log.

mod area;
mod error;
mod exec;
mod failure;
mod flags;
mod fpu;
mod integer;
mod kvm;
mod layout;
mod segments;
mod state;
#[cfg(test)]
mod tests;
mod walk;
mod xsave;

use devices::GuestRam;
use iced_x86::{Instruction, Mnemonic};

pub use error::CompleteError;
use error::{Fault, Stop};
use exec::Exec;
pub use failure::describe_failure;
pub use kvm::{InstructionBytes, KvmVcpu, XsaveScratch, enable_register_sync, instruction_bytes};
pub use layout::{Component, XsaveLayout};
pub use state::VcpuState;
use xsave::Form;

/// What became of the instruction. Either way the vCPU can be entered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// It ran; RIP is behind it.
    Executed,
    /// It raised an exception, which the next entry delivers.
    Raised {
        /// The exception's vector.
        vector: u8,
    },
}

/// Completes the instruction at RIP of a vCPU that KVM gave back with an emulation failure.
///
/// `bytes` is what KVM tried to emulate ([`instruction_bytes`]); without them the instruction is read from guest memory,
/// where another vCPU may have changed it meanwhile, so KVM_CAP_EXIT_ON_EMULATION_FAILURE should be on.
/// An instruction of ring 3 gets #UD, as KVM itself would do.
///
/// # Errors
/// Every error ends the VM: the vCPU's registers and guest memory are as they were.
pub fn complete(cpu: &mut dyn VcpuState, ram: &GuestRam, bytes: Option<&[u8]>) -> Result<Completion, CompleteError> {
    let mut exec = Exec::new(cpu, ram)?;
    if exec.ring() != 0 {
        return exec.raise(Fault::Undefined);
    }
    let instruction = exec.decode(bytes)?;
    match execute(&mut exec, &instruction) {
        Ok(()) => exec.retire(&instruction),
        Err(Stop::Fault(fault)) => exec.raise(fault),
        Err(Stop::Breakpoint) => exec.trap(&instruction),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// The table of what is known. Each entry changes `exec`'s registers, guest memory and extended state, or nothing.
fn execute(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    match instruction.mnemonic() {
        Mnemonic::Int3 => Err(Stop::Breakpoint),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => Err(Fault::Undefined.into()),
        Mnemonic::Clac => integer::set_access_check(exec, false),
        Mnemonic::Stac => integer::set_access_check(exec, true),
        Mnemonic::Popcnt => integer::popcnt(exec, instruction),
        Mnemonic::Crc32 => integer::crc32(exec, instruction),
        Mnemonic::Cmpxchg16b => integer::cmpxchg16b(exec, instruction),
        Mnemonic::Clwb => integer::clwb(exec, instruction),
        Mnemonic::Lar => segments::lar(exec, instruction),
        Mnemonic::Lsl => segments::lsl(exec, instruction),
        Mnemonic::Verr => segments::verify(exec, instruction, false),
        Mnemonic::Verw => segments::verify(exec, instruction, true),
        Mnemonic::Wait => fpu::wait(exec),
        Mnemonic::Fnclex => fpu::fnclex(exec),
        Mnemonic::Fnstsw => fpu::fnstsw_ax(exec, instruction),
        Mnemonic::Fild => fpu::fild_m32(exec, instruction),
        Mnemonic::Emms => fpu::emms(exec),
        Mnemonic::Ldmxcsr => fpu::ldmxcsr(exec, instruction),
        Mnemonic::Stmxcsr => fpu::stmxcsr(exec, instruction),
        Mnemonic::Xgetbv => fpu::xgetbv(exec),
        Mnemonic::Xsave => xsave::save(exec, instruction, Form::Standard, false),
        Mnemonic::Xsave64 => xsave::save(exec, instruction, Form::Standard, true),
        Mnemonic::Xsaveopt => xsave::save(exec, instruction, Form::Optimized, false),
        Mnemonic::Xsaveopt64 => xsave::save(exec, instruction, Form::Optimized, true),
        Mnemonic::Xsavec => xsave::save(exec, instruction, Form::Compacted, false),
        Mnemonic::Xsavec64 => xsave::save(exec, instruction, Form::Compacted, true),
        Mnemonic::Xsaves => xsave::save(exec, instruction, Form::Supervisor, false),
        Mnemonic::Xsaves64 => xsave::save(exec, instruction, Form::Supervisor, true),
        Mnemonic::Xrstor => xsave::restore(exec, instruction, false, false),
        Mnemonic::Xrstor64 => xsave::restore(exec, instruction, false, true),
        Mnemonic::Xrstors => xsave::restore(exec, instruction, true, false),
        Mnemonic::Xrstors64 => xsave::restore(exec, instruction, true, true),
        _ => Err(exec.unsupported(instruction).into()),
    }
}
