//! The MP tables that tell an SMP guest its CPUs and interrupts (MultiProcessor Specification 1.4).
//!
//! All in the last KiB of base memory, where kernels look first: the floating pointer, then the configuration table with
//! processors, one ISA bus, one I/O APIC, its pins (ISA interrupt n on pin n, edge-triggered), and the local interrupts.

use crate::layout::{MP_TABLE_SIZE, MP_TABLE_START};

const FLOATING_POINTER: usize = 16;
const HEADER: usize = 44;
const PROCESSOR: usize = 20;
/// Any entry but a processor's.
const ENTRY: usize = 8;
/// Specification 1.4.
const SPEC_REVISION: u8 = 4;
/// An integrated local APIC (MP 4.3.1).
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const ISA_BUS: u8 = 0;
/// Interrupt types (MP table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_LAPICS: u8 = 0xff;
/// Bus, I/O APIC and the two local interrupts.
const SINGLE_ENTRIES: usize = 4;

/// What an MP table describes: plain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// CPUs, with APIC ids from 0; at least 1 and at most [`Platform::max_cpus`].
    pub cpus: u8,
    /// Guest-physical address of the I/O APIC, below 4 GiB. Its id is `cpus`, the first that no CPU has.
    pub ioapic: u64,
    /// Guest-physical address of the local APICs, below 4 GiB.
    pub lapic: u64,
    /// Pins of the I/O APIC.
    pub irq_pins: u8,
}

/// A platform that cannot be described.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MpTableError {
    /// None, or more than fit.
    #[error("{cpus} CPUs with {irq_pins} interrupt pins cannot be described: 1 to {max} can")]
    Cpus {
        /// CPUs asked for.
        cpus: u8,
        /// Pins that take room too.
        irq_pins: u8,
        /// Most there can be.
        max: usize,
    },
    /// An APIC where the table cannot say.
    #[error("the {which} is at {addr:#x}, above 4 GiB")]
    Address {
        /// Which APIC.
        which: &'static str,
        /// Its guest-physical address.
        addr: u64,
    },
}

impl Platform {
    /// Most CPUs that fit a table with `irq_pins` pins: 37 with 24 pins.
    pub const fn max_cpus(irq_pins: u8) -> usize {
        let others = FLOATING_POINTER + HEADER + (SINGLE_ENTRIES + irq_pins as usize) * ENTRY;
        (MP_TABLE_SIZE as usize).saturating_sub(others) / PROCESSOR
    }

    /// The bytes for [`MP_TABLE_START`]: at most [`MP_TABLE_SIZE`].
    pub(crate) fn table(&self) -> Result<Vec<u8>, MpTableError> {
        let max = Platform::max_cpus(self.irq_pins);
        if self.cpus == 0 || usize::from(self.cpus) > max {
            return Err(MpTableError::Cpus { cpus: self.cpus, irq_pins: self.irq_pins, max });
        }
        let address = |which, addr| u32::try_from(addr).map_err(|_| MpTableError::Address { which, addr });
        let (ioapic, lapic) = (address("I/O APIC", self.ioapic)?, address("local APIC", self.lapic)?);
        let mut table = floating_pointer();
        table.extend(self.configuration(ioapic, lapic));
        Ok(table)
    }

    /// Header (MP 4.2) and entries (MP 4.3).
    fn configuration(&self, ioapic: u32, lapic: u32) -> Vec<u8> {
        let count = u16::from(self.cpus) + SINGLE_ENTRIES as u16 + u16::from(self.irq_pins);
        let entries = self.entries(ioapic);
        let len = (HEADER + entries.len()) as u16;
        let mut table = Vec::with_capacity(len.into());
        table.extend(b"PCMP");
        table.extend(len.to_le_bytes());
        table.extend([SPEC_REVISION, 0]);
        table.extend(b"BULKHEAD");
        table.extend(b"microVM     ");
        table.extend([0; 6]); // no OEM table
        table.extend(count.to_le_bytes());
        table.extend(lapic.to_le_bytes());
        table.extend([0; 4]); // no extended table
        table.extend(entries);
        table[7] = checksum(&table);
        table
    }

    fn entries(&self, ioapic: u32) -> Vec<u8> {
        let mut entries = Vec::new();
        for id in 0..self.cpus {
            let boot = if id == 0 { BOOT_PROCESSOR } else { 0 };
            entries.extend([0, id, LAPIC_VERSION, ENABLED | boot]);
            // Signature: family 6. Features: FPU and APIC. Kernels take both from CPUID.
            entries.extend(0x600_u32.to_le_bytes());
            entries.extend(0x201_u32.to_le_bytes());
            entries.extend([0; 8]);
        }
        entries.extend([1, ISA_BUS]);
        entries.extend(b"ISA   ");
        let ioapic_id = self.cpus;
        entries.extend([2, ioapic_id, IOAPIC_VERSION, ENABLED]);
        entries.extend(ioapic.to_le_bytes());
        // Flags 0: as the bus has it, which for ISA is edge-triggered and active high.
        for pin in 0..self.irq_pins {
            entries.extend([3, INT, 0, 0, ISA_BUS, pin, ioapic_id, pin]);
        }
        entries.extend([4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]); // LINT0 of the boot CPU
        entries.extend([4, NMI, 0, 0, ISA_BUS, 0, ALL_LAPICS, 1]); // LINT1 of all
        entries
    }
}

/// The structure that kernels search for (MP 4.1).
fn floating_pointer() -> Vec<u8> {
    let table = (MP_TABLE_START + FLOATING_POINTER as u64) as u32;
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(table.to_le_bytes());
    pointer.extend([1, SPEC_REVISION, 0, 0]); // one paragraph long; a configuration table is there
    pointer.extend([0; 4]); // virtual wire mode
    pointer[10] = checksum(&pointer);
    pointer
}

/// What makes all bytes add up to 0, where the checksum itself is still 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}
