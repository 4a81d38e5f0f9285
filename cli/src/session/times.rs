//! When what happened, on one clock.

use rustix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milestones of a run on this host's CLOCK_MONOTONIC, in nanoseconds. Those in the guest are as the guest says, placed by
/// the arrival of its messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// The guest kernel's clock began; in a clone, as `init`.
    pub kernel: u64,
    /// Init began; in a clone, init found that it is one.
    pub init: u64,
    /// The guest had connected.
    pub connected: u64,
    /// The container's root was complete.
    pub root: u64,
    /// The process ran.
    pub started: u64,
    /// The process ended.
    pub exited: u64,
    /// All its output had been passed on.
    pub finished: u64,
}

/// This host's CLOCK_MONOTONIC in nanoseconds.
pub(super) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    part(time.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec))
}

/// This host's CLOCK_REALTIME in nanoseconds.
pub(super) fn wall_clock_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

/// What the guest's `time_ns` is on the host's clock, when the guest's clock was `now_ns` just now.
pub(super) fn placed(time_ns: u64, now_ns_of_guest: u64) -> u64 {
    now_ns().saturating_sub(now_ns_of_guest.saturating_sub(time_ns))
}
