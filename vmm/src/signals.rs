//! Signals that end a machine, as an event of its loop.
//!
//! They are blocked for the whole process, so that they come here and nowhere else: to be called before other threads
//! start, which inherit that.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

/// What ends a machine: a request to end, a terminal's ^C, a terminal that is gone.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Waits for signals.
pub struct Signals {
    descriptor: File,
    /// The first that came.
    came: Option<i32>,
    on_signal: Box<dyn FnMut() + Send>,
}

impl Signals {
    /// Blocks them, and calls `on_signal` on the event loop for each that comes; for none, unless they are `heeded`. Those that whoever
    /// started this process had it ignore (nohup, a shell's background) stay ignored; a blocked one would not (signal(7)).
    pub fn new(heeded: bool, on_signal: Box<dyn FnMut() + Send>) -> io::Result<Self> {
        // SAFETY: all bit patterns of a signal set are valid, and it is emptied before it is used.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a valid set to fill, and the signals exist.
        unsafe {
            libc::sigemptyset(&mut set);
            for signal in ENDING.into_iter().filter(|signal| !is_ignored(*signal)) {
                libc::sigaddset(&mut set, signal);
            }
        }
        // SAFETY: a plain call with a valid set; the old mask is not asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        if !heeded {
            // SAFETY: as above. What is blocked and never read waits for ever.
            unsafe { libc::sigemptyset(&mut set) };
        }
        // SAFETY: a plain call with a valid set; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let descriptor = unsafe { File::from_raw_fd(descriptor) };
        Ok(Signals { descriptor, came: None, on_signal })
    }

    /// The first signal that came, if one did.
    pub fn came(&self) -> Option<i32> {
        self.came
    }

    /// What to do from now on.
    pub fn set_action(&mut self, on_signal: Box<dyn FnMut() + Send>) {
        self.on_signal = on_signal;
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all bit patterns of the structure are valid; the call only fills it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a plain call that changes nothing, with a valid structure to fill.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while let Ok(count) = self.descriptor.read(&mut info) {
            if count < info.len() {
                return;
            }
            // The number is the structure's first member (signalfd(2)).
            let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            self.came.get_or_insert(number);
            (self.on_signal)();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new_raw(self.descriptor.as_raw_fd(), EventSet::IN)) {
            tracing::error!("signals cannot be watched: {e:?}");
        }
    }
}
