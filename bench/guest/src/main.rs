//! The benchmark's guest: a process in ring 3, on as little of a kernel as that takes (`entry.s`).
//!
//! With a disk it reads from that as fast as it can ([`bench_guest::disk`]), between two bytes on the serial port. With a
//! vsock it connects to the host, and sends each question back, inverted. Saved while it waits for one, it goes on elsewhere: the device
//! says that the connection is gone, and it connects again. Whoever closes the connection, or does not take it, ends it.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use bench_guest::PORT;
use bench_guest::disk::{self, Disk};
use bench_guest::socket::{Event, Memory, Socket};

global_asm!(include_str!("entry.s"));

/// First guest-physical address of the virtio windows: the machine has one device.
const WINDOW: usize = 0xd000_0000;
/// Port of the machine's end.
const EXIT_PORT: u16 = 0x600;
const POWER_OFF: u8 = 1;
const PANIC: u8 = 3;

const SERIAL: u16 = 0x3f8;

static mut MEMORY: Memory = Memory::new();
static mut DISK: disk::Memory = disk::Memory::new();

#[unsafe(no_mangle)]
extern "C" fn ring3() -> ! {
    // SAFETY: this is the program's only thread, and this is entered once; the machine has a device there, which ring 3 may
    // access.
    if let Some(disk) = unsafe { Disk::new(WINDOW as *mut u32, &mut *(&raw mut DISK)) } {
        if read(disk).is_none() {
            end(PANIC);
        }
        // Whoever measures has still to look at the machine.
        loop {
            wait();
        }
    }
    // SAFETY: as above; nothing else drives the device, which is no disk.
    let socket = unsafe { Socket::new(WINDOW as *mut u32, &mut *(&raw mut MEMORY)) };
    let Some(mut socket) = socket else { end(PANIC) };
    socket.connect(PORT);
    loop {
        match socket.receive() {
            Event::None => wait(),
            Event::Gone => socket.connect(PORT),
            Event::Closed => end(POWER_OFF),
            Event::Question(question) => socket.send(!question),
        }
    }
}

fn read(mut disk: Disk) -> Option<()> {
    let load = disk.load()?;
    out(SERIAL, b'b');
    disk.run(load)?;
    out(SERIAL, b'e');
    Some(())
}

/// Until the next interrupt; see `entry.s`.
fn wait() {
    // SAFETY: ring 0 goes on behind it. Memory may have changed meanwhile.
    unsafe { asm!("hlt", options(nostack)) };
}

fn out(port: u16, byte: u8) {
    // SAFETY: ring 0 does it; these ports do not touch memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nostack)) };
}

fn end(how: u8) -> ! {
    loop {
        out(EXIT_PORT, how);
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    end(PANIC)
}

// The toolchain's own libraries come compiled for unwinding and name this. Nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
