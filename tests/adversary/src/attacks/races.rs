//! Group 3: what the device reads is rewritten by the second processor while it reads.

use super::{Attack, Do};
use crate::machine::Machine;
use crate::memory::{DATA, TABLE, write};
use crate::ring::{INDIRECT, NEXT, WRITE, descriptor};
use crate::second::{self, Task};

/// The group.
pub const ATTACKS: &[Attack] = &[
    race("descriptors that change", |machine, victim| race_on(machine, victim, Task::Descriptors)),
    race("indirect tables that change", |machine, victim| race_on(machine, victim, Task::Tables)),
    race("indices that change", |machine, victim| race_on(machine, victim, Task::Indices)),
    race("headers and data that change", |machine, victim| race_on(machine, victim, Task::Data)),
];

const fn race(name: &'static str, code: fn(&mut Machine, usize)) -> Attack {
    Attack { name, kinds: &[], what: Do::Code(code) }
}

/// Kicks and requests while that goes on, and resets whenever a device asks for one.
fn race_on(machine: &mut Machine, victim: usize, task: Task) {
    const ROUNDS: usize = 24;
    // What the device before has written there is not to mean anything to this one.
    (DATA..DATA + 0x2000).step_by(8).for_each(|at| write(at, 0u64));
    second::work(task, machine.count, machine.witness);
    for _ in 0..ROUNDS {
        let device = machine.device(victim);
        for queue in 0..device.queues {
            let ring = &mut device.rings[queue];
            for head in [0, 2] {
                if task == Task::Tables {
                    descriptor(TABLE, (0, DATA, 64, NEXT, 1));
                    descriptor(TABLE, (1, DATA + 0x1000, 513, WRITE, 0));
                    descriptor(ring.table(), (head, TABLE, 32, INDIRECT, 0));
                } else {
                    ring.chain(head, DATA, 64, 513);
                }
                ring.offer(head);
            }
            device.kick(queue);
        }
        machine.serves();
        if !machine.device(victim).runs() {
            machine.revive(victim);
        }
    }
    second::rest();
}
