//! x87 control, MXCSR, XGETBV.

use super::*;

const FWAIT: [u8; 1] = [0x9b];
const FNCLEX: [u8; 2] = [0xdb, 0xe2];
const FNSTSW: [u8; 2] = [0xdf, 0xe0];
const EMMS: [u8; 2] = [0x0f, 0x77];
const FILD: [u8; 2] = [0xdb, 0x07];
const LDMXCSR: [u8; 3] = [0x0f, 0xae, 0x17];
const STMXCSR: [u8; 3] = [0x0f, 0xae, 0x1f];
const XGETBV: [u8; 3] = [0x0f, 0x01, 0xd0];

impl Guest {
    /// A vCPU that uses x87, with this status word.
    fn with_status(status: u16) -> Guest {
        let mut guest = Guest::new();
        guest.cpu.state[2..4].copy_from_slice(&status.to_le_bytes());
        guest.cpu.state[512] |= 1;
        guest
    }

    fn status(&self) -> u16 {
        u16::from_le_bytes([self.cpu.state[2], self.cpu.state[3]])
    }

    /// ST(0) as 80 bits.
    fn top(&self) -> u128 {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&self.cpu.state[32..42]);
        u128::from_le_bytes(bytes)
    }
}

#[test]
fn fwait_raises_what_is_pending() {
    Guest::with_status(0).executes(&FWAIT);
    Guest::with_status(0x81).faults(&FWAIT, VECTOR_MF, None);
    let mut guest = Guest::new();
    guest.cpu.sregs.cr0 |= flags::CR0_TS;
    guest.faults(&FWAIT, VECTOR_NM, None);
}

#[test]
fn fnclex_clears_exceptions_and_leaves_the_stack() {
    let mut guest = Guest::with_status(0xb8ff);
    guest.executes(&FNCLEX);
    assert_eq!(guest.status(), 0x3800);
}

#[test]
fn fnstsw_reads_the_status() {
    let mut guest = Guest::with_status(0x3881);
    guest.cpu.regs.rax = u64::MAX;
    guest.executes(&FNSTSW);
    assert_eq!(guest.cpu.regs.rax, 0xffff_ffff_ffff_3881);
}

#[test]
fn emms_empties_the_registers() {
    let mut guest = Guest::with_status(0);
    guest.cpu.state[4] = 0xff;
    guest.executes(&EMMS);
    assert_eq!(guest.cpu.state[4], 0);
    guest.cpu.sregs.cr0 |= flags::CR0_EM;
    guest.faults(&EMMS, VECTOR_UD, None);
    Guest::with_status(0x81).faults(&EMMS, VECTOR_MF, None);
}

#[test]
fn fild_pushes() {
    let mut guest = Guest::new();
    // 1 is 0x3fff:8000…, -6 is 0xc001:c000….
    for (value, expected) in [(1_i32, 0x3fff_8000_0000_0000_0000_u128), (-6, 0xc001_c000_0000_0000_0000), (0, 0)] {
        guest.poke(DATA, u64::from(value as u32));
        guest.executes(&FILD);
        assert_eq!(guest.top(), expected);
    }
    assert_eq!(guest.status() >> 11 & 7, 5);
    assert_eq!(guest.cpu.state[4], 0b1110_0000);
    // ST(2) is what came first.
    assert_eq!(guest.cpu.state[32 + 32 + 9], 0x3f);
}

#[test]
fn fild_on_a_full_stack_overflows() {
    let mut guest = Guest::with_status(0);
    guest.cpu.state[4] = 0xff;
    guest.executes(&FILD);
    assert_eq!(guest.top(), 0xffff_c000_0000_0000_0000);
    assert_eq!(guest.status() & 0x241, 0x241);
    // Unmasked: the stack stays and the exception waits.
    let mut guest = Guest::with_status(0);
    guest.cpu.state[4] = 0xff;
    guest.cpu.state[0] = 0x7e;
    guest.executes(&FILD);
    assert_eq!((guest.status(), guest.top()), (0x82c1, 0));
    guest.faults(&FILD, VECTOR_MF, None);
}

#[test]
fn mxcsr_is_loaded_and_stored() {
    let mut guest = Guest::new();
    guest.poke(DATA, 0x9fc0);
    guest.executes(&LDMXCSR);
    assert_eq!(int(&guest.cpu.state, 24) as u32, 0x9fc0);
    guest.poke(DATA, u64::MAX);
    guest.executes(&STMXCSR);
    assert_eq!(guest.peek(DATA), 0xffff_ffff_0000_9fc0);
    // Back to the default, with SSE state initial.
    guest.poke(DATA, 0x1f80);
    guest.executes(&LDMXCSR);
    assert_eq!(int(&guest.cpu.state, 24) as u32, 0x1f80);
}

#[test]
fn mxcsr_instructions_fault_where_they_must() {
    let mut guest = Guest::new();
    guest.poke(DATA, 0x1_0000);
    guest.faults(&LDMXCSR, VECTOR_GP, Some(0));
    guest.map(DATA, DATA | PRESENT);
    guest.faults(&STMXCSR, VECTOR_PF, Some(3));
    guest.cpu.sregs.cr0 |= flags::CR0_TS;
    guest.faults(&STMXCSR, VECTOR_NM, None);
    guest.cpu.sregs.cr4 &= !flags::CR4_OSFXSR;
    guest.faults(&LDMXCSR, VECTOR_UD, None);
}

#[test]
fn xgetbv_reads_xcr0_and_what_is_in_use() {
    let mut guest = Guest::new();
    guest.cpu.xcr0 = 0x1_0000_00e7;
    guest.cpu.regs.rcx = 0xffff_ffff_0000_0000;
    guest.executes(&XGETBV);
    assert_eq!((guest.cpu.regs.rax, guest.cpu.regs.rdx), (0xe7, 1));
    guest.cpu.state[512] = 0x5;
    guest.cpu.regs.rcx = 1;
    guest.executes(&XGETBV);
    assert_eq!((guest.cpu.regs.rax, guest.cpu.regs.rdx), (5, 0));
    guest.cpu.regs.rcx = 2;
    guest.faults(&XGETBV, VECTOR_GP, Some(0));
    guest.cpu.sregs.cr4 &= !flags::CR4_OSXSAVE;
    guest.faults(&XGETBV, VECTOR_UD, None);
}
