//! The IOAPIC (Intel 82093AA datasheet, version 0x20 with an EOI register): 24 pins, each a redirection entry.
//!
//! An unmasked entry is an interrupt message (SDM volume 3, 11.11); whoever delivers interrupts gets the messages
//! through a [`RouteSink`] and raises them by itself. So pins are edges to this file: it never sees one raised, and
//! the remote IRR of a level entry reads 0.

use std::io;

use serde::{Deserialize, Serialize};

use crate::BusDevice;

/// Interrupt pins.
pub const IOAPIC_PINS: usize = 24;

const VERSION: u32 = 0x20 | ((IOAPIC_PINS as u32 - 1) << 16);
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
/// Delivery status and remote IRR: only hardware writes them.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;
/// Destination, mask, trigger, polarity, modes and vector; the rest is reserved.
const DEFINED: u64 = 0xff << 56 | 0x1_ffff;

/// An interrupt as a message (SDM volume 3, 11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where it is written: the destination.
    pub address: u64,
    /// What is written: trigger, delivery mode and vector.
    pub data: u32,
}

/// Delivers the interrupts of the pins.
pub trait RouteSink: Send {
    /// From now on an edge on a pin is its message; a pin without one is masked.
    fn set_routes(&mut self, pins: &[Option<MsiMessage>; IOAPIC_PINS]) -> io::Result<()>;
}

/// The guest-visible state, as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoapicState {
    /// Index register.
    pub select: u8,
    /// Identification, 4 bits.
    pub id: u8,
    /// Redirection entries.
    pub entries: [u64; IOAPIC_PINS],
}

/// The controller.
pub struct Ioapic {
    state: IoapicState,
    /// What the sink was told last.
    routes: [Option<MsiMessage>; IOAPIC_PINS],
    sink: Box<dyn RouteSink>,
}

/// The message of a redirection entry; none if it is masked or its delivery mode is reserved.
fn message(entry: u64) -> Option<MsiMessage> {
    let mode = (entry >> 8) & 7;
    if entry & MASKED != 0 || mode == 3 || mode == 6 {
        return None;
    }
    let (destination, logical) = (entry >> 56, (entry >> 11) & 1);
    let address = 0xfee0_0000 | destination << 12 | logical << 2;
    // Trigger is bit 15 in both formats; a level message also says "assert" (bit 14).
    let level = if entry & LEVEL != 0 { 0b11 << 14 } else { 0 };
    Some(MsiMessage { address, data: (entry & 0x7ff) as u32 | level })
}

impl Ioapic {
    /// As after reset: every pin masked. `sink` hears of the first pin that is unmasked.
    pub fn new(sink: Box<dyn RouteSink>) -> Self {
        let state = IoapicState { select: 0, id: 0, entries: [MASKED; IOAPIC_PINS] };
        Ioapic { state, routes: [None; IOAPIC_PINS], sink }
    }

    /// A vCPU has ended the service of a level-triggered `vector`.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for entry in &mut self.state.entries {
            if *entry & LEVEL != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
            }
        }
    }

    /// The guest-visible state.
    pub fn save(&self) -> IoapicState {
        self.state.clone()
    }

    /// Takes over a saved state, of which reserved bits are dropped, and tells the sink its routes.
    pub fn load(&mut self, mut state: IoapicState) {
        state.id &= 0xf;
        state.entries.iter_mut().for_each(|entry| *entry &= DEFINED);
        self.state = state;
        self.update();
    }

    /// Tells the sink, if it would hear something new.
    fn update(&mut self) {
        let routes = self.state.entries.map(message);
        if routes == self.routes {
            return;
        }
        match self.sink.set_routes(&routes) {
            Ok(()) => self.routes = routes,
            Err(e) => tracing::error!("interrupt routes were not accepted: {e}"),
        }
    }

    fn register(&self) -> u32 {
        match self.state.select {
            0 | 2 => u32::from(self.state.id) << 24,
            1 => VERSION,
            index => match self.state.entries.get(usize::from(index.wrapping_sub(0x10)) / 2) {
                Some(entry) if index >= 0x10 => (entry >> (32 * (index & 1))) as u32,
                _ => 0,
            },
        }
    }

    fn set_register(&mut self, value: u32) {
        let index = self.state.select;
        if index == 0 {
            self.state.id = (value >> 24) as u8 & 0xf;
        } else if index >= 0x10
            && let Some(entry) = self.state.entries.get_mut(usize::from(index - 0x10) / 2)
        {
            let shift = 32 * (index & 1);
            let writable = 0xffff_ffff << shift & DEFINED & !READ_ONLY;
            *entry = *entry & !writable | u64::from(value) << shift & writable;
            if *entry & LEVEL == 0 {
                *entry &= !REMOTE_IRR;
            }
            self.update();
        }
    }
}

impl BusDevice for Ioapic {
    fn read(&mut self, _: u64, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => u32::from(self.state.select),
            WINDOW => self.register(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, _: u64, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECT, [index, ..]) => self.state.select = *index,
            (WINDOW, data) => {
                if let Ok(bytes) = data.try_into() {
                    self.set_register(u32::from_le_bytes(bytes));
                }
            }
            (EOI, [vector, ..]) => self.end_of_interrupt(*vector),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Calls = Arc<Mutex<Vec<[Option<MsiMessage>; IOAPIC_PINS]>>>;

    struct Recorder(Calls);
    impl RouteSink for Recorder {
        fn set_routes(&mut self, pins: &[Option<MsiMessage>; IOAPIC_PINS]) -> io::Result<()> {
            self.0.lock().unwrap().push(*pins);
            Ok(())
        }
    }

    fn ioapic() -> (Ioapic, Calls) {
        let calls = Calls::default();
        (Ioapic::new(Box::new(Recorder(calls.clone()))), calls)
    }

    fn set(ioapic: &mut Ioapic, index: u8, value: u32) {
        ioapic.write(0, SELECT, &u32::from(index).to_le_bytes());
        ioapic.write(0, WINDOW, &value.to_le_bytes());
    }

    fn get(ioapic: &mut Ioapic, index: u8) -> u32 {
        ioapic.write(0, SELECT, &[index]);
        let mut value = [0; 4];
        ioapic.read(0, WINDOW, &mut value);
        u32::from_le_bytes(value)
    }

    #[test]
    fn an_unmasked_entry_is_the_message_the_manual_says() {
        let (mut ioapic, calls) = ioapic();
        set(&mut ioapic, 0x10 + 2 * 4 + 1, 3 << 24);
        assert!(calls.lock().unwrap().is_empty(), "still masked");
        // Logical destination, lowest priority, edge, vector 0x31.
        set(&mut ioapic, 0x10 + 2 * 4, 0x0931);
        let last = *calls.lock().unwrap().last().unwrap();
        assert_eq!(last[4], Some(MsiMessage { address: 0xfee0_3004, data: 0x131 }));
        assert_eq!(last.iter().flatten().count(), 1);
        // Physical, fixed, level.
        set(&mut ioapic, 0x10 + 2 * 4, 0x8031);
        assert_eq!(calls.lock().unwrap().last().unwrap()[4], Some(MsiMessage { address: 0xfee0_3000, data: 0xc031 }));
    }

    #[test]
    fn the_sink_hears_only_of_changes() {
        let (mut ioapic, calls) = ioapic();
        set(&mut ioapic, 0x10, 0x30);
        set(&mut ioapic, 0x10, 0x30);
        set(&mut ioapic, 0x10, 0x1030);
        set(&mut ioapic, 0x12, 0x1_0031);
        set(&mut ioapic, 0x13, 1 << 24);
        assert_eq!(calls.lock().unwrap().len(), 1);
        set(&mut ioapic, 0x10, 0x1_0030);
        assert_eq!(calls.lock().unwrap().len(), 2);
        assert_eq!(calls.lock().unwrap()[1], [None; IOAPIC_PINS]);
    }

    #[test]
    fn registers_read_back_without_read_only_and_reserved_bits() {
        let (mut ioapic, _) = ioapic();
        assert_eq!(get(&mut ioapic, 1), 0x0017_0020);
        set(&mut ioapic, 0, u32::MAX);
        assert_eq!(get(&mut ioapic, 0), 0x0f00_0000);
        set(&mut ioapic, 0x3e, u32::MAX);
        set(&mut ioapic, 0x3f, u32::MAX);
        assert_eq!((get(&mut ioapic, 0x3e), get(&mut ioapic, 0x3f)), (0x1_afff, 0xff00_0000));
        for beyond in [0x03, 0x0f, 0x40, 0xff] {
            set(&mut ioapic, beyond, u32::MAX);
            assert_eq!(get(&mut ioapic, beyond), 0, "{beyond:#x}");
        }
    }

    #[test]
    fn state_survives_a_round_trip_and_is_not_trusted() {
        let (mut ioapic, _) = ioapic();
        set(&mut ioapic, 0x10 + 2 * 23, 0x55);
        let mut state = ioapic.save();
        let (mut other, calls) = tests::ioapic();
        other.load(state.clone());
        assert_eq!(other.save(), state);
        assert_eq!(calls.lock().unwrap()[0][23].unwrap().data, 0x55);
        state.entries[0] = u64::MAX;
        state.id = 0xff;
        other.load(state);
        assert_eq!((other.save().entries[0], other.save().id), (DEFINED, 0xf));
        other.end_of_interrupt(0xff);
        assert_eq!(other.save().entries[0], DEFINED & !REMOTE_IRR);
    }
}
