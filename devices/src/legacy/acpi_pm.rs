//! The sleep registers of a hardware-reduced ACPI machine (ACPI 6.5, 4.8.3.7): how a kernel that knows nothing of the exit
//! port powers the machine off.
//!
//! Two one-byte registers side by side, sleep control then sleep status; the FADT says where. Soft-off is the one state
//! there is, so nothing is kept: what is written is acted on or ignored, and both registers read as 0 (WAK_STS is never
//! set, because no sleep ends with a wake-up). The FADT's reset register is not here: it is the exit port.

use crate::{BusDevice, ExitSink, GuestExit};

/// Length of the two registers in bytes.
pub const ACPI_PM_LEN: u64 = 2;

/// Offset of the sleep control register.
const SLEEP_CONTROL: u64 = 0;
/// The sleep control register's SLP_EN.
const SLP_EN: u8 = 1 << 5;
/// SLP_TYP, at its place in the sleep control register.
const SLP_TYP: u8 = 0b111 << 2;
/// SLP_TYP of soft-off, as the DSDT's `\_S5` has it.
const S5: u8 = 5 << 2;

/// The sleep registers.
pub struct AcpiPm {
    exit: ExitSink,
}

impl AcpiPm {
    /// Registers that tell `exit` when the guest powers the machine off.
    pub fn new(exit: ExitSink) -> Self {
        Self { exit }
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, _base: u64, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) {
        // Only an access that begins at the control register reaches it.
        let (SLEEP_CONTROL, [control, ..]) = (offset, data) else {
            return;
        };
        // SLP_EN with another type is a sleep state that this machine does not have.
        if control & (SLP_EN | SLP_TYP) == SLP_EN | S5 {
            tracing::debug!("the guest powered off by ACPI");
            (self.exit)(GuestExit::PowerOff);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The exits that a write of `data` at `offset` asks for.
    fn exits(offset: u64, data: &[u8]) -> Vec<GuestExit> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let mut pm = AcpiPm::new(Arc::new(move |exit| sink.lock().unwrap().push(exit)));
        pm.write(0x604, offset, data);
        drop(pm);
        Arc::into_inner(seen).unwrap().into_inner().unwrap()
    }

    #[test]
    fn soft_off_is_the_only_sleep() {
        for control in 0..=u8::MAX {
            let soft_off = control & 0x3c == 0x34;
            let exits = exits(0, &[control]);
            assert_eq!(matches!(exits[..], [GuestExit::PowerOff]), soft_off, "{control:#x}");
            assert_eq!(exits.is_empty(), !soft_off, "{control:#x}");
        }
    }

    #[test]
    fn only_the_control_register_powers_off() {
        assert!(exits(1, &[0x34]).is_empty(), "the status register");
        assert!(exits(2, &[0x34]).is_empty(), "beyond the registers");
        assert!(exits(0, &[]).is_empty());
        assert!(exits(0, &[0, 0x34]).is_empty(), "a wide write is one byte a register");
        assert_eq!(exits(0, &[0x34, 0x80, 0, 0]).len(), 1);
    }

    #[test]
    fn every_read_is_zero() {
        let mut pm = AcpiPm::new(Arc::new(|_| panic!("a read ends nothing")));
        for (offset, len) in [(0, 1), (1, 1), (0, 2), (0, 4), (1, 8)] {
            let mut data = vec![0xff; len];
            pm.read(0x604, offset, &mut data);
            assert_eq!(data, vec![0; len]);
        }
    }
}
