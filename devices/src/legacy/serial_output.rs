//! Serial output with a bound: between a vCPU, which must not wait for ever, and a writer, which may.
//!
//! The guest's bytes go into a bounded buffer that one thread empties into the writer. The thread starts with the first
//! byte, so a silent guest does not pay for it. A full buffer holds the vCPU back for [`STALL`] at most; then output
//! is dropped until the writer moves again. A writer that fails is given up: the guest never sees an error.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that wait for the writer.
const LIMIT: usize = 64 << 10;
/// How long a full buffer may hold a vCPU, and how long the last bytes may take at the end.
const STALL: Duration = Duration::from_secs(1);
/// `Write` has no event that ends a `WouldBlock`, so the thread tries again after this.
const RETRY: Duration = Duration::from_millis(10);

#[derive(Default)]
struct State {
    buffer: VecDeque<u8>,
    /// No more bytes will come.
    closed: bool,
    /// The writer failed; bytes are thrown away.
    dead: bool,
    /// The writer did not move for [`STALL`]; bytes are thrown away until it does.
    stalled: bool,
    /// The thread waits for bytes.
    idle: bool,
    /// The thread is through.
    done: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There are bytes, or there will be none.
    filled: Condvar,
    /// The buffer was emptied, or the thread is through.
    emptied: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sink a serial port writes to. Writing never fails.
pub struct Output {
    shared: Arc<Shared>,
    /// Until the first byte.
    writer: Option<Box<dyn Write + Send>>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    pub fn new(writer: Box<dyn Write + Send>) -> Self {
        Output { shared: Arc::default(), writer: Some(writer), thread: None }
    }

    fn start(&mut self, writer: Box<dyn Write + Send>) {
        let shared = self.shared.clone();
        match std::thread::Builder::new().name("serial".into()).spawn(move || drain(&shared, writer)) {
            Ok(thread) => self.thread = Some(thread),
            Err(e) => {
                tracing::warn!("serial output is lost, its thread did not start: {e}");
                self.shared.lock().dead = true;
            }
        }
    }

    /// Waits for room; tells whether there is some.
    fn wait_for_room<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Option<MutexGuard<'a, State>> {
        while state.buffer.len() >= LIMIT {
            if state.dead || state.stalled {
                return None;
            }
            let (guard, timeout) =
                self.shared.emptied.wait_timeout(state, STALL).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() && state.buffer.len() >= LIMIT {
                state.stalled = true;
            }
        }
        Some(state)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(writer) = self.writer.take() {
            self.start(writer);
        }
        let state = self.shared.lock();
        if state.dead {
            return Ok(bytes.len());
        }
        let Some(mut state) = self.wait_for_room(state) else {
            return Ok(bytes.len());
        };
        let room = LIMIT - state.buffer.len();
        let taken = &bytes[..bytes.len().min(room)];
        state.buffer.extend(taken);
        if state.idle {
            state.idle = false;
            self.shared.filled.notify_one();
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Lets the thread write what is left, for [`STALL`] at most; a thread stuck in its writer is left behind. Nothing can be
    /// written afterwards.
    pub(super) fn close(&mut self) {
        self.writer = None;
        let mut state = self.shared.lock();
        let Some(thread) = self.thread.take() else {
            state.dead = true;
            return;
        };
        state.closed = true;
        self.shared.filled.notify_one();
        let wait = self.shared.emptied.wait_timeout_while(state, STALL, |state| !state.done);
        let mut state = wait.unwrap_or_else(PoisonError::into_inner).0;
        state.dead = true;
        let done = state.done;
        drop(state);
        if done {
            // A panic of the writer has lost output and nothing else.
            let _ = thread.join();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread: empties the buffer until it is closed or the writer fails.
fn drain(shared: &Shared, mut writer: Box<dyn Write + Send>) {
    let mut batch = Vec::new();
    loop {
        let mut state = shared.lock();
        while state.buffer.is_empty() && !state.closed {
            state.idle = true;
            state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        if state.buffer.is_empty() {
            break;
        }
        batch.clear();
        let (front, back) = state.buffer.as_slices();
        batch.extend_from_slice(front);
        batch.extend_from_slice(back);
        state.buffer.clear();
        state.stalled = false;
        shared.emptied.notify_all();
        drop(state);
        if let Err(e) = write_batch(shared, writer.as_mut(), &batch) {
            tracing::debug!("serial output is given up: {e}");
            break;
        }
    }
    let mut state = shared.lock();
    state.dead = true;
    state.done = true;
    state.buffer = VecDeque::new();
    shared.emptied.notify_all();
}

fn write_batch(shared: &Shared, writer: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match writer.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written.min(bytes.len())..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if shared.lock().closed {
                    return Err(e);
                }
                std::thread::sleep(RETRY);
            }
            Err(e) => return Err(e),
        }
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    struct Fails;
    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_written_arrives_before_drop_returns() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            io::Read::read_to_end(&mut near, &mut all).unwrap();
            all
        });
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let mut output = Output::new(Box::new(far));
        output.write_all(&bytes).unwrap();
        drop(output);
        assert!(reader.join().unwrap() == bytes);
    }

    #[test]
    fn a_closed_port_puts_out_what_it_has_and_no_more() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut output = Output::new(Box::new(far));
        output.write_all(b"before").unwrap();
        output.close();
        // More than the buffer holds: nobody would ever empty it.
        output.write_all(&[b'x'; 2 * LIMIT]).unwrap();
        let mut all = Vec::new();
        io::Read::read_to_end(&mut near, &mut all).unwrap();
        assert_eq!(all, b"before");
        let mut silent = Output::new(Box::new(Fails));
        silent.close();
        silent.write_all(&[b'x'; 2 * LIMIT]).unwrap();
    }

    #[test]
    fn a_blocked_reader_holds_the_guest_for_a_bounded_time_and_a_bounded_buffer() {
        let (_held_open, far) = UnixStream::pair().unwrap();
        let mut output = Output::new(Box::new(far));
        let start = Instant::now();
        for _ in 0..64 {
            output.write_all(&[b'x'; 64 << 10]).unwrap();
        }
        assert!(output.shared.lock().buffer.len() <= LIMIT);
        drop(output);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn a_broken_writer_is_not_the_guests_trouble() {
        let mut output = Output::new(Box::new(Fails));
        let start = Instant::now();
        for _ in 0..100 {
            output.write_all(&[b'x'; 64 << 10]).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
