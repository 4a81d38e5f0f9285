//! Register programs and input against the serial port: no panic, and its FIFO never holds more than it may.

#![no_main]

mod device;

use std::io;
use std::sync::Arc;

use device::Input;
use devices::legacy::Serial;
use devices::{BusDevice, InterruptLine};
use libfuzzer_sys::fuzz_target;

struct Line;

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut serial = Serial::new(Arc::new(Line), Box::new(io::sink()));
    let mut input = Input(data);
    while !input.is_empty() {
        let action = input.byte();
        let register = u64::from(action >> 4);
        match action & 3 {
            0 => serial.write(0x3f8, register, &[input.byte()]),
            1 => serial.write(0x3f8, register, input.bytes(usize::from(action >> 2 & 3))),
            2 => serial.read(0x3f8, register, &mut [0; 8][..usize::from(action >> 2 & 3)]),
            _ => {
                let room = serial.room();
                let bytes = input.bytes(register as usize * 8);
                serial.enqueue(bytes);
                assert_eq!(serial.room(), room - bytes.len().min(room));
            }
        }
    }
});
