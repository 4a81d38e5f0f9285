//! One instruction in flight: the registers it works on, its operands, and how it ends.

use devices::GuestRam;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Formatter, GasFormatter, Instruction, OpKind, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::area::Area;
use super::error::{CompleteError, Fault, Naming, Stop};
use super::walk::{Access, Paging};
use super::{Completion, VcpuState, flags};

/// Bytes that an instruction may have (SDM vol. 2, 2.3.11).
pub(super) const MAX_INSTRUCTION: usize = 15;
const VECTOR_BREAKPOINT: u8 = 3;

/// The vCPU while an instruction is completed. `regs` is a copy: it becomes the vCPU's when the instruction retires.
pub(super) struct Exec<'a> {
    pub cpu: &'a mut dyn VcpuState,
    pub ram: &'a GuestRam,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    paging: Option<Paging>,
}

impl<'a> Exec<'a> {
    pub fn new(cpu: &'a mut dyn VcpuState, ram: &'a GuestRam) -> Result<Self, CompleteError> {
        let regs = cpu.regs().state("general registers")?;
        let sregs = cpu.sregs().state("system registers")?;
        let paging = Paging::new(&regs, &sregs).filter(|_| sregs.cs.l == 1);
        Ok(Exec { cpu, ram, regs, sregs, paging })
    }

    /// The privilege level: SS.DPL, as the processor keeps it.
    pub fn ring(&self) -> u8 {
        self.sregs.ss.dpl.max(self.sregs.cs.dpl) & 3
    }

    /// How addresses are translated.
    pub fn paging(&self) -> Result<&Paging, CompleteError> {
        self.paging.as_ref().ok_or(CompleteError::NotLongMode { rip: self.regs.rip })
    }

    /// Decodes what KVM gave, or what is at RIP.
    pub fn decode(&self, given: Option<&[u8]>) -> Result<Instruction, CompleteError> {
        let rip = self.regs.rip;
        let paging = self.paging()?;
        if let Some(instruction) = given.and_then(|bytes| decode(bytes, rip).ok()) {
            return Ok(instruction);
        }
        // KVM fetches only as far as its decoder got: what it gave may be cut short.
        let mut buffer = [0; MAX_INSTRUCTION];
        let bytes = fetch(self.ram, paging, rip, &mut buffer);
        match decode(bytes, rip) {
            Ok(instruction) => Ok(instruction),
            Err(DecoderError::NoMoreBytes) => Err(CompleteError::Fetch { rip }),
            Err(_) => Err(CompleteError::Undecodable { rip, bytes: bytes.to_vec() }),
        }
    }

    /// The instruction is done: RIP moves behind it, and the registers become the vCPU's.
    pub fn retire(&mut self, instruction: &Instruction) -> Result<Completion, CompleteError> {
        self.regs.rip = instruction.next_ip();
        self.regs.rflags &= !flags::RF;
        // This also takes back the #UD that KVM queues before such an exit if it was not told to leave that to us.
        self.cpu.set_regs(&self.regs).state("general registers")?;
        Ok(Completion::Executed)
    }

    /// Raises #BP behind the instruction.
    pub fn trap(&mut self, instruction: &Instruction) -> Result<Completion, CompleteError> {
        self.retire(instruction)?;
        self.inject(VECTOR_BREAKPOINT, None)
    }

    /// Raises a fault at the instruction.
    pub fn raise(&mut self, fault: Fault) -> Result<Completion, CompleteError> {
        if let Fault::Page { address, .. } = fault {
            self.sregs.cr2 = address;
            self.cpu.set_sregs(&self.sregs).state("CR2")?;
        }
        let (vector, code) = fault.vector();
        self.inject(vector, code)
    }

    fn inject(&mut self, vector: u8, code: Option<u32>) -> Result<Completion, CompleteError> {
        let mut events = self.cpu.events().state("events")?;
        // What may be queued already is KVM's own #UD for this very instruction.
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = code.is_some().into();
        events.exception.error_code = code.unwrap_or(0);
        events.exception.pending = 0;
        // Nothing but the exception and what has no flag of its own is to be set.
        events.flags = 0;
        self.cpu.set_events(&events).state("events")?;
        Ok(Completion::Raised { vector })
    }

    /// The error for what no table here has.
    pub fn unsupported(&self, instruction: &Instruction) -> CompleteError {
        CompleteError::Unsupported { instruction: format(instruction), rip: self.regs.rip }
    }

    /// Value of a general register of any width; 0 for others.
    pub fn register(&self, register: Register) -> u64 {
        let mut regs = self.regs;
        let Some(full) = slot(&mut regs, register) else {
            return 0;
        };
        match register {
            Register::AH | Register::BH | Register::CH | Register::DH => *full >> 8 & 0xff,
            _ => *full & low_bytes(register.size()),
        }
    }

    /// Writes a 16, 32 or 64-bit register as 64-bit mode does: 32 bits clear the upper half, 16 keep the rest.
    pub fn set_register(&mut self, register: Register, value: u64) {
        let size = register.size();
        if let Some(full) = slot(&mut self.regs, register) {
            let kept = if size == 4 { 0 } else { *full & !low_bytes(size) };
            *full = kept | value & low_bytes(size);
        }
    }

    /// EDX:EAX.
    pub fn edx_eax(&self) -> u64 {
        self.regs.rdx << 32 | self.regs.rax & low_bytes(4)
    }

    /// Sets the status flags among `which` to those of `value`.
    pub fn set_flags(&mut self, which: u64, value: u64) {
        self.regs.rflags = self.regs.rflags & !which | value;
    }

    /// The memory operand `operand`.
    pub fn memory(&self, instruction: &Instruction, operand: u32, access: Access) -> Result<Area<'_>, Stop> {
        let base = instruction.virtual_address(operand, 0, |register, _, _| {
            Some(match register {
                Register::FS => self.sregs.fs.base,
                Register::GS => self.sregs.gs.base,
                // The other segments have base 0 in 64-bit mode (SDM vol. 1, 3.4.4).
                Register::CS | Register::DS | Register::ES | Register::SS => 0,
                other => self.register(other),
            })
        });
        let base = base.ok_or_else(|| self.unsupported(instruction))?;
        let stack = instruction.memory_segment() == Register::SS;
        Ok(Area::new(self.ram, self.paging()?, base, access).on_stack(stack))
    }

    /// Reads an operand of up to 8 bytes from a general register or from memory.
    pub fn operand(&self, instruction: &Instruction, operand: u32) -> Result<u64, Stop> {
        match instruction.op_kind(operand) {
            OpKind::Register => Ok(self.register(instruction.op_register(operand))),
            OpKind::Memory => {
                let size = instruction.memory_size().size();
                self.memory(instruction, operand, Access::Read)?.read_int(0, size)
            }
            _ => Err(self.unsupported(instruction).into()),
        }
    }
}

/// The instruction as the GNU assembler writes it.
pub(super) fn format(instruction: &Instruction) -> String {
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    text
}

/// Decodes one instruction of 64-bit code.
pub(super) fn decode(bytes: &[u8], rip: u64) -> Result<Instruction, DecoderError> {
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        error => Err(error),
    }
}

/// Reads as much as there is at `rip`, up to the buffer's length, without leaving a trace.
pub(super) fn fetch<'b>(ram: &GuestRam, paging: &Paging, rip: u64, buffer: &'b mut [u8]) -> &'b [u8] {
    let mut done = 0;
    while done < buffer.len() {
        let address = rip.wrapping_add(done as u64);
        let Ok(physical) = paging.translate(ram, address, Access::Peek) else {
            break;
        };
        let len = (buffer.len() - done).min(4096 - (physical.0 & 4095) as usize);
        if ram.read_slice(&mut buffer[done..done + len], GuestAddress(physical.0)).is_err() {
            break;
        }
        done += len;
    }
    &buffer[..done]
}

fn low_bytes(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}

/// Where a general register of any width is kept.
fn slot(regs: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    Some(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RBX => &mut regs.rbx,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}
