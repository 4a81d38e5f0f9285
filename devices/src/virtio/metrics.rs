//! What a device does, in numbers: kept by its transport and queues, so that every device has them for nothing.
//!
//! One thread at a time adds to them, the one that has the transport's lock; anybody may read, without it. Nothing of this
//! is part of a saved state: a machine that goes on from a snapshot counts from 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

/// Buckets of a histogram of times: the first counts those up to 1 µs, each next one those up to twice as long, and the
/// last one, all that are longer.
pub const BUCKETS: usize = 24;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. Only for one thread at a time: so it takes no locked instruction.
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers of a queue.
#[derive(Debug, Default)]
pub struct QueueMetrics {
    operations: Counter,
    bytes_from_guest: Counter,
    bytes_to_guest: Counter,
    /// Requests that were given back with an error, or dropped.
    pub(super) errors: Counter,
    /// Packets that may not leave.
    pub(super) denied: Counter,
    /// Times that a request was found that has to wait for the device's limits.
    pub(super) throttled: Counter,
    /// Notifications of the driver's.
    pub(super) kicks: Counter,
    /// Batches of used chains that the driver wanted an interrupt for.
    pub(super) interrupts: Counter,
    time_ns: Counter,
    times: [Counter; BUCKETS],
}

/// The numbers of a device.
#[derive(Debug, Default)]
pub struct DeviceMetrics {
    /// Interrupts sent, for queues and for the configuration.
    pub(super) interrupts: Counter,
    /// How often it needed a reset.
    pub(super) faults: Counter,
    pub(super) queues: Vec<Arc<QueueMetrics>>,
}

/// What a device has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeviceReading {
    /// Interrupts sent, for queues and for the configuration.
    pub interrupts: u64,
    /// How often it needed a reset, whosever fault it was.
    pub faults: u64,
    /// Each of its queues, in order.
    pub queues: Vec<QueueReading>,
}

/// What a queue has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QueueReading {
    /// Chains given back.
    pub operations: u64,
    /// Bytes of them that the device could read, headers included.
    pub bytes_from_guest: u64,
    /// Bytes that it wrote into them, headers included.
    pub bytes_to_guest: u64,
    /// Requests that the device refused or the host failed, and packets that were dropped.
    pub errors: u64,
    /// Packets of the guest's that may not leave.
    pub denied: u64,
    /// Times that a request was found that has to wait for the device's limits.
    pub throttled: u64,
    /// Notifications of the driver's.
    pub kicks: u64,
    /// Batches of used chains that the driver wanted an interrupt for.
    pub interrupts: u64,
    /// How long chains were with the device.
    pub latency: LatencyReading,
}

/// How long things took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LatencyReading {
    /// All together, ns.
    pub sum_ns: u64,
    /// How many took up to 1 µs, 2 µs, 4 µs, …, and longer than all of these.
    pub counts: [u64; BUCKETS],
}

impl DeviceMetrics {
    /// As they are now.
    pub fn read(&self) -> DeviceReading {
        DeviceReading {
            interrupts: self.interrupts.get(),
            faults: self.faults.get(),
            queues: self.queues.iter().map(|queue| queue.read()).collect(),
        }
    }
}

impl QueueMetrics {
    fn read(&self) -> QueueReading {
        QueueReading {
            operations: self.operations.get(),
            bytes_from_guest: self.bytes_from_guest.get(),
            bytes_to_guest: self.bytes_to_guest.get(),
            errors: self.errors.get(),
            denied: self.denied.get(),
            throttled: self.throttled.get(),
            kicks: self.kicks.get(),
            interrupts: self.interrupts.get(),
            latency: LatencyReading { sum_ns: self.time_ns.get(), counts: self.times.each_ref().map(Counter::get) },
        }
    }
}

/// The bucket of a time.
fn bucket(ns: u64) -> usize {
    let whole_us = ns.saturating_sub(1) / 1000;
    ((u64::BITS - whole_us.leading_zeros()) as usize).min(BUCKETS - 1)
}

/// The longest time that a bucket counts, µs; none: it counts all.
pub fn bound_us(bucket: usize) -> Option<u64> {
    (bucket + 1 < BUCKETS).then(|| 1 << bucket)
}

/// A queue's chains on their way through the device.
///
/// The clock is read once for a run of chains taken one after the other, and once for each batch given back.
pub(super) struct Meter {
    metrics: Arc<QueueMetrics>,
    epoch: Instant,
    /// Since the epoch, ns, if it is still good.
    now: Option<u64>,
    /// By head.
    taken: Vec<Taken>,
}

/// A chain that the device has.
#[derive(Clone, Copy, Default)]
struct Taken {
    /// Since the epoch, ns.
    at: u64,
    /// Bytes that the device can read.
    readable: u32,
}

impl Meter {
    pub fn new() -> Self {
        Meter { metrics: Arc::default(), epoch: Instant::now(), now: None, taken: Vec::new() }
    }

    pub fn metrics(&self) -> &Arc<QueueMetrics> {
        &self.metrics
    }

    /// The queue has so many heads now, none of them taken.
    pub fn start(&mut self, heads: u16) {
        self.taken.clear();
        self.taken.resize(heads.into(), Taken::default());
    }

    /// Time has gone by.
    pub fn look_again(&mut self) {
        self.now = None;
    }

    /// A chain has been taken.
    pub fn taken(&mut self, head: u16, readable: u32) {
        let at = *self.now.get_or_insert_with(|| nanoseconds(self.epoch));
        if let Some(taken) = self.taken.get_mut(usize::from(head)) {
            *taken = Taken { at, readable };
        }
    }

    /// Chains have been given back, each with the bytes written to it.
    pub fn given_back(&mut self, chains: &[(u16, u32)]) {
        let now = nanoseconds(self.epoch);
        self.now = Some(now);
        let (mut from, mut to, mut time) = (0, 0, 0);
        for &(head, written) in chains {
            let Taken { at, readable } = self.taken.get(usize::from(head)).copied().unwrap_or_default();
            let took = now.saturating_sub(at);
            from += u64::from(readable);
            to += u64::from(written);
            time += took;
            self.metrics.times[bucket(took)].add(1);
        }
        self.metrics.operations.add(chains.len() as u64);
        self.metrics.bytes_from_guest.add(from);
        self.metrics.bytes_to_guest.add(to);
        self.metrics.time_ns.add(time);
    }
}

/// Enough for 584 years.
fn nanoseconds(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_long_enough() {
        for (ns, expect) in [(0, 0), (1, 0), (1000, 0), (1001, 1), (2000, 1), (2001, 2), (4000, 2), (4001, 3)] {
            assert_eq!(bucket(ns), expect, "{ns}");
        }
        for index in 0..BUCKETS - 1 {
            let bound = bound_us(index).unwrap() * 1000;
            assert_eq!((bucket(bound), bucket(bound + 1)), (index, index + 1));
        }
        assert_eq!((bucket(u64::MAX), bound_us(BUCKETS - 1)), (BUCKETS - 1, None));
    }

    #[test]
    fn what_is_given_back_is_counted_once() {
        let mut meter = Meter::new();
        meter.start(4);
        meter.taken(0, 10);
        meter.taken(3, 1);
        // Undone, and taken again.
        meter.taken(3, 5);
        meter.given_back(&[(3, 100), (0, 0)]);
        let read = meter.metrics().read();
        assert_eq!((read.operations, read.bytes_from_guest, read.bytes_to_guest), (2, 15, 100));
        assert_eq!(read.latency.counts.iter().sum::<u64>(), 2);
        meter.look_again();
        meter.taken(1, 0);
        std::thread::sleep(std::time::Duration::from_millis(3));
        meter.given_back(&[(1, 1)]);
        let late = meter.metrics().read();
        assert!(late.latency.sum_ns - read.latency.sum_ns >= 3_000_000);
        assert_eq!(late.latency.counts[12..].iter().sum::<u64>(), 1, "{late:?}");
    }
}
