//! The benchmark's guest: a process in ring 3, on as little of a kernel as that takes (crate `ring3`).
//!
//! With a disk it reads from that as fast as it can ([`bench_guest::disk`]), between two bytes on the serial port. With a network it
//! takes and gives data over TCP ([`bench_guest::peer`]), from a byte on the serial port on. With a vsock and a load on its command line it
//! moves that ([`bench_guest::stream`]), like the disk's. With a flood on its command line it is a bad neighbour
//! ([`bench_guest::flood`]). Without, it connects to the host, and sends each question back, inverted, after as much work as that
//! wants. Saved while it waits for one, it goes on elsewhere: the device
//! says that the connection is gone, and it connects again. Whoever closes the connection, or does not take it, ends it.
#![no_std]
#![no_main]

use core::arch::global_asm;

use bench_guest::disk::{self, Disk};
use bench_guest::flood::Flood;
use bench_guest::net::{self, Net};
use bench_guest::peer::Peer;
use bench_guest::socket::{Event, Memory, Socket};
use bench_guest::stream::{self, Load, Stream};
use bench_guest::{PORT, WORK_SHIFT};
use ring3::{End, SERIAL, WINDOWS, end, out8, wait};

global_asm!(include_str!("../../../guest-images/ring3/entry.s"));

/// Where the kernel's command line is, and its most bytes.
const COMMAND_LINE: *const u8 = 0x2_0000 as *const u8;
const LINE_MOST: usize = 1024;
/// Behind the program.
const STREAM: *mut stream::Memory = 0x20_0000 as *mut stream::Memory;

static mut MEMORY: Memory = Memory::new();
static mut DISK: disk::Memory = disk::Memory::new();
/// Memory behind the program, for a network's rings and packets: nobody else uses it, and it is zeros as it comes.
const PACKETS: usize = 4 << 20;

#[unsafe(no_mangle)]
extern "C" fn ring3() -> ! {
    let line = command_line();
    if let Some(what) = Flood::parse(&line) {
        flood(what);
    }
    // SAFETY: this is the program's only thread, and this is entered once; the machine has a device there, which ring 3 may
    // access.
    if let Some(disk) = unsafe { Disk::new(WINDOWS as *mut u32, &mut *(&raw mut DISK)) } {
        if read(disk).is_none() {
            end(End::Panic);
        }
        // Whoever measures has still to look at the machine.
        loop {
            wait();
        }
    }
    // SAFETY: as above; nothing else drives the device, which is no disk. A machine with a network has memory there.
    let net = unsafe { Net::new(WINDOWS as *mut u32, &mut *(PACKETS as *mut net::Memory)) };
    if let Some(net) = net {
        let mut peer = Peer::new(net);
        out8(SERIAL, b'b');
        loop {
            peer.turn();
            core::hint::spin_loop();
        }
    }
    if let Some(load) = Load::parse(&line) {
        // SAFETY: as above; the machine has 16 MiB, of which those behind the program are zeros, and nobody's.
        let stream = unsafe { Stream::new(WINDOWS as *mut u32, &mut *STREAM, PORT) };
        if stream.and_then(|stream| move_bytes(stream, load)).is_none() {
            end(End::Panic);
        }
        loop {
            wait();
        }
    }
    // SAFETY: as above; nothing else drives the device, which is no disk and no network.
    let socket = unsafe { Socket::new(WINDOWS as *mut u32, &mut *(&raw mut MEMORY)) };
    let Some(mut socket) = socket else { end(End::Panic) };
    socket.connect(PORT);
    loop {
        match socket.receive() {
            Event::None => wait(),
            Event::Gone => socket.connect(PORT),
            Event::Closed => end(End::PowerOff),
            Event::Question(question) => {
                compute(question >> WORK_SHIFT);
                socket.send(!question);
            }
        }
    }
}

fn command_line() -> [u8; LINE_MOST] {
    // SAFETY: RAM that nobody writes to.
    core::array::from_fn(|at| unsafe { COMMAND_LINE.add(at).read_volatile() })
}

/// So many steps that cannot be left out.
fn compute(steps: u64) {
    for step in 0..steps {
        core::hint::black_box(step);
    }
}

/// Takes what it can get until it is ended. The machine's first device is a disk.
fn flood(what: Flood) -> ! {
    // SAFETY: as in `ring3`; nothing else drives the device.
    let disk = unsafe { Disk::new(WINDOWS as *mut u32, &mut *(&raw mut DISK)) };
    let Some(mut disk) = disk else { end(End::Panic) };
    match what {
        Flood::Spin => loop {
            core::hint::spin_loop();
        },
        Flood::Serial => loop {
            out8(SERIAL, b'x');
        },
        Flood::Kicks => loop {
            disk.notify();
        },
        Flood::Disk => {
            let _ = disk.flood();
            end(End::Panic)
        }
    }
}

fn move_bytes(mut stream: Stream, load: Load) -> Option<()> {
    out8(SERIAL, b'b');
    stream.run(load)?;
    out8(SERIAL, b'e');
    Some(())
}

fn read(mut disk: Disk) -> Option<()> {
    let load = disk.load()?;
    out8(SERIAL, b'b');
    disk.run(load)?;
    out8(SERIAL, b'e');
    Some(())
}
