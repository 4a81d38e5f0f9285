//! Group 1: rings and chains (virtio 1.3, 2.7) that no driver may make.

use super::{Attack, Do, any};
use crate::machine::{F_EVENT_IDX, F_INDIRECT, Machine};
use crate::memory::{DATA, TABLE, read, write};
use crate::ring::{INDIRECT, NEXT, Ring, WRITE, descriptor};

/// The group.
pub const ATTACKS: &[Attack] = &[
    any("a chain that leads to itself", Do::Chain(&[(0, DATA, 16, NEXT, 0)])),
    any("a cycle of all descriptors", Do::Code(|machine, victim| every_queue(machine, victim, cycle))),
    any("a chain as long as the queue", Do::Code(|machine, victim| every_queue(machine, victim, longest))),
    any("an indirect table in an indirect table", Do::Indirect(16, &[(0, TABLE, 16, INDIRECT, 0)])),
    any("an indirect table of no bytes", Do::Chain(&[(0, TABLE, 0, INDIRECT, 0)])),
    any("an indirect table of 17 bytes", Do::Chain(&[(0, TABLE, 17, INDIRECT, 0)])),
    any("an indirect table above the queue's size", Do::Chain(&[(0, TABLE, 16 * 0x8001, INDIRECT, 0)])),
    any("an indirect table of 4 GiB", Do::Chain(&[(0, TABLE, 0xffff_fff0, INDIRECT, 0)])),
    any("an indirect table that was not negotiated", Do::Code(unnegotiated)),
    any("a descriptor outside the table", Do::Chain(&[(0, DATA, 16, NEXT, 0xffff)])),
    any("a descriptor behind the table", Do::Chain(&[(0, DATA, 16, NEXT, 256)])),
    any("a descriptor outside the indirect table", Do::Indirect(32, &[(0, DATA, 16, NEXT, 2)])),
    any("a cycle in the indirect table", Do::Indirect(32, &[(0, DATA, 16, NEXT, 1), (1, DATA, 16, NEXT, 0)])),
    any("indirect, with a next one", Do::Chain(&[(0, TABLE, 16, NEXT | INDIRECT, 1), (1, DATA, 16, 0, 0)])),
    any("readable after writable", Do::Chain(&[(0, DATA, 16, NEXT | WRITE, 1), (1, DATA, 16, 0, 0)])),
    any("empty buffers", Do::Chain(&[(0, DATA, 0, NEXT, 1), (1, DATA, 0, WRITE, 0)])),
    any("an empty buffer at no address", Do::Chain(&[(0, u64::MAX, 0, 0, 0)])),
    any("a buffer that wraps", Do::Chain(&[(0, u64::MAX - 7, 16, 0, 0)])),
    any("a buffer of 4 GiB", Do::Chain(&[(0, 0, u32::MAX, WRITE, 0)])),
    any("more than 4 GiB", Do::Chain(&[(0, DATA, 1 << 20, NEXT, 1), (1, 0, u32::MAX, 0, 0)])),
    any("a head outside the table", Do::Offer(&[256], 0)),
    any("a head of 65535", Do::Offer(&[0, 0xffff], 0)),
    any("the same head twice", Do::Offer(&[0, 0], 0)),
    any("the same head often", Do::Offer(&[2, 0, 2, 0, 4, 4, 2], 0)),
    any("an index ahead by more than the queue", Do::Offer(&[], 257)),
    any("an index that goes back", Do::Offer(&[0], 0xffff)),
    any("an index half-way round", Do::Offer(&[], 0x8000)),
    any("a queue full of one head", Do::Offer(&[0], 255)),
    any("an index that wraps", Do::Code(wraps)),
    any("event indices at random", Do::Code(event_indices)),
    any("a queue of size 0", Do::SetUp(0, [None; 3])),
    any("a queue of size 3", Do::SetUp(3, [None; 3])),
    any("a queue of size 65536", Do::SetUp(0x1_0000, [None; 3])),
    any("a table that is not aligned", Do::SetUp(16, [Some(DATA + 8), None, None])),
    any("an available ring that is not aligned", Do::SetUp(16, [None, Some(DATA + 1), None])),
    any("a used ring that is not aligned", Do::SetUp(16, [None, None, Some(DATA + 2)])),
    any("all parts at one place", Do::SetUp(16, [Some(DATA); 3])),
    any("parts that overlap", Do::SetUp(16, [Some(DATA), Some(DATA + 0xfe), Some(DATA + 0x1000)])),
    any("parts at address 0", Do::SetUp(16, [Some(0); 3])),
];

fn every_queue(machine: &mut Machine, victim: usize, write: fn(&Ring)) {
    let device = machine.device(victim);
    for queue in 0..device.queues {
        write(&device.rings[queue]);
        device.rings[queue].offer(0);
        device.kick(queue);
    }
}

fn cycle(ring: &Ring) {
    (0..ring.size).for_each(|at| descriptor(ring.table(), (at, DATA, 16, NEXT, (at + 1) % ring.size)));
}

fn longest(ring: &Ring) {
    let last = ring.size - 1;
    for at in 0..=last {
        let flags = if at > last / 4 { WRITE } else { 0 } | if at == last { 0 } else { NEXT };
        descriptor(ring.table(), (at, DATA, 1, flags, at + 1));
    }
}

fn unnegotiated(machine: &mut Machine, victim: usize) {
    let device = machine.device(victim);
    device.bring_up(!F_INDIRECT & !F_EVENT_IDX);
    descriptor(TABLE, (0, DATA, 64, 0, 0));
    every_queue(machine, victim, |ring| descriptor(ring.table(), (0, TABLE, 16, INDIRECT, 0)));
}

/// More requests than an index counts to, a queue full at a time.
fn wraps(machine: &mut Machine, victim: usize) {
    const ROUNDS: u32 = 0x1_0000;
    let at = machine.requests(victim);
    let device = machine.device(victim);
    // One queue of a device whose requests are short; rings are the same code for all.
    if device.kind != 4 {
        return;
    }
    let ring = &mut device.rings[0];
    descriptor(ring.table(), (0, at, 1, WRITE, 0));
    let half = u32::from(ring.size) / 2;
    (0..half as u16).for_each(|head| descriptor(ring.table(), (head, at, 1, WRITE, 0)));
    let mut given = 0;
    while given < ROUNDS + 2 * half {
        (0..half as u16).for_each(|head| device.rings[0].offer(head));
        given += half;
        device.kick(0);
        while !device.rings[0].is_done() && device.runs() {
            ring3::wait();
        }
    }
    while device.rings[0].take().is_some() {}
}

/// With event indices negotiated, and set to anything.
fn event_indices(machine: &mut Machine, victim: usize) {
    let at = machine.requests(victim);
    let device = machine.device(victim);
    device.bring_up(u64::MAX);
    for round in 0..32u16 {
        for queue in 0..device.queues {
            let ring = &mut device.rings[queue];
            let [_, available, used] = ring.areas();
            write(available + 4 + 2 * u64::from(ring.size), round.wrapping_mul(0x1357));
            write(used + 4 + 8 * u64::from(ring.size), read::<u16>(used + 2).wrapping_sub(round));
            ring.chain(0, at, 64, 513);
            if ring.is_done() {
                ring.offer(0);
            }
            device.kick(queue);
        }
    }
}
