//! POPCNT, CRC32, CMPXCHG16B, CLAC/STAC, CLWB, and the descriptor-table instructions.

use super::*;

const STATUS: u64 = flags::CF | flags::PF | flags::AF | flags::ZF | flags::SF | flags::OF;

#[test]
fn clac_and_stac_set_the_flag() {
    let mut guest = Guest::new();
    guest.executes(&[0x0f, 0x01, 0xcb]);
    assert_eq!(guest.cpu.regs.rflags, 2 | flags::AC);
    guest.cpu.regs.rflags |= flags::RF;
    guest.executes(&[0x0f, 0x01, 0xca]);
    assert_eq!(guest.cpu.regs.rflags, 2);
}

#[test]
fn popcnt_counts_by_operand_size() {
    let mut guest = Guest::new();
    // popcnt of CX, ECX, RCX into AX, EAX, RAX.
    let cases: [(&[u8], u64); 3] = [
        (&[0x66, 0xf3, 0x0f, 0xb8, 0xc1], 0xffff_ffff_ffff_0000 | 1),
        (&[0xf3, 0x0f, 0xb8, 0xc1], 17),
        (&[0xf3, 0x48, 0x0f, 0xb8, 0xc1], 18),
    ];
    for (code, expected) in cases {
        guest.cpu.regs.rax = u64::MAX;
        guest.cpu.regs.rcx = 0x8000_0000_ffff_8000;
        guest.cpu.regs.rflags = 2 | STATUS;
        guest.executes(code);
        assert_eq!(guest.cpu.regs.rax, expected);
        assert_eq!(guest.cpu.regs.rflags, 2);
    }
    guest.cpu.regs.rcx = 0;
    guest.executes(&[0xf3, 0x4c, 0x0f, 0xb8, 0xc9]);
    assert_eq!((guest.cpu.regs.r9, guest.cpu.regs.rflags), (0, 2 | flags::ZF));
}

#[test]
fn popcnt_reads_memory_across_pages_and_faults_on_the_second() {
    let mut guest = Guest::new();
    let code = [0xf3, 0x48, 0x0f, 0xb8, 0x07];
    guest.cpu.regs.rdi = DATA + 0xffc;
    guest.poke(DATA + 0xffc, 0x0101_0101_0101_0101);
    guest.executes(&code);
    assert_eq!(guest.cpu.regs.rax, 8);
    guest.map(DATA + 0x1000, 0);
    guest.faults(&code, VECTOR_PF, Some(0));
    assert_eq!(guest.cpu.sregs.cr2, DATA + 0x1000);
}

#[test]
fn addresses_have_segment_bases_scale_and_rip() {
    let mut guest = Guest::new();
    guest.poke(DATA + 0x128, 0xff);
    guest.cpu.sregs.gs.base = DATA;
    (guest.cpu.regs.rdi, guest.cpu.regs.rcx) = (0x20, 0x40);
    // popcnt %gs:8(%rdi,%rcx,4)
    guest.executes(&[0xf3, 0x65, 0x48, 0x0f, 0xb8, 0x44, 0x8f, 0x08]);
    assert_eq!(guest.cpu.regs.rax, 8);
    // popcnt offset(%rip)
    guest.cpu.regs.rip = CODE;
    let offset = (DATA + 0x128 - (CODE + 9)) as u32;
    let mut code = vec![0xf3, 0x48, 0x0f, 0xb8, 0x15];
    code.extend(offset.to_le_bytes());
    guest.executes(&code);
    assert_eq!(guest.cpu.regs.rdx, 8);
    // A 32-bit address: popcnt (%edi)
    guest.cpu.regs.rdi = 0xdead_beef_0000_0000 | (DATA + 0x128);
    guest.executes(&[0xf3, 0x67, 0x48, 0x0f, 0xb8, 0x1f]);
    assert_eq!(guest.cpu.regs.rbx, 8);
}

#[test]
fn crc32_is_castagnoli() {
    let mut guest = Guest::new();
    // CRC-32C of "123456789" is 0xe3069283 (RFC 3720's polynomial; inverted before and after).
    guest.cpu.regs.rax = 0xffff_ffff;
    guest.cpu.regs.rcx = u64::from_le_bytes(*b"12345678");
    guest.executes(&[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1]);
    guest.cpu.regs.rcx = u64::from(b'9') << 8;
    // crc32b %ch,%eax
    guest.executes(&[0xf2, 0x0f, 0x38, 0xf0, 0xc5]);
    assert_eq!(guest.cpu.regs.rax, u64::from(!0xe306_9283_u32));
    // The same, from memory, by 4 bytes, 4 bytes and 1 byte.
    guest.ram.write_slice(b"123456789", GuestAddress(DATA)).unwrap();
    guest.cpu.regs.rax = 0xffff_ffff;
    guest.executes(&[0xf2, 0x0f, 0x38, 0xf1, 0x07]);
    guest.executes(&[0xf2, 0x0f, 0x38, 0xf1, 0x47, 0x04]);
    guest.executes(&[0xf2, 0x0f, 0x38, 0xf0, 0x47, 0x08]);
    assert_eq!(guest.cpu.regs.rax, u64::from(!0xe306_9283_u32));
}

const CMPXCHG16B: [u8; 5] = [0xf0, 0x48, 0x0f, 0xc7, 0x0f];

#[test]
fn cmpxchg16b_swaps_or_loads() {
    let mut guest = Guest::new();
    guest.poke(DATA, 1);
    guest.poke(DATA + 8, 2);
    let regs = &mut guest.cpu.regs;
    (regs.rax, regs.rdx, regs.rbx, regs.rcx) = (1, 2, 3, 4);
    guest.executes(&CMPXCHG16B);
    assert_eq!((guest.peek(DATA), guest.peek(DATA + 8)), (3, 4));
    assert_eq!(guest.cpu.regs.rflags, 2 | flags::ZF);
    guest.executes(&CMPXCHG16B);
    assert_eq!((guest.peek(DATA), guest.peek(DATA + 8)), (3, 4));
    assert_eq!((guest.cpu.regs.rax, guest.cpu.regs.rdx, guest.cpu.regs.rflags), (3, 4, 2));
}

#[test]
fn cmpxchg16b_faults_where_it_must() {
    let mut guest = Guest::new();
    guest.cpu.regs.rdi = DATA + 8;
    guest.faults(&CMPXCHG16B, VECTOR_GP, Some(0));
    guest.cpu.regs.rdi = DATA;
    guest.map(DATA, DATA | PRESENT);
    // It writes even where the comparison fails.
    guest.cpu.regs.rax = 77;
    guest.faults(&CMPXCHG16B, VECTOR_PF, Some(3));
    assert_eq!(guest.cpu.sregs.cr2, DATA);
    guest.cpu.regs.rdi = 1 << 47;
    guest.faults(&CMPXCHG16B, VECTOR_GP, Some(0));
}

#[test]
fn cmpxchg16b_is_atomic_between_threads() {
    const ROUNDS: u64 = 2000;
    let ram = Guest::new();
    let mut cpus: Vec<Guest> = (0..2)
        .map(|_| {
            let mut guest = Guest::new();
            guest.ram = ram.ram.clone();
            guest
        })
        .collect();
    std::thread::scope(|scope| {
        for guest in &mut cpus {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    loop {
                        guest.cpu.regs.rip = CODE;
                        guest.cpu.regs.rbx = guest.cpu.regs.rax + 1;
                        guest.cpu.regs.rcx = guest.cpu.regs.rdx + 1;
                        guest.run(&CMPXCHG16B).unwrap();
                        if guest.cpu.regs.rflags & flags::ZF != 0 {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!((ram.peek(DATA), ram.peek(DATA + 8)), (2 * ROUNDS, 2 * ROUNDS));
}

#[test]
fn clwb_only_checks_the_page() {
    let mut guest = Guest::new();
    guest.executes(&[0x66, 0x0f, 0xae, 0x37]);
    guest.map(DATA, 0);
    guest.faults(&[0x66, 0x0f, 0xae, 0x37], VECTOR_PF, Some(0));
}

/// Null, code, data, CPU number (limit 0x3007, ring 3), read-only data, execute-only code, TSS.
const DESCRIPTORS: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0040_f500_0000_3007,
    0x00cf_9100_0000_ffff,
    0x00af_9900_0000_ffff,
    0x0000_8b00_0000_2087,
];

fn with_descriptors() -> Guest {
    let mut guest = Guest::new();
    for (i, descriptor) in DESCRIPTORS.iter().enumerate() {
        guest.poke(GDT + i as u64 * 8, *descriptor);
    }
    guest.cpu.sregs.gdt.base = GDT;
    guest.cpu.sregs.gdt.limit = (DESCRIPTORS.len() * 8 - 1) as u16;
    guest.cpu.sregs.ldt.unusable = 1;
    guest
}

#[test]
fn lsl_and_lar_read_descriptors() {
    let mut guest = with_descriptors();
    let lsl: &[u8] = &[0x48, 0x0f, 0x03, 0xc1];
    let lar: &[u8] = &[0x48, 0x0f, 0x02, 0xc1];
    let cases = [
        (lsl, 3 * 8 + 3, Some(0x3007)),
        (lsl, 2 * 8, Some(0xffff_ffff)),
        (lsl, 6 * 8, Some(0x2087)),
        (lar, 8, Some(0x00af_9b00)),
        // Null, past the limit, in an LDT that is not there, and of a ring that may not know.
        (lsl, 0, None),
        (lsl, 7 * 8, None),
        (lsl, 2 * 8 + 4, None),
        (lsl, 2 * 8 + 3, None),
    ];
    for (code, selector, expected) in cases {
        guest.cpu.regs.rax = 0x77;
        guest.cpu.regs.rcx = selector;
        guest.executes(code);
        assert_eq!(guest.cpu.regs.rax, expected.unwrap_or(0x77), "{selector:#x}");
        assert_eq!(guest.cpu.regs.rflags & flags::ZF != 0, expected.is_some(), "{selector:#x}");
    }
}

#[test]
fn verr_and_verw_say_what_is_allowed() {
    let mut guest = with_descriptors();
    let allowed =
        [(1, true, false), (2, true, true), (4, true, false), (5, false, false), (6, false, false), (0, false, false)];
    for (index, read, write) in allowed {
        guest.poke(DATA, index * 8);
        for (code, expected) in [([0x0f, 0x00, 0x27], read), ([0x0f, 0x00, 0x2f], write)] {
            guest.executes(&code);
            assert_eq!(guest.cpu.regs.rflags & flags::ZF != 0, expected, "descriptor {index}, {code:x?}");
        }
    }
    guest.map(GDT, 0);
    guest.poke(DATA, 8);
    guest.faults(&[0x0f, 0x00, 0x2f], VECTOR_PF, Some(0));
}
