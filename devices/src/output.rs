//! Output with a bound: between a guest, which must not wait for ever or make it grow, and a writer, which may block.
//!
//! The guest's bytes go into a bounded buffer that one thread empties into the writer. The thread starts with the first
//! byte, so a silent guest does not pay for it. A serial port writes ([`Write`]): a full buffer holds its vCPU back for [`STALL`] at most;
//! then output is dropped until the writer moves again. A device whose guest can wait offers ([`Output::offer`]), and hears when
//! there is room. A writer that fails is given up: the guest never sees an error.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::worker::{self, Work};

/// Bytes that wait for the writer.
const LIMIT: usize = 64 << 10;
/// How long a full buffer may hold a vCPU, and how long the last bytes may take at the end.
const STALL: Duration = Duration::from_secs(1);
/// `Write` has no event that ends a `WouldBlock`, so the thread tries again after this.
const RETRY: Duration = Duration::from_millis(10);

#[derive(Default)]
struct State {
    buffer: VecDeque<u8>,
    /// Until the first byte.
    writer: Option<Box<dyn Write + Send>>,
    thread: Option<JoinHandle<()>>,
    /// No more bytes will come.
    closed: bool,
    /// The writer failed; bytes are thrown away.
    dead: bool,
    /// The writer did not move for [`STALL`]; bytes are thrown away until it does.
    stalled: bool,
    /// Not all that was offered was taken: whoever did so waits for room.
    refused: bool,
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
    /// The same for who offers.
    room: Option<EventFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever waits that there is room.
    fn tell(&self, state: &mut State) {
        self.emptied.notify_all();
        if std::mem::take(&mut state.refused)
            && let Some(room) = &self.room
        {
            // Only a full counter fails, and that wakes as well.
            let _ = room.write(1);
        }
    }
}

/// What output's thread does: it writes, to whatever that is.
pub const fn work(name: &'static str) -> Work {
    Work {
        syscalls: &[
            libc::SYS_writev,
            libc::SYS_ftruncate,
            libc::SYS_lseek,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_poll,
            libc::SYS_ppoll,
        ],
        ..Work::named(name)
    }
}

/// The sink. Writing never fails.
pub struct Output {
    work: &'static Work,
    shared: Arc<Shared>,
}

impl Output {
    /// Output to `writer`, from a thread for that work.
    pub fn new(work: &'static Work, writer: Box<dyn Write + Send>) -> Self {
        Self::build(work, writer, None)
    }

    /// The same for one who [offers](Self::offer).
    pub fn with_room(work: &'static Work, writer: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Self::build(work, writer, Some(EventFd::new(EFD_NONBLOCK)?)))
    }

    fn build(work: &'static Work, writer: Box<dyn Write + Send>, room: Option<EventFd>) -> Self {
        let state = Mutex::new(State { writer: Some(writer), ..State::default() });
        Output { work, shared: Arc::new(Shared { state, room, ..Shared::default() }) }
    }

    /// Is signalled when there is room for what was not taken; none unless it was made for that.
    pub fn room(&self) -> Option<&EventFd> {
        self.shared.room.as_ref()
    }

    fn start(&self, state: &mut State) {
        let Some(writer) = state.writer.take() else { return };
        let shared = self.shared.clone();
        match worker::spawn(self.work, move || drain(&shared, writer)) {
            Ok(thread) => state.thread = Some(thread),
            Err(e) => {
                tracing::warn!("{} output is lost, its thread did not start: {e}", self.work.name);
                state.dead = true;
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

    fn add(&self, state: &mut State, bytes: &[u8]) -> usize {
        let room = LIMIT.saturating_sub(state.buffer.len());
        let taken = &bytes[..bytes.len().min(room)];
        state.buffer.extend(taken);
        if state.idle {
            state.idle = false;
            self.shared.filled.notify_one();
        }
        taken.len()
    }

    /// Takes what there is room for, and tells how many bytes that is. Does not wait.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = self.shared.lock();
        self.start(&mut state);
        if state.dead {
            return bytes.len();
        }
        let taken = self.add(&mut state, bytes);
        state.refused = taken < bytes.len();
        taken
    }

    /// Lets the thread write what is left, for [`STALL`] at most; a thread stuck in its writer is left behind. Nothing can be
    /// written afterwards.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.writer = None;
        let Some(thread) = state.thread.take() else {
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

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.lock();
        self.start(&mut state);
        if state.dead {
            return Ok(bytes.len());
        }
        let Some(mut state) = self.wait_for_room(state) else {
            return Ok(bytes.len());
        };
        Ok(self.add(&mut state, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
        shared.tell(&mut state);
        drop(state);
        if let Err(e) = write_batch(shared, writer.as_mut(), &batch) {
            tracing::debug!("output is given up: {e}");
            break;
        }
    }
    let mut state = shared.lock();
    state.dead = true;
    state.done = true;
    state.buffer = VecDeque::new();
    shared.tell(&mut state);
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

    const WORK: Work = work("output");

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
        let mut output = Output::new(&WORK, Box::new(far));
        output.write_all(&bytes).unwrap();
        drop(output);
        assert!(reader.join().unwrap() == bytes);
    }

    #[test]
    fn a_closed_port_puts_out_what_it_has_and_no_more() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut output = Output::new(&WORK, Box::new(far));
        output.write_all(b"before").unwrap();
        output.close();
        // More than the buffer holds: nobody would ever empty it.
        output.write_all(&[b'x'; 2 * LIMIT]).unwrap();
        let mut all = Vec::new();
        io::Read::read_to_end(&mut near, &mut all).unwrap();
        assert_eq!(all, b"before");
        let mut silent = Output::new(&WORK, Box::new(Fails));
        silent.close();
        silent.write_all(&[b'x'; 2 * LIMIT]).unwrap();
    }

    #[test]
    fn a_blocked_reader_holds_the_guest_for_a_bounded_time_and_a_bounded_buffer() {
        let (_held_open, far) = UnixStream::pair().unwrap();
        let mut output = Output::new(&WORK, Box::new(far));
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
        let mut output = Output::new(&WORK, Box::new(Fails));
        let start = Instant::now();
        for _ in 0..100 {
            output.write_all(&[b'x'; 64 << 10]).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn what_is_offered_is_taken_while_there_is_room_and_no_longer() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let output = Output::with_room(&WORK, Box::new(far)).unwrap();
        let room = output.room().unwrap();
        let mut sent = 0usize;
        while output.offer(&[7; 5000]) == 5000 {
            sent += 5000;
            assert!(sent < 16 << 20, "it grows");
        }
        assert!(output.shared.lock().buffer.len() <= LIMIT);
        let mut bytes = vec![0; 1 << 20];
        // There can be room before anything is read: what was refused came while the thread was at a write.
        while room.read().is_err() {
            io::Read::read(&mut near, &mut bytes).unwrap();
        }
        assert_eq!(output.offer(b"more"), 4);
        // One that is gone takes everything.
        drop(near);
        while output.offer(&[7; 5000]) < 5000 || !output.shared.lock().dead {
            std::thread::yield_now();
        }
    }
}
