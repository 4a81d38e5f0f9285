//! The completer without KVM: a vCPU made of plain values and a small guest with page tables.

mod fpu;
mod fuzz;
mod integer;
mod kvm_guest;
mod walker;
mod xsave;

use std::io;
use std::sync::OnceLock;

use devices::GuestRam;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events};
use vm_memory::{Bytes, GuestAddress};

use super::{CompleteError, Completion, Component, VcpuState, XsaveLayout, complete, describe_failure, flags};

/// Where the guest's things are, physically; all of it is mapped 1:1 as supervisor pages of 4 KiB.
const RAM_SIZE: usize = 1 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const STACK: u64 = 0x9000;
/// Data: three pages, all rewritable by tests.
const DATA: u64 = 0x10000;
const DATA_END: u64 = 0x13000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

const VECTOR_BP: u8 = 3;
const VECTOR_UD: u8 = 6;
const VECTOR_NM: u8 = 7;
const VECTOR_SS: u8 = 12;
const VECTOR_GP: u8 = 13;
const VECTOR_PF: u8 = 14;
const VECTOR_MF: u8 = 16;

/// A processor with AVX, AVX-512 and one supervisor component (number 11).
fn layout() -> &'static XsaveLayout {
    static LAYOUT: OnceLock<XsaveLayout> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let mut components = [Component::default(); 63];
        components[2] = Component { offset: 576, size: 256, aligned: false };
        components[5] = Component { offset: 832, size: 64, aligned: false };
        components[6] = Component { offset: 896, size: 512, aligned: true };
        components[7] = Component { offset: 1408, size: 1024, aligned: true };
        components[11] = Component { offset: 0, size: 16, aligned: false };
        XsaveLayout { components, user: 0xe7, supervisor: 1 << 11, mxcsr_mask: 0xffff }
    })
}

/// A vCPU whose registers are fields.
struct FakeCpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
    xcr0: u64,
    xss: u64,
    /// What the vCPU has, and what was last loaded or is to be stored.
    state: Vec<u8>,
    buffer: Vec<u8>,
}

impl VcpuState for FakeCpu {
    fn regs(&mut self) -> io::Result<kvm_regs> {
        Ok(self.regs)
    }
    fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()> {
        self.regs = *regs;
        Ok(())
    }
    fn sregs(&mut self) -> io::Result<kvm_sregs> {
        Ok(self.sregs)
    }
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()> {
        self.sregs = *sregs;
        Ok(())
    }
    fn events(&mut self) -> io::Result<kvm_vcpu_events> {
        Ok(self.events)
    }
    fn set_events(&mut self, events: &kvm_vcpu_events) -> io::Result<()> {
        self.events = *events;
        Ok(())
    }
    fn xcr0(&mut self) -> io::Result<u64> {
        Ok(self.xcr0)
    }
    fn xss(&mut self) -> io::Result<u64> {
        Ok(self.xss)
    }
    fn load_xsave(&mut self) -> io::Result<&mut [u8]> {
        self.buffer.copy_from_slice(&self.state);
        Ok(&mut self.buffer)
    }
    fn xsave_buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
    /// As KVM does it: takes only listed components, gives the others their initial values, refuses a bad header.
    fn store_xsave(&mut self) -> io::Result<()> {
        let new = &self.buffer;
        let present = int(new, 512);
        let mxcsr = int(new, 24) as u32;
        let bad_header = new[520..576].iter().any(|b| *b != 0) || present & !layout().user != 0;
        if bad_header || mxcsr & !layout().mxcsr_mask != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut state = initial_state();
        let mut take = |from: usize, len: usize| state[from..from + len].copy_from_slice(&new[from..from + len]);
        take(512, 8);
        if present & 1 != 0 {
            take(0, 24);
            take(32, 128);
        }
        if present & 2 != 0 {
            take(24, 4);
            take(160, 256);
        }
        for (number, component) in layout().components.iter().enumerate() {
            if present & 1 << number != 0 && component.size != 0 {
                take(component.offset as usize, component.size as usize);
            }
        }
        self.state = state;
        Ok(())
    }
    fn layout(&self) -> &'static XsaveLayout {
        layout()
    }
}

fn initial_state() -> Vec<u8> {
    let mut state = vec![0; 4096];
    state[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    state[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    state[28..32].copy_from_slice(&layout().mxcsr_mask.to_le_bytes());
    state
}

fn int(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A vCPU in ring 0 of 64-bit mode, RDI at the data, and its memory.
struct Guest {
    cpu: FakeCpu,
    ram: GuestRam,
}

impl Guest {
    fn new() -> Guest {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
        let segment = kvm_segment { present: 1, s: 1, g: 1, limit: u32::MAX, ..Default::default() };
        let sregs = kvm_sregs {
            cr0: 0x8005_0033,
            cr3: PML4,
            cr4: 1 << 5 | flags::CR4_OSFXSR | flags::CR4_OSXSAVE,
            efer: 0xd01,
            cs: kvm_segment { selector: 8, type_: 11, l: 1, ..segment },
            ss: kvm_segment { selector: 16, type_: 3, db: 1, ..segment },
            ..Default::default()
        };
        let regs = kvm_regs { rip: CODE, rsp: STACK, rdi: DATA, rflags: 2, ..Default::default() };
        let cpu = FakeCpu {
            regs,
            sregs,
            events: kvm_vcpu_events::default(),
            xcr0: 0xe7,
            xss: 0,
            state: initial_state(),
            buffer: vec![0; 4096],
        };
        let guest = Guest { cpu, ram };
        guest.poke(PML4, PDPT | PRESENT | WRITABLE | USER);
        guest.poke(PDPT, PD | PRESENT | WRITABLE | USER);
        guest.poke(PD, PT | PRESENT | WRITABLE | USER);
        for page in 0..(RAM_SIZE as u64 >> 12) {
            guest.poke(PT + page * 8, page << 12 | PRESENT | WRITABLE);
        }
        guest
    }

    fn poke(&self, address: u64, value: u64) {
        self.ram.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn peek(&self, address: u64) -> u64 {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }

    /// Changes the entry that maps the page of `address`.
    fn map(&self, address: u64, entry: u64) {
        self.poke(PT + (address >> 12) * 8, entry);
    }

    fn entry(&self, address: u64) -> u64 {
        self.peek(PT + (address >> 12) * 8)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn run(&mut self, code: &[u8]) -> Result<Completion, CompleteError> {
        complete(&mut self.cpu, &self.ram, Some(code))
    }

    /// Runs `code`, which must be done, with RIP behind it.
    #[track_caller]
    fn executes(&mut self, code: &[u8]) {
        let rip = self.cpu.regs.rip;
        assert_eq!(self.run(code).unwrap(), Completion::Executed);
        assert_eq!(self.cpu.regs.rip, rip + code.len() as u64);
        assert_eq!(self.cpu.events, kvm_vcpu_events::default());
    }

    /// Runs `code`, which must raise `vector` with `code` and change no register but CR2.
    #[track_caller]
    fn faults(&mut self, code: &[u8], vector: u8, error_code: Option<u32>) {
        let (regs, state) = (self.cpu.regs, self.cpu.state.clone());
        assert_eq!(self.run(code).unwrap(), Completion::Raised { vector });
        assert_eq!(self.cpu.regs, regs);
        assert!(self.cpu.state == state, "extended state changed");
        let exception = self.cpu.events.exception;
        assert_eq!((exception.injected, exception.nr), (1, vector));
        assert_eq!((exception.has_error_code != 0).then_some(exception.error_code), error_code);
        self.cpu.events = kvm_vcpu_events::default();
    }
}

#[test]
fn int3_traps_behind_itself() {
    let mut guest = Guest::new();
    // What an older KVM has queued for the instruction that it did not know.
    guest.cpu.events.exception.injected = 1;
    guest.cpu.events.exception.nr = VECTOR_UD;
    assert_eq!(guest.run(&[0xcc]).unwrap(), Completion::Raised { vector: VECTOR_BP });
    assert_eq!(guest.cpu.regs.rip, CODE + 1);
    let exception = guest.cpu.events.exception;
    assert_eq!((exception.injected, exception.nr, exception.has_error_code), (1, VECTOR_BP, 0));
}

#[test]
fn what_is_undefined_is_undefined() {
    for code in [&[0x0f, 0x0b][..], &[0x0f, 0xb9, 0xc0], &[0x0f, 0xff, 0xc0]] {
        Guest::new().faults(code, VECTOR_UD, None);
    }
}

#[test]
fn ring_3_gets_undefined_opcode() {
    let mut guest = Guest::new();
    guest.cpu.sregs.cs.dpl = 3;
    guest.cpu.sregs.ss.dpl = 3;
    guest.faults(&[0x0f, 0x01, 0xca], VECTOR_UD, None);
}

#[test]
fn the_unknown_ends_the_vm_with_its_name() {
    let mut guest = Guest::new();
    let regs = guest.cpu.regs;
    let error = guest.run(&[0x66, 0x0f, 0xef, 0xc1]).unwrap_err();
    assert!(error.to_string().contains("pxor"), "{error}");
    let error = guest.run(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    // Given bytes that are no instruction, memory decides: there, zeros are an ADD.
    assert!(matches!(error, Err(CompleteError::Unsupported { .. })), "{error:?}");
    guest.ram.write_slice(&[0x0f, 0x3d], GuestAddress(CODE)).unwrap();
    assert!(matches!(guest.run(&[]), Err(CompleteError::Undecodable { rip: CODE, .. })));
    assert_eq!(guest.cpu.regs, regs);
}

#[test]
fn the_instruction_is_read_from_memory_where_kvm_is_silent() {
    let mut guest = Guest::new();
    // Across a page boundary, whose second half KVM's own fetch may have missed.
    guest.cpu.regs.rip = CODE + 0xffe;
    guest.ram.write_slice(&[0x0f, 0x01, 0xcb], GuestAddress(CODE + 0xffe)).unwrap();
    for given in [None, Some(&[0x0f, 0x01][..])] {
        guest.cpu.regs.rip = CODE + 0xffe;
        guest.cpu.regs.rflags = 2;
        assert_eq!(complete(&mut guest.cpu, &guest.ram, given).unwrap(), Completion::Executed);
        assert_eq!(guest.cpu.regs.rflags, 2 | flags::AC);
    }
    guest.cpu.regs.rip = CODE + 0xffe;
    guest.map(CODE + 0x1000, 0);
    assert!(matches!(complete(&mut guest.cpu, &guest.ram, None), Err(CompleteError::Fetch { .. })));
}

#[test]
fn only_64_bit_mode_is_completed() {
    let mut guest = Guest::new();
    guest.cpu.sregs.cs.l = 0;
    assert!(matches!(guest.run(&[0xcc]), Err(CompleteError::NotLongMode { .. })));
    guest.cpu.sregs.cs.l = 1;
    guest.cpu.sregs.cr0 &= !flags::CR0_PG;
    assert!(matches!(guest.run(&[0xcc]), Err(CompleteError::NotLongMode { .. })));
    let report = describe_failure(&mut guest.cpu, &guest.ram, None);
    assert!(report.contains("not in long mode"), "{report}");
}

#[test]
fn the_report_has_instruction_registers_and_backtrace() {
    let mut guest = Guest::new();
    guest.cpu.regs.rbp = STACK + 0x10;
    guest.poke(STACK + 0x10, STACK + 0x40);
    guest.poke(STACK + 0x18, 0xffff_ffff_8100_1234);
    guest.poke(STACK + 0x40, 0);
    guest.poke(STACK + 0x48, 0xffff_ffff_8100_5678);
    guest.poke(STACK + 0x58, 0xffff_ffff_8222_0000);
    let report = describe_failure(&mut guest.cpu, &guest.ram, Some(&[0x66, 0x0f, 0xef, 0xc1, 0x90]));
    assert!(report.contains("instruction: pxor %xmm1,%xmm0 ([66, 0f, ef, c1])"), "{report}");
    assert!(report.contains(&format!("rip {CODE:016x}")), "{report}");
    assert!(report.contains("(frames): ffffffff81001234 ffffffff81005678\n"), "{report}");
    assert!(report.contains("kernel text: ffffffff81001234 ffffffff81005678 ffffffff82220000"), "{report}");
}

#[test]
fn the_report_bears_a_stack_that_leads_nowhere() {
    let mut guest = Guest::new();
    // A frame that is its own caller, one that leaves memory, and addresses that wrap.
    for (rbp, rsp) in [(STACK, STACK), (0x7fff_0000_0000, 0), (u64::MAX, u64::MAX - 3), (1 << 63, 1 << 63)] {
        guest.poke(STACK, STACK);
        (guest.cpu.regs.rbp, guest.cpu.regs.rsp) = (rbp, rsp);
        let report = describe_failure(&mut guest.cpu, &guest.ram, None);
        assert!(report.lines().count() > 7, "{report}");
    }
}
