//! Group 4: registers (virtio 1.3, 4.2.2) and ports, used as no driver may.

use ring3::{SERIAL, in8, in32, out8, out16, out32};

use super::Access::{Read, Write};
use super::Width::{Byte, Eight, Four, Two};
use super::{Attack, Do, any};
use crate::machine::{Machine, STEPS, beyond, ioapic, kind, route};
use crate::serial;
use crate::window::register::*;

/// The group.
pub const ATTACKS: &[Attack] = &[
    any(
        "queues moved while they are in use",
        Do::Registers(&[
            Write(QUEUE_SEL, Four, 0),
            Write(QUEUE_SIZE, Four, 0),
            Write(QUEUE_SIZE, Four, 3),
            Write(QUEUE_DESC, Four, 0xffff_fff0),
            Write(QUEUE_DESC + 4, Four, 1),
            Write(QUEUE_DRIVER, Four, 2),
            Write(QUEUE_DEVICE, Four, 4),
            Write(QUEUE_READY, Four, 1),
            Write(QUEUE_NOTIFY, Four, 0),
        ]),
    ),
    any(
        "a queue that is none",
        Do::Registers(&[
            Write(QUEUE_SEL, Four, 0xffff),
            Read(QUEUE_SIZE_MAX, Four),
            Write(QUEUE_SIZE, Four, 16),
            Write(QUEUE_READY, Four, 1),
            Read(QUEUE_READY, Four),
            Write(QUEUE_READY, Four, 0),
            Write(QUEUE_SEL, Four, 0xffff_ffff),
            Write(QUEUE_DESC, Four, 0x1000),
            Write(QUEUE_NOTIFY, Four, 0xffff),
            Write(QUEUE_NOTIFY, Four, 0xffff_ffff),
        ]),
    ),
    any(
        "accesses of odd widths",
        Do::Registers(&[
            Read(STATUS, Byte),
            Read(STATUS, Two),
            Read(STATUS, Eight),
            Write(STATUS, Byte, 0),
            Write(STATUS, Two, 0),
            Write(STATUS, Eight, 0),
            Write(QUEUE_NOTIFY, Byte, 0),
            Write(QUEUE_NOTIFY, Two, 0),
            Write(QUEUE_NOTIFY, Eight, 0),
            Write(QUEUE_READY, Byte, 0),
        ]),
    ),
    any(
        "accesses that are not aligned",
        Do::Registers(&[
            Read(1, Four),
            Read(STATUS + 2, Four),
            Read(STATUS + 3, Eight),
            Write(STATUS + 1, Four, 0),
            Write(STATUS - 2, Eight, 0),
            Write(QUEUE_NOTIFY + 1, Four, 0),
            Write(CONFIG - 2, Four, 0xffff_ffff),
            Read(CONFIG - 4, Eight),
            Read(CONFIG + 3, Eight),
        ]),
    ),
    any(
        "configuration space past its end",
        Do::Registers(&[
            Read(0xff8, Eight),
            Read(0xfff, Byte),
            Write(0xff8, Eight, u64::MAX),
            Write(CONFIG, Eight, u64::MAX),
            Write(CONFIG + 8, Eight, u64::MAX),
            Write(CONFIG + 3, Four, 0xffff_ffff),
            Write(CONFIG + 60, Eight, u64::MAX),
            Write(CONFIG + 255, Two, u64::MAX),
        ]),
    ),
    any(
        "a driver that skips FEATURES_OK",
        Do::Registers(&[
            Write(STATUS, Four, 0),
            Write(STATUS, Four, 3),
            Write(STATUS, Four, 7),
            Write(STATUS, Four, STEPS[3] as u64),
            Write(QUEUE_NOTIFY, Four, 0),
        ]),
    ),
    any(
        "status bits that are cleared",
        Do::Registers(&[
            Write(STATUS, Four, 11),
            Write(STATUS, Four, 3),
            Write(STATUS, Four, 1),
            Write(STATUS, Four, 0xffff_ffff),
            Write(STATUS, Four, 0x100),
            Write(QUEUE_NOTIFY, Four, 0),
        ]),
    ),
    any(
        "a device that is given up",
        Do::Registers(&[Write(STATUS, Four, 0x8f), Write(QUEUE_NOTIFY, Four, 0), Write(STATUS, Four, 15)]),
    ),
    any(
        "features that were not offered",
        Do::Registers(&[
            Write(STATUS, Four, 0),
            Write(STATUS, Four, 3),
            Write(DRIVER_FEATURES_SEL, Four, 0),
            Write(DRIVER_FEATURES, Four, 0xffff_ffff),
            Write(DRIVER_FEATURES_SEL, Four, 1),
            Write(DRIVER_FEATURES, Four, 0xffff_ffff),
            Write(DRIVER_FEATURES_SEL, Four, 0xffff_ffff),
            Write(DRIVER_FEATURES, Four, 1),
            Write(STATUS, Four, 11),
            Write(STATUS, Four, 15),
            Write(QUEUE_NOTIFY, Four, 0),
        ]),
    ),
    any(
        "features after FEATURES_OK",
        Do::Registers(&[Write(DRIVER_FEATURES_SEL, Four, 0), Write(DRIVER_FEATURES, Four, 0), Write(STATUS, Four, 15)]),
    ),
    any(
        "a device that runs without queues",
        Do::Code(|machine, victim| {
            let device = machine.device(victim);
            device.negotiate(u64::MAX);
            device.window.set(STATUS, STEPS[3]);
            (0..16).for_each(|queue| device.kick(queue));
        }),
    ),
    any("a queue that is stopped while in use", Do::Code(stopped)),
    any("resets with requests under way", Do::Code(resets)),
    any(
        "interrupts that did not come",
        Do::Registers(&[Write(INTERRUPT_ACK, Four, 0xffff_ffff), Read(INTERRUPT_STATUS, Four)]),
    ),
    any("every register, written", Do::Code(everything)),
    Attack { name: "ports and what is behind them", kinds: &[kind::VSOCK], what: Do::Code(ports) },
    Attack { name: "the interrupt controller", kinds: &[kind::VSOCK], what: Do::Code(interrupt_controller) },
];

/// Requests that wait in each queue.
fn flood(machine: &mut Machine, victim: usize) {
    let at = machine.requests(victim);
    let device = machine.device(victim);
    for queue in 0..device.queues {
        let ring = &mut device.rings[queue];
        let pairs = ring.size.min(128) / 2;
        (0..pairs).for_each(|pair| {
            ring.chain(2 * pair, at, 64, 513);
            ring.offer(2 * pair);
        });
        device.kick(queue);
    }
}

fn stopped(machine: &mut Machine, victim: usize) {
    flood(machine, victim);
    let device = machine.device(victim);
    for queue in 0..device.queues {
        device.window.set(QUEUE_SEL, queue as u32);
        device.window.set(QUEUE_READY, 0);
        device.kick(queue);
    }
}

fn resets(machine: &mut Machine, victim: usize) {
    for _ in 0..16 {
        flood(machine, victim);
        machine.revive(victim);
    }
    flood(machine, victim);
    machine.device(victim).window.set(STATUS, 0);
}

fn everything(machine: &mut Machine, victim: usize) {
    let window = machine.device(victim).window;
    for value in [0u32, 1, 0xffff_ffff] {
        // The status comes among them: a reset, too.
        for at in (0..0x140).step_by(4) {
            window.set(at, value);
            window.get(at);
        }
    }
}

fn ports(machine: &mut Machine, _: usize) {
    for register in 1..8 {
        for value in [0x00, 0x80, 0xff, 0x1f, 0x0f] {
            out8(SERIAL + register, value);
            in8(SERIAL + register);
        }
    }
    // Loopback, where what is said is heard; then as it was.
    out8(SERIAL + 4, 0x10);
    (0..=255).for_each(|byte| out8(SERIAL, byte));
    out32(SERIAL + 1, 0xffff_ffff);
    out16(SERIAL + 2, 0xffff);
    in32(SERIAL);
    serial::set_up();
    serial::say("\n");
    // 0xfe resets the machine.
    for value in (0..=255).filter(|value| *value != 0xfe) {
        out8(0x64, value);
        out8(0x60, value);
    }
    out16(0x63, 0xfefe);
    out32(0x64, 0xffff_fffe);
    in32(0x60);
    // Ends that are none, a sleep that is none, and ports of nobody.
    [0, 4, 0x80, 0xff].into_iter().for_each(|value| out8(0x600, value));
    out32(0x600, 0x0101_0101);
    out8(0x604, 0x1f);
    in32(0x604);
    for port in [0x0, 0x20, 0x40, 0x43, 0x61, 0x70, 0x80, 0xcf8, 0xcfc, 0x3ff, 0xffff] {
        out8(port, 0xff);
        out32(port, 0xffff_ffff);
        in32(port);
    }
    let nobody = beyond(machine);
    // SAFETY: in the devices' part of the address space, where no device is and no object of this program.
    unsafe {
        (nobody as *mut u64).write_volatile(u64::MAX);
        let _ = (nobody as *const u64).read_volatile();
    }
}

fn interrupt_controller(_: &mut Machine, _: usize) {
    const IOAPIC: usize = 0xfec0_0000;
    for register in 0..=0xff {
        for value in [0xffff_ffff, 0x0001_0000, 0x0000_87ff, 0x0000_0700] {
            ioapic(register, value);
        }
    }
    // SAFETY: registers of the IOAPIC, which are no object of this program.
    unsafe {
        for at in (0..0x100).step_by(8) {
            ((IOAPIC + at) as *mut u64).write_volatile(u64::MAX);
            ((IOAPIC + at) as *mut u8).write_volatile(0xff);
            let _ = ((IOAPIC + at) as *const u16).read_volatile();
        }
    }
    route();
}
