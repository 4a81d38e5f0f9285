//! The XSAVE family.

use super::*;

const XSAVE: &[u8] = &[0x0f, 0xae, 0x27];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x27];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x37];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x27];
const XSAVES64: &[u8] = &[0x48, 0x0f, 0xc7, 0x2f];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2f];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2f];
const XRSTORS64: &[u8] = &[0x48, 0x0f, 0xc7, 0x1f];

const COMPACTED: u64 = 1 << 63;
const STATE_SIZE: usize = 2432;

impl Guest {
    /// A vCPU all of whose components are in use and full of distinct bytes, with EDX:EAX all ones.
    fn busy() -> Guest {
        let mut guest = Guest::new();
        for (i, byte) in guest.cpu.state[..STATE_SIZE].iter_mut().enumerate() {
            *byte = (i % 251) as u8 | 1;
        }
        guest.cpu.state[24..32].copy_from_slice(&0x0000_ffff_0000_1fa0_u64.to_le_bytes());
        guest.cpu.state[416..576].fill(0);
        guest.cpu.state[512..520].copy_from_slice(&0xe7_u64.to_le_bytes());
        guest.request(u64::MAX);
        guest
    }

    fn request(&mut self, components: u64) {
        self.cpu.regs.rax = components & 0xffff_ffff;
        self.cpu.regs.rdx = components >> 32;
    }

    fn area(&self) -> Vec<u8> {
        self.bytes(DATA, 4096)
    }

    fn clear_area(&self, byte: u8) {
        self.ram.write_slice(&[byte; 4096], GuestAddress(DATA)).unwrap();
    }

    /// Makes the vCPU's extended state initial.
    fn forget(&mut self) {
        self.cpu.state = initial_state();
        self.cpu.buffer.fill(0xa5);
    }
}

#[test]
fn each_pair_carries_the_state_there_and_back() {
    for (save, restore) in [
        (XSAVE64, XRSTOR64),
        (XSAVEOPT64, XRSTOR64),
        (XSAVEC64, XRSTOR64),
        (XSAVEC64, XRSTORS64),
        (XSAVES64, XRSTORS64),
    ] {
        for components in [u64::MAX, 0xe7, 7, 3, 1, 2, 4, 0x60, 0x82] {
            let mut guest = Guest::busy();
            let before = guest.cpu.state.clone();
            guest.request(components);
            guest.executes(save);
            guest.forget();
            guest.executes(restore);
            let after = &guest.cpu.state;
            let requested = components & 0xe7;
            let sse = requested & 2 != 0;
            // MXCSR is in use, so it comes back wherever the instructions carry it, and brings SSE with it.
            let mxcsr = sse || save != XSAVEC64 && save != XSAVES64 && requested & 4 != 0;
            let expected = requested | if mxcsr { 2 } else { 0 };
            assert_eq!(int(after, 512), expected, "{save:x?} {components:x}");
            assert_eq!(after[24..28] == before[24..28], mxcsr, "{save:x?} {components:x}");
            for (number, from, len) in
                [(0, 0, 24), (0, 32, 128), (1, 160, 256), (2, 576, 256), (5, 832, 64), (6, 896, 512), (7, 1408, 1024)]
            {
                let same = after[from..from + len] == before[from..from + len];
                assert_eq!(same, requested & 1 << number != 0, "{save:x?} {components:x}: component {number}");
            }
        }
    }
}

#[test]
fn xsave_writes_only_what_is_asked() {
    let mut guest = Guest::busy();
    guest.clear_area(0xee);
    guest.poke(DATA + 512, 0xffff_ffff_ffff_ff00 | 0x80);
    guest.request(0x21);
    guest.executes(XSAVE64);
    let area = guest.area();
    // Bits that were not asked for stay in XSTATE_BV; XCOMP_BV is not touched.
    assert_eq!(int(&area, 512), 0xffff_ffff_ffff_ffa1);
    assert_eq!(int(&area, 520), 0xeeee_eeee_eeee_eeee);
    assert_eq!(area[..24], guest.cpu.state[..24]);
    assert_eq!(area[24..32], [0xee; 8]);
    assert_eq!(area[160..416], [0xee; 256]);
    assert_eq!(area[576..832], [0xee; 256]);
    assert_eq!(area[832..896], guest.cpu.state[832..896]);
    assert_eq!(area[896..], [0xee; 4096 - 896]);
}

#[test]
fn xsave_writes_initial_state_and_xsaveopt_does_not() {
    let mut guest = Guest::busy();
    guest.forget();
    guest.clear_area(0xee);
    guest.poke(DATA + 512, 0);
    guest.executes(XSAVEOPT64);
    let area = guest.area();
    assert_eq!(int(&area, 512), 0);
    assert_eq!(area[32..160], [0xee; 128]);
    // MXCSR is written by request alone.
    assert_eq!(int(&area, 24), 0x0000_ffff_0000_1f80);
    guest.executes(XSAVE64);
    let area = guest.area();
    assert_eq!((int(&area, 512), int(&area, 0)), (0, 0x37f));
    assert_eq!(area[576..832], [0; 256]);
}

#[test]
fn xsavec_packs() {
    let mut guest = Guest::busy();
    guest.clear_area(0xee);
    guest.request(0x60);
    guest.executes(XSAVEC64);
    let area = guest.area();
    assert_eq!((int(&area, 512), int(&area, 520)), (0x60, COMPACTED | 0x60));
    assert_eq!(area[528..576], [0xee; 48]);
    assert_eq!(area[576..640], guest.cpu.state[832..896]);
    assert_eq!(area[640..1152], guest.cpu.state[896..1408]);
    assert_eq!(area[1152], 0xee);
}

#[test]
fn xsaves_leaves_room_for_supervisor_state() {
    let mut guest = Guest::busy();
    guest.cpu.xss = 1 << 11;
    guest.request(1 << 11 | 4);
    guest.executes(XSAVES64);
    assert_eq!((guest.peek(DATA + 512), guest.peek(DATA + 520)), (4, COMPACTED | 1 << 11 | 4));
    guest.executes(XRSTORS64);
    // State that KVM cannot set ends the VM rather than being lost.
    guest.poke(DATA + 512, 1 << 11);
    assert!(matches!(guest.run(XRSTORS64), Err(CompleteError::SupervisorState { components: 0x800 })));
    // XSAVEC does not know of it.
    guest.executes(XSAVEC64);
    assert_eq!(guest.peek(DATA + 520), COMPACTED | 4);
}

#[test]
fn forms_without_rex_w_have_no_upper_pointer_halves() {
    let mut guest = Guest::busy();
    guest.request(1);
    guest.executes(XSAVE);
    let area = guest.area();
    assert_eq!(area[8..12], guest.cpu.state[8..12]);
    assert_eq!((&area[12..16], &area[20..24]), (&[0; 4][..], &[0; 4][..]));
    guest.poke(DATA + 8, u64::MAX);
    guest.executes(XRSTOR);
    assert_eq!(int(&guest.cpu.state, 8), 0xffff_ffff);
}

#[test]
fn xrstor_keeps_what_is_not_requested_and_resets_what_is_not_there() {
    let mut guest = Guest::busy();
    let before = guest.cpu.state.clone();
    guest.request(5);
    guest.executes(XRSTOR64);
    let state = &guest.cpu.state;
    // The area was all zeros: x87 and AVX are reset. XRSTOR of AVX in the standard form loads MXCSR, here 0.
    assert_eq!(int(state, 512), 0xe2);
    assert_eq!(int(state, 24) as u32, 0);
    assert_eq!(state[160..416], before[160..416]);
    assert_eq!(state[896..1408], before[896..1408]);
    assert_eq!(int(state, 0), 0x37f);
    assert_eq!(state[576..832], [0; 256]);
}

#[test]
fn xrstor_compacted_resets_mxcsr_with_sse() {
    let mut guest = Guest::busy();
    guest.poke(DATA + 520, COMPACTED | 7);
    guest.poke(DATA + 24, u64::MAX);
    guest.executes(XRSTORS64);
    assert_eq!(int(&guest.cpu.state, 24) as u32, 0x1f80);
    assert_eq!(int(&guest.cpu.state, 512), 0);
}

#[test]
fn bad_headers_are_general_protection() {
    // XSTATE_BV, XCOMP_BV, third word, last word; which instructions refuse.
    let cases = [
        (1 << 8, 0, 0, 0, true),
        (0, 1, 0, 0, true),
        (0, 0, 1, 0, true),
        (0, 0, 0, 1, false),
        (0, COMPACTED | 1 << 8, 0, 0, true),
        (4, COMPACTED | 3, 0, 0, true),
        (0, COMPACTED | 3, 1, 0, true),
        (0, COMPACTED | 3, 0, 1, true),
        (3, COMPACTED | 7, 0, 0, false),
        (COMPACTED, COMPACTED, 0, 0, true),
    ];
    for (present, layout, third, last, refused) in cases {
        let mut guest = Guest::busy();
        for (at, value) in [(512, present), (520, layout), (528, third), (568, last)] {
            guest.poke(DATA + at, value);
        }
        if refused {
            guest.faults(XRSTOR64, VECTOR_GP, Some(0));
        } else {
            guest.executes(XRSTOR64);
        }
    }
    // XRSTORS takes the compacted form alone.
    Guest::busy().faults(XRSTORS64, VECTOR_GP, Some(0));
}

#[test]
fn bad_mxcsr_and_alignment_are_general_protection() {
    let mut guest = Guest::busy();
    guest.poke(DATA + 24, 0x8000_0000);
    guest.faults(XRSTOR64, VECTOR_GP, Some(0));
    // Not asked for, not looked at.
    guest.request(1);
    guest.executes(XRSTOR64);
    for code in [XSAVE64, XSAVEOPT64, XSAVEC64, XSAVES64, XRSTOR64, XRSTORS64] {
        let mut guest = Guest::busy();
        guest.cpu.regs.rdi = DATA + 32;
        guest.faults(code, VECTOR_GP, Some(0));
        guest.cpu.regs.rdi = 0x8000_0000_0000_0000;
        guest.faults(code, VECTOR_GP, Some(0));
    }
    // XSAVE through RSP: #SS.
    let mut guest = Guest::busy();
    guest.cpu.regs.rsp = 0x8000_0000_0000_0000;
    guest.faults(&[0x48, 0x0f, 0xae, 0x24, 0x24], VECTOR_SS, Some(0));
}

#[test]
fn task_switched_and_osxsave_come_first() {
    for code in [XSAVE64, XSAVEOPT64, XSAVEC64, XSAVES64, XRSTOR64, XRSTORS64] {
        let mut guest = Guest::busy();
        guest.map(DATA, 0);
        guest.cpu.sregs.cr0 |= flags::CR0_TS;
        guest.faults(code, VECTOR_NM, None);
        guest.cpu.sregs.cr4 &= !flags::CR4_OSXSAVE;
        guest.faults(code, VECTOR_UD, None);
    }
}

#[test]
fn a_fault_on_a_later_page_changes_nothing() {
    for code in [XSAVE64, XSAVEOPT64, XSAVEC64, XSAVES64] {
        let mut guest = Guest::busy();
        let base = DATA + 0x1000 - 1024;
        guest.cpu.regs.rdi = base;
        // As a signal frame finds it: a page that is shared until it is written.
        guest.map(DATA + 0x1000, (DATA + 0x1000) | PRESENT | USER);
        guest.faults(code, VECTOR_PF, Some(3));
        assert_eq!(guest.cpu.sregs.cr2, DATA + 0x1000);
        assert_eq!(guest.bytes(base, 1024), [0; 1024]);
        // The guest maps it, and the same instruction goes through.
        guest.map(DATA + 0x1000, (DATA + 0x1000) | PRESENT | USER | WRITABLE);
        guest.executes(code);
        assert_eq!(guest.bytes(base, 24), guest.cpu.state[..24]);
    }
    let mut guest = Guest::busy();
    guest.cpu.regs.rdi = DATA + 0x1000 - 1024;
    guest.executes(XSAVE64);
    guest.forget();
    guest.map(DATA + 0x1000, 0);
    guest.faults(XRSTOR64, VECTOR_PF, Some(0));
    assert_eq!(guest.cpu.sregs.cr2, DATA + 0x1000);
    // What is on the missing page is not asked for.
    guest.request(3);
    guest.executes(XRSTOR64);
}
