//! Integer instructions, the access-check flag and cache hints.

use std::arch::asm;

use iced_x86::{Instruction, Register};
use vm_memory::GuestMemoryBackend;

use super::error::{CompleteError, Fault, Stop};
use super::exec::Exec;
use super::flags;
use super::walk::Access;

/// CLAC and STAC: RFLAGS.AC.
pub(super) fn set_access_check(exec: &mut Exec, on: bool) -> Result<(), Stop> {
    exec.set_flags(flags::AC, if on { flags::AC } else { 0 });
    Ok(())
}

/// POPCNT (SDM vol. 2): ZF says that the source was 0, the other status flags are cleared.
pub(super) fn popcnt(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    let source = exec.operand(instruction, 1)?;
    exec.set_register(instruction.op0_register(), source.count_ones().into());
    let status = flags::CF | flags::PF | flags::AF | flags::ZF | flags::SF | flags::OF;
    exec.set_flags(status, if source == 0 { flags::ZF } else { 0 });
    Ok(())
}

/// CRC32: one step of CRC-32C, bit-reflected, without inversions (SDM vol. 2).
pub(super) fn crc32(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    /// 0x11EDC6F41 reflected.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let source = exec.operand(instruction, 1)?;
    let size = match instruction.op1_register() {
        Register::None => instruction.memory_size().size(),
        register => register.size(),
    };
    let destination = instruction.op0_register();
    let mut crc = exec.register(destination) as u32;
    for byte in &source.to_le_bytes()[..size.min(8)] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    exec.set_register(destination, crc.into());
    Ok(())
}

/// CMPXCHG16B, always atomic: other vCPUs and the host's threads work on the same memory (SDM vol. 2).
pub(super) fn cmpxchg16b(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return Err(exec.unsupported(instruction).into());
    }
    let mut area = exec.memory(instruction, 0, Access::Write)?;
    if area.base() & 15 != 0 {
        return Err(Fault::Protection.into());
    }
    area.touch(0, 16)?;
    let (address, physical) = (area.base(), area.physical(0)?);
    let outside = CompleteError::OutsideRam { address, physical: physical.0 };
    let Ok(slice) = exec.ram.get_slice(physical, 16) else {
        return Err(outside.into());
    };
    let guard = slice.ptr_guard_mut();
    let target = guard.as_ptr().cast::<u128>();
    if !target.is_aligned() {
        return Err(outside.into());
    }
    let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let expected = wide(exec.regs.rdx, exec.regs.rax);
    let new = wide(exec.regs.rcx, exec.regs.rbx);
    // SAFETY: the processor has the instruction (checked above); `target` is 16 bytes of guest RAM, aligned, mapped for as
    // long as `exec.ram` is borrowed, and reached by others through atomics and volatile copies alone.
    let found = unsafe { compare_exchange(target, expected, new) };
    if found == expected {
        exec.set_flags(flags::ZF, flags::ZF);
    } else {
        exec.set_flags(flags::ZF, 0);
        exec.regs.rax = found as u64;
        exec.regs.rdx = (found >> 64) as u64;
    }
    Ok(())
}

/// The value found at `target`, which is `new` now if it was `expected`.
///
/// In assembly because the standard library's intrinsic becomes a call into libatomic when it is inlined into code that is
/// built for any x86-64.
///
/// # Safety
/// The processor has CMPXCHG16B; `target` is aligned and valid for atomic access.
unsafe fn compare_exchange(target: *mut u128, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller vouches for the instruction and its operand. RBX, which the compiler may not give away, is as
    // before when the block ends; neither fixed operand register is RBX.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") target,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// CLWB: guest RAM is coherent host memory, so only its permission check is left (SDM vol. 2: that of a load).
pub(super) fn clwb(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    exec.memory(instruction, 0, Access::Read)?.touch(0, 1)
}
