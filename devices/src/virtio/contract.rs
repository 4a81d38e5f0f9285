//! What every device of the table must stand, whatever its requests are: the same cases for all.
//!
//! A case ends with [`Case::works`]: after a reset the device is as good as new.

mod limited;
mod malformed;
mod numbers;
mod wrapping;

use vm_memory::{Bytes, GuestAddress};

use super::chain::ChainError;
use super::limit::Limiter;
use super::queue::RingError;
use super::table::{DEVICES, DeviceKind};
use super::testing::{Driver, INDIRECT, NEEDS_RESET, NEXT, Part, RAM, RUNNING, WRITE};
use super::{Io, VirtioDevice};
use malformed::{BAD, BAD_INDIRECT};

const DATA: u64 = 0x40_0000;
const TABLE: u64 = 0x50_0000;

/// A device under test.
struct Case {
    name: &'static str,
    driver: Driver,
    queues: usize,
    dir: tempfile::TempDir,
}

/// A fresh device of a kind; what it needs is in `dir`.
fn build(kind: &DeviceKind, dir: &std::path::Path) -> Box<dyn VirtioDevice> {
    let mut built = (kind.build)(&(kind.sample)(dir)).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
    built.remove(0)
}

fn each(mut test: impl FnMut(&mut Case)) {
    for kind in DEVICES {
        let dir = tempfile::tempdir().unwrap();
        let device = build(kind, dir.path());
        let queues = device.info().queue_sizes.len();
        test(&mut Case { name: kind.name, driver: Driver::start(device), queues, dir });
    }
}

/// The same, once per queue that takes chains at any time: where a device only fills buffers when it has something to
/// say, a bad chain may lie there unread.
fn each_queue(mut test: impl FnMut(&mut Case, usize)) {
    each(|case| {
        for queue in 0..case.queues {
            if case.reads_at_once(queue) {
                test(case, queue);
                case.works();
            }
        }
    });
}

impl Case {
    /// The queue's chains are taken as they come.
    fn reads_at_once(&self, queue: usize) -> bool {
        ![("vsock", 0), ("vsock", 2), ("net", 0), ("net", 2), ("balloon", 2), ("console", 0)]
            .contains(&(self.name, queue))
    }

    /// Entries of a queue.
    fn size(&self, queue: usize) -> u16 {
        self.driver.set(0x30, queue as u32);
        self.driver.get(0x34) as u16
    }

    /// After a reset, a sound request on each such queue is given back.
    fn works(&mut self) {
        let name = self.name;
        self.driver.reset();
        assert_eq!(self.driver.status(), 0, "{name}");
        self.driver.bring_up(u64::MAX);
        for queue in (0..self.queues).filter(|queue| self.reads_at_once(*queue)).collect::<Vec<_>>() {
            // Means something different to each: a read of sector 0, a packet of a foreign sender, 512 bytes of entropy, no command.
            self.driver.request(queue, &[Part::Read(&[0; 64]), Part::Write(513)]);
        }
        assert_eq!(self.driver.status(), RUNNING, "{name}");
    }

    /// Makes chain 0 available, and tells what the device thinks of it.
    fn status_after(&mut self, queue: usize) -> u32 {
        self.driver.offer(queue, 0);
        self.driver.kick(queue);
        assert!(self.driver.settle(), "{}: endless work", self.name);
        self.driver.status()
    }
}

#[test]
fn every_device_comes_up_works_and_comes_up_again() {
    each(|case| {
        for _ in 0..3 {
            case.works();
        }
    });
}

#[test]
fn configuration_space_is_fixed_size_and_bounded() {
    use crate::BusDevice;
    each(|case| {
        for offset in (0x100..0x1000).step_by(3) {
            for len in [1, 2, 4, 8] {
                let mut data = vec![0xaa; len];
                case.driver.lock().read(0, offset, &mut data);
                case.driver.lock().write(0, offset, &[0xff; 8][..len]);
                if offset > 0x100 + 256 {
                    assert!(data.iter().all(|byte| *byte == 0), "{}", case.name);
                }
            }
        }
        case.works();
    });
}

#[test]
fn malformed_chains_stop_the_device_until_reset() {
    each_queue(|case, queue| {
        let (table, ..) = case.driver.parts(queue);
        let direct = BAD.iter().map(|(what, chain)| (*what, None, *chain));
        let indirect = BAD_INDIRECT.iter().map(|(what, len, chain)| (*what, Some(*len), *chain));
        for (what, len, chain) in direct.chain(indirect) {
            let at = if let Some(len) = len {
                case.driver.descriptor(table, 0, (TABLE, len), INDIRECT, 0);
                TABLE
            } else {
                table
            };
            for &(index, address, len, flags, next) in chain {
                case.driver.descriptor(at, index, (address, len), flags, next);
            }
            let before = case.driver.interrupts();
            assert_eq!(case.status_after(queue), RUNNING | NEEDS_RESET, "{}: {what}", case.name);
            assert_eq!(case.driver.get(0x60) & 2, 2, "{}: {what}: no configuration interrupt", case.name);
            assert!(case.driver.interrupts() > before && case.driver.used(queue).is_none(), "{}: {what}", case.name);
            // Dead until the reset, and at rest.
            case.driver.kick(queue);
            assert!(case.driver.settle());
            case.driver.set(0x70, RUNNING);
            assert_eq!(case.driver.status(), RUNNING | NEEDS_RESET);
            case.works();
        }
    });
}

#[test]
fn a_chain_as_long_as_the_queue_is_fine_and_one_longer_is_not() {
    each_queue(|case, queue| {
        let (table, ..) = case.driver.parts(queue);
        let last = case.size(queue) - 1;
        for index in 0..=last {
            let flags = if index > last / 4 { WRITE } else { 0 } | if index == last { 0 } else { NEXT };
            case.driver.descriptor(table, index, (DATA, 1), flags, index + 1);
        }
        assert_eq!(case.status_after(queue), RUNNING, "{}", case.name);
        // Some answer on a thread of their own.
        case.driver.wait(|driver| driver.used(queue).is_some());
        case.driver.descriptor(table, last, (DATA, 1), WRITE | NEXT, last);
        assert_eq!(case.status_after(queue), RUNNING | NEEDS_RESET, "{}", case.name);
    });
}

#[test]
fn buffers_at_the_very_end_of_ram_and_empty_ones_are_fine() {
    each_queue(|case, queue| {
        let (table, ..) = case.driver.parts(queue);
        let [_, (start, len)] = RAM;
        case.driver.descriptor(table, 0, (start + len as u64 - 64, 64), NEXT, 1);
        // An empty buffer has no address to speak of.
        case.driver.descriptor(table, 1, (u64::MAX, 0), NEXT, 2);
        case.driver.descriptor(table, 2, (start, 513), WRITE, 0);
        assert_eq!(case.status_after(queue), RUNNING, "{}", case.name);
        // Some answer on a thread of their own.
        case.driver.wait(|driver| driver.used(queue).is_some());
    });
}

#[test]
fn broken_rings_stop_the_device_until_reset() {
    each_queue(|case, queue| {
        // The index runs ahead by more than the queue holds, of which the first may be used.
        case.driver.available_index(queue, 258);
        case.driver.kick(queue);
        assert!(case.driver.settle());
        assert_eq!(case.driver.status(), RUNNING | NEEDS_RESET, "{}", case.name);
        case.works();
        // And so does one that goes back.
        case.driver.available_index(queue, 0);
        case.driver.kick(queue);
        assert!(case.driver.settle());
        assert_eq!(case.driver.status(), RUNNING | NEEDS_RESET, "{}", case.name);
        case.works();
        // A head outside the table.
        case.driver.offer(queue, 256);
        case.driver.kick(queue);
        assert!(case.driver.settle());
        assert_eq!(case.driver.status(), RUNNING | NEEDS_RESET, "{}", case.name);
    });
}

#[test]
fn a_ring_within_its_own_buffers_is_the_guests_own_trouble() {
    each_queue(|case, queue| {
        let (table, available, used) = case.driver.parts(queue);
        for target in [table, available, used] {
            case.driver.descriptor(table, 0, (target, 64), NEXT, 1);
            case.driver.descriptor(table, 1, (target, 513), WRITE, 0);
            let status = case.status_after(queue);
            assert!([RUNNING, RUNNING | NEEDS_RESET].contains(&status), "{}: {status:#x}", case.name);
            case.works();
        }
    });
}

#[test]
fn random_rings_end_in_bounded_work() {
    // A fixed sequence of a linear congruential generator: the same bytes every time.
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    each(|case| {
        for _ in 0..300 {
            for queue in 0..case.queues {
                let (table, available, _) = case.driver.parts(queue);
                for index in 0..16 {
                    let address = [random() % (17 << 20), DATA, TABLE, random() << 30][random() as usize % 4];
                    let len = [random() as u32 % 5000, random() as u32][usize::from(random() % 16 == 0)];
                    let at = if random() % 4 == 0 { TABLE } else { table };
                    case.driver.descriptor(at, index, (address, len), random() as u16 % 8, random() as u16 % 18);
                }
                for entry in 0..8 {
                    let head = random() as u16 % 17;
                    case.driver.mem.write_obj(head, GuestAddress(available + 4 + 2 * entry)).unwrap();
                }
                case.driver.available_index(queue, random() as u16 % 10);
                case.driver.kick(queue);
            }
            assert!(case.driver.settle(), "{}: endless work", case.name);
            case.driver.reset();
            case.driver.bring_up(u64::MAX);
        }
        case.works();
    });
}

#[test]
fn a_second_cpu_that_rewrites_rings_mid_request_harms_nobody() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    each_queue(|case, queue| {
        let (table, available, _) = case.driver.parts(queue);
        let stop = Arc::new(AtomicBool::new(false));
        let (mem, stopped) = (case.driver.mem.clone(), stop.clone());
        let scribbler = std::thread::spawn(move || {
            for value in (0u64..).take_while(|_| !stopped.load(Ordering::Relaxed)) {
                // Flags, lengths, addresses and indices, between sound and not.
                let word = [0x0000_0001_0000_0200u64, 0x0001_0003_0000_0200, 0x0001_0001_ffff_ffff][value as usize % 3];
                mem.write_obj(word, GuestAddress(table + 8)).unwrap();
                mem.write_obj([DATA, 0x8000_0000][value as usize % 2], GuestAddress(table)).unwrap();
                mem.store((value % 3) as u16, GuestAddress(available + 2), Ordering::Relaxed).unwrap();
            }
        });
        for _ in 0..2000 {
            case.driver.kick(queue);
            assert!(case.driver.settle(), "{}: endless work", case.name);
            if case.driver.status() != RUNNING {
                case.driver.reset();
                case.driver.bring_up(u64::MAX);
            }
        }
        stop.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
    });
}

#[test]
fn queues_cannot_be_moved_under_an_active_device() {
    each(|case| {
        for queue in 0..case.queues as u32 {
            case.driver.set(0x30, queue);
            for (register, value) in [(0x38, 0), (0x38, 3), (0x80, 0xffff_fff0), (0x84, 1), (0x90, 2), (0xa0, 4)] {
                case.driver.set(register, value);
            }
            case.driver.set(0x44, 1);
            assert_eq!((case.driver.get(0x44), case.driver.status()), (1, RUNNING), "{}", case.name);
        }
        for queue in (0..case.queues).filter(|queue| case.reads_at_once(*queue)).collect::<Vec<_>>() {
            case.driver.request(queue, &[Part::Read(&[0; 64]), Part::Write(513)]);
        }
        case.works();
    });
}

#[test]
fn a_stopped_queue_is_left_alone() {
    each_queue(|case, queue| {
        case.driver.set(0x30, queue as u32);
        case.driver.set(0x44, 0);
        case.driver.add(queue, &[Part::Read(&[0; 64]), Part::Write(513)]).unwrap();
        case.driver.kick(queue);
        assert!(case.driver.settle());
        assert_eq!((case.driver.used(queue), case.driver.status()), (None, RUNNING), "{}", case.name);
    });
}

#[test]
fn a_reset_with_requests_waiting_forgets_them() {
    each_queue(|case, queue| {
        for _ in 0..case.size(queue).min(100) / 2 {
            case.driver.add(queue, &[Part::Read(&[0; 64]), Part::Write(513)]).unwrap();
        }
        // The kick is on its way when the reset comes.
        case.driver.kick(queue);
        case.driver.set(0x70, 0);
        assert!(case.driver.settle());
        assert!(case.driver.used(queue).is_none(), "{}: a queue was touched after the reset", case.name);
    });
}

#[test]
fn a_closed_device_is_gone_for_host_and_guest() {
    use std::os::unix::fs::FileTypeExt;
    each(|case| {
        case.works();
        case.driver.lock().close();
        let is_socket = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_type().unwrap().is_socket();
        assert!(!std::fs::read_dir(case.dir.path()).unwrap().any(is_socket), "{}", case.name);
        for queue in (0..case.queues).filter(|queue| case.reads_at_once(*queue)).collect::<Vec<_>>() {
            case.driver.add(queue, &[Part::Read(&[0; 64]), Part::Write(513)]).unwrap();
            case.driver.kick(queue);
            assert!(case.driver.settle(), "{}: endless work", case.name);
            assert!(case.driver.used(queue).is_none(), "{}", case.name);
        }
        case.driver.reset();
        assert_eq!(case.driver.status(), 0, "{}", case.name);
    });
}

#[test]
fn a_device_moves_to_another_machine_and_back() {
    each(|case| {
        case.works();
        let state = case.driver.lock().save().unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let kind = DEVICES.iter().find(|kind| kind.name == case.name).unwrap();
        let other_dir = tempfile::tempdir().unwrap();
        let other = Driver::new(build(kind, other_dir.path()));
        // The other machine has the same memory, at the same place.
        for (start, len) in RAM {
            let mut bytes = vec![0; len];
            case.driver.mem.read_slice(&mut bytes, GuestAddress(start)).unwrap();
            other.mem.write_slice(&bytes, GuestAddress(start)).unwrap();
        }
        other.lock().load(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(other.lock().save().unwrap(), state, "{}", case.name);
        let mut moved = Case { name: case.name, driver: other, queues: case.queues, dir: other_dir };
        assert!(moved.driver.settle());
        assert_eq!(moved.driver.status(), RUNNING);
        moved.works();
        case.works();
        assert!(moved.dir.path().exists() && case.dir.path().exists());
    });
}

#[test]
fn saved_state_of_a_later_version_or_another_device_is_refused() {
    for kind in DEVICES {
        let dir = tempfile::tempdir().unwrap();
        let mut device = build(kind, dir.path());
        let mut state = device.save().unwrap();
        device.load(&state).unwrap();
        state["version"] = 999.into();
        device.load(&state).unwrap_err();
        for nonsense in [serde_json::json!(null), serde_json::json!([1]), serde_json::json!({ "version": "1" })] {
            device.load(&nonsense).unwrap_err();
        }
    }
}

#[test]
fn unknown_configuration_is_refused() {
    for kind in DEVICES {
        let dir = tempfile::tempdir().unwrap();
        let mut section = (kind.sample)(dir.path());
        let target = if section.is_array() { &mut section[0] } else { &mut section };
        target["no_such_option"] = true.into();
        let error = (kind.build)(&section).err().unwrap().to_string();
        assert!(error.contains("no_such_option") && error.starts_with(kind.config_key), "{error}");
    }
}

#[test]
fn quiesce_leaves_queues_alone_when_nothing_is_in_flight() {
    for kind in DEVICES {
        let dir = tempfile::tempdir().unwrap();
        let mut device = build(kind, dir.path());
        let mem = crate::GuestRam::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        for forget in [false, true, true] {
            let limiter = &mut Limiter::default();
            device
                .quiesce(&mut Io { mem: &mem, queues: &mut [], config_changed: false, limiter, at_once: false }, forget)
                .unwrap();
        }
    }
}

#[test]
fn a_kick_storm_is_one_piece_of_work() {
    each(|case| {
        for queue in 0..case.queues {
            for _ in 0..100_000 {
                case.driver.kick(queue);
            }
        }
        case.driver.kick(usize::MAX);
        assert!(case.driver.settle());
        case.works();
    });
}

#[test]
fn faults_say_whose_they_are() {
    let fault = super::DeviceFault::from(RingError::from(ChainError::Order));
    assert!(fault.to_string().starts_with("guest's fault: "), "{fault}");
}
