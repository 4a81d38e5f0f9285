//! The MP tables, read back as an operating system reads them.

use vm_memory::{Bytes, GuestAddress};

use super::{MIB, PLATFORM, build::ElfFile, memory};
use crate::{Image, Platform, Protocol, load_images, mptable::MpTableError};

struct Tables {
    cpus: Vec<(u8, u8)>,
    ioapic: (u8, u32),
    lapic: u32,
    /// Type, flags, bus, bus interrupt, APIC, pin.
    io: Vec<[u8; 6]>,
    local: Vec<[u8; 6]>,
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

fn read(base: &[u8]) -> Tables {
    assert_eq!((&base[..4], base[8], base[9], sum(&base[..16])), (b"_MP_".as_slice(), 1, 4, 0));
    assert_eq!(base[11..16], [0; 5]);
    let table = &base[word(base, 4) as usize - 0x9_fc00..];
    let len = half(table, 4);
    assert_eq!((&table[..4], table[6], sum(&table[..len])), (b"PCMP".as_slice(), 4, 0));
    let mut tables = Tables { cpus: vec![], ioapic: (0, 0), lapic: word(table, 36), io: vec![], local: vec![] };
    let (mut at, mut count) = (44, 0);
    while at < len {
        let entry = &table[at..];
        let interrupt = || [entry[1], entry[2], entry[4], entry[5], entry[6], entry[7]];
        match entry[0] {
            0 => tables.cpus.push((entry[1], entry[3])),
            1 => assert_eq!(entry[1..8], *b"\0ISA   "),
            2 => tables.ioapic = (entry[1], word(entry, 4)),
            3 => tables.io.push(interrupt()),
            4 => tables.local.push(interrupt()),
            kind => panic!("entry of type {kind}"),
        }
        at += if entry[0] == 0 { 20 } else { 8 };
        count += 1;
    }
    assert_eq!((at, count), (len, half(table, 34)));
    tables
}

#[test]
fn every_number_of_cpus_reads_back() {
    let max = Platform::max_cpus(24);
    assert_eq!(max, 37);
    for cpus in 1..=max as u8 {
        let bytes = Platform { cpus, ..PLATFORM }.table().unwrap();
        assert!(bytes.len() <= 0x400, "{cpus} CPUs take {:#x} bytes", bytes.len());
        let tables = read(&bytes);
        let expected: Vec<(u8, u8)> = (0..cpus).map(|id| (id, if id == 0 { 3 } else { 1 })).collect();
        assert_eq!(tables.cpus, expected);
        assert_eq!((tables.ioapic, tables.lapic), ((cpus, 0xfec0_0000), 0xfee0_0000));
        let pins: Vec<[u8; 6]> = (0..24).map(|pin| [0, 0, 0, pin, cpus, pin]).collect();
        assert_eq!(tables.io, pins);
        assert_eq!(tables.local, [[3, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0xff, 1]]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for cpus in [0, 38, 255] {
        let error = Platform { cpus, ..PLATFORM }.table().unwrap_err();
        assert_eq!(error, MpTableError::Cpus { cpus, irq_pins: 24, max: 37 });
    }
    assert_eq!(Platform::max_cpus(255), 0);
    assert!(Platform { irq_pins: 255, ..PLATFORM }.table().is_err());
    let error = Platform { lapic: 1 << 32, ..PLATFORM }.table().unwrap_err();
    assert_eq!(error.to_string(), "the local APIC is at 0x100000000, above 4 GiB");
}

#[test]
fn it_is_where_kernels_look() {
    let (mem, kernel) = (memory(64 * MIB), ElfFile::kernel().bytes());
    let kernel = Image::from_bytes("k", &kernel).unwrap();
    load_images(&mem, &kernel, None, "", Protocol::Auto, &PLATFORM).unwrap();
    let mut base = [0; 0x400];
    mem.read_slice(&mut base, GuestAddress(0x9_fc00)).unwrap();
    assert_eq!(read(&base).cpus.len(), 2);
}
