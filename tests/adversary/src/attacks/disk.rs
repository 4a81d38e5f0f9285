//! Group 5: requests to disks (virtio 1.3, 5.2.6) that are none, and disks whose file is not what it was.

use super::{Attack, Do};
use crate::machine::{Machine, kind};
use crate::memory::{fill, write};
use crate::ring::{NEXT, WRITE, descriptor};

const READ: u32 = 0;
const STORE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// The group.
pub const ATTACKS: &[Attack] = &[
    on_disks("sectors beyond all", |m, v| each(m, v, READ, &[u64::MAX, 1 << 55, 1 << 40, 0xffff_ffff], 512)),
    on_disks("stores beyond all", |m, v| each(m, v, STORE, &[u64::MAX, 1 << 55, 1 << 40, 0xffff_ffff], 512)),
    on_disks("the sector behind the last, and a read across the end", |m, v| {
        let sectors = capacity(m, v);
        each(m, v, READ, &[sectors, sectors - 1], 4096);
        each(m, v, STORE, &[sectors, sectors - 1], 4096);
    }),
    on_disks("lengths of no sectors", |m, v| {
        for len in [0, 1, 511, 513, 1023] {
            each(m, v, READ, &[0], len);
            each(m, v, STORE, &[0], len);
        }
    }),
    on_disks("stores to all disks, also those that may only be read", |m, v| each(m, v, STORE, &[0, 1, 2], 4096)),
    on_disks("requests of no known type", |m, v| {
        for what in [2, 3, 5, 7, 9, 10, 12, 14, 0x7fff_ffff, u32::MAX] {
            each(m, v, what, &[0], 512);
        }
    }),
    on_disks("flushes and identities of any length", |m, v| {
        for len in [0, 1, 19, 20, 21, 4096, 65536] {
            each(m, v, FLUSH, &[0, u64::MAX], len);
            each(m, v, GET_ID, &[0, u64::MAX], len);
        }
    }),
    on_disks("ranges to discard that are none", |m, v| {
        for what in [DISCARD, WRITE_ZEROES] {
            for (sector, count, flags) in [
                (0, 0, 0),
                (u64::MAX, 1, 0),
                (u64::MAX, u32::MAX, 1),
                (1 << 55, 8, 0),
                (1, u32::MAX, 0),
                (0, u32::MAX, 1),
                (0, 8, u32::MAX),
            ] {
                range(m, v, what, (sector, count, flags), 16);
            }
            for len in [0, 1, 15, 17, 16 * 100] {
                range(m, v, what, (0, 1, 0), len);
            }
        }
    }),
    on_disks("no status", |m, v| {
        malformed(m, v, |table, at| {
            descriptor(table, (0, at, 16, NEXT, 1));
            descriptor(table, (1, at + 0x1000, 512, 0, 0));
        })
    }),
    on_disks("a header that is too short", |m, v| {
        malformed(m, v, |table, at| {
            descriptor(table, (0, at, 15, NEXT, 1));
            descriptor(table, (1, at + 0x1000, 513, WRITE, 0));
        })
    }),
    on_disks("a status and nothing else", |m, v| malformed(m, v, |table, at| descriptor(table, (0, at, 1, WRITE, 0)))),
    on_disks("a header in single bytes", |m, v| {
        malformed(m, v, |table, at| {
            (0..16).for_each(|byte| descriptor(table, (byte, at + u64::from(byte), 1, NEXT, byte + 1)));
            descriptor(table, (16, at + 0x1000, 513, WRITE, 0));
        })
    }),
    on_disks("a file that was cut off", |m, v| beneath(m, v, "cut")),
    on_disks("a file that is whole again", |m, v| beneath(m, v, "grow")),
    on_disks("a file system that is full", |m, v| beneath(m, v, "fill")),
    on_disks("a slow disk", slow),
];

const fn on_disks(name: &'static str, code: fn(&mut Machine, usize)) -> Attack {
    Attack { name, kinds: &[kind::BLOCK], what: Do::Code(code) }
}

/// 512-byte sectors.
fn capacity(machine: &mut Machine, victim: usize) -> u64 {
    machine.device(victim).window.read(crate::window::register::CONFIG)
}

/// Requests with `len` bytes of data for each of some sectors, as soon as the disk has done the one before.
fn each(machine: &mut Machine, victim: usize, what: u32, sectors: &[u64], len: u32) {
    sectors.iter().for_each(|sector| request(machine, victim, what, *sector, len));
}

/// One request, until the disk has done it or asks for a reset.
fn request(machine: &mut Machine, victim: usize, what: u32, sector: u64, len: u32) {
    let at = machine.requests(victim);
    write(at, u64::from(what));
    write(at + 8, sector);
    write(at + 0x800, 0xffu8);
    let stores = !matches!(what, READ | GET_ID);
    let device = machine.device(victim);
    if !device.runs() {
        machine.revive(victim);
    }
    let device = machine.device(victim);
    let table = device.rings[0].table();
    descriptor(table, (0, at, 16, NEXT, 1));
    descriptor(table, (1, at + 0x1000, len, NEXT | if stores { 0 } else { WRITE }, 2));
    descriptor(table, (2, at + 0x800, 1, WRITE, 0));
    device.rings[0].offer(0);
    device.kick(0);
    while !device.rings[0].is_done() {
        if !device.runs() {
            return;
        }
        ring3::wait();
    }
}

fn range(machine: &mut Machine, victim: usize, what: u32, (sector, count, flags): (u64, u32, u32), len: u32) {
    let at = machine.requests(victim) + 0x1000;
    write(at, sector);
    write(at + 8, count);
    write(at + 12, flags);
    request(machine, victim, what, 0, len);
}

/// A request whose descriptors are its own, on each queue.
fn malformed(machine: &mut Machine, victim: usize, make: fn(u64, u64)) {
    let at = machine.requests(victim);
    fill(at, 0, 64);
    let device = machine.device(victim);
    for queue in 0..device.queues {
        make(device.rings[queue].table(), at);
        device.rings[queue].offer(0);
        device.kick(queue);
    }
}

/// The host does something to the file; then all of the disk is read and written. Whether that works is the file's business.
fn beneath(machine: &mut Machine, victim: usize, what: &str) {
    machine.ask(what);
    let sectors = capacity(machine, victim);
    for sector in (0..sectors).step_by(64) {
        [STORE, READ, FLUSH].into_iter().for_each(|what| request(machine, victim, what, sector, 4096));
    }
    request(machine, victim, READ, sectors - 1, 512);
}

/// More requests than a limit lets through; the host takes the limit away afterwards.
fn slow(machine: &mut Machine, victim: usize) {
    machine.ask("slow");
    let at = machine.requests(victim);
    fill(at, 0, 64);
    let device = machine.device(victim);
    let ring = &mut device.rings[0];
    for head in (0..ring.size.min(120)).step_by(2) {
        ring.chain(head, at, 64, 513);
        ring.offer(head);
    }
    device.kick(0);
    machine.serves();
    machine.ask("fast");
}
