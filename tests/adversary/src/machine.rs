//! The devices that are there, and what is done to them: attack after attack, each followed by a judgement.

use ring3::{WINDOW, wait};

use crate::attacks::{Attack, Do, GROUPS};
use crate::memory::{self, PART, REQUESTS, TABLE, read, write};
use crate::ring::{DEVICES, QUEUES, Ring, SIZE, blank, descriptor};
use crate::second;
use crate::serial::{go, hear, number, say, set_up};
use crate::window::{Window, register::*};

/// Device ids (virtio 1.3, 5).
pub mod kind {
    #![expect(missing_docs, reason = "the specification's names")]
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const BALLOON: u32 = 5;
    pub const VSOCK: u32 = 19;
}

/// Queues whose chains are not given back at once, by kind: what they are for has to happen first.
const WAITING: [(u32, usize); 5] =
    [(kind::NET, 0), (kind::CONSOLE, 0), (kind::BALLOON, 2), (kind::VSOCK, 0), (kind::VSOCK, 2)];

/// Status: ACKNOWLEDGE, DRIVER, FEATURES_OK, each with those before it, and all of a device that runs.
pub const STEPS: [u32; 4] = [1, 3, 11, RUNNING];
const RUNNING: u32 = 15;
/// VIRTIO_F_INDIRECT_DESC.
pub const F_INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// What sound requests are made with.
const USUAL: u64 = !F_EVENT_IDX;

/// A device.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// Its registers.
    pub window: Window,
    /// Its device id.
    pub kind: u32,
    /// Queues that it has.
    pub queues: usize,
    /// Its queues' rings.
    pub rings: [Ring; QUEUES],
}

impl Device {
    fn new(number: usize, window: Window) -> Self {
        let mut device = Device { window, kind: window.get(DEVICE_ID), queues: 0, rings: [Ring::of(0, 0); QUEUES] };
        device.rings = core::array::from_fn(|queue| Ring::of(number, queue));
        device.queues = (0..QUEUES).take_while(|queue| device.most(*queue) > 0).count();
        device
    }

    fn most(&self, queue: usize) -> u32 {
        self.window.set(QUEUE_SEL, queue as u32);
        self.window.get(QUEUE_SIZE_MAX)
    }

    /// From a reset to FEATURES_OK, with those of `features` that it offers.
    pub fn negotiate(&mut self, features: u64) {
        self.window.set(STATUS, 0);
        self.window.set(STATUS, STEPS[0]);
        self.window.set(STATUS, STEPS[1]);
        for half in 0..2u32 {
            self.window.set(DEVICE_FEATURES_SEL, half);
            let offered = self.window.get(DEVICE_FEATURES);
            self.window.set(DRIVER_FEATURES_SEL, half);
            self.window.set(DRIVER_FEATURES, offered & (features >> (32 * half)) as u32);
        }
        self.window.set(STATUS, STEPS[2]);
    }

    /// Makes a queue ready whose parts are anywhere.
    pub fn set_up(&mut self, queue: usize, size: u32, areas: [u64; 3]) {
        self.window.set(QUEUE_SEL, queue as u32);
        self.window.set(QUEUE_SIZE, size);
        for (register, address) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(areas) {
            self.window.set_wide(register, address);
        }
        self.window.set(QUEUE_READY, 1);
    }

    /// Makes a queue ready as it should be.
    pub fn set_up_well(&mut self, queue: usize) {
        let size = self.most(queue).min(SIZE.into());
        self.rings[queue].clear(size as u16);
        self.set_up(queue, size, self.rings[queue].areas());
    }

    /// Resets it and brings it up. Tells whether it runs.
    pub fn bring_up(&mut self, features: u64) -> bool {
        self.negotiate(features);
        (0..self.queues).for_each(|queue| self.set_up_well(queue));
        self.window.set(STATUS, STEPS[3]);
        self.window.get(STATUS) == RUNNING
    }

    /// It runs, and does not ask for a reset.
    pub fn runs(&self) -> bool {
        self.window.get(STATUS) == RUNNING
    }

    /// Rings a queue's doorbell.
    pub fn kick(&self, queue: usize) {
        self.window.set(QUEUE_NOTIFY, queue as u32);
    }

    /// Chains of a queue are given back as they come.
    pub fn answers(&self, queue: usize) -> bool {
        queue < self.queues && !WAITING.contains(&(self.kind, queue))
    }
}

/// All of them.
#[derive(Debug)]
pub struct Machine {
    list: [Option<Device>; DEVICES],
    /// How many there are.
    pub count: usize,
    /// The disk that is not attacked.
    pub witness: usize,
    /// Requests to it so far.
    asked: u64,
    /// Judgements so far.
    judged: u32,
}

impl Machine {
    fn find() -> Option<Self> {
        let mut machine = Machine { list: [None; DEVICES], count: 0, witness: 0, asked: 0, judged: 0 };
        while let Some(window) = Window::find(machine.count).filter(|_| machine.count < DEVICES) {
            machine.list[machine.count] = Some(Device::new(machine.count, window));
            machine.count += 1;
        }
        machine.witness = (0..machine.count).find(|number| machine.device(*number).kind == kind::BLOCK)?;
        Some(machine)
    }

    /// A device by its number.
    pub fn device(&mut self, number: usize) -> &mut Device {
        self.list[number].as_mut().expect("a device that was found")
    }

    /// Numbers of those that are attacked.
    pub fn victims(&self) -> impl Iterator<Item = usize> + use<> {
        let witness = self.witness;
        (0..self.count).filter(move |number| *number != witness)
    }

    /// Where a device's requests are.
    pub fn requests(&self, number: usize) -> u64 {
        REQUESTS + PART * number as u64
    }

    /// A sound request on each queue that answers. False if the device is not up.
    fn works(&mut self, number: usize) -> bool {
        let at = self.requests(number);
        let device = self.device(number);
        for queue in (0..device.queues).filter(|queue| !WAITING.contains(&(device.kind, *queue))) {
            blank(at);
            device.rings[queue].chain(0, at, 64, 513);
            device.rings[queue].offer(0);
            device.kick(queue);
            while !device.rings[queue].is_done() {
                if !device.runs() {
                    return false;
                }
                wait();
            }
            device.rings[queue].take();
        }
        device.runs()
    }

    /// A sector written to the witness, or the last one read back. None of what came before is still on its way to the event loop
    /// then.
    pub fn serves(&mut self) -> bool {
        const HEADER: u32 = 16;
        let (at, round) = (self.requests(self.witness), self.asked);
        let (header, data, status) = (at, at + 0x1000, at + 0x2000);
        let (writes, sector) = (round % 2 == 0, round / 2 % 8);
        let sign = |index: u64| (round / 2).wrapping_mul(0x1_0001).wrapping_add(index);
        write(header, u64::from(writes));
        write(header + 8, sector);
        write(status, 0xffu8);
        (0..64).for_each(|index| write(data + 8 * index, if writes { sign(index) } else { 0 }));
        let witness = self.device(self.witness_number());
        let ring = &mut witness.rings[0];
        let room = if writes { 0 } else { crate::ring::WRITE };
        descriptor(ring.table(), (0, header, HEADER, crate::ring::NEXT, 1));
        descriptor(ring.table(), (1, data, 512, crate::ring::NEXT | room, 2));
        descriptor(ring.table(), (2, status, 1, crate::ring::WRITE, 0));
        ring.offer(0);
        witness.kick(0);
        while !witness.rings[0].is_done() {
            wait();
        }
        self.asked += 1;
        read::<u8>(status) == 0 && (0..64).all(|index| read::<u64>(data + 8 * index) == sign(index))
    }

    fn witness_number(&self) -> usize {
        self.witness
    }

    /// Brings a device up with the usual features.
    pub fn revive(&mut self, number: usize) -> bool {
        self.device(number).bring_up(USUAL)
    }

    /// The end of an attack: the witness serves; the host looks; each device is reset and works.
    fn judge(&mut self) {
        if !self.serves() {
            self.failed("the witness gave what it should not", self.witness);
        }
        self.judged += 1;
        say("judge ");
        number(self.judged);
        say("\n");
        go();
        for victim in self.victims() {
            if !self.revive(victim) {
                self.failed("does not come up", victim);
            } else if !self.works(victim) {
                self.failed("does not work after a reset", victim);
            }
        }
    }

    fn failed(&mut self, how: &str, victim: usize) {
        say("failed: device ");
        number(victim as u32);
        say(" of kind ");
        number(self.device(victim).kind);
        say(" ");
        say(how);
        say("\n");
    }

    /// One attack: on all devices that it is for, queue by queue if it is one on a queue.
    fn attack(&mut self, attack: &Attack) {
        let passes = if attack.what.is_on_a_queue() { QUEUES } else { 1 };
        for pass in 0..passes {
            let mut hit = false;
            for victim in self.victims() {
                let device = self.device(victim);
                if pass < device.queues && (attack.kinds.is_empty() || attack.kinds.contains(&device.kind)) {
                    if !hit {
                        say("attack ");
                        say(attack.name);
                        say("\n");
                    }
                    hit = true;
                    self.launch(&attack.what, victim, pass);
                }
            }
            if hit {
                self.judge();
            }
        }
    }

    fn launch(&mut self, what: &Do, victim: usize, queue: usize) {
        match what {
            Do::Chain(chain) => {
                let device = self.device(victim);
                let ring = &mut device.rings[queue];
                chain.iter().for_each(|entry| descriptor(ring.table(), *entry));
                ring.offer(0);
                device.kick(queue);
            }
            Do::Indirect(len, chain) => {
                chain.iter().for_each(|entry| descriptor(TABLE, *entry));
                let device = self.device(victim);
                let ring = &mut device.rings[queue];
                descriptor(ring.table(), (0, TABLE, *len, crate::ring::INDIRECT, 0));
                ring.offer(0);
                device.kick(queue);
            }
            Do::Offer(heads, more) => {
                let at = self.requests(victim);
                let device = self.device(victim);
                let ring = &mut device.rings[queue];
                blank(at);
                [0, 2, 4].into_iter().for_each(|head| ring.chain(head, at, 64, 513));
                heads.iter().for_each(|head| ring.offer(*head));
                ring.advance(*more);
                device.kick(queue);
            }
            Do::SetUp(size, areas) => {
                let device = self.device(victim);
                device.negotiate(USUAL);
                let sound = device.rings[queue].areas();
                device.set_up(queue, *size, core::array::from_fn(|part| areas[part].unwrap_or(sound[part])));
                device.window.set(STATUS, STEPS[3]);
                device.kick(queue);
            }
            Do::Registers(accesses) => {
                let window = self.device(victim).window;
                accesses.iter().for_each(|access| access.make(window));
            }
            Do::Code(code) => code(self, victim),
        }
    }

    /// Asks the host to do something, and waits until it has.
    pub fn ask(&self, what: &str) {
        say("ask ");
        say(what);
        say("\n");
        go();
    }
}

/// Interrupts of all pins in use go to the first processor, whatever was done to the controller.
pub fn route() {
    /// The first that is in use: the serial port's.
    const FIRST: u32 = 4;
    const PINS: u32 = 24;
    const WAKE: u32 = 0x20;
    for pin in FIRST..PINS {
        ioapic(0x11 + 2 * pin, 0);
        ioapic(0x10 + 2 * pin, WAKE);
    }
}

/// Writes a register of the IOAPIC.
pub fn ioapic(register: u32, value: u32) {
    const IOAPIC: usize = 0xfec0_0000;
    // SAFETY: registers of the IOAPIC, which are no object of this program.
    unsafe {
        (IOAPIC as *mut u32).write_volatile(register);
        ((IOAPIC + 0x10) as *mut u32).write_volatile(value);
    }
}

/// The whole program: one group after the other, as the host says.
pub fn run() -> ! {
    memory::touch();
    set_up();
    route();
    second::start();
    let Some(mut machine) = Machine::find() else {
        say("failed: there is no disk\n");
        ring3::end(ring3::End::Panic)
    };
    let all = machine.witness;
    for number in machine.victims().chain([all]) {
        if !machine.revive(number) || !machine.works(number) {
            machine.failed("does not work", number);
        }
    }
    say("devices");
    for device in 0..machine.count {
        say(" ");
        number(machine.device(device).kind);
    }
    say("\n");
    loop {
        let group = hear().wrapping_sub(b'1');
        if let Some(group) = GROUPS.get(usize::from(group)) {
            group.iter().for_each(|attack| machine.attack(attack));
            say("over\n");
        }
    }
}

/// Where no device is.
pub fn beyond(machine: &Machine) -> usize {
    ring3::WINDOWS + (machine.count + 1) * WINDOW
}
