//! A recorder of a device's queues: its transport and queues tell it what happens, and it writes a [trace](super) when it stops.
//!
//! It stops, and nothing else does, when it has [`MOST_KEPT`] bytes, when a chain is too large to be kept, when the driver resets the
//! device (what comes afterwards is another trace), and at the device's end. Until then it keeps what it has heard: chains that a
//! device has looked at and put back were never there.

use std::io::{BufWriter, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::{MOST_BYTES, MOST_ROOM, Part, Step, Trace};
use crate::virtio::chain::Chain;

/// Most bytes of memory for what is recorded, roughly: a guest decides how much it asks of a device.
pub const MOST_KEPT: usize = 32 << 20;

/// What a device's transport and all its queues tell.
#[derive(Clone)]
pub struct Tape(Arc<Mutex<State>>);

struct State {
    /// Where the trace goes, until it stops.
    out: Option<Box<dyn Write + Send>>,
    /// Since the driver has been ready.
    trace: Option<Trace>,
    /// Of each step, the head that a chain has.
    heads: Vec<u16>,
    kept: usize,
}

impl Tape {
    /// One that writes there.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Tape(Arc::new(Mutex::new(State { out: Some(out), trace: None, heads: Vec::new(), kept: 0 })))
    }

    /// The driver of such a device is ready.
    pub(in crate::virtio) fn begin(&self, device: &str, features: u64, memory: u64, config: &[u8]) {
        self.with(|state| match state.trace {
            Some(_) => state.stop(),
            None => {
                let (device, config) = (device.to_owned(), config.to_vec());
                state.trace = Some(Trace { device, features, memory, config, steps: Vec::new() });
            }
        });
    }

    /// It has notified a queue.
    pub(in crate::virtio) fn kicked(&self, queue: u16) {
        self.with(|state| state.step(0, Step::Kick(queue)));
    }

    /// A chain has been taken.
    pub(in crate::virtio) fn taken(&self, queue: u16, chain: &Chain) {
        self.with(|state| {
            if chain.readable_len() > MOST_BYTES || chain.writable_len() > MOST_ROOM {
                return state.stop();
            }
            let readable = chain.readable().slices().map(|slice| {
                let mut bytes = vec![0; slice.len()];
                slice.copy_to(&mut bytes[..]);
                Part::read(&bytes)
            });
            let writable = chain.writable().slices().map(|slice| Part::Write(slice.len() as u32));
            state.step(chain.head(), Step::Chain(queue, readable.chain(writable).collect()));
        });
    }

    /// A chain has been put back, the last one that is still taken.
    pub(in crate::virtio) fn put_back(&self, queue: u16, head: u16) {
        self.with(|state| {
            let State { trace: Some(trace), heads, .. } = state else { return };
            let it = |(step, of): (&Step, &u16)| matches!(step, Step::Chain(from, _) if *from == queue) && *of == head;
            if let Some(at) = trace.steps.iter().zip(heads.iter()).rposition(it) {
                trace.steps.remove(at);
                heads.remove(at);
            }
        });
    }

    /// So many have been given back.
    pub(in crate::virtio) fn given_back(&self, queue: u16, count: usize) {
        let count = count as u32;
        self.with(|state| match state.trace.as_mut().and_then(|trace| trace.steps.last_mut()) {
            Some(Step::Back(before, sum)) if *before == queue => *sum = sum.saturating_add(count),
            _ => state.step(0, Step::Back(queue, count)),
        });
    }

    /// That was all.
    pub(in crate::virtio) fn stop(&self) {
        self.with(State::stop);
    }

    fn with(&self, work: impl FnOnce(&mut State)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.out.is_some() {
            work(&mut state);
        }
    }
}

impl State {
    fn step(&mut self, head: u16, step: Step) {
        let Some(trace) = &mut self.trace else { return };
        self.kept += size_of::<Step>() + step.bytes();
        if self.kept > MOST_KEPT {
            return self.stop();
        }
        trace.steps.push(step);
        self.heads.push(head);
    }

    fn stop(&mut self) {
        let (Some(out), Some(trace)) = (self.out.take(), self.trace.take()) else { return };
        let mut out = BufWriter::new(out);
        if let Err(error) = write!(out, "{trace}").and_then(|()| out.flush()) {
            tracing::warn!("a queue trace cannot be written: {error}");
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Step {
    /// Memory that it takes besides its own.
    fn bytes(&self) -> usize {
        let Step::Chain(_, parts) = self else { return 0 };
        let bytes = |part: &Part| match part {
            Part::Read { bytes, .. } => bytes.len(),
            Part::Write(_) => 0,
        };
        parts.iter().map(|part| size_of::<Part>() + bytes(part)).sum()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::testing::{Driver, Part as Offered};
    use crate::virtio::trace::Trace;
    use crate::virtio::{DEVICES, VirtioDevice};

    /// What has been recorded.
    #[derive(Clone, Default)]
    pub struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub fn tape() -> (Tape, Written) {
        let written = Written::default();
        (Tape::new(Box::new(written.clone())), written)
    }

    fn device(name: &str) -> (Box<dyn VirtioDevice>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let kind = DEVICES.iter().find(|kind| kind.name == name).unwrap();
        ((kind.build)(&(kind.sample)(dir.path())).unwrap().remove(0), dir)
    }

    #[test]
    fn what_a_driver_asks_is_recorded_once_it_is_ready() {
        let (device, _dir) = device("blk");
        let (tape, written) = tape();
        let mut driver = Driver::new(device);
        driver.lock().record(tape);
        driver.bring_up(u64::MAX);
        let header = [&[0; 8][..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
        driver.request(0, &[Offered::Read(&header), Offered::Write(512), Offered::Write(1)]);
        // What comes after a reset is another driver's.
        driver.reset();
        driver.bring_up(u64::MAX);
        driver.request(0, &[Offered::Read(&header), Offered::Write(512), Offered::Write(1)]);
        drop(driver);
        let trace: Trace = written.text().parse().unwrap();
        let chain = vec![Part::read(&header), Part::Write(512), Part::Write(1)];
        assert_eq!(trace.steps, [Step::Kick(0), Step::Chain(0, chain), Step::Back(0, 1)]);
        assert_eq!((trace.device.as_str(), trace.memory, trace.config.len() > 8), ("blk", 16 << 20, true));
    }

    #[test]
    fn a_chain_that_is_put_back_was_not_taken() {
        // A console that has nothing to say looks at the room for it, and leaves it.
        let (device, _dir) = device("console");
        let (tape, written) = tape();
        let mut driver = Driver::new(device);
        driver.lock().record(tape);
        driver.bring_up(u64::MAX);
        driver.add(0, &[Offered::Write(64)]);
        driver.kick(0);
        assert!(driver.settle());
        driver.request(1, &[Offered::Read(b"words")]);
        drop(driver);
        let trace: Trace = written.text().parse().unwrap();
        let chain = vec![Part::read(b"words")];
        assert_eq!(trace.steps, [Step::Kick(0), Step::Kick(1), Step::Chain(1, chain), Step::Back(1, 1)]);
    }

    #[test]
    fn chains_that_are_put_back_together_were_not_taken() {
        // One packet in the middle of room for a larger one.
        let (tape, written) = tape();
        tape.begin("net", 0, 0, &[]);
        for head in 3..8 {
            tape.with(|state| state.step(head, Step::Chain(0, vec![Part::Write(u32::from(head))])));
        }
        tape.given_back(0, 1);
        for head in (4..8).rev() {
            tape.put_back(0, head);
        }
        tape.put_back(0, 9);
        tape.put_back(1, 3);
        tape.stop();
        let trace: Trace = written.text().parse().unwrap();
        assert_eq!(trace.steps, [Step::Chain(0, vec![Part::Write(3)]), Step::Back(0, 1)]);
    }

    #[test]
    fn a_tape_ends_at_its_bound_and_the_device_goes_on() {
        let (device, _dir) = device("rng");
        let (tape, written) = tape();
        let mut driver = Driver::new(device);
        driver.lock().record(tape.clone());
        driver.bring_up(u64::MAX);
        driver.request(0, &[Offered::Write(8)]);
        tape.with(|state| state.kept = MOST_KEPT);
        driver.request(0, &[Offered::Write(8)]);
        driver.request(0, &[Offered::Write(8)]);
        drop(driver);
        let trace: Trace = written.text().parse().unwrap();
        assert!(trace.steps.len() <= 3, "{trace:?}");
    }

    #[test]
    fn a_chain_too_large_to_be_kept_ends_the_tape_and_allocates_nothing() {
        let (device, _dir) = device("rng");
        let (tape, written) = tape();
        let mut driver = Driver::new(device);
        driver.lock().record(tape);
        driver.bring_up(u64::MAX);
        // The same bytes twice are more than a trace's chain may have.
        let half = 12 << 20;
        let (table, ..) = driver.parts(0);
        driver.descriptor(table, 0, (1 << 20, half), 1, 1);
        driver.descriptor(table, 1, (1 << 20, half), 0, 0);
        driver.offer(0, 0);
        driver.kick(0);
        driver.wait(|driver| driver.mem.read_obj::<u16>(GuestAddress(driver.parts(0).2 + 2)).unwrap() == 1);
        drop(driver);
        let trace: Trace = written.text().parse().unwrap();
        assert!(trace.steps.iter().all(|step| !matches!(step, Step::Chain(..))), "{trace:?}");
    }
}
