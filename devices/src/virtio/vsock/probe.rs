//! When guests that had no room are asked again: their answers tell when ([`ToGuest`](super::credit::ToGuest)), this has the device
//! woken then. One timer for all connections, in the epoll set of their sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::Vsock;

/// Token of the timer in the epoll set.
pub(super) const TIMER: u64 = u64::MAX;

/// The timer.
pub(super) struct Alarm {
    timer: OwnedFd,
    /// When it is up, if it is set.
    at: Option<Instant>,
}

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Alarm { timer: timerfd_create(TimerfdClockId::Monotonic, flags)?, at: None })
    }

    /// How it is watched: by its edges, so that nobody has to read it.
    pub fn watch(&self, ctl: impl FnOnce(ControlOperation, RawFd, EpollEvent) -> io::Result<()>) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TIMER);
        ctl(ControlOperation::Add, self.timer.as_raw_fd(), event)
    }

    /// Has the device woken at that time, or before.
    fn set(&mut self, at: Instant) {
        if self.at.is_some_and(|set| set <= at) {
            return;
        }
        let after = at.saturating_duration_since(Instant::now());
        // Nothing would stop it.
        let it_value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos().max(1)) };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => self.at = Some(at),
            Err(e) => tracing::warn!("vsock: a timer cannot be set: {e}"),
        }
    }
}

impl Vsock {
    /// Has a connection's guest asked again, when it is time.
    pub(super) fn remind(&mut self, id: u64) {
        if let Some(at) = self.connections.get(&id).and_then(|connection| connection.asks_again()) {
            self.alarm.set(at);
        }
    }

    /// The timer is up: asks those that it is time for.
    pub(super) fn probe(&mut self) {
        self.alarm.at = None;
        let now = Instant::now();
        let waiting = self.connections.iter().filter_map(|(id, connection)| Some((*id, connection.asks_again()?)));
        let (due, later): (Vec<_>, Vec<_>) = waiting.partition(|(_, at)| *at <= now);
        for (id, _) in due {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.ask_again();
            }
            self.schedule(id);
        }
        if let Some(next) = later.iter().map(|(_, at)| *at).min() {
            self.alarm.set(next);
        }
    }
}
