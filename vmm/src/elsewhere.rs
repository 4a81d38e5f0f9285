//! Two threads on two processors: one that is started on another processor than the calling one's, and is told later what it is to do;
//! and that one, which stays where it is as long as it has to do with the other.
//!
//! A scheduler may leave a thread where it was started, or put one that was waited for to where the other one is, until that processor
//! has nothing else to do (those of virtual machines whose host would have them use few), and then nothing would be done at the same time.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::waiting::Waiting;

/// The thread. Dropped, it ends.
pub struct Elsewhere {
    thread: Waiting,
    places: Option<Places>,
}

/// Processors, as seen by the thread that starts the other one.
#[derive(Clone, Copy)]
pub struct Places {
    /// Where it may run.
    all: CpuSet,
    /// The one that it is on.
    here: CpuSet,
}

impl Places {
    /// Of the calling thread. None if it may be nowhere but where it is, or the host does not tell.
    fn now() -> Option<Self> {
        let all = sched_getaffinity(None).ok()?;
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        (all.count() > 1).then_some(Self { all, here })
    }

    fn elsewhere(self) -> CpuSet {
        let mut others = self.all;
        (0..CpuSet::MAX_CPU).filter(|cpu| self.here.is_set(*cpu)).for_each(|cpu| others.unset(cpu));
        others
    }

    /// Lets the calling thread run everywhere. Not by the mask that was there, unless it was somebody's wish: a wish holds on when a host,
    /// or a control group, gets more processors.
    pub fn allow_all(self) {
        let mut any = CpuSet::new();
        (0..CpuSet::MAX_CPU).for_each(|cpu| any.set(cpu));
        let _ = sched_setaffinity(None, &any);
        if sched_getaffinity(None).is_ok_and(|now| now != self.all) {
            let _ = sched_setaffinity(None, &self.all);
        }
    }

    /// Has the calling thread, which is the one that started the other one, stay where it was then.
    pub fn stay(self) -> Here {
        let _ = sched_setaffinity(None, &self.here);
        Here(self)
    }
}

/// The calling thread stays on its processor until this is dropped, by itself. So do threads and processes that it starts, for good.
#[must_use]
pub struct Here(Places);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.allow_all();
    }
}

impl Elsewhere {
    /// Starts it. What it does `first`, it does at once.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(name: &str, stack: usize, first: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (waiting, waits) = Waiting::new();
        let (go, may_go) = channel::<()>();
        let thread = thread::Builder::new().name(name.into()).stack_size(stack).spawn(move || {
            // Nothing is sent: this is the end of the sender.
            let _ = may_go.recv();
            first();
            waits.serve();
        })?;
        let places = Places::now();
        if let Some(places) = places {
            move_to(&thread, &places.elsewhere());
        }
        drop(go);
        Ok(Self { thread: waiting, places })
    }

    /// None if both have to be on one processor.
    pub fn places(&self) -> Option<Places> {
        self.places
    }

    /// Has it do this, and then end; nobody waits for that. All that it starts is elsewhere, too, unless that is
    /// [let](Places::allow_all) be everywhere.
    pub fn begin(self, task: impl FnOnce() + Send + 'static) {
        self.thread.hand(task);
    }
}

/// Has a thread that waits go on on these processors.
fn move_to<T>(thread: &JoinHandle<T>, processors: &CpuSet) {
    // SAFETY: the thread has not been joined, and the set is as long as is said.
    unsafe {
        libc::pthread_setaffinity_np(thread.as_pthread_t() as _, size_of::<CpuSet>(), (&raw const *processors).cast());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_have_a_processor_each_and_all_of_them_again() {
        let before = sched_getaffinity(None).unwrap();
        let (say, said) = channel();
        let first = say.clone();
        let thread = Elsewhere::start("test", 64 << 10, move || first.send(sched_getaffinity(None)).unwrap()).unwrap();
        let there = said.recv().unwrap().unwrap();
        let Some(places) = thread.places() else {
            assert_eq!((there, before.count()), (before, 1));
            return;
        };
        let here = places.stay();
        let mut one = sched_getaffinity(None).unwrap();
        assert_eq!((one.count(), there.count()), (1, before.count() - 1));
        (0..CpuSet::MAX_CPU).filter(|cpu| there.is_set(*cpu)).for_each(|cpu| one.set(cpu));
        assert_eq!(one, before);
        thread.begin(move || {
            places.allow_all();
            say.send(sched_getaffinity(None)).unwrap();
        });
        assert_eq!(said.recv().unwrap().unwrap(), before);
        assert!(said.recv().is_err());
        drop(here);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn who_was_to_be_on_some_processors_only_is_again() {
        let all = sched_getaffinity(None).unwrap();
        let wish = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).map(|first| {
            let mut wish = all;
            if all.count() > 2 {
                wish.unset(first);
            }
            wish
        });
        sched_setaffinity(None, &wish.unwrap()).unwrap();
        if let Some(places) = Places::now() {
            drop(places.stay());
        }
        assert_eq!(sched_getaffinity(None).unwrap(), wish.unwrap());
    }

    #[test]
    fn it_ends_with_who_could_want_something() {
        let (say, said) = channel::<()>();
        drop(Elsewhere::start("test", 64 << 10, move || drop(say)).unwrap());
        assert!(said.recv().is_err());
    }
}
