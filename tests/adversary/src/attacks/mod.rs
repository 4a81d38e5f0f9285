//! The attacks, by the groups of the checklist. An attack is an entry of a table: whom it is for, and what is done.

use crate::machine::Machine;
use crate::memory::Word;
use crate::ring::Descriptor;
use crate::window::Window;

mod addresses;
mod disk;
mod packets;
mod races;
mod rates;
mod rings;
mod transport;

/// Of each group, from the first.
pub const GROUPS: [&[Attack]; 7] = [
    rings::ATTACKS,
    addresses::ATTACKS,
    races::ATTACKS,
    transport::ATTACKS,
    disk::ATTACKS,
    packets::ATTACKS,
    rates::ATTACKS,
];

/// An attack.
#[derive(Debug)]
pub struct Attack {
    /// What the host is told that it is.
    pub name: &'static str,
    /// Device ids of those that it is made on; none: all.
    pub kinds: &'static [u32],
    /// What is done.
    pub what: Do,
}

/// What is done.
#[derive(Debug)]
pub enum Do {
    /// On each queue: a chain of these descriptors is available, the first at 0.
    Chain(&'static [Descriptor]),
    /// On each queue: the same in an indirect table of so many bytes.
    Indirect(u32, &'static [Descriptor]),
    /// On each queue: there are sound chains at 0, 2 and 4. These heads are available, and the index is ahead by so many more.
    Offer(&'static [u16], u16),
    /// On each queue, after a reset: it gets this size, and these parts; sound ones where there are none.
    SetUp(u32, [Option<u64>; 3]),
    /// On the device: its registers are used so.
    Registers(&'static [Access]),
    /// On the device: anything else.
    Code(fn(&mut Machine, usize)),
}

impl Do {
    /// It is made on each queue.
    pub fn is_on_a_queue(&self) -> bool {
        !matches!(self, Do::Registers(_) | Do::Code(_))
    }
}

/// An attack on all kinds.
const fn any(name: &'static str, what: Do) -> Attack {
    Attack { name, kinds: &[], what }
}

/// An access to a register, of any width.
#[derive(Debug, Clone, Copy)]
pub enum Access {
    /// One that reads.
    Read(usize, Width),
    /// One that writes.
    Write(usize, Width, u64),
}

/// Bytes of an access.
#[derive(Debug, Clone, Copy)]
pub enum Width {
    /// 1.
    Byte,
    /// 2.
    Two,
    /// 4.
    Four,
    /// 8.
    Eight,
}

impl Access {
    /// Makes it. What is read is the device's business.
    pub fn make(&self, window: Window) {
        fn read<T: Word>(window: Window, at: usize) {
            let _: T = window.read(at);
        }
        match *self {
            Access::Read(at, Width::Byte) => read::<u8>(window, at),
            Access::Read(at, Width::Two) => read::<u16>(window, at),
            Access::Read(at, Width::Four) => read::<u32>(window, at),
            Access::Read(at, Width::Eight) => read::<u64>(window, at),
            Access::Write(at, Width::Byte, value) => window.write(at, value as u8),
            Access::Write(at, Width::Two, value) => window.write(at, value as u16),
            Access::Write(at, Width::Four, value) => window.write(at, value as u32),
            Access::Write(at, Width::Eight, value) => window.write(at, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attack_is_known_by_its_name() {
        for (group, attacks) in GROUPS.iter().enumerate() {
            for (index, attack) in attacks.iter().enumerate() {
                assert!(attacks[..index].iter().all(|other| other.name != attack.name), "{group}: {}", attack.name);
            }
        }
    }
}
