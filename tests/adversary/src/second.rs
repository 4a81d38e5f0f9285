//! The second processor: it writes where the first does not look, while devices read there.

use core::sync::atomic::{AtomicU32, Ordering};

use ring3::wait;

use crate::memory::{DATA, TABLE, write};
use crate::ring::{QUEUES, Ring, descriptor};
use crate::window::Window;

/// What it writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Task {
    /// Nothing: it waits.
    Wait = 0,
    /// Descriptors: addresses, lengths, flags, and which comes next.
    Descriptors = 1,
    /// Indirect tables.
    Tables = 2,
    /// Available rings: their index, flags and entries.
    Indices = 3,
    /// Headers and data of requests.
    Data = 4,
    /// The doorbells.
    Doorbells = 5,
}

static TASK: AtomicU32 = AtomicU32::new(0);
static ROUNDS: AtomicU32 = AtomicU32::new(0);
/// Devices in the low half, the one that is left alone in the high half.
static DEVICES: AtomicU32 = AtomicU32::new(0);

const START: usize = 0x2000;
const INTERRUPT_COMMAND: usize = 0xfee0_0300;
const DESTINATION: usize = INTERRUPT_COMMAND + 0x10;
const SECOND: u32 = 1 << 24;
const WAKE: u32 = 0x4020;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

unsafe extern "C" {
    static second_start: u8;
    static second_end: u8;
    static second_tables: u8;
    static page_tables: u64;
}

fn command(to: u32, what: u32) {
    // SAFETY: registers of this processor's local APIC, which are no object of this program.
    unsafe {
        (DESTINATION as *mut u32).write_volatile(to);
        (INTERRUPT_COMMAND as *mut u32).write_volatile(what);
    }
}

/// Starts it.
pub fn start() {
    // SAFETY: code that `second.s` ends with its last symbol, to a page of low memory that is nobody's; the place of the tables
    // is in it.
    unsafe {
        let (from, to) = (&raw const second_start, &raw const second_end);
        let bytes = to.offset_from(from) as usize;
        for at in 0..bytes {
            (START as *mut u8).add(at).write_volatile(from.add(at).read());
        }
        let place = (&raw const second_tables).offset_from(from) as usize;
        ((START + place) as *mut u32).write_volatile((&raw const page_tables).read_volatile() as u32);
    }
    command(SECOND, INIT);
    command(SECOND, STARTUP | (START >> 12) as u32);
    while ROUNDS.load(Ordering::Acquire) == 0 {
        wait();
    }
}

/// Sets it to work on all of so many devices but one.
pub fn work(task: Task, devices: usize, but: usize) {
    DEVICES.store(devices as u32 | (but as u32) << 16, Ordering::Relaxed);
    TASK.store(task as u32, Ordering::Release);
    command(SECOND, WAKE);
}

/// Lets it wait again, once it has done something.
pub fn rest() {
    let rounds = ROUNDS.load(Ordering::Acquire);
    while ROUNDS.load(Ordering::Acquire).wrapping_sub(rounds) < 2 {
        core::hint::spin_loop();
    }
    TASK.store(Task::Wait as u32, Ordering::Release);
    // It may be in the midst of a round.
    let rounds = ROUNDS.load(Ordering::Acquire);
    command(SECOND, WAKE);
    while ROUNDS.load(Ordering::Acquire) == rounds {
        core::hint::spin_loop();
    }
}

/// What it does all its life.
pub fn run() -> ! {
    ROUNDS.store(1, Ordering::Release);
    command(0, WAKE);
    for round in 0u32.. {
        let task = TASK.load(Ordering::Acquire);
        if task == Task::Wait as u32 {
            ROUNDS.fetch_add(1, Ordering::AcqRel);
            wait();
            continue;
        }
        let devices = DEVICES.load(Ordering::Relaxed);
        let (devices, but) = ((devices & 0xffff) as usize, (devices >> 16) as usize);
        for device in (0..devices).filter(|device| *device != but) {
            (0..QUEUES).for_each(|queue| disturb(task, device, queue, round));
        }
        ROUNDS.fetch_add(1, Ordering::AcqRel);
    }
    loop {
        wait();
    }
}

/// Sound and unsound values, in turns.
fn disturb(task: u32, device: usize, queue: usize, round: u32) {
    const ADDRESSES: [u64; 5] = [DATA, DATA + 0x1000, 0x8000_0000, u64::MAX - 7, (16 << 20) - 8];
    const LENGTHS: [u32; 6] = [64, 513, 0, u32::MAX, 16, 1 << 20];
    let pick = |list: &[u32]| list[(round as usize).wrapping_mul(7) % list.len()];
    let (address, len) = (ADDRESSES[round as usize % ADDRESSES.len()], pick(&LENGTHS));
    let (flags, next) = ((round % 8) as u16, (round % 5) as u16);
    let ring = Ring::of(device, queue);
    let [table, available, _] = ring.areas();
    let index = (round % 4) as u16;
    if task == Task::Descriptors as u32 {
        descriptor(table, (index, address, len, flags, next));
    } else if task == Task::Tables as u32 {
        // A flag that means nothing: what a balloon that is sent the table itself takes for a page's number is none of the program's.
        descriptor(TABLE, (index, address, len, flags | 0x80, next));
        descriptor(table, (0, TABLE, pick(&[16, 32, 64, 0, 17, u32::MAX]), (round % 5) as u16, next));
    } else if task == Task::Indices as u32 {
        write(available, (round % 2) as u16);
        write(available + 2, pick(&[0, 1, 2, 255, 256, 257, 0xffff]) as u16);
        write(available + 4 + 2 * u64::from(index), pick(&[0, 1, 255, 256, 0xffff]) as u16);
    } else if task == Task::Data as u32 {
        // No number of a page that the guest has.
        let value = u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 0x8000_0000_8000_0000;
        write(DATA + 8 * u64::from(round % 64), value);
    } else if let Some(window) = Window::find(device) {
        window.set(crate::window::register::QUEUE_NOTIFY, queue as u32);
    }
}
