//! A recorder of a device's queues: its transport and queues tell it what happens, and it writes a [trace](super).
//!
//! It stops, and nothing else does, when the trace has [`MOST_WRITTEN`] bytes, when a chain is too large to be kept, when its
//! file takes no more, and when the driver resets the device: what comes afterwards is another trace.

use std::fmt::Display;
use std::io::{BufWriter, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::{MOST_BYTES, Part, Step, Trace};
use crate::virtio::chain::Chain;

/// Most bytes of a trace that is recorded: a guest decides how much it asks of a device.
pub const MOST_WRITTEN: usize = 16 << 20;

/// What a device's transport and all its queues write to.
#[derive(Clone)]
pub struct Tape(Arc<Mutex<State>>);

struct State {
    /// Until it stops.
    out: Option<BufWriter<Box<dyn Write + Send>>>,
    written: usize,
    /// The driver has been ready, and what it does is recorded.
    begun: bool,
    /// The last step, which can still change: a chain may be put back, and chains given back become one step.
    last: Option<Step>,
}

impl Tape {
    /// One that writes there.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Tape(Arc::new(Mutex::new(State { out: Some(BufWriter::new(out)), written: 0, begun: false, last: None })))
    }

    /// The driver of such a device is ready.
    pub(in crate::virtio) fn begin(&self, device: &str, features: u64, memory: u64, config: &[u8]) {
        self.with(|state| {
            if state.begun {
                return state.stop();
            }
            state.begun = true;
            let head = Trace { device: device.into(), features, memory, config: config.to_vec(), steps: Vec::new() };
            state.write(&head);
        });
    }

    /// It has notified a queue so many times since this was last told.
    pub(in crate::virtio) fn kicked(&self, queue: u16) {
        self.with(|state| state.step(Step::Kick(queue)));
    }

    /// A chain has been taken.
    pub(in crate::virtio) fn taken(&self, queue: u16, chain: &Chain) {
        self.with(|state| {
            if u64::from(chain.readable_len()) + u64::from(chain.writable_len()) > MOST_BYTES.into() {
                return state.stop();
            }
            let readable = chain.readable().slices().map(|slice| {
                let mut bytes = vec![0; slice.len()];
                slice.copy_to(&mut bytes[..]);
                Part::read(&bytes)
            });
            let writable = chain.writable().slices().map(|slice| Part::Write(slice.len() as u32));
            state.step(Step::Chain(queue, readable.chain(writable).collect()));
        });
    }

    /// The chain that was taken last has been put back.
    pub(in crate::virtio) fn put_back(&self) {
        self.with(|state| drop(state.last.take_if(|step| matches!(step, Step::Chain(..)))));
    }

    /// So many have been given back.
    pub(in crate::virtio) fn given_back(&self, queue: u16, count: usize) {
        let count = count as u32;
        self.with(|state| match &mut state.last {
            Some(Step::Back(before, sum)) if *before == queue => *sum = sum.saturating_add(count),
            _ => state.step(Step::Back(queue, count)),
        });
    }

    fn with(&self, work: impl FnOnce(&mut State)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.out.is_some() {
            work(&mut state);
        }
    }
}

impl State {
    fn step(&mut self, step: Step) {
        if self.begun
            && let Some(last) = self.last.replace(step)
        {
            self.write(&format_args!("{last}\n"));
        }
    }

    fn write(&mut self, what: &impl Display) {
        let text = what.to_string();
        self.written += text.len();
        let Some(out) = self.out.as_mut() else { return };
        if self.written > MOST_WRITTEN {
            self.out = None;
        } else if let Err(error) = out.write_all(text.as_bytes()) {
            tracing::warn!("a queue trace cannot be written: {error}");
            self.out = None;
        }
    }

    fn stop(&mut self) {
        if let Some(last) = self.last.take() {
            self.write(&format_args!("{last}\n"));
        }
        self.out = None;
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop();
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
    fn a_tape_ends_at_its_bound_and_the_device_goes_on() {
        let (device, _dir) = device("rng");
        let (tape, written) = tape();
        let mut driver = Driver::new(device);
        driver.lock().record(tape.clone());
        driver.bring_up(u64::MAX);
        driver.request(0, &[Offered::Write(8)]);
        tape.with(|state| state.written = MOST_WRITTEN);
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
        // The same room twice is more than a trace's chain may have.
        let half = 12 << 20;
        let (table, ..) = driver.parts(0);
        driver.descriptor(table, 0, (1 << 20, half), 3, 1);
        driver.descriptor(table, 1, (1 << 20, half), 2, 0);
        driver.offer(0, 0);
        driver.kick(0);
        driver.wait(|driver| driver.mem.read_obj::<u16>(GuestAddress(driver.parts(0).2 + 2)).unwrap() == 1);
        drop(driver);
        let trace: Trace = written.text().parse().unwrap();
        assert!(trace.steps.iter().all(|step| !matches!(step, Step::Chain(..))), "{trace:?}");
    }
}
