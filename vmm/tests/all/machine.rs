//! Machines of a few instructions on this host's own KVM: how they end, and that they can always be stopped.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::{Kernel, no_kvm};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm::machine::{RunState, Subscriber};
use vmm::{Event, ExitReason, Machine, VmmError};
use vmm_sys_util::eventfd::EventFd;

/// mov $value, %al; mov $0x600, %dx; out %al, (%dx); hlt; jmp to the hlt.
fn exit_with(value: u8) -> Vec<u8> {
    vec![0xb0, value, 0x66, 0xba, 0x00, 0x06, 0xee, 0xf4, 0xeb, 0xfd]
}
/// hlt; jmp to it.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// jmp to itself.
const SPIN: &[u8] = &[0xeb, 0xfe];
/// ud2, with no interrupt table to catch it.
const CRASH: &[u8] = &[0x0f, 0x0b];
/// vaddps %ymm0, %ymm0, %ymm0: what a software-nested KVM cannot emulate, and nor can we.
const VECTOR: &[u8] = &[0xc5, 0xfc, 0x58, 0xc0];

/// Long enough for anything here, on any machine: only a hang takes it.
const HANG: Duration = Duration::from_secs(60);

/// Runs a machine to its end on a thread of its own; panics if it hangs.
fn run(machine: Machine) -> Result<ExitReason, VmmError> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(machine.run(&mut |_| {})));
    receiver.recv_timeout(HANG).expect("the machine hangs")
}

#[test]
fn each_way_to_end_is_told_apart() {
    if no_kvm("each_way_to_end_is_told_apart") {
        return;
    }
    let ends = [(1, ExitReason::PowerOff), (2, ExitReason::Reset), (3, ExitReason::Panic)];
    for (value, reason) in ends {
        assert_eq!(run(Kernel::new(&exit_with(value)).machine(1)).unwrap(), reason);
    }
    assert_eq!(run(Kernel::new(CRASH).machine(1)).unwrap(), ExitReason::TripleFault);
}

#[test]
fn a_guest_that_halts_or_spins_can_be_stopped() {
    if no_kvm("a_guest_that_halts_or_spins_can_be_stopped") {
        return;
    }
    // Many times: a stop must not be lost between a vCPU's look at its orders and its way into the guest.
    for round in 0..40 {
        let kernel = Kernel::new(if round % 2 == 0 { HALT } else { SPIN });
        let machine = kernel.machine(1 + round % 3);
        let handle = machine.handle();
        let stopper = thread::spawn(move || {
            for _ in 0..round {
                thread::yield_now();
            }
            handle.stop();
        });
        assert_eq!(run(machine).unwrap(), ExitReason::Stopped);
        stopper.join().unwrap();
    }
}

/// Something on the event loop that has a mistake.
struct Mistake(EventFd);

impl MutEventSubscriber for Mistake {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        panic!("as the test wants it");
    }
}

#[test]
fn a_broken_event_loop_ends_the_machine() {
    if no_kvm("a_broken_event_loop_ends_the_machine") {
        return;
    }
    for (code, vcpus) in [(SPIN, 1), (HALT, 2)] {
        let kernel = Kernel::new(code);
        let mut manager: EventManager<Subscriber> = EventManager::new().unwrap();
        let event = EventFd::new(0).unwrap();
        event.write(1).unwrap();
        manager.add_subscriber(Arc::new(Mutex::new(Mistake(event))));
        let machine = Machine::build_on(manager, &kernel.config(vcpus), None, None, None, &mut |_| {}).unwrap();
        assert!(matches!(run(machine), Err(VmmError::LoopPanicked)));
    }
}

#[test]
fn what_remains_of_a_machine_shows_nothing_of_it() {
    if no_kvm("what_remains_of_a_machine_shows_nothing_of_it") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vsock");
    let kernel = Kernel::new(&exit_with(1));
    let mut config = kernel.config(1);
    config.devices.insert("vsock".into(), serde_json::json!({ "guest_cid": 3, "uds_path": socket }));
    let machine = Machine::build(&config, None, &mut |_| {}).unwrap();
    let handle = machine.handle();
    assert!(socket.exists());
    let (reason, remains) = machine.run_to_end(&mut |_| {}).unwrap();
    assert_eq!((reason, handle.state(), socket.exists()), (ExitReason::PowerOff, RunState::Ended, false));
    drop(remains);
}

#[test]
fn a_paused_machine_goes_on_where_it_was() {
    if no_kvm("a_paused_machine_goes_on_where_it_was") {
        return;
    }
    // inc %rbx; cmp $0x200, %ebx; jne back; then power off.
    let mut code = vec![0x48, 0xff, 0xc3, 0x81, 0xfb, 0x00, 0x02, 0x00, 0x00, 0x75, 0xf5];
    code.extend(exit_with(1));
    let kernel = Kernel::new(&code);
    let machine = kernel.machine(1);
    let handle = machine.handle();
    let (sender, receiver) = mpsc::channel();
    let runner = thread::spawn(move || {
        let mut tell = |event| drop(sender.send(event));
        machine.run(&mut tell)
    });
    assert!(matches!(receiver.recv_timeout(HANG).unwrap(), Event::Phase { .. }));
    for _ in 0..20 {
        handle.pause();
        handle.resume();
    }
    loop {
        if let Event::Exit { reason, .. } = receiver.recv_timeout(HANG).expect("the machine hangs") {
            assert_eq!(reason, ExitReason::PowerOff);
            break;
        }
    }
    assert_eq!(runner.join().unwrap().unwrap(), ExitReason::PowerOff);
}

#[test]
fn an_instruction_that_nobody_can_do_is_named() {
    if no_kvm("an_instruction_that_nobody_can_do_is_named") {
        return;
    }
    match run(Kernel::new(VECTOR).machine(1)) {
        // A processor faults: AVX is not enabled in CR4.
        Ok(reason) => assert_eq!(reason, ExitReason::TripleFault),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("vaddps") && text.contains("rip") && text.contains("100000"), "{text}");
        }
    }
}
