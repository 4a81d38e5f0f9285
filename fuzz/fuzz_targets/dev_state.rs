//! Any saved state into every device of the table, and into the legacy ones: it is refused, or the device works with it, can be
//! saved again, and comes back by a reset.
//!
//! The first byte says which device. The rest is a state, or else changes to one that a device had: which of its numbers, and
//! what becomes of it.
#![no_main]

mod device;

use std::io;
use std::sync::Arc;

use device::{Input, recovers};
use devices::legacy::{IOAPIC_PINS, Ioapic, IoapicState, MsiMessage, RouteSink, Serial, SerialState};
use devices::virtio::DEVICES;
use devices::virtio::mmio::TransportState;
use devices::virtio::testing::Driver;
use devices::{BusDevice, InterruptLine};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

struct Nobody;

impl InterruptLine for Nobody {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

impl RouteSink for Nobody {
    fn set_routes(&mut self, _: &[Option<MsiMessage>; IOAPIC_PINS]) -> io::Result<()> {
        Ok(())
    }
}

/// The numbers in a state, in order.
fn numbers<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| numbers(value, found)),
        Value::Object(members) => members.values_mut().for_each(|value| numbers(value, found)),
        Value::Number(_) => found.push(value),
        _ => {}
    }
}

fn changed(mut state: Value, input: &mut Input<'_>) -> Value {
    {
        let mut found = Vec::new();
        numbers(&mut state, &mut found);
        while !input.is_empty() && !found.is_empty() {
            let at = usize::from(input.byte()) % found.len();
            let small = u64::from(input.byte());
            *found[at] = if small == 255 { input.u64().into() } else { small.into() };
        }
    }
    state
}

/// A state that the input spells out, or changes to `own`.
fn state(own: Value, input: &mut Input<'_>) -> Value {
    serde_json::from_slice(input.0).unwrap_or_else(|_| changed(own, input))
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let which = usize::from(input.byte()) % (DEVICES.len() + 2);
    let Some(kind) = DEVICES.get(which) else {
        if which == DEVICES.len() {
            let mut ioapic = Ioapic::new(Box::new(Nobody));
            let own = serde_json::to_value(ioapic.save()).expect("JSON");
            if let Ok(state) = serde_json::from_value::<IoapicState>(state(own, &mut input)) {
                ioapic.load(state);
                (0..=255).for_each(|vector| ioapic.end_of_interrupt(vector));
                (0..64).for_each(|register| {
                    ioapic.write(0, 0, &[register, 0, 0, 0]);
                    ioapic.read(0, 0x10, &mut [0; 4]);
                    ioapic.write(0, 0x10, &[0xff; 4]);
                });
            }
        } else {
            let own = serde_json::to_value(Serial::new(Arc::new(Nobody), Box::new(io::sink())).save()).expect("JSON");
            if let Ok(state) = serde_json::from_value::<SerialState>(state(own, &mut input))
                && let Some(mut serial) = Serial::restore(state, Arc::new(Nobody), Box::new(io::sink()))
            {
                let room = serial.room();
                serial.enqueue(&vec![1; room]);
                (0..8).for_each(|register| serial.read(0, register, &mut [0]));
                let _ = serial.save();
            }
        }
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let build = || Driver::new((kind.build)(&(kind.sample)(dir.path())).expect("a device").remove(0));
    let own = {
        let mut first = build();
        first.bring_up(u64::MAX);
        serde_json::to_value(first.lock().save().expect("a state")).expect("JSON")
    };
    let Ok(state) = serde_json::from_value::<TransportState>(state(own, &mut input)) else { return };
    let mut driver = build();
    if driver.lock().load(&state).is_ok() {
        let _ = driver.settle();
        let _ = driver.lock().save();
    }
    recovers(&mut driver);
});
