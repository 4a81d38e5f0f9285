use proptest::prelude::{Strategy, prop_assert};
use proptest::test_runner::{Config, TestRunner};

use super::*;

fn trace(device: &str, steps: &str) -> Trace {
    format!("bulkhead queue trace 1\ndevice {device}\nfeatures 0xffffffffffffffff\nmemory 1048576\nconfig \n{steps}")
        .parse()
        .unwrap()
}

fn rng(steps: &str) -> Result<DeviceReading, ReplayError> {
    let trace = trace("rng", steps);
    let device = device(&trace, &serde_json::json!({}), Vec::new())?;
    let mut replay = Replay::start(&trace, device, &[])?;
    replay.run(&trace)?;
    Ok(replay.reading())
}

#[test]
fn a_device_does_what_the_trace_asks() {
    let reading = rng("kick 0\nchain 0 w64\nback 0 1\nchain 0 w100 w28\nchain 0 w8\nback 0 2\n").unwrap();
    let queue = &reading.queues[0];
    assert_eq!((queue.operations, queue.bytes_to_guest, queue.errors), (3, 64 + 128 + 8, 0));
    // Those that come before the device has seen to the last one are one; it is told of what it looks for anyway by none.
    assert!(queue.kicks >= 1 && queue.kicks <= 3, "{queue:?}");
}

#[test]
fn more_than_the_queue_holds_waits_for_its_turn() {
    let many = 1000;
    let reading = rng(&"chain 0 w16\n".repeat(many)).unwrap();
    assert_eq!(reading.queues[0].operations, many as u64);
}

#[test]
fn a_trace_that_does_not_fit_is_an_error() {
    assert!(matches!(rng("chain 1 w1\n"), Err(ReplayError::Queue { step: 1, queue: 1, count: 1 })));
    assert!(matches!(rng("kick 0\nback 9 1\n"), Err(ReplayError::Queue { step: 2, queue: 9, .. })));
    let long = format!("chain 0{}\n", " w1".repeat(1024));
    assert!(matches!(rng(&long), Err(ReplayError::Chain { step: 1, queue: 0, parts: 1024 })));
    let other = trace("toaster", "");
    let error = device(&other, &Value::Null, Vec::new()).err().unwrap().to_string();
    assert!(error.contains("'toaster'; there are rng, vsock, blk"), "{error}");
}

#[test]
fn what_the_trace_had_back_and_never_offered_is_not_waited_for() {
    let reading = rng("back 0 100\nchain 0 w16\nback 0 100\n").unwrap();
    assert_eq!(reading.queues[0].operations, 1);
}

#[test]
fn the_idle_device_gives_back_what_it_does_not_keep() {
    let trace = trace("net", "chain 0 w1500\nkick 1\nchain 1 r12= r60=ff\nback 1 1\nchain 1 r12=\n");
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let section = serde_json::json!([{ "iface_id": "a", "user": {} }]);
    let net = device(&trace, &section, vec![ours.into()]).unwrap();
    let keeps = [Kept::full(0)];
    let mut replay = Replay::start(&trace, Box::new(Idle::like(net.as_ref(), &keeps)), &keeps).unwrap();
    replay.run(&trace).unwrap();
    let reading = replay.reading();
    assert_eq!((reading.queues[0].operations, reading.queues[1].operations), (0, 2));
}

#[test]
fn whatever_a_trace_asks_ends() {
    // Rooms and bytes where the device wants the other, none at all, queues that there are not, and what was never offered.
    let part = proptest::sample::select(vec!["r0=", "r3=01", "r64=", "w0", "w1", "w70000"]);
    let chain = proptest::collection::vec(part, 0..5).prop_map(|mut parts| {
        parts.sort_unstable();
        format!("chain {} {}", parts.len() % 3, parts.join(" ")).trim_end().to_owned()
    });
    let other =
        proptest::sample::select(vec!["kick 0", "kick 1", "kick 63", "back 0 2", "back 1 4294967295", "back 2 1"]);
    let step = proptest::prop_oneof![chain, other.prop_map(str::to_owned)];
    let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
    let steps = proptest::collection::vec(step, 0..12);
    let name = proptest::sample::select(vec!["rng", "console"]);
    let done = runner.run(&(name, steps), |(name, steps)| {
        let trace = trace(name, &(steps.join("\n") + "\n"));
        let section = if name == "console" { serde_json::json!({ "mode": "off" }) } else { serde_json::json!({}) };
        let device = device(&trace, &section, Vec::new()).unwrap();
        let keeps = if name == "console" { vec![Kept::full(0)] } else { Vec::new() };
        let result = Replay::start(&trace, device, &keeps).unwrap().run(&trace);
        prop_assert!(!matches!(result, Err(ReplayError::Stalled(_) | ReplayError::Memory(_))), "{result:?}");
        Ok(())
    });
    done.unwrap();
}

#[test]
fn what_is_recorded_is_what_is_done_again() {
    let (tape, written) = crate::virtio::trace::tape::tests::tape();
    let first = trace("rng", "kick 0\nchain 0 w64\nchain 0 w32\nback 0 2\n");
    let rng = device(&first, &serde_json::json!({}), Vec::new()).unwrap();
    let mut replay = Replay::assemble(&first, rng).unwrap();
    replay.lock().record(tape);
    replay.bring_up(first.features, &[]).unwrap();
    replay.run(&first).unwrap();
    drop(replay);
    let again: Trace = written.text().parse().unwrap();
    let chains =
        |trace: &Trace| trace.steps.iter().filter(|step| matches!(step, Step::Chain(..))).cloned().collect::<Vec<_>>();
    assert_eq!(chains(&again), chains(&first));
    assert_eq!((again.device.as_str(), again.memory), ("rng", 1048576));
}
