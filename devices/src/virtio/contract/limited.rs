//! Devices that are limited, each as its kind is.

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::virtio::limit::Limits;

const HOUR: u64 = 3_600_000;

/// Operations of one direction or all: so many at once, and all of them again after `ms`.
fn limits(case: &Case, key: &str, size: u64, ms: u64) -> Limits {
    let kind = DEVICES.iter().find(|kind| kind.name == case.name).unwrap();
    Limits::of(kind, &json!({ key: { "ops": { "size": size, "refill_time": ms } } })).unwrap()
}

/// Once for each limiter of each kind, with a queue that it limits and what a request there is.
fn each_limiter(mut test: impl FnMut(&mut Case, &str, usize, &[Part])) {
    for kind in DEVICES {
        for (key, _) in kind.limiters {
            // A block request of zeros is a read of sector 0.
            let (queue, kind_of_request) = match (kind.name, *key) {
                ("net", "rx_rate_limiter") => continue,
                ("net", _) => (1, 0u32),
                (_, "write_rate_limiter") => (0, 1),
                _ => (0, 0),
            };
            let mut header = [0; 64];
            header[..4].copy_from_slice(&kind_of_request.to_le_bytes());
            let data = [0; 464];
            let parts = [Part::Read(&header), Part::Read(&data), Part::Write(513)];
            let dir = tempfile::tempdir().unwrap();
            let device = build(kind, dir.path());
            let queues = device.info().queue_sizes.len();
            test(&mut Case { name: kind.name, driver: Driver::start(device), queues, dir }, key, queue, &parts);
        }
    }
}

fn offer(case: &mut Case, queue: usize, count: usize, parts: &[Part]) {
    for _ in 0..count {
        case.driver.add(queue, parts).unwrap();
    }
    case.driver.kick(queue);
}

/// Lets the loop work until so many are back, and no more is to do at once.
fn taken(case: &mut Case, queue: usize, count: usize) -> usize {
    let mut back = 0;
    case.driver.wait(|driver| {
        while driver.used(queue).is_some() {
            back += 1;
        }
        back >= count
    });
    assert!(case.driver.settle(), "{}: the loop spins", case.name);
    back + std::iter::from_fn(|| case.driver.used(queue)).count()
}

#[test]
fn a_limited_device_rests_delays_no_other_and_goes_on_when_it_may() {
    each_limiter(|case, key, queue, parts| {
        let name = format!("{} {key}", case.name);
        case.driver.lock().set_limits(&limits(case, key, 4, HOUR)).unwrap();
        offer(case, queue, 4, parts);
        assert_eq!(taken(case, queue, 4), 4, "{name}");
        let metrics = case.driver.lock().metrics();
        assert_eq!(metrics.read().queues[queue].throttled, 0, "{name}: nobody waits yet");
        offer(case, queue, 46, parts);
        let mut other = case.driver.beside((super::super::rng::KIND.build)(&json!({})).unwrap().remove(0));
        for _ in 0..1000 {
            other.request(0, &[Part::Write(16)]);
        }
        // Nor does a driver that insists change anything.
        for _ in 0..100 {
            case.driver.kick(queue);
        }
        assert_eq!((taken(case, queue, 0), case.driver.status()), (0, RUNNING), "{name}");
        assert!(metrics.read().queues[queue].throttled > 0, "{name}");
        case.driver.lock().set_limits(&Limits::default()).unwrap();
        assert_eq!(taken(case, queue, 46), 46, "{name}");
    });
}

#[test]
fn a_queue_that_waits_is_woken_by_a_timer_and_the_rate_is_kept() {
    each_limiter(|case, key, queue, parts| {
        case.driver.lock().set_limits(&limits(case, key, 10, 50)).unwrap();
        let began = Instant::now();
        offer(case, queue, 30, parts);
        // The last one begins when the bucket has been filled twice, but for one.
        assert_eq!(taken(case, queue, 30), 30, "{} {key}", case.name);
        assert!(began.elapsed().as_millis() >= 90, "{} {key}: {:?}", case.name, began.elapsed());
    });
}

#[test]
fn a_ring_that_is_broken_while_it_waits_stops_the_device_until_reset() {
    each_limiter(|case, key, queue, parts| {
        case.driver.lock().set_limits(&limits(case, key, 1, HOUR)).unwrap();
        offer(case, queue, 10, parts);
        assert_eq!(taken(case, queue, 1), 1);
        case.driver.available_index(queue, 300);
        case.driver.kick(queue);
        assert!(case.driver.settle(), "{}", case.name);
        assert_eq!(case.driver.status(), RUNNING | NEEDS_RESET, "{} {key}", case.name);
        case.driver.lock().set_limits(&Limits::default()).unwrap();
        assert!(case.driver.settle() && case.driver.used(queue).is_none(), "{}", case.name);
        case.works();
    });
}

#[test]
fn requests_that_wait_are_saved_and_forgotten_as_any_others() {
    each_limiter(|case, key, queue, parts| {
        case.driver.lock().set_limits(&limits(case, key, 1, HOUR)).unwrap();
        offer(case, queue, 10, parts);
        assert_eq!(taken(case, queue, 1), 1);
        let state = case.driver.lock().save().unwrap();
        assert_eq!((taken(case, queue, 0), case.driver.lock().save().unwrap()), (0, state), "{}", case.name);
        case.driver.reset();
        case.driver.bring_up(u64::MAX);
        case.driver.lock().set_limits(&limits(case, key, 2, HOUR)).unwrap();
        offer(case, queue, 5, parts);
        assert_eq!(taken(case, queue, 2), 2, "{}: the old ones are gone", case.name);
        case.driver.lock().close();
        case.driver.lock().set_limits(&Limits::default()).unwrap();
        assert!(case.driver.settle(), "{}", case.name);
    });
}
