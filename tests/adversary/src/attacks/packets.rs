//! Group 6: frames and packets that nobody sends.

use super::{Attack, Do};
use crate::machine::{Machine, kind};
use crate::memory::{fill, write};
use crate::ring::{NEXT, WRITE, descriptor};

const HOST: u64 = 2;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// Where a program of the host listens, and closes what comes.
const PORT: u32 = 1024;
/// Bytes of a packet's header, and of a frame's.
const PACKET: u32 = 44;
const FRAME: u32 = 12;

/// The group.
pub const ATTACKS: &[Attack] = &[
    net("runts", |m, v| [0, 1, 11, 12, 13, 25, 26].into_iter().for_each(|len| frame(m, v, [0; 12], len))),
    net("frames of 64 KiB and more", |m, v| {
        for len in [9000, 65535, 65536, 65536 + FRAME, 0x1_8000] {
            frame(m, v, [0; 12], len);
            // All of the segmentation offloads: 1 and 4, UDP's 5, and with ECN.
            [1, 3, 4, 5, 0x81]
                .into_iter()
                .for_each(|kind| frame(m, v, [1, kind, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0], len));
        }
    }),
    net("offsets beyond the frame", |m, v| {
        for header in [
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 34, 0, 0xff, 0xff, 0, 0],
            [1, 1, 0xff, 0xff, 0, 0, 34, 0, 16, 0, 0, 0],
            [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
            [0, 1, 54, 0, 100, 0, 0, 0, 0, 0, 0, 0],
            [0xff; 12],
            [0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        ] {
            [FRAME, 64, 1500].into_iter().for_each(|len| frame(m, v, header, len));
        }
    }),
    net("frames of others", |m, v| {
        let at = m.requests(v) + 0x1000;
        // From everybody to everybody.
        fill(at, 0xff, 12);
        (0..16).for_each(|_| frame(m, v, [0; 12], 60 + FRAME));
    }),
    net("no room for frames", |m, v| {
        let at = m.requests(v);
        let device = m.device(v);
        for (head, room) in [(0, 1), (1, 11), (2, 12), (3, 13)] {
            descriptor(device.rings[0].table(), (head, at, room, WRITE, 0));
            device.rings[0].offer(head);
        }
        device.kick(0);
        frame(m, v, [0; 12], 60 + FRAME);
    }),
    net("an interface that is down", |m, v| gone(m, v, "down")),
    net("an interface that is gone", |m, v| gone(m, v, "gone")),
    vsock("senders and receivers of other machines", |m, v| {
        for cid in [0, 1, 2, 3, 4, u64::MAX, u32::MAX.into(), 1 << 32 | 3] {
            packet(m, v, &Packet { from: cid, ..Packet::of(REQUEST) }, 0);
            packet(m, v, &Packet { to: cid, ..Packet::of(REQUEST) }, 0);
            packet(m, v, &Packet { to: cid, len: 8, ..Packet::of(DATA) }, 8);
        }
    }),
    vsock("lengths above the buffer", |m, v| {
        packet(m, v, &Packet::of(REQUEST), 0);
        for (len, data) in [(1, 0), (100, 99), (u32::MAX, 64), (u32::MAX - 43, 4096), (64 << 10, 100)] {
            packet(m, v, &Packet { len, ..Packet::of(DATA) }, data);
        }
        [0, 1, 43].into_iter().for_each(|len| send(m, v, len));
    }),
    vsock("credit that is none", |m, v| {
        for (room, taken) in [(0, u32::MAX), (u32::MAX, 0), (u32::MAX, u32::MAX), (0, 0)] {
            packet(m, v, &Packet { room, taken, ..Packet::of(REQUEST) }, 0);
            packet(m, v, &Packet { room, taken, ..Packet::of(CREDIT_UPDATE) }, 0);
            packet(m, v, &Packet { room, taken, ..Packet::of(CREDIT_REQUEST) }, 0);
        }
        // More than it was ever given.
        (0..64).for_each(|_| packet(m, v, &Packet { len: 60 << 10, ..Packet::of(DATA) }, 60 << 10));
    }),
    vsock("operations of any kind", |m, v| {
        for operation in (0..16).chain([0xff, 0x100, 0xffff]) {
            packet(m, v, &Packet { flags: u32::MAX, ..Packet::of(operation) }, 0);
            packet(m, v, &Packet { kind: 2, ..Packet::of(operation) }, 0);
            packet(m, v, &Packet { kind: 0xffff, len: 5, ..Packet::of(operation) }, 5);
        }
    }),
    vsock("a storm of resets, and what is answered by them", |m, v| {
        for port in 0..5000 {
            packet(m, v, &Packet { port, ..Packet::of(RESET) }, 0);
            packet(m, v, &Packet { port, ..Packet::of(RESPONSE) }, 0);
        }
    }),
    vsock("no room for packets", |m, v| {
        let at = m.requests(v);
        let device = m.device(v);
        for (head, room) in [(0, 1), (1, 43), (2, 44)] {
            descriptor(device.rings[0].table(), (head, at, room, WRITE, 0));
            device.rings[0].offer(head);
        }
        device.kick(0);
        packet(m, v, &Packet::of(REQUEST), 0);
        packet(m, v, &Packet::of(SHUTDOWN), 0);
    }),
    vsock("10,000 connections, and an answer to each", |m, v| {
        let at = m.requests(v) + 0x4000;
        let device = m.device(v);
        for head in 0..64 {
            descriptor(device.rings[0].table(), (head, at, 4096, WRITE, 0));
            device.rings[0].offer(head);
        }
        device.kick(0);
        (0..10_000).for_each(|port| packet(m, v, &Packet { port, ..Packet::of(REQUEST) }, 0));
    }),
    vsock("10,000 connections, and no answers", |m, v| {
        for port in 0..10_000 {
            packet(m, v, &Packet { port, ..Packet::of(REQUEST) }, 0);
            if port % 7 == 0 {
                packet(m, v, &Packet { port, len: 100, ..Packet::of(DATA) }, 100);
            }
        }
    }),
];

const fn net(name: &'static str, code: fn(&mut Machine, usize)) -> Attack {
    Attack { name, kinds: &[kind::NET], what: Do::Code(code) }
}

const fn vsock(name: &'static str, code: fn(&mut Machine, usize)) -> Attack {
    Attack { name, kinds: &[kind::VSOCK], what: Do::Code(code) }
}

/// Sends `len` bytes that begin with what is at the place of the device's requests. Once the ring is full, what was sent is waited
/// for, but not what the device leaves for ever: that is taken back by a reset.
fn send(machine: &mut Machine, victim: usize, len: u32) {
    const SEND: usize = 1;
    const BATCH: u16 = 64;
    let at = machine.requests(victim);
    let device = machine.device(victim);
    if !device.runs() {
        machine.revive(victim);
    }
    let device = machine.device(victim);
    let ring = &mut device.rings[SEND];
    let head = ring.given() % BATCH;
    if head == 0 && ring.given() > 0 {
        device.kick(SEND);
        machine.serves();
        let device = machine.device(victim);
        if !device.rings[SEND].is_done() {
            machine.revive(victim);
        }
    }
    let device = machine.device(victim);
    // What it has received is room again.
    while let Some((head, _)) = device.rings[0].take() {
        device.rings[0].offer(head as u16);
        device.kick(0);
    }
    let ring = &mut device.rings[SEND];
    let head = ring.given() % BATCH;
    descriptor(ring.table(), (head, at, len, 0, 0));
    ring.offer(head);
    device.kick(SEND);
}

fn frame(machine: &mut Machine, victim: usize, header: [u8; 12], len: u32) {
    let at = machine.requests(victim);
    (at..).zip(header).for_each(|(at, byte)| write(at, byte));
    send(machine, victim, len);
}

/// Frames while the host does something to the interface, and back.
fn gone(machine: &mut Machine, victim: usize, what: &str) {
    machine.ask(what);
    let at = machine.requests(victim);
    let device = machine.device(victim);
    for head in 0..8 {
        descriptor(device.rings[0].table(), (2 * head, at + 0x1000, 12, NEXT | WRITE, 2 * head + 1));
        descriptor(device.rings[0].table(), (2 * head + 1, at + 0x2000, 2048, WRITE, 0));
        device.rings[0].offer(2 * head);
    }
    device.kick(0);
    (0..128).for_each(|_| frame(machine, victim, [0; 12], 60 + FRAME));
    machine.ask("up");
}

/// A header (5.10.6).
#[derive(Debug)]
struct Packet {
    from: u64,
    to: u64,
    port: u32,
    len: u32,
    kind: u16,
    operation: u16,
    flags: u32,
    room: u32,
    taken: u32,
}

impl Packet {
    /// A sound one, but for what it is to do.
    fn of(operation: u16) -> Self {
        Packet { from: 3, to: HOST, port: 1, len: 0, kind: 1, operation, flags: 0, room: 4096, taken: 0 }
    }
}

fn packet(machine: &mut Machine, victim: usize, packet: &Packet, data: u32) {
    let at = machine.requests(victim);
    // Those that were sent before may not have been read yet, and share this place: all the worse.
    write(at, packet.from);
    write(at + 8, packet.to);
    write(at + 16, packet.port);
    write(at + 20, PORT);
    write(at + 24, packet.len);
    write(at + 28, packet.kind);
    write(at + 30, packet.operation);
    write(at + 32, packet.flags);
    write(at + 36, packet.room);
    write(at + 40, packet.taken);
    send(machine, victim, PACKET + data);
}
