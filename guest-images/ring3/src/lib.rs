//! What a bare program that runs in a guest's ring 3 stands on: `entry.s`, as little of a kernel as that takes, and here what
//! the program asks of it.
//!
//! A program includes `entry.s` (and `second.s`, if it wants a second processor), is linked by `program.ld`, and has a function
//! `ring3` that is entered. All of the machine's first 16 MiB and of its devices' windows is its own, at physical addresses.
#![no_std]

use core::arch::asm;

/// The serial port's first register.
pub const SERIAL: u16 = 0x3f8;
/// First guest-physical address of the virtio windows.
pub const WINDOWS: usize = 0xd000_0000;
/// Bytes of each.
pub const WINDOW: usize = 0x1000;

/// Port of the machine's end.
const EXIT_PORT: u16 = 0x600;

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As it should.
    PowerOff = 1,
    /// The program cannot go on.
    Panic = 3,
}

/// Until the next interrupt, or at once if there was one since the last call.
pub fn wait() {
    // SAFETY: ring 0 goes on behind it. Memory may have changed meanwhile.
    unsafe { asm!("hlt", options(nostack)) };
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: ring 0 does it; ports of these machines do not touch memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// Writes two bytes to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack)) };
}

/// Writes four bytes to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

/// Reads a byte from a port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack)) };
    value
}

/// Reads four bytes from a port.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}

/// Ends the machine.
pub fn end(how: End) -> ! {
    loop {
        out8(EXIT_PORT, how as u8);
    }
}

#[cfg(feature = "bare")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    end(End::Panic)
}

// The toolchain's own libraries come compiled for unwinding and name this. Nothing unwinds here.
#[cfg(feature = "bare")]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
