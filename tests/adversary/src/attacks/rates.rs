//! Group 7: more of everything than anybody wants.

use ring3::{SERIAL, out8};

use super::{Attack, Do, any};
use crate::machine::{Machine, kind};
use crate::memory::DATA;
use crate::ring::descriptor;
use crate::second::{self, Task};
use crate::serial::{hear, say};
use crate::window::register::QUEUE_NOTIFY;

/// The group.
pub const ATTACKS: &[Attack] = &[
    any("a storm of kicks", Do::Code(kicks)),
    any("a storm of kicks from both processors", Do::Code(kicks_of_both)),
    any("a storm of interrupts", Do::Code(interrupts)),
    Attack { name: "a flood on the virtio console", kinds: &[kind::CONSOLE], what: Do::Code(write) },
    Attack { name: "a flood on the console", kinds: &[kind::VSOCK], what: Do::Code(shout) },
    Attack { name: "a flood from the console", kinds: &[kind::VSOCK], what: Do::Code(listen) },
];

fn kicks(machine: &mut Machine, victim: usize) {
    const KICKS: u32 = 1500;
    let device = machine.device(victim);
    for kick in 0..KICKS {
        // Queues that are there, and some that are not.
        device.window.set(QUEUE_NOTIFY, kick % (device.queues as u32 + 1));
    }
}

fn kicks_of_both(machine: &mut Machine, victim: usize) {
    second::work(Task::Doorbells, machine.count, machine.witness);
    kicks(machine, victim);
    machine.serves();
    second::rest();
}

/// Requests one by one, each with an interrupt that nobody acknowledges.
fn interrupts(machine: &mut Machine, victim: usize) {
    const ROUNDS: u32 = 150;
    let at = machine.requests(victim);
    crate::ring::blank(at);
    let device = machine.device(victim);
    let Some(queue) = (0..device.queues).rev().find(|queue| device.answers(*queue)) else { return };
    device.rings[queue].chain(0, at, 64, 513);
    for _ in 0..ROUNDS {
        device.rings[queue].offer(0);
        device.kick(queue);
        while !device.rings[queue].is_done() && device.runs() {
            ring3::wait();
        }
    }
}

/// 96 MiB, in chains that no buffer of the host's takes whole.
fn write(machine: &mut Machine, victim: usize) {
    const SEND: usize = 1;
    const ROUNDS: u32 = 24;
    const CHAINS: u16 = 32;
    const LEN: u32 = 128 << 10;
    let device = machine.device(victim);
    let ring = &mut device.rings[SEND];
    (0..CHAINS).for_each(|head| descriptor(ring.table(), (head, DATA, LEN, 0, 0)));
    for _ in 0..ROUNDS {
        (0..CHAINS).for_each(|head| device.rings[SEND].offer(head));
        device.kick(SEND);
        while !device.rings[SEND].is_done() && device.runs() {
            ring3::wait();
        }
    }
}

fn shout(_: &mut Machine, _: usize) {
    const LINES: u32 = 64;
    for _ in 0..LINES {
        (0..127).for_each(|_| out8(SERIAL, b'#'));
        say("\n");
    }
}

/// More input than the port takes, while nobody reads it; then all of it is read.
fn listen(machine: &mut Machine, _: usize) {
    machine.ask("flood");
    (0..8).for_each(|_| assert!(machine.serves()));
    while hear() != b'!' {}
}
