//! Signals by name, and those that end a run before there is a guest to pass them on to.
//!
//! A thread waits for them. On one it drops what the [`Guard`] keeps (a run directory, a raw terminal) and exits; the
//! VM's process dies with this one. It does not cover the session, which has handlers of its own, nor SIGKILL, which the
//! next command's sweep covers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::SigId;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// Signals of x86-64, by number from 1, without SIG.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal that is named as docker takes it: `SIGTERM`, `term`, `15`.
pub fn number(text: &str) -> Result<u8, String> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name = NAMES.iter().position(|known| *known == name).and_then(|at| u8::try_from(at + 1).ok());
    let by_number = || name.parse::<u8>().ok().filter(|number| usize::from(*number) <= NAMES.len() && *number != 0);
    by_name.or_else(by_number).ok_or_else(|| format!("invalid signal '{text}'; write it like SIGTERM, TERM or 15"))
}

/// The name of a signal, without SIG.
pub fn name(number: u8) -> Option<&'static str> {
    NAMES.get(usize::from(number).checked_sub(1)?).copied()
}

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
    /// The last signal that has come, from the moment on in which it does: the thread may be told of it later.
    came: Arc<AtomicUsize>,
    handlers: Vec<SigId>,
}

/// What the guard watches for.
const WATCHED: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

impl<T: Send + 'static> Guard<T> {
    /// From now on SIGINT, SIGTERM, SIGHUP and SIGQUIT end the process with 128 + signal.
    pub fn new() -> std::io::Result<Self> {
        let mut signals = Signals::new(WATCHED)?;
        let handle = signals.handle();
        let came = Arc::new(AtomicUsize::new(0));
        let note = |signal: i32| signal_hook::flag::register_usize(signal, came.clone(), signal as usize);
        let handlers = WATCHED.map(note).into_iter().collect::<Result<_, _>>()?;
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
        Ok(Guard { state, handle, came, handlers })
    }

    /// Has signals wait until the result is dropped, or has been given something to keep: for as long as something is made that
    /// a signal must find either not begun or kept. Not for anything that takes its time.
    pub fn hold(&self) -> Holding<'_, T> {
        Holding(self.lock())
    }

    /// Gives back what it keeps; signals are the caller's from now on. One that has come before ends the process here, if its thread
    /// has not been told yet: nobody else would.
    pub fn pass(&self) -> Option<T> {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::Passed) {
            State::Exit(kept) => match i32::try_from(self.came.load(Ordering::SeqCst)) {
                Ok(0) | Err(_) => kept,
                Ok(signal) => {
                    drop(kept);
                    std::process::exit(128 + signal);
                }
            },
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
        *self.lock() = State::Passed;
        self.handle.close();
        for handler in self.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signal that comes while signals wait is not lost to what is done next, however long its thread takes to be told.
    #[test]
    fn a_signal_before_it_is_passed_ends_the_process() {
        const INNER: &str = "BULKHEAD_TEST_SIGNAL_INNER";
        if std::env::var_os(INNER).is_some() {
            let guard = Guard::new().unwrap();
            let holding = guard.hold();
            signal_hook::low_level::raise(SIGTERM).unwrap();
            holding.keep(());
            guard.pass();
            std::process::exit(7);
        }
        for _ in 0..20 {
            let mut inner = std::process::Command::new(std::env::current_exe().unwrap());
            inner.args(["--exact", "signals::tests::a_signal_before_it_is_passed_ends_the_process"]);
            let status = inner.env(INNER, "1").stdout(std::process::Stdio::null()).status().unwrap();
            assert_eq!(status.code(), Some(128 + SIGTERM));
        }
    }

    #[test]
    fn signals_are_named_as_in_docker() {
        for (text, want) in
            [("SIGTERM", 15), ("term", 15), ("sigkill", 9), ("9", 9), ("USR1", 10), ("31", 31), ("sys", 31)]
        {
            assert_eq!(number(text), Ok(want), "{text}");
            assert_eq!(name(want).map(number), Some(Ok(want)), "{text}");
        }
        assert_eq!((name(0), name(32), name(11)), (None, None, Some("SEGV")));
        for bad in ["", "SIG", "0", "32", "-1", "TERMINATE", "SIG15x", "ä"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
