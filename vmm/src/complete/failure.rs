//! The report on a vCPU that cannot go on: instruction, registers, backtrace without symbols.
//!
//! For the human who reads the error: nothing here fails. What cannot be had is said to be missing.

use std::fmt::{self, Write};

use devices::GuestRam;
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::exec::{self, MAX_INSTRUCTION};
use super::state::VcpuState;
use super::walk::Paging;

/// Frames followed through RBP.
const MAX_FRAMES: usize = 24;
/// A frame's caller is at most this many bytes further up the stack.
const MAX_FRAME_BYTES: u64 = 64 * 1024;
/// Words of the stack that are looked at for return addresses, and how many are shown.
const MAX_STACK_WORDS: usize = 256;
const MAX_CANDIDATES: usize = 24;
/// Where Linux has its own text, and its modules behind it (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_TEXT: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_ff00_0000;

/// Several lines on where the vCPU is. `bytes` are those of the instruction if KVM told them.
pub fn describe_failure(cpu: &mut dyn VcpuState, ram: &GuestRam, bytes: Option<&[u8]>) -> String {
    let mut report = String::new();
    // Writing to a String cannot fail.
    let _ = describe(&mut report, cpu, ram, bytes);
    report
}

fn describe(out: &mut String, cpu: &mut dyn VcpuState, ram: &GuestRam, bytes: Option<&[u8]>) -> fmt::Result {
    let (regs, sregs) = match (cpu.regs(), cpu.sregs()) {
        (Ok(regs), Ok(sregs)) => (regs, sregs),
        (Err(e), _) | (_, Err(e)) => return write!(out, "  registers: not available: {e}"),
    };
    let paging = Paging::new(&regs, &sregs);
    let mut buffer = [0; MAX_INSTRUCTION];
    let bytes = match (bytes, &paging) {
        (Some(given), _) => given,
        (None, Some(paging)) => exec::fetch(ram, paging, regs.rip, &mut buffer),
        (None, None) => &[],
    };
    instruction(out, bytes, regs.rip)?;
    registers(out, &regs, &sregs)?;
    match &paging {
        Some(paging) => backtrace(out, ram, paging, &regs),
        None => write!(out, "  backtrace: none, the vCPU is not in long mode"),
    }
}

fn instruction(out: &mut String, bytes: &[u8], rip: u64) -> fmt::Result {
    match exec::decode(bytes, rip) {
        Ok(instruction) => {
            let len = instruction.len().min(bytes.len());
            writeln!(out, "  instruction: {} ({:02x?})", exec::format(&instruction), &bytes[..len])
        }
        Err(_) if bytes.is_empty() => writeln!(out, "  instruction: cannot be read"),
        Err(_) => writeln!(out, "  instruction: not decodable ({bytes:02x?})"),
    }
}

fn registers(out: &mut String, r: &kvm_regs, s: &kvm_sregs) -> fmt::Result {
    let rows: [[(&str, u64); 4]; 6] = [
        [("rip", r.rip), ("rsp", r.rsp), ("rbp", r.rbp), ("rflags", r.rflags)],
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        [("rsi", r.rsi), ("rdi", r.rdi), ("r8", r.r8), ("r9", r.r9)],
        [("r10", r.r10), ("r11", r.r11), ("r12", r.r12), ("r13", r.r13)],
        [("r14", r.r14), ("r15", r.r15), ("fs", s.fs.base), ("gs", s.gs.base)],
        [("cr0", s.cr0), ("cr2", s.cr2), ("cr3", s.cr3), ("cr4", s.cr4)],
    ];
    for row in rows {
        for (name, value) in row {
            write!(out, "  {name:>6} {value:016x}")?;
        }
        writeln!(out)?;
    }
    let (cs, ss) = (&s.cs, &s.ss);
    writeln!(
        out,
        "    efer {:x}  cs {:04x} (ring {}, {} bit)  ss {:04x}  gdt {:x}+{:x}  idt {:x}+{:x}",
        s.efer,
        cs.selector,
        ss.dpl,
        match (cs.l, cs.db) {
            (0, 0) => 16,
            (0, _) => 32,
            _ => 64,
        },
        ss.selector,
        s.gdt.base,
        s.gdt.limit,
        s.idt.base,
        s.idt.limit
    )
}

fn backtrace(out: &mut String, ram: &GuestRam, paging: &Paging, regs: &kvm_regs) -> fmt::Result {
    write!(out, "  backtrace (frames):")?;
    let mut frame = regs.rbp;
    for _ in 0..MAX_FRAMES {
        let (Some(next), Some(caller)) = (word(ram, paging, frame), word(ram, paging, frame.wrapping_add(8))) else {
            break;
        };
        if caller == 0 || !paging.is_canonical(caller) {
            break;
        }
        write!(out, " {caller:x}")?;
        let step = next.wrapping_sub(frame);
        if !(16..=MAX_FRAME_BYTES).contains(&step) {
            break;
        }
        frame = next;
    }
    write!(out, "\n  stack words in kernel text:")?;
    let words = (0..MAX_STACK_WORDS as u64).map_while(|i| word(ram, paging, regs.rsp.wrapping_add(i * 8)));
    for candidate in words.filter(|word| KERNEL_TEXT.contains(word)).take(MAX_CANDIDATES) {
        write!(out, " {candidate:x}")?;
    }
    Ok(())
}

fn word(ram: &GuestRam, paging: &Paging, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (exec::fetch(ram, paging, address, &mut bytes).len() == 8).then(|| u64::from_le_bytes(bytes))
}
