//! Group 2: buffers and rings where no RAM is, or where they should not be.

use super::{Attack, Do, any};
use crate::machine::Machine;
use crate::memory::{DATA, END};
use crate::ring::{INDIRECT, NEXT, WRITE, descriptor};

/// The first of the devices' windows.
const WINDOW: u64 = ring3::WINDOWS as u64;
const APIC: u64 = 0xfee0_0000;

/// The group.
pub const ATTACKS: &[Attack] = &[
    any("a buffer across the end of RAM", Do::Chain(&[(0, END - 8, 16, 0, 0)])),
    any("room across the end of RAM", Do::Chain(&[(0, DATA, 64, NEXT, 1), (1, END - 8, 513, WRITE, 0)])),
    any("the last byte of RAM", Do::Chain(&[(0, END - 64, 64, NEXT, 1), (1, END - 1, 1, WRITE, 0)])),
    any("the byte behind it", Do::Chain(&[(0, END, 1, 0, 0)])),
    any("a buffer in a device's window", Do::Chain(&[(0, WINDOW, 64, NEXT, 1), (1, WINDOW + 0x50, 513, WRITE, 0)])),
    any("room in the local APIC", Do::Chain(&[(0, DATA, 64, NEXT, 1), (1, APIC, 513, WRITE, 0)])),
    any("a buffer below 4 GiB", Do::Chain(&[(0, 0xffff_fff0, 16, 0, 0)])),
    any("room across 4 GiB", Do::Chain(&[(0, 0xffff_fff0, 32, WRITE, 0)])),
    any("a buffer above all RAM", Do::Chain(&[(0, 1 << 52, 16, 0, 0)])),
    any("an indirect table outside", Do::Chain(&[(0, 0x8000_0000, 16, INDIRECT, 0)])),
    any("an indirect table across the end", Do::Chain(&[(0, END - 16, 32, INDIRECT, 0)])),
    any("an indirect table in a window", Do::Chain(&[(0, WINDOW, 64, INDIRECT, 0)])),
    any("an indirect table that wraps", Do::Chain(&[(0, u64::MAX - 7, 16, INDIRECT, 0)])),
    any("an indirect table that is not aligned", Do::Chain(&[(0, END - 33, 32, INDIRECT, 0)])),
    any("a table across the end", Do::SetUp(256, [Some(END - 0x800), None, None])),
    any("an available ring across the end", Do::SetUp(256, [None, Some(END - 4), None])),
    any("a used ring across the end", Do::SetUp(256, [None, None, Some(END - 8)])),
    any("a table in a window", Do::SetUp(16, [Some(WINDOW), None, None])),
    any("a used ring in a window", Do::SetUp(16, [None, None, Some(WINDOW)])),
    any("a used ring in the local APIC", Do::SetUp(16, [None, None, Some(APIC)])),
    any(
        "a ring at the last address",
        Do::SetUp(16, [Some(0xffff_ffff_ffff_fff0), Some(u64::MAX - 1), Some(u64::MAX - 3)]),
    ),
    any("rings in their own buffers", Do::Code(own_rings)),
    any("a buffer that is the program's first page", Do::Chain(&[(0, 0, 64, NEXT, 1), (1, 0x1_0000, 513, WRITE, 0)])),
];

/// A queue's own table, available and used ring as room for what the device writes.
fn own_rings(machine: &mut Machine, victim: usize) {
    let at = machine.requests(victim);
    crate::ring::blank(at);
    for part in 0..3 {
        let device = machine.device(victim);
        for queue in 0..device.queues {
            let ring = &mut device.rings[queue];
            let target = ring.areas()[part];
            descriptor(ring.table(), (0, at, 64, NEXT, 1));
            descriptor(ring.table(), (1, target, 513, WRITE, 0));
            ring.offer(0);
            device.kick(queue);
        }
        // The last is left as it is, for the host to look at.
        if part < 2 {
            machine.serves();
            machine.revive(victim);
        }
    }
}
