//! Signals that end a run before there is a guest to pass them on to.
//!
//! A thread waits for them. On one it drops what the [`Guard`] keeps (a run directory, a raw terminal) and exits; the
//! VM's process dies with this one. It does not cover the session, which has handlers of its own, nor SIGKILL, which the
//! next command's sweep covers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// What to do on a signal.
enum State<T> {
    /// End the process, and drop this first.
    Exit(Option<T>),
    /// Someone else deals with it.
    Passed,
}

/// Watches for signals until it is dropped. What it keeps is dropped in any case, also by a panic.
pub struct Guard<T: Send + 'static> {
    state: Arc<Mutex<State<T>>>,
    handle: Handle,
}

impl<T: Send + 'static> Guard<T> {
    /// From now on SIGINT, SIGTERM, SIGHUP and SIGQUIT end the process with 128 + signal.
    pub fn new() -> std::io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])?;
        let handle = signals.handle();
        let state = Arc::new(Mutex::new(State::Exit(None)));
        let shared = state.clone();
        let wait = move || {
            for signal in signals.forever() {
                // Held to the very end, so that nobody hands anything over in between.
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if let State::Exit(kept) = &mut *state {
                    drop(kept.take());
                    std::process::exit(128 + signal);
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(Guard { state, handle })
    }

    /// Has signals wait until the result is dropped, or has been given something to keep: for as long as something is made that
    /// a signal must find either not begun or kept. Not for anything that takes its time.
    pub fn hold(&self) -> Holding<'_, T> {
        Holding(self.lock())
    }

    /// Gives back what it keeps; signals are the caller's from now on.
    pub fn pass(&self) -> Option<T> {
        match std::mem::replace(&mut *self.lock(), State::Passed) {
            State::Exit(kept) => kept,
            State::Passed => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signals wait.
pub struct Holding<'a, T>(MutexGuard<'a, State<T>>);

impl<T> Holding<'_, T> {
    /// The guard keeps `what`, to drop it on a signal or when it is dropped itself. Signals need not wait any more.
    pub fn keep(mut self, what: T) {
        *self.0 = State::Exit(Some(what));
    }
}

impl<T: Send + 'static> Drop for Guard<T> {
    fn drop(&mut self) {
        drop(self.pass());
        self.handle.close();
    }
}
