use super::registers::MAGIC;
use super::*;
use crate::virtio::limit::{Limits, RateLimiter, Scope, TokenBucket};
use crate::virtio::testing::{Driver, FAILED, NEEDS_RESET, Part, RUNNING};

/// Gives every chain back, its written length the readable one; one descriptor that tests can make readable.
struct Echo {
    /// The last two bytes are the driver's to write.
    config: [u8; 6],
    event: Arc<EventFd>,
    fd_events: Arc<std::sync::atomic::AtomicU32>,
    quiesced: Arc<std::sync::atomic::AtomicU32>,
}

impl Echo {
    fn new() -> Self {
        Echo {
            config: *b"config",
            event: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            fd_events: Arc::default(),
            quiesced: Arc::default(),
        }
    }
}

impl VirtioDevice for Echo {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "echo", id: 42, features: 1, queue_sizes: &[16, 8], prompt: true }
    }
    fn config(&self) -> &[u8] {
        &self.config
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data).filter(|(at, _)| *at >= 4) {
            self.config[at] = *byte;
        }
    }
    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.event.as_raw_fd(), token: 7 }]
    }
    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }
    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[index].pop(io.mem)? {
            io.queues[index].push(io.mem, chain.head(), chain.readable_len())?;
        }
        Ok(())
    }
    fn process_fd(&mut self, token: u16, io: &mut Io) -> Result<(), DeviceFault> {
        assert_eq!(token, 7);
        self.event.read().unwrap();
        self.fd_events.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        io.config_changed = true;
        Ok(())
    }
    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        self.quiesced.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
    fn save(&self) -> Result<serde_json::Value, StateError> {
        Ok(serde_json::json!(self.config))
    }
    fn load(&mut self, state: &serde_json::Value) -> Result<(), StateError> {
        let wrong = |e: serde_json::Error| StateError { device: "echo", reason: e.to_string() };
        self.config = serde_json::from_value(state.clone()).map_err(wrong)?;
        Ok(())
    }
}

#[test]
fn the_window_is_what_the_specification_says() {
    let driver = Driver::new(Box::new(Echo::new()));
    assert_eq!((driver.get(0), driver.get(4), driver.get(8)), (MAGIC, 2, 42));
    assert_eq!(driver.offered(), TRANSPORT_FEATURES | 1);
    driver.set(0x14, 2);
    assert_eq!(driver.get(0x10), 0);
    for shm in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(driver.get(shm), u32::MAX);
    }
    for unknown in [0x00c + 0x10, 0x0f0, 0x0c0] {
        assert_eq!(driver.get(unknown), 0);
    }
}

#[test]
fn odd_accesses_do_nothing_to_control_registers() {
    let driver = Driver::new(Box::new(Echo::new()));
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 2), (3, 1), (0x70, 8), (0xfe, 4)] {
        let mut data = vec![0xaa; len];
        driver.lock().read(0, offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x} {len}");
        driver.lock().write(0, offset, &vec![1; len]);
    }
    driver.lock().write(0, 0x70, &[1]);
    driver.lock().write(0, 0x71, &[1, 0, 0, 0]);
    assert_eq!(driver.status(), 0);
}

#[test]
fn config_space_takes_all_widths_and_ends_where_it_ends() {
    let driver = Driver::start(Box::new(Echo::new()));
    let read = |offset: u64, len: usize| {
        let mut data = vec![0xaa; len];
        driver.lock().read(0, offset, &mut data);
        data
    };
    assert_eq!(read(0x101, 2), b"on");
    assert_eq!(read(0x104, 8), b"ig\0\0\0\0\0\0");
    assert_eq!(read(0x106, 1), [0]);
    assert_eq!(read(u64::MAX, 4), [0; 4]);
    driver.lock().write(0, 0x105, b"XY");
    driver.lock().write(0, u64::MAX, b"X");
    assert_eq!(read(0x100, 6), b"config");
    driver.lock().write(0, 0x105, b"X");
    assert_eq!(read(0x100, 6), b"confiX");
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for (features, accepted) in
        [(F_VERSION_1, true), (0, false), (F_VERSION_1 | 2, false), (TRANSPORT_FEATURES | 1, true)]
    {
        let driver = Driver::new(Box::new(Echo::new()));
        driver.set(0x70, 3);
        driver.set(0x20, features as u32);
        driver.set(0x24, 1);
        driver.set(0x20, (features >> 32) as u32);
        driver.set(0x70, 11);
        assert_eq!(driver.status() & 8 != 0, accepted, "{features:#x}");
    }
    let mut driver = Driver::new(Box::new(Echo::new()));
    driver.set(0x70, 3);
    driver.set(0x24, 2);
    driver.set(0x20, 1);
    driver.negotiate(F_VERSION_1);
    assert_eq!(driver.status(), 3, "a feature beyond bit 63");
    driver.reset();
    driver.negotiate(F_VERSION_1);
    assert_eq!(driver.status(), 11);
}

#[test]
fn steps_cannot_be_skipped_or_taken_back() {
    let mut driver = Driver::new(Box::new(Echo::new()));
    for skip in [8, 4, 15, 7] {
        driver.set(0x70, skip);
        assert_eq!(driver.status(), 0, "{skip}");
    }
    driver.bring_up(u64::MAX);
    assert_eq!(driver.status(), RUNNING);
    for back in [1, 3, 11] {
        driver.set(0x70, back);
        assert_eq!(driver.status(), RUNNING);
    }
    driver.set(0x70, 0x8f);
    assert_eq!(driver.status(), 0x8f);
    driver.reset();
    assert_eq!(driver.status(), 0);
}

#[test]
fn queues_are_fixed_once_ready_and_running() {
    let mut driver = Driver::new(Box::new(Echo::new()));
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    let setup = driver.lock().setups[0];
    for (offset, value) in [(0x38, 2), (0x80, 0x5000), (0x84, 1), (0x90, 0x6000), (0xa4, 7)] {
        driver.set(offset, value);
        assert_eq!(driver.lock().setups[0], setup, "{offset:#x}");
    }
    driver.set(0x44, 0);
    driver.set(0x38, 2);
    assert_eq!(driver.lock().setups[0].size, 2);
    driver.set_up_queue(0);
    driver.set(0x70, RUNNING);
    driver.set(0x30, 1);
    driver.set(0x38, 2);
    driver.set(0x44, 1);
    let size = driver.lock().setups[1].size;
    assert_eq!((size, driver.get(0x44)), (8, 0), "not after DRIVER_OK");
    driver.request(0, &[Part::Read(b"still works")]);
}

#[test]
fn a_queue_stopped_while_running_is_left_alone() {
    let mut driver = Driver::start(Box::new(Echo::new()));
    driver.set(0x30, 0);
    driver.set(0x44, 0);
    assert_eq!(driver.get(0x44), 0);
    driver.add(0, &[Part::Read(b"x")]).unwrap();
    driver.kick(0);
    assert!(driver.settle() && driver.used(0).is_none());
    driver.set(0x44, 1);
    assert_eq!(driver.get(0x44), 0);
    driver.request(1, &[Part::Read(b"the other one works")]);
}

#[test]
fn bad_queues_are_refused_with_needs_reset() {
    let good = QueueSetup { size: 16, descriptors: 0x10_0000, available: 0x20_0000, used: 0x30_0000 };
    let end = 16 << 20;
    let bad = [
        QueueSetup { size: 0, ..good },
        QueueSetup { size: 3, ..good },
        QueueSetup { size: 32, ..good },
        QueueSetup { size: 0x1_0010, ..good },
        QueueSetup { size: u32::MAX, ..good },
        QueueSetup { descriptors: 0x10_0008, ..good },
        QueueSetup { available: 0x20_0001, ..good },
        QueueSetup { used: 0x30_0002, ..good },
        QueueSetup { descriptors: 0, ..good },
        QueueSetup { descriptors: end - 0x80, ..good },
        QueueSetup { used: end, ..good },
        QueueSetup { available: 0xffff_ffff_ffff_fff0, ..good },
        QueueSetup { used: 0x10_0080, ..good },
        QueueSetup { available: 0x10_0000, ..good },
    ];
    for (setup, sound) in bad.map(|setup| (setup, false)).into_iter().chain([(good, true)]) {
        let mut driver = Driver::new(Box::new(Echo::new()));
        driver.negotiate(u64::MAX);
        driver.set(0x38, setup.size);
        for (offset, address) in [(0x80, setup.descriptors), (0x90, setup.available), (0xa0, setup.used)] {
            driver.set(offset, address as u32);
            driver.set(offset + 4, (address >> 32) as u32);
        }
        driver.set(0x44, 1);
        let expect = if sound { (1, 11) } else { (0, 11 | NEEDS_RESET) };
        assert_eq!((driver.get(0x44), driver.status()), expect, "{setup:x?}");
        driver.reset();
        driver.bring_up(u64::MAX);
        driver.request(0, &[Part::Read(b"works after a reset")]);
    }
}

#[test]
fn queue_select_out_of_range_is_an_absent_queue() {
    let mut driver = Driver::new(Box::new(Echo::new()));
    driver.negotiate(u64::MAX);
    for index in [2, 0xffff, u32::MAX] {
        driver.set(0x30, index);
        assert_eq!(driver.get(0x34), 0);
        for offset in (0x38..0xc4).step_by(4).filter(|offset| *offset != 0x70) {
            driver.set(offset, 1);
        }
        assert_eq!((driver.get(0x44), driver.status()), (0, 11));
        driver.set(0x50, index);
    }
}

#[test]
fn a_kick_before_driver_ok_is_answered_after_it() {
    let mut driver = Driver::new(Box::new(Echo::new()));
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    driver.add(0, &[Part::Read(b"early")]).unwrap();
    driver.kick(0);
    driver.settle();
    assert!(driver.used(0).is_none());
    driver.set(0x70, RUNNING);
    driver.settle();
    assert_eq!(driver.used(0).unwrap().written, 5);
}

#[test]
fn kicks_come_by_event_as_by_register() {
    let mut driver = Driver::start(Box::new(Echo::new()));
    driver.add(1, &[Part::Read(b"by event")]).unwrap();
    let event = driver.lock().queue_events()[1].clone();
    event.write(1).unwrap();
    driver.settle();
    assert_eq!(driver.used(1).unwrap().written, 8);
}

#[test]
fn interrupts_follow_the_drivers_wishes() {
    use vm_memory::{Bytes, GuestAddress};
    for event_idx in [false, true] {
        let mut driver = Driver::new(Box::new(Echo::new()));
        driver.bring_up(if event_idx { u64::MAX } else { !F_EVENT_IDX });
        let available = driver.parts(0).1;
        let before = driver.interrupts();
        driver.request(0, &[Part::Read(b"1")]);
        assert_eq!((driver.interrupts() - before, driver.get(0x60)), (1, 1));
        driver.set(0x64, 1);
        assert_eq!(driver.get(0x60), 0);
        // "Not before the fifth", or not at all.
        if event_idx {
            driver.mem.write_obj(4u16, GuestAddress(available + 4 + 2 * 16)).unwrap();
        } else {
            driver.mem.write_obj(1u16, GuestAddress(available)).unwrap();
        }
        for _ in 0..3 {
            driver.request(0, &[Part::Read(b"2")]);
        }
        assert_eq!((driver.interrupts() - before, driver.get(0x60)), (1, 0), "event_idx {event_idx}");
        driver.mem.write_obj(0u16, GuestAddress(available)).unwrap();
        driver.request(0, &[Part::Read(b"3")]);
        assert_eq!(driver.interrupts() - before, 2, "event_idx {event_idx}");
    }
}

#[test]
fn kicks_are_suppressed_only_while_there_is_work() {
    use vm_memory::{Bytes, GuestAddress};
    let mut driver = Driver::start(Box::new(Echo::new()));
    for round in 1..=40u16 {
        driver.request(0, &[Part::Read(b"x")]);
        let avail_event: u16 = driver.mem.read_obj(GuestAddress(driver.parts(0).2 + 4 + 8 * 16)).unwrap();
        assert_eq!(avail_event, round, "asks for a kick at the next entry");
    }
}

#[test]
fn device_descriptors_are_watched_only_while_running() {
    let device = Echo::new();
    let (event, count) = (device.event.clone(), device.fd_events.clone());
    let seen = move || count.load(std::sync::atomic::Ordering::Relaxed);
    let mut driver = Driver::new(Box::new(device));
    event.write(1).unwrap();
    assert!(driver.settle() && seen() == 0);
    driver.bring_up(u64::MAX);
    assert_eq!((seen(), driver.get(0x60) & 2, driver.get(0xfc)), (1, 2, 1));
    driver.reset();
    event.write(1).unwrap();
    assert!(driver.settle() && seen() == 1);
    driver.bring_up(u64::MAX);
    assert_eq!(seen(), 2);
    // A fault ends the watch as well.
    driver.available_index(0, 999);
    driver.kick(0);
    driver.settle();
    event.write(1).unwrap();
    assert!(driver.settle(), "the loop spins on a dead device");
    assert_eq!((seen(), driver.status()), (2, RUNNING | NEEDS_RESET));
}

#[test]
fn reset_quiesces_a_running_device_once() {
    let device = Echo::new();
    let count = device.quiesced.clone();
    let quiesced = || count.load(std::sync::atomic::Ordering::Relaxed);
    let mut driver = Driver::new(Box::new(device));
    driver.reset();
    assert_eq!(quiesced(), 0);
    driver.bring_up(u64::MAX);
    driver.reset();
    driver.reset();
    assert_eq!(quiesced(), 1);
    driver.bring_up(u64::MAX);
    drop(driver);
    assert_eq!(quiesced(), 2, "also when the machine ends");
}

#[test]
fn a_full_ring_yields_to_the_loop() {
    let rng = crate::virtio::rng::KIND;
    let device = (rng.build)(&serde_json::json!({})).unwrap().remove(0);
    let mut driver = Driver::start(device);
    let offer = |driver: &mut Driver, chains: u32, len: u32| {
        for _ in 0..chains {
            driver.add(0, &[Part::Write(len)]).unwrap();
        }
        driver.lock().kick_for_test(0);
        std::iter::from_fn(|| driver.used(0)).count()
    };
    let first = offer(&mut driver, 256, 16);
    assert!((1..256).contains(&first), "{first} chains in one event");
    driver.settle();
    assert_eq!(first + std::iter::from_fn(|| driver.used(0)).count(), 256);
    // Large chains end the event earlier.
    let first = offer(&mut driver, 12, 1 << 20);
    assert!((1..12).contains(&first), "{first} chains of 1 MiB in one event");
    driver.settle();
    assert_eq!(first + std::iter::from_fn(|| driver.used(0)).count(), 12);
    let mut queue = VirtQueue::new(16);
    assert!(queue.pop(&driver.mem).unwrap().is_none() && !queue.exhausted(), "an unready queue wants no event");
}

#[test]
fn state_moves_to_another_machine() {
    let mut driver = Driver::start(Box::new(Echo::new()));
    for _ in 0..20 {
        driver.request(0, &[Part::Read(b"before")]);
    }
    driver.lock().write(0, 0x104, b"C");
    let state = driver.lock().save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let fresh = || MmioTransport::new(driver.mem.clone(), Box::new(Echo::new()), Arc::new(Deaf)).unwrap();
    let mut other = fresh();
    other.load(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(other.save().unwrap(), state);
    // The rings go on where they were.
    driver.add(0, &[Part::Read(b"after")]).unwrap();
    other.handle(0);
    let done = driver.used(0).unwrap();
    assert_eq!(done.written, 5);
}

struct Deaf;
impl InterruptLine for Deaf {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lying_state_is_refused_and_leaves_nothing() {
    let driver = Driver::start(Box::new(Echo::new()));
    let state = serde_json::to_value(driver.lock().save().unwrap()).unwrap();
    let lies: [(&str, serde_json::Value); 8] = [
        ("/version", 2.into()),
        ("/device_id", 41.into()),
        ("/status", 4.into()),
        ("/status", 3.into()),
        ("/driver_features", u64::MAX.into()),
        ("/queues", serde_json::json!([])),
        ("/queues/0/setup/size", 3.into()),
        ("/queues/0/setup/used", (u64::MAX - 3).into()),
    ];
    for (at, lie) in lies {
        let mut wrong = state.clone();
        *wrong.pointer_mut(at).unwrap() = lie;
        let mut other = MmioTransport::new(driver.mem.clone(), Box::new(Echo::new()), Arc::new(Deaf)).unwrap();
        let before = serde_json::to_value(other.save().unwrap()).unwrap();
        other.load(&serde_json::from_value(wrong).unwrap()).expect_err(at);
        assert_eq!(serde_json::to_value(other.save().unwrap()).unwrap(), before, "{at}");
    }
}

#[test]
fn a_device_is_replaced_while_the_driver_goes_on() {
    let first = Echo::new();
    let (old_event, old_quiesced) = (first.event.clone(), first.quiesced.clone());
    let mut driver = Driver::start(Box::new(first));
    driver.request(0, &[Part::Read(b"before")]);
    driver.lock().write(0, 0x105, b"X");
    let mut second = Echo::new();
    second.config = *b"second";
    let (event, count) = (second.event.clone(), second.fd_events.clone());
    let generation = driver.get(0xfc);
    driver.lock().replace(Box::new(second)).unwrap();
    assert_eq!(old_quiesced.load(std::sync::atomic::Ordering::Relaxed), 1);
    // The driver learns of it, and keeps its queues.
    assert_eq!((driver.get(0x60) & 2, driver.get(0xfc)), (2, generation + 1));
    assert_eq!(driver.get(0x100), u32::from_le_bytes(*b"seco"));
    let mut written = [0; 2];
    driver.lock().read(0, 0x104, &mut written);
    assert_eq!(&written, b"iX", "what the driver has written stays");
    assert_eq!(driver.request(0, &[Part::Read(b"after")]).written, 5);
    // The new device's descriptor is watched; the old one's is closed, and nobody misses it.
    event.write(1).unwrap();
    assert!(driver.settle());
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(Arc::strong_count(&old_event), 1, "the old device is gone");
    driver.reset();
    driver.bring_up(u64::MAX);
    driver.request(0, &[Part::Read(b"again")]);
}

#[test]
fn a_device_that_is_not_running_is_replaced_quietly() {
    let mut driver = Driver::new(Box::new(Echo::new()));
    let mut second = Echo::new();
    second.config = *b"second";
    driver.lock().replace(Box::new(second)).unwrap();
    assert_eq!((driver.interrupts(), driver.get(0x60)), (0, 0));
    driver.bring_up(u64::MAX);
    assert_eq!(driver.get(0x100), u32::from_le_bytes(*b"seco"));
    driver.request(0, &[Part::Read(b"x")]);
}

#[test]
fn another_kind_of_device_is_no_replacement() {
    struct Other;
    impl VirtioDevice for Other {
        fn info(&self) -> DeviceInfo {
            DeviceInfo { name: "echo", id: 42, features: 3, queue_sizes: &[16, 8], prompt: true }
        }
        fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
            Ok(())
        }
        fn process_queue(&mut self, _: usize, _: &mut Io) -> Result<(), DeviceFault> {
            Ok(())
        }
        fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
            Ok(())
        }
        fn save(&self) -> Result<serde_json::Value, StateError> {
            Ok(serde_json::Value::Null)
        }
        fn load(&mut self, _: &serde_json::Value) -> Result<(), StateError> {
            Ok(())
        }
    }
    let mut driver = Driver::start(Box::new(Echo::new()));
    assert!(driver.lock().replace(Box::new(Other)).is_err());
    assert_eq!(driver.request(0, &[Part::Read(b"still")]).written, 5);
}

#[test]
fn a_kick_is_answered_within_the_write_if_that_is_wanted() {
    let mut driver = Driver::start(Box::new(Echo::new()));
    assert!(!driver.lock().answers_at_once());
    driver.lock().answer_at_once();
    assert!(driver.lock().answers_at_once());
    let head = driver.add(0, &[Part::Read(b"now")]).unwrap();
    driver.kick(0);
    // The loop has had no turn.
    let done = driver.used(0).expect("answered");
    assert_eq!((done.head, done.written), (head, 3));
    let metrics = driver.lock().metrics();
    assert_eq!((metrics.read().queues[0].kicks, metrics.read().queues[0].operations), (1, 1));
    // Queues that are not there, or not ready.
    driver.kick(2);
    driver.reset();
    driver.kick(0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn what_starts_or_stops_the_device_is_work_and_nothing_else_is() {
    let mut driver = Driver::new(Box::new(Echo::new()));
    let work = |driver: &Driver| -> Vec<(u64, u32)> {
        let values = [
            (0x70, 0),
            (0x70, RUNNING),
            (0x70, RUNNING | FAILED),
            (0x70, 3),
            (0x44, 0),
            (0x44, 1),
            (0x50, 0),
            (0x64, 1),
            (0x30, 1),
        ];
        let is_work = |(offset, value): &(u64, u32)| driver.lock().is_work(*offset, &value.to_le_bytes());
        values.into_iter().filter(is_work).collect()
    };
    assert_eq!(work(&driver), []);
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    // A reset of what has not begun forgets what the driver set.
    assert_eq!(work(&driver), [(0x70, RUNNING)]);
    driver.set(0x70, RUNNING);
    driver.set(0x30, 0);
    assert_eq!(work(&driver), [(0x70, 0), (0x44, 0)]);
    driver.set(0x30, 1);
    assert_eq!(work(&driver), [(0x70, 0)], "that queue is not ready");
    driver.set(0x70, RUNNING | FAILED);
    assert_eq!(work(&driver), [(0x70, 0)], "it has begun, whatever has become of it");
    let short = driver.lock().is_work(0x70, &[0]) || driver.lock().is_work(0x71, &[0; 4]);
    assert!(!short, "not a register");
}

#[test]
fn kicks_of_a_device_with_limits_are_the_loops() {
    let mut driver = Driver::start(Box::new(Echo::new()));
    driver.lock().answer_at_once();
    let second = TokenBucket { size: 1 << 20, one_time_burst: None, refill_time: 1000 };
    let limiter = RateLimiter { bandwidth: Some(second), ops: None };
    driver.lock().set_limits(&Limits::default().with(Scope::All, limiter)).unwrap();
    driver.add(0, &[Part::Read(b"now")]).unwrap();
    driver.kick(0);
    assert!(driver.used(0).is_none(), "answered by whose thread may not wait");
    driver.settle();
    assert!(driver.used(0).is_some());
    assert_eq!(driver.lock().metrics().read().queues[0].kicks, 1);
}
