//! x87 control, MXCSR and XGETBV, on the vCPU's XSAVE image (SDM vol. 1, 8.1, 10.2.3 and 13.5).

use iced_x86::{Instruction, MemorySize, OpKind, Register};

use super::error::{Fault, Naming, Stop};
use super::exec::Exec;
use super::flags;
use super::walk::Access;
use super::xsave::{self, MXCSR, MXCSR_DEFAULT, STATE_SSE, STATE_X87};

/// FXSAVE image: x87 status word, abridged tag word (a bit per register in use), and the stack from ST(0) on.
const STATUS: usize = 2;
const TAGS: usize = 4;
const STACK: usize = 32;
const STACK_SLOT: usize = 16;
const STACK_END: usize = STACK + 8 * STACK_SLOT;

const STATUS_INVALID: u16 = 1;
const STATUS_STACK_FAULT: u16 = 1 << 6;
const STATUS_SUMMARY: u16 = 1 << 7;
const STATUS_C1: u16 = 1 << 9;
const STATUS_TOP_SHIFT: u32 = 11;
const STATUS_BUSY: u16 = 1 << 15;
/// The exception flags, the stack fault and the summary, which FNCLEX clears together with the busy bit.
const STATUS_EXCEPTIONS: u16 = 0xff;

/// FWAIT: #MF if an x87 exception is pending.
pub(super) fn wait(exec: &mut Exec) -> Result<(), Stop> {
    if exec.sregs.cr0 & flags::CR0_MP != 0 && exec.sregs.cr0 & flags::CR0_TS != 0 {
        return Err(Fault::NoDevice.into());
    }
    let image = exec.cpu.load_xsave().state("extended state")?;
    pending_exception(word(image, STATUS))
}

/// FNCLEX: clears the exception flags.
pub(super) fn fnclex(exec: &mut Exec) -> Result<(), Stop> {
    x87_available(exec)?;
    let image = exec.cpu.load_xsave().state("extended state")?;
    let status = word(image, STATUS) & !(STATUS_EXCEPTIONS | STATUS_BUSY);
    set_word(image, STATUS, status);
    store_x87(exec)
}

/// FNSTSW AX. The memory form is one that KVM emulates.
pub(super) fn fnstsw_ax(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    if instruction.op0_kind() != OpKind::Register {
        return Err(exec.unsupported(instruction).into());
    }
    x87_available(exec)?;
    let status = word(exec.cpu.load_xsave().state("extended state")?, STATUS);
    exec.set_register(Register::AX, status.into());
    Ok(())
}

/// EMMS: marks the x87 registers empty.
pub(super) fn emms(exec: &mut Exec) -> Result<(), Stop> {
    if exec.sregs.cr0 & flags::CR0_EM != 0 {
        return Err(Fault::Undefined.into());
    }
    x87_available(exec)?;
    let image = exec.cpu.load_xsave().state("extended state")?;
    pending_exception(word(image, STATUS))?;
    image[TAGS] = 0;
    store_x87(exec)
}

/// FILD of 32 bits, with which Linux wipes the last x87 pointers on processors that leave them out of FXSAVE.
pub(super) fn fild_m32(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    if instruction.memory_size() != MemorySize::Int32 {
        return Err(exec.unsupported(instruction).into());
    }
    x87_available(exec)?;
    let value = exec.operand(instruction, 0)? as u32;
    let image = exec.cpu.load_xsave().state("extended state")?;
    let status = word(image, STATUS);
    pending_exception(status)?;
    let top = (status >> STATUS_TOP_SHIFT).wrapping_sub(1) & 7;
    let overflow = image[TAGS] & 1 << top != 0;
    let invalid_masked = word(image, 0) & STATUS_INVALID != 0;
    let flags = if overflow { STATUS_INVALID | STATUS_STACK_FAULT | STATUS_C1 } else { 0 };
    if overflow && !invalid_masked {
        set_word(image, STATUS, status | flags | STATUS_SUMMARY | STATUS_BUSY);
        return store_x87(exec);
    }
    let pushed = if overflow { INDEFINITE } else { extended(value as i32) };
    image.copy_within(STACK..STACK_END - STACK_SLOT, STACK + STACK_SLOT);
    image[STACK..STACK + STACK_SLOT].copy_from_slice(&pushed.to_le_bytes());
    image[TAGS] |= 1 << top;
    let status = status & !(7 << STATUS_TOP_SHIFT | STATUS_C1) | top << STATUS_TOP_SHIFT | flags;
    set_word(image, STATUS, status);
    store_x87(exec)
}

/// The QNaN that a masked stack overflow loads (SDM vol. 1, 4.8.3.7).
const INDEFINITE: u128 = 0xffff << 64 | 0xc000 << 48;

/// An integer in the 80-bit format (SDM vol. 1, 4.2.2).
fn extended(value: i32) -> u128 {
    if value == 0 {
        return 0;
    }
    let magnitude = u64::from(value.unsigned_abs());
    let shift = magnitude.leading_zeros();
    let exponent = u128::from(16383 + 63 - shift);
    let sign = u128::from(value < 0) << 79;
    sign | exponent << 64 | u128::from(magnitude << shift)
}

/// LDMXCSR: #GP for bits that the processor does not have.
pub(super) fn ldmxcsr(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    sse_available(exec)?;
    let value = exec.operand(instruction, 0)? as u32;
    if value & !exec.cpu.layout().mxcsr_mask != 0 {
        return Err(Fault::Protection.into());
    }
    let image = exec.cpu.load_xsave().state("extended state")?;
    image[MXCSR..MXCSR + 4].copy_from_slice(&value.to_le_bytes());
    if value != MXCSR_DEFAULT {
        xsave::add_components(image, STATE_SSE);
    }
    exec.cpu.store_xsave().state("extended state")?;
    Ok(())
}

/// STMXCSR.
pub(super) fn stmxcsr(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    sse_available(exec)?;
    let mut value = [0; 4];
    value.copy_from_slice(&exec.cpu.load_xsave().state("extended state")?[MXCSR..MXCSR + 4]);
    let mut area = exec.memory(instruction, 0, Access::Write)?;
    area.touch(0, value.len())?;
    area.write(0, &value)
}

/// XGETBV: XCR0, or with ECX 1 those of its components that are in use (SDM vol. 2).
pub(super) fn xgetbv(exec: &mut Exec) -> Result<(), Stop> {
    if exec.sregs.cr4 & flags::CR4_OSXSAVE == 0 {
        return Err(Fault::Undefined.into());
    }
    let xcr0 = exec.cpu.xcr0().state("XCR0")?;
    let value = match exec.register(Register::ECX) {
        0 => xcr0,
        1 => xcr0 & xsave::in_use(exec.cpu.load_xsave().state("extended state")?),
        _ => return Err(Fault::Protection.into()),
    };
    exec.set_register(Register::EAX, value);
    exec.set_register(Register::EDX, value >> 32);
    Ok(())
}

fn x87_available(exec: &Exec) -> Result<(), Stop> {
    match exec.sregs.cr0 & (flags::CR0_EM | flags::CR0_TS) {
        0 => Ok(()),
        _ => Err(Fault::NoDevice.into()),
    }
}

fn sse_available(exec: &Exec) -> Result<(), Stop> {
    if exec.sregs.cr0 & flags::CR0_EM != 0 || exec.sregs.cr4 & flags::CR4_OSFXSR == 0 {
        return Err(Fault::Undefined.into());
    }
    if exec.sregs.cr0 & flags::CR0_TS != 0 {
        return Err(Fault::NoDevice.into());
    }
    Ok(())
}

/// #MF where an unmasked exception waits; CR0.NE is taken as set, as every 64-bit kernel has it.
fn pending_exception(status: u16) -> Result<(), Stop> {
    match status & STATUS_SUMMARY {
        0 => Ok(()),
        _ => Err(Fault::FloatingPoint.into()),
    }
}

fn store_x87(exec: &mut Exec) -> Result<(), Stop> {
    xsave::add_components(exec.cpu.xsave_buffer(), STATE_X87);
    exec.cpu.store_xsave().state("extended state")?;
    Ok(())
}

fn word(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn set_word(image: &mut [u8], at: usize, value: u16) {
    image[at..at + 2].copy_from_slice(&value.to_le_bytes());
}
