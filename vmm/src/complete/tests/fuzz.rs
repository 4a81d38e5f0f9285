//! Random instructions, registers and page tables: whatever happens, it is an answer.

use proptest::prelude::*;

use super::*;

/// Beginnings of what the completer knows, so that random bytes reach it.
const OPENINGS: [&[u8]; 14] = [
    &[],
    &[0x0f, 0xae],
    &[0x48, 0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x48, 0x0f, 0xc7],
    &[0xf0, 0x48, 0x0f, 0xc7],
    &[0xf3, 0x48, 0x0f, 0xb8],
    &[0xf2, 0x48, 0x0f, 0x38, 0xf1],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0xdb],
    &[0x65, 0x66],
];

/// Addresses that are near something.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..RAM_SIZE as u64),
        (DATA..DATA_END),
        (DATA >> 6..DATA_END >> 6).prop_map(|a| a << 6),
        (0..64_u64).prop_map(|back| u64::MAX - back),
        ((1_u64 << 47) - 64..(1 << 47) + 64),
    ]
}

fn flip(value: u64, bits: u64) -> u64 {
    value ^ bits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn never_panics(
        opening in prop::sample::select(&OPENINGS[..]),
        tail in prop::collection::vec(any::<u8>(), 0..15),
        given in any::<bool>(),
        registers in prop::array::uniform17(address()),
        system in (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()),
        tables in prop::collection::vec((0x1000..0x6000_u64, any::<u64>()), 0..6),
        data in prop::collection::vec(any::<u8>(), 0..600),
        extended in (any::<u64>(), any::<u64>(), any::<u64>()),
    ) {
        let mut guest = Guest::new();
        let mut code = [opening, &tail[..]].concat();
        code.truncate(15);
        let r = registers;
        guest.cpu.regs = kvm_regs {
            rax: r[0], rbx: r[1], rcx: r[2], rdx: r[3], rsi: r[4], rdi: r[5], rsp: r[6], rbp: r[7],
            r8: r[8], r9: r[9], r10: r[10], r11: r[11], r12: r[12], r13: r[13], r14: r[14], r15: r[16],
            rip: r[15], rflags: system.0,
        };
        if system.3 {
            // Few bits off the usual, so that most cases get past the first check.
            guest.cpu.sregs.cr0 = flip(guest.cpu.sregs.cr0, system.0 & system.1 & system.2);
            guest.cpu.sregs.cr4 = flip(guest.cpu.sregs.cr4, system.0 & system.1 & !system.2);
            guest.cpu.sregs.gs.base = system.2;
            guest.cpu.sregs.gdt.base = system.1;
            guest.cpu.sregs.gdt.limit = system.1 as u16;
        }
        guest.cpu.xcr0 = extended.0;
        guest.cpu.xss = extended.1;
        guest.cpu.state[512..520].copy_from_slice(&(extended.2 & 0xe7).to_le_bytes());
        for (at, value) in tables {
            guest.poke(at & !7, value);
        }
        guest.ram.write_slice(&data, GuestAddress(DATA + 0x40)).unwrap();
        if !given && guest.ram.write_slice(&code, GuestAddress(guest.cpu.regs.rip)).is_err() {
            guest.cpu.regs.rip = CODE;
        }
        let before = guest.cpu.regs;
        let given = given.then_some(&code[..]);
        match complete(&mut guest.cpu, &guest.ram, given) {
            Ok(Completion::Executed) => prop_assert_ne!(guest.cpu.regs.rip, before.rip),
            Ok(Completion::Raised { vector }) => prop_assert_eq!(guest.cpu.events.exception.nr, vector),
            // Failing KVM calls are the fake's rules on state, which the completer must never break.
            Err(CompleteError::State { what, source }) => prop_assert!(false, "{what}: {source}"),
            Err(_) => prop_assert_eq!(guest.cpu.regs, before),
        }
        prop_assert!(describe_failure(&mut guest.cpu, &guest.ram, given).len() > 100);
    }
}
