//! Reads the tables back with a decoder of their own: the specification's offsets, and the bit of AML that is used here.

use std::process::Command;

use super::*;
use vm_memory::GuestMemoryMmap;

const POWER: PowerPorts = PowerPorts { sleep_control: 0x604, sleep_status: 0x605, reset: 0x600, reset_value: 2 };
const COM1: SerialPort = SerialPort { base: 0x3f8, gsi: 4 };

fn platform(cpus: u8, virtio: &[MmioWindow]) -> AcpiPlatform<'_> {
    AcpiPlatform {
        cpus,
        ioapic: 0xfec0_0000,
        lapic: 0xfee0_0000,
        irq_pins: 24,
        serial: Some(COM1),
        virtio,
        power: POWER,
        generation: 3,
    }
}

fn windows(count: u32) -> Vec<MmioWindow> {
    (0..count).map(|n| MmioWindow { base: 0xd000_0000 + u64::from(n) * 0x1000, len: 0x1000, gsi: 5 + n }).collect()
}

fn ram() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn read(mem: &GuestMemoryMmap<()>, at: u64, len: usize) -> Vec<u8> {
    assert!(at >= BIOS_START && at + len as u64 <= BIOS_END, "{at:#x} + {len:#x} is outside the BIOS area");
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// A table with a right header, and where it is.
fn table(mem: &GuestMemoryMmap<()>, at: u64, signature: &[u8; 4]) -> (u64, Vec<u8>) {
    assert_eq!(at % 16, 0);
    let len = u32_at(&read(mem, at, 36), 4) as usize;
    let bytes = read(mem, at, len);
    assert_eq!(&bytes[..4], signature);
    assert_eq!(sum(&bytes), 0, "checksum of {}", String::from_utf8_lossy(signature));
    (at, bytes)
}

struct Tables {
    fadt: Vec<u8>,
    madt: Vec<u8>,
    ssdt: Vec<u8>,
    dsdt: Vec<u8>,
}

/// Finds the RSDP as an operating system does, by searching, then all else from there.
fn find(mem: &GuestMemoryMmap<()>) -> Tables {
    let at = (BIOS_START..BIOS_END).step_by(16).find(|at| read(mem, *at, 8) == b"RSD PTR ").unwrap();
    assert_eq!(at, BIOS_START);
    let rsdp = read(mem, at, 36);
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp), rsdp[15], u32_at(&rsdp, 20)), (0, 0, 2, 36));
    let xsdt = table(mem, u64_at(&rsdp, 24), b"XSDT");
    assert_eq!(xsdt.1.len(), 36 + 3 * 8);
    let fadt = table(mem, u64_at(&xsdt.1, 36), b"FACP");
    let madt = table(mem, u64_at(&xsdt.1, 44), b"APIC");
    let ssdt = table(mem, u64_at(&xsdt.1, 52), b"SSDT");
    let dsdt = table(mem, u64_at(&fadt.1, 140), b"DSDT");
    let mut spans: Vec<_> =
        [&xsdt, &fadt, &madt, &ssdt, &dsdt].map(|(at, bytes)| (*at, at + bytes.len() as u64)).into_iter().collect();
    spans.push((BIOS_START, BIOS_START + 36));
    spans.sort_unstable();
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tables overlap: {spans:x?}");
    Tables { fadt: fadt.1, madt: madt.1, ssdt: ssdt.1, dsdt: dsdt.1 }
}

/// What the DSDT says, in its order.
#[derive(Debug, PartialEq)]
enum Said {
    Device { name: String, hid: Value, uid: u64, resources: Option<Vec<u8>> },
    SoftOff(Vec<u64>),
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Integer(u64),
    Text(String),
    Buffer(Vec<u8>),
    Package(Vec<u64>),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    /// PkgLength (ACPI 6.5, 20.2.4) and what it spans.
    fn package(&mut self) -> Reader<'a> {
        let lead = self.0[0];
        let more = usize::from(lead >> 6);
        let bytes = self.take(1 + more);
        let len = match more {
            0 => usize::from(lead & 0x3f),
            _ => (1..=more).fold(usize::from(lead & 0xf), |len, n| len | usize::from(bytes[n]) << (8 * n - 4)),
        };
        Reader(self.take(len - 1 - more))
    }

    fn name(&mut self) -> String {
        if self.0[0] == b'\\' {
            self.take(1);
        }
        String::from_utf8(self.take(4).to_vec()).unwrap()
    }

    fn value(&mut self) -> Value {
        match self.byte() {
            small @ (0 | 1) => Value::Integer(small.into()),
            0x0a => Value::Integer(self.byte().into()),
            0x0b => Value::Integer(u16_at(self.take(2), 0).into()),
            0x0c => Value::Integer(u32_at(self.take(4), 0).into()),
            0x0d => {
                let len = self.0.iter().position(|byte| *byte == 0).unwrap();
                let text = String::from_utf8(self.take(len).to_vec()).unwrap();
                self.take(1);
                Value::Text(text)
            }
            0x11 => {
                let mut inner = self.package();
                assert_eq!(inner.value().integer() as usize, inner.0.len());
                Value::Buffer(inner.0.to_vec())
            }
            0x12 => {
                let mut inner = self.package();
                let count = inner.byte();
                let values = (0..count).map(|_| inner.value().integer()).collect();
                assert!(inner.0.is_empty());
                Value::Package(values)
            }
            other => panic!("AML opcode {other:#x}"),
        }
    }

    /// The terms of a scope, or of the table.
    fn terms(&mut self, said: &mut Vec<Said>) {
        while !self.0.is_empty() {
            match self.byte() {
                0x10 => {
                    let mut scope = self.package();
                    assert_eq!(scope.name(), "_SB_");
                    scope.terms(said);
                }
                0x5b => {
                    assert_eq!(self.byte(), 0x82);
                    said.push(self.package().device());
                }
                0x08 => {
                    assert_eq!(self.name(), "_S5_");
                    let Value::Package(values) = self.value() else { panic!("_S5 is no package") };
                    said.push(Said::SoftOff(values));
                }
                other => panic!("AML term {other:#x}"),
            }
        }
    }

    fn device(mut self) -> Said {
        let name = self.name();
        let (mut hid, mut uid, mut resources) = (None, None, None);
        while !self.0.is_empty() {
            assert_eq!(self.byte(), 0x08);
            match (self.name().as_str(), self.value()) {
                ("_HID", value) => hid = Some(value),
                ("_UID", value) => uid = Some(value.integer()),
                ("_CRS", Value::Buffer(bytes)) => resources = Some(bytes),
                other => panic!("{other:?} in {name}"),
            }
        }
        Said::Device { name, hid: hid.unwrap(), uid: uid.unwrap(), resources }
    }
}

impl Value {
    fn integer(&self) -> u64 {
        match self {
            Value::Integer(value) => *value,
            other => panic!("{other:?} is no integer"),
        }
    }
}

fn said(dsdt: &[u8]) -> Vec<Said> {
    let mut said = Vec::new();
    Reader(&dsdt[36..]).terms(&mut said);
    said
}

/// An extended interrupt descriptor (ACPI 6.5, 6.4.3.6): consumer, edge, active high, exclusive.
fn interrupt_descriptor(gsi: u32) -> Vec<u8> {
    [&[0x89, 6, 0, 0b0011, 1], &gsi.to_le_bytes()[..]].concat()
}

const END_TAG: [u8; 2] = [0x79, 0];

fn expected(platform: &AcpiPlatform<'_>) -> Vec<Said> {
    let processors = (0..platform.cpus).map(|n| Said::Device {
        name: format!("C{n:03X}"),
        hid: Value::Text("ACPI0007".into()),
        uid: n.into(),
        resources: None,
    });
    let serial = platform.serial.map(|serial| {
        let ports = [&[0x47, 1], &serial.base.to_le_bytes()[..], &serial.base.to_le_bytes(), &[1, 8]].concat();
        Said::Device {
            name: "COM1".into(),
            // "PNP0501" compressed (ACPI 6.5, 19.3.4), as a little-endian integer.
            hid: Value::Integer(0x0105_d041),
            uid: 0,
            resources: Some([ports, interrupt_descriptor(serial.gsi), END_TAG.to_vec()].concat()),
        }
    });
    let virtio = platform.virtio.iter().enumerate().map(|(n, window)| {
        let (base, len) = (window.base as u32, window.len as u32);
        let registers = [&[0x86, 9, 0, 1], &base.to_le_bytes()[..], &len.to_le_bytes()].concat();
        Said::Device {
            name: format!("V{n:03X}"),
            hid: Value::Text("LNRO0005".into()),
            uid: n as u64,
            resources: Some([registers, interrupt_descriptor(window.gsi), END_TAG.to_vec()].concat()),
        }
    });
    processors.chain(serial).chain(virtio).chain([Said::SoftOff(vec![5, 0, 0, 0])]).collect()
}

#[test]
fn every_machine_reads_back() {
    let mem = ram();
    for cpus in 1..=32 {
        for devices in 0..=19 {
            let windows = windows(devices);
            let platform = platform(cpus, &windows);
            assert_eq!(write(&mem, &platform).unwrap(), GuestAddress(0xe_0000));
            let tables = find(&mem);
            assert_eq!(said(&tables.dsdt), expected(&platform), "{cpus} CPUs, {devices} devices");

            let madt = &tables.madt;
            assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 0), "local APICs; no 8259");
            let mut entries: Vec<u8> = (0..cpus).flat_map(|n| [0, 8, n, n, 1, 0, 0, 0]).collect();
            entries.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
            assert_eq!(madt[44..], entries);
        }
    }
}

#[test]
fn the_most_cpus_fit() {
    let mem = ram();
    let windows = windows(19);
    write(&mem, &platform(255, &windows)).unwrap();
    let tables = find(&mem);
    assert_eq!(tables.madt.len(), 44 + 255 * 8 + 12);
    assert_eq!(said(&tables.dsdt), expected(&platform(255, &windows)));
}

#[test]
fn a_machine_without_a_serial_port_has_none() {
    let mem = ram();
    let platform = AcpiPlatform { serial: None, ..platform(1, &[]) };
    write(&mem, &platform).unwrap();
    assert_eq!(said(&find(&mem).dsdt), expected(&platform));
}

#[test]
fn the_fadt_is_hardware_reduced_and_names_the_ports() {
    let mem = ram();
    write(&mem, &platform(2, &windows(3))).unwrap();
    let fadt = find(&mem).fadt;
    // Length and revision of ACPI 6.5.
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    assert_eq!(u16_at(&fadt, 109), 1 << 2 | 1 << 5, "no VGA, no RTC; no keyboard controller promised");
    assert_eq!(u32_at(&fadt, 112), 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 20);
    let port = |port: u64| [&[1, 8, 0, 1], &port.to_le_bytes()[..]].concat();
    assert_eq!((&fadt[116..128], fadt[128]), (&port(0x600)[..], 2), "reset register");
    assert_eq!(fadt[244..256], port(0x604), "sleep control register");
    assert_eq!(fadt[256..268], port(0x605), "sleep status register");
    assert_eq!(fadt[268..276], *b"BULKHEAD");
    // No fixed hardware: everything from SCI_INT to CENTURY, and the extended blocks, is zero.
    assert!(fadt[46..109].iter().chain(&fadt[148..244]).all(|byte| *byte == 0));
}

#[test]
fn the_generation_id_has_its_place_and_an_interrupt() {
    let mem = ram();
    write(&mem, &platform(1, &windows(1))).unwrap();
    let ssdt = find(&mem).ssdt;
    let device = |name: &[u8]| {
        let at = ssdt.windows(4).position(|bytes| bytes == name).unwrap();
        ssdt[at..].to_vec()
    };
    let says = |bytes: &[u8], what: &[u8]| assert!(bytes.windows(what.len()).any(|part| part == what), "{what:x?}");
    let (id, events) = (device(b"VGEN"), device(b"GED_"));
    for text in [&b"_CID"[..], b"VM_Gen_Counter\0", b"VMGENCTR\0", b"_DDN"] {
        says(&id, text);
    }
    // Name(ADDR, Package { DWord 0xfffe0, 0 }): 8-byte aligned, in the BIOS area.
    says(&id, &[&b"\x08ADDR\x12"[..], &[0x08, 2, 0x0c, 0xe0, 0xff, 0x0f, 0, 0]].concat());
    says(&events, b"ACPI0013\0");
    says(&events, &interrupt_descriptor(3));
    // Method(_EVT, 1, Serialized) { Notify(\_SB.VGEN, 0x80) }
    says(&events, b"_EVT\x09\x86\x5c\x2e_SB_VGEN\x0a\x80");
    // Nobody else's bytes are there.
    assert_eq!(read(&mem, generation::ADDRESS, generation::LEN), [0; generation::LEN]);
    let refused = write(&mem, &AcpiPlatform { generation: 24, ..platform(1, &[]) }).unwrap_err();
    assert!(matches!(refused, AcpiError::Interrupt { gsi: 24, .. }));
}

#[test]
fn the_reset_vector_asks_for_a_reset() {
    let mem = ram();
    write(&mem, &platform(1, &[])).unwrap();
    // mov $0x600, %dx; mov $2, %al; out %al, (%dx); hlt; jmp to the hlt. It fits below 1 MiB.
    let code = [0xba, 0x00, 0x06, 0xb0, 0x02, 0xee, 0xf4, 0xeb, 0xfd];
    assert_eq!(read(&mem, 0xf_fff0, 16), [&code[..], &[0; 7]].concat());
}

#[test]
fn what_the_tables_cannot_say_is_an_error() {
    let mem = ram();
    let refused = |platform: &AcpiPlatform<'_>| {
        let error = write(&mem, platform).unwrap_err();
        let mut start = [0; 8];
        mem.read_slice(&mut start, GuestAddress(BIOS_START)).unwrap();
        assert_eq!(start, [0; 8], "nothing is written after {error}");
        error.to_string()
    };
    let window = |base, len, gsi| [MmioWindow { base, len, gsi }];
    assert_eq!(refused(&platform(0, &[])), "ACPI tables: no CPU to describe");
    for (base, len) in [(1 << 32, 0x1000), (0xffff_f001, 0x1000), (u64::MAX, 2), (0xd000_0000, 0)] {
        let error = refused(&platform(1, &window(base, len, 5)));
        let text = format!("the virtio window at {base:#x} (length {len:#x}) is not within the first 4 GiB");
        assert!(error.contains(&text), "{error}");
    }
    let error = refused(&platform(1, &window(0xd000_0000, 0x1000, 24)));
    assert!(error.contains("interrupt 24 of the virtio window at 0xd0000000"), "{error}");
    let far = |ioapic, lapic| AcpiPlatform { ioapic, lapic, ..platform(1, &[]) };
    assert!(refused(&far(1 << 32, 0)).contains("I/O APIC at 0x100000000"));
    assert!(refused(&far(0, 1 << 40)).contains("local APIC at 0x10000000000"));
    let serial = AcpiPlatform { serial: Some(SerialPort { base: 0x3f8, gsi: 99 }), ..platform(1, &[]) };
    assert!(refused(&serial).contains("interrupt 99 of the serial port at 0x3f8"));
}

#[test]
fn too_many_devices_are_an_error() {
    let mem = ram();
    for count in [0x1000, 0x1001, 1 << 20] {
        let many = vec![MmioWindow { base: 0xd000_0000, len: 0x1000, gsi: 5 }; count];
        let error = write(&mem, &platform(1, &many)).unwrap_err();
        assert!(matches!(error, AcpiError::TooLarge { cpus: 1, devices, .. } if devices == count), "{error}");
    }
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    // Ends in the middle of the first table, and before the reset vector.
    for (end, missing) in [(0xe_0010, 0xe_0000), (0xf_0000, 0xf_fff0)] {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), end)]).unwrap();
        let error = write(&mem, &platform(1, &[])).unwrap_err();
        assert!(matches!(error, AcpiError::Memory { at, .. } if at == missing), "{error}");
    }
}

/// ACPICA's compiler reads the tables without a complaint, and compiles what it read to the same DSDT.
#[test]
fn acpica_agrees() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED acpica_agrees: no iasl here (Debian: apt install acpica-tools)");
        return;
    }
    let mem = ram();
    write(&mem, &platform(32, &windows(19))).unwrap();
    let tables = find(&mem);
    let dir = tempfile::tempdir().unwrap();
    let iasl = |args: &[&str]| {
        let output = Command::new("iasl").args(args).current_dir(&dir).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "iasl {args:?}: {text}");
        text
    };
    for (name, bytes) in [("facp", &tables.fadt), ("apic", &tables.madt), ("dsdt", &tables.dsdt)] {
        std::fs::write(dir.path().join(format!("{name}.aml")), bytes).unwrap();
        let text = iasl(&["-d", &format!("{name}.aml")]);
        let source = std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
        for trouble in ["Warning", "Error", "Invalid", "incorrect checksum"] {
            assert!(!text.contains(trouble) && !source.contains(trouble), "{name}: {text}\n{source}");
        }
    }
    let text = iasl(&["-p", "again", "dsdt.dsl"]);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
    let again = std::fs::read(dir.path().join("again.aml")).unwrap();
    assert_eq!(said(&again), said(&tables.dsdt));
}
