//! What a device does is counted, whichever it is.

use super::*;
use crate::virtio::metrics::DeviceReading;

fn read(case: &Case) -> DeviceReading {
    let metrics = case.driver.lock().metrics();
    metrics.read()
}

#[test]
fn what_every_queue_does_is_counted() {
    each_queue(|case, queue| {
        case.driver.reset();
        case.driver.bring_up(u64::MAX);
        let device = read(case);
        for _ in 0..5 {
            case.driver.request(queue, &[Part::Read(&[0; 64]), Part::Write(513)]);
        }
        let now = read(case);
        let (before, after) = (&device.queues[queue], &now.queues[queue]);
        let counted = (after.operations - before.operations, after.kicks - before.kicks);
        assert_eq!(counted, (5, 5), "{}", case.name);
        assert_eq!(after.bytes_from_guest - before.bytes_from_guest, 5 * 64, "{}", case.name);
        assert!(after.bytes_to_guest - before.bytes_to_guest <= 5 * 513, "{}", case.name);
        assert_eq!(after.latency.counts.iter().sum::<u64>(), after.operations, "{}", case.name);
        assert!(after.latency.sum_ns > before.latency.sum_ns, "{}", case.name);
        // The driver here waits for the first only.
        let queue_and_device = (after.interrupts - before.interrupts, now.interrupts - device.interrupts);
        assert_eq!((queue_and_device, now.faults), ((1, 1), device.faults), "{}", case.name);
        for (other, (before, after)) in device.queues.iter().zip(&now.queues).enumerate() {
            assert!(other == queue || before == after, "{}: queue {other}", case.name);
        }
        case.driver.available_index(queue, 300);
        case.driver.kick(queue);
        assert!(case.driver.settle());
        let now = read(case);
        assert_eq!((now.faults, now.queues[queue].operations), (device.faults + 1, after.operations), "{}", case.name);
        case.works();
        assert!(read(case).queues[queue].operations > after.operations, "{}: a reset begins it anew", case.name);
    });
}

#[test]
fn kicks_are_counted_one_by_one_and_the_transports_own_are_not() {
    each(|case| {
        let before = read(case);
        for queue in 0..case.queues {
            for _ in 0..1000 {
                case.driver.kick(queue);
            }
        }
        assert!(case.driver.settle());
        case.driver.reset();
        case.driver.bring_up(u64::MAX);
        let after = read(case);
        for (before, after) in before.queues.iter().zip(&after.queues) {
            assert_eq!(after.kicks - before.kicks, 1000, "{}", case.name);
        }
    });
}

#[test]
fn another_device_in_the_place_of_one_counts_on() {
    each(|case| {
        case.works();
        let before = read(case);
        let kind = DEVICES.iter().find(|kind| kind.name == case.name).unwrap();
        if kind.swappable.is_empty() {
            return;
        }
        case.driver.lock().replace(build(kind, case.dir.path())).unwrap();
        case.works();
        for (before, after) in before.queues.iter().zip(&read(case).queues) {
            assert!(after.operations >= before.operations, "{}", case.name);
        }
    });
}
