//! The XSAVE family (SDM vol. 1, chapter 13) on the vCPU's extended state.
//!
//! The state comes from the hypervisor as an area in the standard form, the buffer; the guest's area is in the form that
//! the instruction says. The modified optimization of XSAVEOPT and XSAVES (leave out what has not changed since the last
//! XRSTOR) is allowed, not required, and not done; the init optimization is.

use iced_x86::{Instruction, Register};

use super::area::Area;
use super::error::{CompleteError, Fault, Naming, Stop};
use super::exec::Exec;
use super::flags;
use super::layout::{FIXED_SIZE, XsaveLayout};
use super::walk::Access;

pub(super) const STATE_X87: u64 = 1;
pub(super) const STATE_SSE: u64 = 1 << 1;
const STATE_AVX: u64 = 1 << 2;

/// The legacy region (SDM vol. 1, 13.4.1): x87 control, MXCSR and its mask, x87 registers, XMM registers.
const X87_CONTROL: (usize, usize) = (0, 24);
const X87_REGISTERS: (usize, usize) = (32, 128);
const XMM: (usize, usize) = (160, 256);
/// MXCSR, followed by its mask.
pub(super) const MXCSR: usize = 24;
const MXCSR_AND_MASK: usize = 8;
/// What MXCSR is after reset.
pub(super) const MXCSR_DEFAULT: u32 = 0x1f80;
/// Upper halves of the instruction and data pointers, which the forms without REX.W use for selectors.
const POINTER_TOPS: [(usize, usize); 2] = [(12, 4), (20, 4)];

/// The header (SDM vol. 1, 13.4.2): XSTATE_BV, XCOMP_BV, and 48 bytes of zeros.
const HEADER: usize = 512;
const HEADER_SIZE: usize = 64;
const COMPACTED: u64 = 1 << 63;

/// Which instruction saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// XSAVE.
    Standard,
    /// XSAVEOPT: leaves out initial state.
    Optimized,
    /// XSAVEC: leaves out initial state, compacts.
    Compacted,
    /// XSAVES: as XSAVEC, and supervisor state.
    Supervisor,
}

/// XSAVE, XSAVEOPT, XSAVEC, XSAVES; `wide` is REX.W.
pub(super) fn save(exec: &mut Exec, instruction: &Instruction, form: Form, wide: bool) -> Result<(), Stop> {
    available(exec)?;
    let (base, stack) = operand(exec, instruction)?;
    let requested = requested(exec, form == Form::Supervisor)?;
    let layout = exec.cpu.layout();
    exec.cpu.load_xsave().state("extended state")?;
    let paging = *exec.paging()?;
    let mut area = Area::new(exec.ram, &paging, base, Access::Write).on_stack(stack);
    let buffer = &*exec.cpu.xsave_buffer();
    let used = in_use(buffer);
    let compacted = matches!(form, Form::Compacted | Form::Supervisor);
    let saved = if form == Form::Standard { requested } else { requested & used };
    // The compacting forms treat MXCSR as part of SSE; to the others it belongs to AVX as well.
    let mxcsr = if compacted { saved & STATE_SSE } else { requested & (STATE_SSE | STATE_AVX) };
    let copy =
        Copying { layout, components: saved, compacted: compacted.then_some(requested | COMPACTED), mxcsr: mxcsr != 0 };
    copy.pieces(|piece| area.touch(piece.area, piece.len))?;
    area.touch(HEADER, 16)?;

    copy.pieces(|piece| {
        // A processor has no component that the buffer has no room for; a guest gets zeros rather than a panic.
        area.write(piece.area, buffer.get(piece.buffer..piece.buffer + piece.len).unwrap_or(&[]))
    })?;
    if saved & STATE_X87 != 0 && !wide {
        for (at, len) in POINTER_TOPS {
            area.write(at, &[0; 4][..len])?;
        }
    }
    if compacted {
        area.write(HEADER, &saved.to_le_bytes())?;
        area.write(HEADER + 8, &(requested | COMPACTED).to_le_bytes())
    } else {
        let mut old = [0; 8];
        area.read(HEADER, &mut old)?;
        let present = u64::from_le_bytes(old) & !requested | used & requested;
        area.write(HEADER, &present.to_le_bytes())
    }
}

/// XRSTOR and, with `supervisor`, XRSTORS; `wide` is REX.W.
pub(super) fn restore(exec: &mut Exec, instruction: &Instruction, supervisor: bool, wide: bool) -> Result<(), Stop> {
    available(exec)?;
    let (base, stack) = operand(exec, instruction)?;
    let paging = *exec.paging()?;
    let mut area = Area::new(exec.ram, &paging, base, Access::Read).on_stack(stack);
    let mut header = [0; HEADER_SIZE];
    area.touch(HEADER, header.len())?;
    area.read(HEADER, &mut header)?;
    let enabled = enabled(exec, supervisor)?;
    let header = Header::check(&header, enabled, supervisor)?;

    let requested = enabled & exec.edx_eax();
    let loaded = requested & header.present;
    let layout = exec.cpu.layout();
    if loaded & !layout.user != 0 {
        return Err(CompleteError::SupervisorState { components: loaded & !layout.user }.into());
    }
    let sets_mxcsr = match header.compacted {
        Some(_) => requested & STATE_SSE,
        None => requested & (STATE_SSE | STATE_AVX),
    } != 0;
    let from_area = sets_mxcsr && (header.compacted.is_none() || loaded & STATE_SSE != 0);
    let copy = Copying { layout, components: loaded, compacted: header.compacted, mxcsr: from_area };
    copy.pieces(|piece| area.touch(piece.area, piece.len))?;
    let mxcsr = if from_area { Some(read_mxcsr(&area, layout)?) } else { sets_mxcsr.then_some(MXCSR_DEFAULT) };

    let kept = if requested & layout.user == layout.user {
        // Everything is replaced, which saves asking for what there is.
        reset_fixed_part(exec.cpu.xsave_buffer(), layout.mxcsr_mask);
        0
    } else {
        in_use(exec.cpu.load_xsave().state("extended state")?) & !requested
    };
    let buffer = exec.cpu.xsave_buffer();
    copy.pieces(|piece| match buffer.get_mut(piece.buffer..piece.buffer + piece.len) {
        Some(part) => area.read(piece.area, part),
        None => Ok(()),
    })?;
    if loaded & STATE_X87 != 0 && !wide {
        for (at, len) in POINTER_TOPS {
            buffer[at..at + len].fill(0);
        }
    }
    if let Some(mxcsr) = mxcsr {
        // Once more after the copy: the guest may have changed its area since the check.
        buffer[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    }
    buffer[MXCSR + 4..MXCSR + 8].copy_from_slice(&layout.mxcsr_mask.to_le_bytes());
    buffer[HEADER..HEADER + HEADER_SIZE].fill(0);
    buffer[HEADER..HEADER + 8].copy_from_slice(&(kept | loaded).to_le_bytes());
    keep_mxcsr(buffer);
    exec.cpu.store_xsave().state("extended state")?;
    Ok(())
}

/// Components in use (XINUSE). MXCSR counts as SSE where it is not at its initial value (SDM vol. 1, 13.6).
pub(super) fn in_use(buffer: &[u8]) -> u64 {
    let listed = int(buffer, HEADER);
    let mxcsr = int(buffer, MXCSR) as u32;
    if mxcsr == MXCSR_DEFAULT { listed } else { listed | STATE_SSE }
}

/// Lists components in the buffer's XSTATE_BV.
pub(super) fn add_components(buffer: &mut [u8], components: u64) {
    let listed = int(buffer, HEADER) | components;
    buffer[HEADER..HEADER + 8].copy_from_slice(&listed.to_le_bytes());
}

/// KVM takes MXCSR only together with SSE or AVX state, and may lose it without SSE: list SSE, with zeros, for its sake.
fn keep_mxcsr(buffer: &mut [u8]) {
    if int(buffer, HEADER) & STATE_SSE == 0 && int(buffer, MXCSR) as u32 != MXCSR_DEFAULT {
        buffer[XMM.0..XMM.0 + XMM.1].fill(0);
        add_components(buffer, STATE_SSE);
    }
}

/// The legacy region and header of a vCPU in its initial state.
fn reset_fixed_part(buffer: &mut [u8], mxcsr_mask: u32) {
    buffer[..FIXED_SIZE].fill(0);
    buffer[MXCSR..MXCSR + 4].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
    buffer[MXCSR + 4..MXCSR + 8].copy_from_slice(&mxcsr_mask.to_le_bytes());
}

fn read_mxcsr(area: &Area, layout: &XsaveLayout) -> Result<u32, Stop> {
    let mut bytes = [0; 4];
    area.read(MXCSR, &mut bytes)?;
    let mxcsr = u32::from_le_bytes(bytes);
    if mxcsr & !layout.mxcsr_mask != 0 {
        return Err(Fault::Protection.into());
    }
    Ok(mxcsr)
}

fn available(exec: &Exec) -> Result<(), Stop> {
    if exec.sregs.cr4 & flags::CR4_OSXSAVE == 0 {
        return Err(Fault::Undefined.into());
    }
    if exec.sregs.cr0 & flags::CR0_TS != 0 {
        return Err(Fault::NoDevice.into());
    }
    Ok(())
}

/// The area's linear address, a multiple of 64 or #GP, and whether it is addressed through SS.
fn operand(exec: &Exec, instruction: &Instruction) -> Result<(u64, bool), Stop> {
    let base = exec.memory(instruction, 0, Access::Peek)?.base();
    if base & 63 != 0 {
        return Err(Fault::Protection.into());
    }
    Ok((base, instruction.memory_segment() == Register::SS))
}

/// XCR0, and IA32_XSS for the supervisor forms. Where the processor has no supervisor state IA32_XSS is 0, unasked.
fn enabled(exec: &mut Exec, supervisor: bool) -> Result<u64, Stop> {
    let xcr0 = exec.cpu.xcr0().state("XCR0")?;
    if supervisor && exec.cpu.layout().supervisor != 0 {
        return Ok(xcr0 | exec.cpu.xss().state("IA32_XSS")?);
    }
    Ok(xcr0)
}

/// The requested-feature bitmap.
fn requested(exec: &mut Exec, supervisor: bool) -> Result<u64, Stop> {
    Ok(enabled(exec, supervisor)? & exec.edx_eax())
}

/// A header that XRSTOR takes.
struct Header {
    /// XSTATE_BV.
    present: u64,
    /// XCOMP_BV, if the area is compacted.
    compacted: Option<u64>,
}

impl Header {
    /// The checks of SDM vol. 1, 13.8.1 and 13.12.
    fn check(raw: &[u8; HEADER_SIZE], enabled: u64, supervisor: bool) -> Result<Header, Stop> {
        let present = int(raw, 0);
        let layout = int(raw, 8);
        let compacted = layout & COMPACTED != 0;
        let valid = if compacted {
            let components = layout & !COMPACTED;
            components & !enabled == 0 && present & !components == 0 && raw[16..].iter().all(|b| *b == 0)
        } else {
            !supervisor && present & !enabled == 0 && raw[8..24].iter().all(|b| *b == 0)
        };
        if !valid {
            return Err(Fault::Protection.into());
        }
        Ok(Header { present, compacted: compacted.then_some(layout) })
    }
}

/// What is copied between the guest's area and the buffer.
struct Copying<'a> {
    layout: &'a XsaveLayout,
    components: u64,
    /// XCOMP_BV of the area if it is compacted.
    compacted: Option<u64>,
    /// Whether MXCSR and its mask are copied too.
    mxcsr: bool,
}

/// One stretch of bytes.
struct Piece {
    area: usize,
    buffer: usize,
    len: usize,
}

impl Copying<'_> {
    fn pieces(&self, mut each: impl FnMut(Piece) -> Result<(), Stop>) -> Result<(), Stop> {
        let legacy = [
            (self.components & STATE_X87 != 0, X87_CONTROL),
            (self.mxcsr, (MXCSR, MXCSR_AND_MASK)),
            (self.components & STATE_X87 != 0, X87_REGISTERS),
            (self.components & STATE_SSE != 0, XMM),
        ];
        for (wanted, (at, len)) in legacy {
            if wanted {
                each(Piece { area: at, buffer: at, len })?;
            }
        }
        for place in self.layout.places(self.components & self.layout.user, self.compacted) {
            each(Piece { area: place.area, buffer: place.standard, len: place.size })?;
        }
        Ok(())
    }
}

fn int(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
