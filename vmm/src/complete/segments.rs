//! Instructions that look into descriptor tables: LAR, LSL, VERR, VERW (SDM vol. 2; vol. 3, 5.10).
//!
//! Linux reads its CPU number with LSL in paranoid entries, and runs VERW for its side effect on processor buffers.

use iced_x86::Instruction;

use super::area::Area;
use super::error::Stop;
use super::exec::Exec;
use super::flags;
use super::walk::Access;

const SELECTOR_LOCAL: u64 = 1 << 2;
const SELECTOR_RPL: u64 = 3;

/// System descriptor types in 64-bit mode (SDM vol. 3, 3.5).
const TYPE_LDT: u64 = 2;
const TYPE_TSS_AVAILABLE: u64 = 9;
const TYPE_TSS_BUSY: u64 = 11;
const TYPE_CALL_GATE: u64 = 12;

/// A segment descriptor's low 8 bytes.
#[derive(Clone, Copy)]
struct Descriptor(u64);

impl Descriptor {
    fn kind(self) -> u64 {
        self.0 >> 40 & 15
    }

    fn is_system(self) -> bool {
        self.0 >> 44 & 1 == 0
    }

    fn dpl(self) -> u64 {
        self.0 >> 45 & 3
    }

    fn is_code(self) -> bool {
        !self.is_system() && self.kind() & 8 != 0
    }

    fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// Bytes minus one.
    fn limit(self) -> u64 {
        let raw = self.0 & 0xffff | self.0 >> 32 & 0xf_0000;
        if self.0 >> 55 & 1 == 1 { raw << 12 | 0xfff } else { raw }
    }
}

/// LAR: access rights into a register.
pub(super) fn lar(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    let systems = [TYPE_LDT, TYPE_TSS_AVAILABLE, TYPE_TSS_BUSY, TYPE_CALL_GATE];
    load(exec, instruction, &systems, |descriptor| descriptor.0 >> 32 & 0x00ff_ff00)
}

/// LSL: the limit in bytes into a register.
pub(super) fn lsl(exec: &mut Exec, instruction: &Instruction) -> Result<(), Stop> {
    load(exec, instruction, &[TYPE_LDT, TYPE_TSS_AVAILABLE, TYPE_TSS_BUSY], Descriptor::limit)
}

fn load(exec: &mut Exec, instruction: &Instruction, systems: &[u64], value: fn(Descriptor) -> u64) -> Result<(), Stop> {
    let selector = exec.operand(instruction, 1)? & 0xffff;
    let visible = visible(exec, selector)?;
    let usable = visible.filter(|descriptor| !descriptor.is_system() || systems.contains(&descriptor.kind()));
    if let Some(descriptor) = usable {
        exec.set_register(instruction.op0_register(), value(descriptor));
    }
    exec.set_flags(flags::ZF, if usable.is_some() { flags::ZF } else { 0 });
    Ok(())
}

/// VERR and VERW: ZF says whether the segment can be read or written.
pub(super) fn verify(exec: &mut Exec, instruction: &Instruction, write: bool) -> Result<(), Stop> {
    let selector = exec.operand(instruction, 0)? & 0xffff;
    let usable = visible(exec, selector)?.is_some_and(|descriptor| {
        let second_bit = descriptor.kind() & 2 != 0;
        let allowed = match (descriptor.is_code(), write) {
            (true, true) => false,
            (true, false) => second_bit,
            (false, true) => second_bit,
            (false, false) => true,
        };
        !descriptor.is_system() && allowed
    });
    exec.set_flags(flags::ZF, if usable { flags::ZF } else { 0 });
    Ok(())
}

/// The descriptor that `selector` names, if there is one and ring 0 may know of it.
fn visible(exec: &Exec, selector: u64) -> Result<Option<Descriptor>, Stop> {
    let local = selector & SELECTOR_LOCAL != 0;
    let (base, limit) = match local {
        true if exec.sregs.ldt.unusable != 0 || exec.sregs.ldt.present == 0 => return Ok(None),
        true => (exec.sregs.ldt.base, u64::from(exec.sregs.ldt.limit)),
        false => (exec.sregs.gdt.base, u64::from(exec.sregs.gdt.limit)),
    };
    let offset = selector & !7;
    let null = !local && offset == 0;
    if null || offset + 7 > limit {
        return Ok(None);
    }
    let mut area = Area::new(exec.ram, exec.paging()?, base.wrapping_add(offset), Access::Read);
    let descriptor = Descriptor(area.read_int(0, 8)?);
    let visible = descriptor.is_conforming() || descriptor.dpl() >= selector & SELECTOR_RPL;
    Ok(visible.then_some(descriptor))
}
