//! Devices from before virtio: what an x86 guest needs to print, to interrupt and to end.

mod acpi_pm;
mod exit_port;
mod i8042;
mod ioapic;
pub mod serial;

pub use acpi_pm::{ACPI_PM_LEN, AcpiPm};
pub use exit_port::ExitPort;
pub use i8042::I8042;
pub use ioapic::{IOAPIC_PINS, Ioapic, IoapicState, MsiMessage, RouteSink};
pub use serial::{Serial, SerialState};
