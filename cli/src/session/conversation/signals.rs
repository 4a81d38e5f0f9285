//! Signals to this program, and the size of the user's terminal: what the process is told of them.

use super::super::SessionError;
use super::{Conversation, State};
use guest_protocol::{HostMessage, MAIN_PROCESS};
use signal_hook::consts::signal::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::os::unix::net::UnixStream;

/// Passed on to the process as they are; SIGWINCH becomes a new window size.
const SIGNALS: [i32; 8] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH];
/// Of those, the ones that mean an end where there is no process yet to decide.
pub(in super::super) const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
/// As many of those end the run whatever the process does with them.
pub(in super::super) const PATIENCE: u8 = 3;

pub(in super::super) type Signals = SignalDelivery<UnixStream, SignalOnly>;

pub(in super::super) fn wiring() -> std::io::Result<Signals> {
    let (receiver, sender) = UnixStream::pair()?;
    SignalDelivery::with_pipe(receiver, sender, SignalOnly, SIGNALS)
}

impl Conversation<'_> {
    /// A signal to this program.
    pub(super) fn signal(&mut self, signal: i32) -> Result<(), SessionError> {
        let number = u8::try_from(signal).unwrap_or_default();
        if ENDING.contains(&signal) {
            self.impatience += 1;
            let nobody_decides = self.state != State::Running || self.guest_gone || self.freezing.leaving;
            if nobody_decides || self.ends_at_once || self.impatience >= PATIENCE {
                return Err(SessionError::Interrupted(number));
            }
        }
        if signal == SIGWINCH {
            return self.resize();
        }
        if let (SIGCONT, Some(raw)) = (signal, &self.raw) {
            raw.enter_again();
        }
        self.tell_guest(&HostMessage::Signal { process: MAIN_PROCESS, signal: number })
    }

    /// Tells the guest the terminal's size if it is another than it knows.
    pub(super) fn resize(&mut self) -> Result<(), SessionError> {
        let Some(io) = self.streams.as_ref().map(|streams| &streams.io) else {
            return Ok(());
        };
        let size = io.window_size();
        if !io.terminal || size == self.size {
            return Ok(());
        }
        self.size = size;
        self.tell_guest(&HostMessage::Resize { process: MAIN_PROCESS, size })
    }
}
