//! Limits of a device, and the timer that wakes queues which wait because of them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::*;
use crate::virtio::limit::{Limiter, Limits};

/// A device's limits. There is a timer once there have been any.
#[derive(Default)]
pub(super) struct Throttle {
    pub limiter: Limiter,
    timer: Option<OwnedFd>,
    /// The event loop watches the timer.
    pub watched: bool,
}

impl Throttle {
    /// The timer, if there is one.
    pub fn timer(&self) -> Option<&OwnedFd> {
        self.timer.as_ref()
    }

    fn set(&mut self, limits: &Limits) -> io::Result<()> {
        if *limits != Limits::default() && self.timer.is_none() {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            self.timer = Some(timerfd_create(TimerfdClockId::Monotonic, flags)?);
        }
        self.limiter.set(limits);
        Ok(())
    }

    /// Has the timer wake whoever waits.
    pub fn arm(&mut self) {
        if let (Some(wake), Some(timer)) = (self.limiter.take_wake(), &self.timer)
            && let Err(e) = start(timer, wake)
        {
            tracing::error!("a timer cannot be set: {e}");
        }
    }
}

/// Setting it also takes back that it has been readable.
fn start(timer: &OwnedFd, after: Duration) -> io::Result<()> {
    let it_value = Timespec::try_from(after).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    let once = Itimerspec { it_interval: Timespec::default(), it_value };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

impl MmioTransport {
    /// Sets the device's limits, from the driver's next request on. Fails only for lack of descriptors, and nothing has
    /// changed then.
    pub fn set_limits(&mut self, limits: &Limits) -> io::Result<()> {
        self.throttle.set(limits)?;
        self.go_on();
        signal(&self.control);
        Ok(())
    }

    /// The timer is up.
    pub(super) fn alarm(&mut self) {
        if let Some(timer) = &self.throttle.timer {
            let mut times = [0; 8];
            // Nothing to read: it has been set again.
            let _ = rustix::io::read(timer, &mut times);
        }
        self.go_on();
    }

    /// Has all queues that wait worked on, one after the other with what else there is to do.
    fn go_on(&mut self) {
        let waiting = self.throttle.limiter.take_waiting();
        for (index, kick) in self.kicks.iter_mut().enumerate() {
            if waiting & (1 << index) != 0 {
                kick.ring();
            }
        }
    }
}
