//! The conversation with the host: lines out, single bytes in.

use ring3::{SERIAL, in8, out8, wait};

const INTERRUPT_ENABLE: u16 = SERIAL + 1;
const LINE_STATUS: u16 = SERIAL + 5;

/// Input interrupts from now on, whatever was done to the port.
pub fn set_up() {
    for register in [4, 3, 2] {
        out8(SERIAL + register, 0);
    }
    out8(INTERRUPT_ENABLE, 1);
}

/// Says something.
pub fn say(text: &str) {
    text.bytes().for_each(|byte| out8(SERIAL, byte));
}

/// Says a number.
pub fn number(mut value: u32) {
    let (mut digits, mut at) = ([0; 10], 10);
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    digits[at..].iter().for_each(|byte| out8(SERIAL, *byte));
}

/// The next byte from the host, which is waited for.
pub fn hear() -> u8 {
    while in8(LINE_STATUS) & 1 == 0 {
        wait();
    }
    in8(SERIAL)
}

/// Waits until the host says to go on, and hears nothing else.
pub fn go() {
    while hear() != b'g' {}
}
