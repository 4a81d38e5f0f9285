//! ACPI tables for kernels that find their hardware in no other way (a distribution's kernel without MP table parsing and
//! without `virtio_mmio.device=`): RSDP → XSDT → FADT, MADT, SSDT ([`generation`]); FADT → DSDT.
//!
//! The machine they describe is *hardware-reduced* (ACPI 6.5, 4.1): no 8259, no PIT, no RTC, no PM timer, no SCI, no fixed
//! events. A guest then takes its time from kvm-clock and its local APICs, and every interrupt from the I/O APIC.
//!
//! At the end of the BIOS area, a few instructions stand where a PC's firmware begins. Linux goes there to reboot a
//! hardware-reduced machine unless `reboot=` says otherwise: it asks UEFI, and without UEFI jumps to the reset vector.
//!
//! Not done here: who answers at the ports the tables name, and the memory map, which must not call the BIOS area
//! ([`BIOS_START`] to [`BIOS_END`]) usable RAM (guest RAM must back it all the same).

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

pub mod generation;
#[cfg(test)]
mod tests;

/// Where the RSDP is and the other tables follow: the start of the BIOS area, which an operating system searches on 16-byte
/// boundaries when nobody tells it the address (ACPI 6.5, 5.2.5.1).
pub const BIOS_START: u64 = 0xe_0000;
/// The end of that area (exclusive).
pub const BIOS_END: u64 = 0x10_0000;
/// F000:FFF0, where a PC starts in real mode.
const RESET_VECTOR: u64 = BIOS_END - 16;
/// SLP_TYP of the soft-off state: what `\_S5` says, and what the sleep control register must take for a power-off.
pub const SLEEP_TYPE_S5: u8 = 5;

const OEM: [u8; 6] = *b"BLKHD ";
const OEM_TABLE: [u8; 8] = *b"BULKHEAD";
const OEM_REVISION: u32 = 1;
/// Bytes for tables.
const ROOM: usize = (generation::ADDRESS - BIOS_START) as usize;
/// A device's name is one letter and three hexadecimal digits. There is less room for tables than for names.
const MAX_NAMES: usize = 0x1000;
const TABLE_ALIGN: usize = 16;
/// The length of the header that all tables but the RSDP begin with (ACPI 6.5, 5.2.6).
const HEADER_LEN: u32 = 36;
/// A DSDT of revision 2 or more has 64-bit integers.
const DSDT_REVISION: u8 = 2;

// IAPC_BOOT_ARCH (ACPI 6.5, 5.2.9.3). Bit 1 (8042) stays clear: it promises a keyboard controller, and a guest would send
// commands and wait for the answers; what is at port 0x64 has only the reset line, which guests use without this bit.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_RTC: u16 = 1 << 5;

/// The machine as the tables tell it.
#[derive(Clone, Copy, Debug)]
pub struct AcpiPlatform<'a> {
    /// Number of CPUs, at least 1; CPU *n* has local APIC ID and processor UID *n* (255, the broadcast, stays free).
    pub cpus: u8,
    /// Guest-physical address of the I/O APIC's registers; its ID is 0 and its pin 0 is GSI 0.
    pub ioapic: u64,
    /// Guest-physical address of the local APICs' registers.
    pub lapic: u64,
    /// Pins of the I/O APIC: GSIs are smaller than this.
    pub irq_pins: u8,
    /// The first serial port, if there is one.
    pub serial: Option<SerialPort>,
    /// The virtio-mmio devices, in the order the guest is to find them.
    pub virtio: &'a [MmioWindow],
    /// The registers that end the machine.
    pub power: PowerPorts,
    /// The global system interrupt that tells of another generation ID.
    pub generation: u32,
}

/// A 16550-compatible serial port: eight I/O ports and an edge-triggered, active-high interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First I/O port.
    pub base: u16,
    /// Global system interrupt.
    pub gsi: u32,
}

/// The registers of a virtio-mmio device (virtio 1.3, 4.2) and its edge-triggered, active-high interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// Guest-physical address of the registers; below 4 GiB.
    pub base: u64,
    /// Their length in bytes.
    pub len: u64,
    /// Global system interrupt.
    pub gsi: u32,
}

/// One-byte I/O ports that end the machine (ACPI 6.5, 4.8.3.6 and 4.8.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerPorts {
    /// Sleep control register: [`SLEEP_TYPE_S5`] with SLP_EN powers off.
    pub sleep_control: u16,
    /// Sleep status register: a guest clears WAK_STS there before it sleeps.
    pub sleep_status: u16,
    /// Reset register.
    pub reset: u16,
    /// What resets the machine when written to the reset register.
    pub reset_value: u8,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// A machine without CPUs.
    #[error("ACPI tables: no CPU to describe")]
    NoCpus,
    /// An address that its field cannot hold.
    #[error("ACPI tables: the {what} at {base:#x} (length {len:#x}) is not within the first 4 GiB")]
    Address {
        /// Whose.
        what: &'static str,
        /// First byte.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// An interrupt that the I/O APIC has no pin for.
    #[error("ACPI tables: interrupt {gsi} of the {what} at {base:#x} is beyond the I/O APIC's {pins} pins")]
    Interrupt {
        /// Whose.
        what: &'static str,
        /// Where that device is.
        base: u64,
        /// The interrupt.
        gsi: u32,
        /// Pins there are.
        pins: u8,
    },
    /// More than the BIOS area has room for.
    #[error("ACPI tables: the tables of {cpus} CPUs and {devices} virtio devices do not fit into {room} bytes")]
    TooLarge {
        /// CPUs asked for.
        cpus: u8,
        /// Devices asked for.
        devices: usize,
        /// Bytes of room.
        room: usize,
    },
    /// The BIOS area is not guest RAM.
    #[error("ACPI tables: cannot write {len} bytes of guest memory at {at:#x}: {source}")]
    Memory {
        /// Guest-physical address.
        at: u64,
        /// Bytes to write.
        len: usize,
        /// Why.
        source: GuestMemoryError,
    },
}

/// Writes the tables into guest memory at [`BIOS_START`], and the code at the reset vector. Returns the address of the RSDP,
/// for `boot_params.acpi_rsdp_addr` or PVH's `start_info.rsdp_paddr`.
///
/// # Errors
/// A platform that the tables cannot express, or guest RAM that does not cover them. Nothing is written then but, in the
/// last case, possibly a part of the tables.
pub fn write<M: GuestMemory>(mem: &M, platform: &AcpiPlatform<'_>) -> Result<GuestAddress, AcpiError> {
    check(platform)?;
    let tables = tables(platform);
    if tables.len() > ROOM {
        return Err(too_large(platform));
    }
    let put = |at: u64, bytes: &[u8]| {
        mem.write_slice(bytes, GuestAddress(at)).map_err(|source| AcpiError::Memory { at, len: bytes.len(), source })
    };
    put(BIOS_START, &tables)?;
    put(RESET_VECTOR, &reset_code(platform.power))?;
    tracing::debug!(cpus = platform.cpus, virtio = platform.virtio.len(), bytes = tables.len(), "wrote ACPI tables");
    Ok(GuestAddress(BIOS_START))
}

/// Real-mode code that resets the machine, and halts for as long as that takes.
fn reset_code(power: PowerPorts) -> [u8; 9] {
    let [low, high] = power.reset.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; hlt; jmp to the hlt
    [0xba, low, high, 0xb0, power.reset_value, 0xee, 0xf4, 0xeb, 0xfd]
}

fn check(platform: &AcpiPlatform<'_>) -> Result<(), AcpiError> {
    if platform.cpus == 0 {
        return Err(AcpiError::NoCpus);
    }
    let interrupt = |what, base, gsi| match gsi < u32::from(platform.irq_pins) {
        true => Ok(()),
        false => Err(AcpiError::Interrupt { what, base, gsi, pins: platform.irq_pins }),
    };
    if platform.virtio.len() > MAX_NAMES {
        return Err(too_large(platform));
    }
    below_4g("I/O APIC", platform.ioapic, 0x1000)?;
    below_4g("local APIC", platform.lapic, 0x1000)?;
    if let Some(serial) = platform.serial {
        interrupt("serial port", u64::from(serial.base), serial.gsi)?;
    }
    interrupt("generation ID", generation::ADDRESS, platform.generation)?;
    for window in platform.virtio {
        below_4g("virtio window", window.base, window.len)?;
        interrupt("virtio window", window.base, window.gsi)?;
    }
    Ok(())
}

fn too_large(platform: &AcpiPlatform<'_>) -> AcpiError {
    AcpiError::TooLarge { cpus: platform.cpus, devices: platform.virtio.len(), room: ROOM }
}

fn below_4g(what: &'static str, base: u64, len: u64) -> Result<(), AcpiError> {
    match base.checked_add(len) {
        Some(end) if len != 0 && end <= 1 << 32 => Ok(()),
        _ => Err(AcpiError::Address { what, base, len }),
    }
}

/// All tables as they lie in memory from `BIOS_START`. The platform has been checked.
fn tables(platform: &AcpiPlatform<'_>) -> Vec<u8> {
    let mut image = Image(vec![0; Rsdp::len()]);
    let dsdt = image.place(&dsdt(platform));
    let fadt = image.place(&fadt(platform.power, dsdt));
    let madt = image.place(&madt(platform));
    let ssdt = image.place(&generation::ssdt(platform.generation));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(ssdt);
    let xsdt = image.place(&xsdt);
    // The RSDP is first in memory, where a search finds it soonest, and last to be known.
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    image.0[..rsdp.len()].copy_from_slice(&rsdp);
    image.0
}

/// Tables one behind the other, the first at `BIOS_START`.
struct Image(Vec<u8>);

impl Image {
    /// Appends a table, aligned, and returns its guest-physical address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        let start = self.0.len().next_multiple_of(TABLE_ALIGN);
        self.0.resize(start, 0);
        table.to_aml_bytes(&mut self.0);
        BIOS_START + start as u64
    }
}

fn fadt(power: PowerPorts, dsdt: u64) -> impl Aml {
    let port = |address: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // These two say that there is no button of the fixed kind.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_RTC).into();
    fadt.reset_reg = port(power.reset);
    fadt.reset_value = power.reset_value;
    fadt.sleep_control_reg = port(power.sleep_control);
    fadt.sleep_status_reg = port(power.sleep_status);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"BULKHEAD").into();
    fadt.finalize()
}

fn madt(platform: &AcpiPlatform<'_>) -> impl Aml {
    // Checked to be below 4 GiB. The table's flags stay 0: there is no 8259 (PCAT_COMPAT, ACPI 6.5, 5.2.12).
    let lapic = LocalInterruptController::Address(platform.lapic as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    for cpu in 0..platform.cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, platform.ioapic as u32, 0));
    madt
}

fn dsdt(platform: &AcpiPlatform<'_>) -> impl Aml {
    let devices: Vec<Encoded> = (0..platform.cpus)
        .map(processor)
        .chain(platform.serial.map(serial_port))
        .chain(platform.virtio.iter().enumerate().map(|(index, window)| virtio(index, window)))
        .collect();
    let soft_off = Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    let mut body = Vec::new();
    Scope::new("\\_SB_".into(), devices.iter().map(|device| device as &dyn Aml).collect()).to_aml_bytes(&mut body);
    Name::new("\\_S5_".into(), &soft_off).to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    // In one go: the table's checksum is computed anew with every addition.
    dsdt.append_slice(&body);
    dsdt
}

/// AML bytes, so that devices with different contents can be children of one scope.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// `path` must have four characters.
fn device(path: &str, children: Vec<&dyn Aml>) -> Encoded {
    let mut bytes = Vec::new();
    Device::new(Path::new(path), children).to_aml_bytes(&mut bytes);
    Encoded(bytes)
}

/// An interrupt that its device has for itself: edge-triggered, active high.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// Every processor of the MADT has a device of the same UID (ACPI 6.5, 5.2.12.2).
fn processor(uid: u8) -> Encoded {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    device(&format!("C{uid:03X}"), vec![&hid, &Name::new("_UID".into(), &uid)])
}

fn serial_port(port: SerialPort) -> Encoded {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &0u8);
    let (ports, interrupt) = (IO::new(port.base, port.base, 1, 8), edge(port.gsi));
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt]));
    device("COM1", vec![&hid, &uid, &resources])
}

fn virtio(index: usize, window: &MmioWindow) -> Encoded {
    // "LNRO0005" is what Linux's virtio-mmio driver looks for; no specification names it.
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &index);
    // Checked to be below 4 GiB.
    let registers = Memory32Fixed::new(true, window.base as u32, window.len as u32);
    let interrupt = edge(window.gsi);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt]));
    device(&format!("V{index:03X}"), vec![&hid, &uid, &resources])
}
