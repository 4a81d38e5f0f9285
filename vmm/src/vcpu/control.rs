//! What a vCPU thread has been told to do, and what it is doing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::thread::Vcpu;

/// Work that only the vCPU's own thread can do, while the vCPU is out of the guest.
pub type Task = Box<dyn FnOnce(&mut Vcpu) + Send>;

/// What a thread is to do next.
pub enum Order {
    /// Run the guest.
    Run,
    /// Do this, then ask again.
    Do(Task),
    /// End.
    End,
}

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
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    target: Target,
    /// What the thread has reached.
    reached: Target,
    task: Option<Task>,
    /// Another thread does something for the guest, which must not go on before.
    owed: bool,
}

impl Default for Control {
    fn default() -> Self {
        let state = State { target: Target::Paused, reached: Target::Paused, task: None, owed: false };
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

    /// Has the thread do `task` when it is paused. A task that it cannot do any more is dropped.
    pub fn give(&self, task: Task) {
        let mut state = self.lock();
        if state.target != Target::Stopped {
            state.task = Some(task);
        }
        self.changed.notify_all();
    }

    /// For the thread: from now on it is not to run the guest, until [`Self::paid`].
    pub fn owe(&self) {
        self.lock().owed = true;
    }

    /// What another thread did for the guest is done.
    pub fn paid(&self) {
        self.lock().owed = false;
        self.changed.notify_all();
    }

    /// For the thread: waits until there is something to do, and lets others know that it is paused meanwhile.
    pub fn wait_for_order(&self) -> Order {
        let mut state = self.lock();
        loop {
            if state.reached != state.target {
                state.reached = state.target;
                self.changed.notify_all();
            }
            match state.target {
                Target::Running if state.owed => {}
                Target::Running => return Order::Run,
                Target::Stopped => return Order::End,
                Target::Paused => {}
            }
            if state.target == Target::Paused
                && let Some(task) = state.task.take()
            {
                return Order::Do(task);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For the thread: it is at its end.
    pub fn ended(&self) {
        let mut state = self.lock();
        state.target = Target::Stopped;
        state.reached = Target::Stopped;
        state.task = None;
        self.changed.notify_all();
    }

    /// The thread is out of the guest for good.
    pub fn has_ended(&self) -> bool {
        self.lock().reached == Target::Stopped
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
            while let Order::Run = c.wait_for_order() {
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
    fn tasks_are_for_paused_threads_and_dropped_by_ended_ones() {
        let control = Control::default();
        let (done, was_done) = std::sync::mpsc::channel::<()>();
        let task = |done: &std::sync::mpsc::Sender<()>| -> Task {
            let done = done.clone();
            Box::new(move |_| done.send(()).unwrap())
        };
        control.set(Target::Running);
        control.give(task(&done));
        assert!(matches!(control.wait_for_order(), Order::Run));
        control.set(Target::Paused);
        assert!(matches!(control.wait_for_order(), Order::Do(_)));
        control.give(task(&done));
        control.ended();
        control.give(task(&done));
        drop(done);
        assert!(was_done.recv().is_err());
    }

    #[test]
    fn who_waits_for_another_can_be_paused_and_stopped() {
        let control = Arc::new(Control::default());
        control.set(Target::Running);
        control.owe();
        let (its, (tell, told)) = (control.clone(), std::sync::mpsc::channel());
        let thread = thread::spawn(move || {
            loop {
                let order = match its.wait_for_order() {
                    Order::Run => "run",
                    Order::Do(_) => "do",
                    Order::End => "end",
                };
                its.owe();
                tell.send(order).unwrap();
                if order == "end" {
                    return;
                }
            }
        });
        control.set(Target::Paused);
        control.wait_out_of_guest();
        control.give(Box::new(|_| ()));
        assert_eq!(told.recv(), Ok("do"));
        control.set(Target::Running);
        assert!(told.try_recv().is_err(), "the guest goes on before what it waits for is done");
        control.paid();
        assert_eq!(told.recv(), Ok("run"));
        control.set(Target::Stopped);
        assert_eq!(told.recv(), Ok("end"));
        thread.join().unwrap();
    }

    #[test]
    fn nothing_leads_out_of_stopped() {
        let control = Control::default();
        control.set(Target::Stopped);
        control.set(Target::Running);
        assert_eq!(control.target(), Target::Stopped);
        assert!(matches!(control.wait_for_order(), Order::End));
    }
}
