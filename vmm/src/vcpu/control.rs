//! What a vCPU thread has been told to do, and what it is doing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a vCPU should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Stay out of the guest.
    Paused,
    /// Run the guest.
    Running,
    /// End the thread; final.
    Stopped,
}

/// Shared between a vCPU thread and whoever steers it. One lock, never held across KVM_RUN or another lock.
#[derive(Debug)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct State {
    target: Target,
    /// What the thread has reached.
    reached: Target,
}

impl Default for Control {
    fn default() -> Self {
        let state = State { target: Target::Paused, reached: Target::Paused };
        Control { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Control {
    /// Says what the thread should do. Nothing leads out of [`Target::Stopped`].
    pub fn set(&self, target: Target) {
        let mut state = self.lock();
        if state.target != Target::Stopped {
            state.target = target;
        }
        self.changed.notify_all();
    }

    /// What the thread should do.
    pub fn target(&self) -> Target {
        self.lock().target
    }

    /// For the thread: waits until it should run (true) or end (false), and lets others know that it is paused meanwhile.
    pub fn wait_to_run(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.reached != state.target {
                state.reached = state.target;
                self.changed.notify_all();
            }
            match state.target {
                Target::Running => return true,
                Target::Stopped => return false,
                Target::Paused => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// For the thread: it is at its end.
    pub fn ended(&self) {
        let mut state = self.lock();
        state.target = Target::Stopped;
        state.reached = Target::Stopped;
        self.changed.notify_all();
    }

    /// Waits until the thread is out of the guest: paused or ended.
    pub fn wait_out_of_guest(&self) {
        let mut state = self.lock();
        while state.reached == Target::Running && state.target != Target::Running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and the state is valid between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_runs_pauses_and_ends_as_told() {
        let control = Arc::new(Control::default());
        let steps = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (c, s) = (control.clone(), steps.clone());
        let thread = thread::spawn(move || {
            while c.wait_to_run() {
                s.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                thread::yield_now();
            }
            c.ended();
        });
        control.set(Target::Running);
        while steps.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        control.set(Target::Paused);
        control.wait_out_of_guest();
        let seen = steps.load(std::sync::atomic::Ordering::SeqCst);
        thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(steps.load(std::sync::atomic::Ordering::SeqCst), seen);
        control.set(Target::Stopped);
        control.wait_out_of_guest();
        thread.join().unwrap();
    }

    #[test]
    fn nothing_leads_out_of_stopped() {
        let control = Control::default();
        control.set(Target::Stopped);
        control.set(Target::Running);
        assert_eq!(control.target(), Target::Stopped);
        assert!(!control.wait_to_run());
    }
}
