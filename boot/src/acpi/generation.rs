//! The VM generation ID ("Virtual Machine Generation ID", Microsoft, 2012): 16 bytes in guest memory that are others in every machine
//! that goes on from a saved one. The guest is told so by an interrupt, on which Linux mixes them into its random numbers and
//! starts these anew.
//!
//! An SSDT of two devices: the one that says where the bytes are, and a generic event device (ACPI 6.5, 5.6.9) that turns the interrupt
//! into a notification of the first.

use acpi_tables::Aml;
use acpi_tables::aml::{Method, Name, Notify, Package, Path, ResourceTemplate, Scope};
use acpi_tables::sdt::Sdt;

use super::{DSDT_REVISION, Encoded, HEADER_LEN, OEM, OEM_REVISION, OEM_TABLE, device, edge};

/// Bytes of it.
pub const LEN: usize = 16;
/// Where they are: in front of the reset vector, in memory that no guest takes for its own.
pub const ADDRESS: u64 = super::RESET_VECTOR - LEN as u64;
/// Device-specific: the bytes are others now.
const CHANGED: u8 = 0x80;

/// The table of a machine that tells it by the interrupt `gsi`.
pub(super) fn ssdt(gsi: u32) -> impl Aml {
    let devices = [identifier(), events(gsi)];
    let mut body = Vec::new();
    Scope::new("\\_SB_".into(), devices.iter().map(|device| device as &dyn Aml).collect()).to_aml_bytes(&mut body);
    let mut ssdt = Sdt::new(*b"SSDT", HEADER_LEN, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    ssdt.append_slice(&body);
    ssdt
}

fn identifier() -> Encoded {
    let hid = Name::new("_HID".into(), &"BLKH0001");
    // The first is the specification's; Linux knows the other, too, from when its ids could not be so long.
    let compatible = Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"]);
    let (low, high) = (ADDRESS as u32, (ADDRESS >> 32) as u32);
    let address = Package::new(vec![&low, &high]);
    let (cid, ddn) = (Name::new("_CID".into(), &compatible), Name::new("_DDN".into(), &"VM_Gen_Counter"));
    device("VGEN", vec![&hid, &cid, &ddn, &Name::new("ADDR".into(), &address)])
}

fn events(gsi: u32) -> Encoded {
    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &0u8);
    let interrupt = edge(gsi);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt]));
    let target = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&target, &CHANGED);
    let on_event = Method::new("_EVT".into(), 1, true, vec![&notify]);
    device("GED_", vec![&hid, &uid, &resources, &on_event])
}
