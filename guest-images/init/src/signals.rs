//! What a signal does to PID 1 of the container, as /proc tells it.

use crate::sys::{Clock, clock_ns};
use rustix::event::Timespec;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io;
use rustix::process::Signal;

/// Signals that PID 1 blocked when they were sent to it. No event tells when it unblocks them, so that is looked for at
/// growing intervals, for as long as they are pending.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bit n - 1 is signal n.
    signals: u64,
    /// Those that a terminal is still to send: it does so some time after the character was written to it.
    coming: u64,
    /// Between two looks, in nanoseconds.
    interval_ns: u64,
    /// When to look next (CLOCK_MONOTONIC).
    due_ns: u64,
}

impl Watch {
    const FIRST_NS: u64 = 2_000_000;
    const LONGEST_NS: u64 = 256_000_000;

    /// `signal` has been sent and may be pending.
    pub fn add(&mut self, signal: u8) {
        self.signals |= bit(signal).unwrap_or(0);
        self.look_in(Self::FIRST_NS);
    }

    /// A terminal is about to send `signal`.
    pub fn expect(&mut self, signal: u8) {
        self.coming |= bit(signal).unwrap_or(0);
        self.add(signal);
    }

    /// `signal` is blocked, and `pending` or not. Whether to look at it again: one that is pending; and one that is not but may
    /// still come.
    pub fn is_open(&mut self, signal: u8, pending: bool) -> bool {
        let bit = bit(signal).unwrap_or(0);
        if pending {
            self.coming &= !bit;
        }
        pending || (self.coming & bit != 0 && self.interval_ns < Self::LONGEST_NS)
    }

    /// `signal` has been judged.
    pub fn remove(&mut self, signal: u8) {
        self.signals &= !bit(signal).unwrap_or(0);
        self.coming &= self.signals;
    }

    /// Puts the next look off, for longer than the last time.
    pub fn wait_longer(&mut self) {
        self.look_in((self.interval_ns * 2).min(Self::LONGEST_NS));
    }

    fn look_in(&mut self, interval_ns: u64) {
        self.interval_ns = interval_ns;
        self.due_ns = clock_ns(Clock::Monotonic).saturating_add(interval_ns);
    }

    /// Those to look at.
    pub fn signals(&self) -> impl Iterator<Item = u8> + use<> {
        let signals = self.signals;
        (1..=64).filter(move |&signal| bit(signal).is_some_and(|bit| signals & bit != 0))
    }

    /// Whether it is time to look.
    pub fn is_due(&self) -> bool {
        self.signals != 0 && clock_ns(Clock::Monotonic) >= self.due_ns
    }

    /// Time until the next look, if there is anything to look at.
    pub fn delay(&self) -> Option<Timespec> {
        if self.signals == 0 {
            return None;
        }
        let left = self.due_ns.saturating_sub(clock_ns(Clock::Monotonic)).min(Self::LONGEST_NS);
        Some(Timespec { tv_sec: 0, tv_nsec: i64::try_from(left).unwrap_or(0) })
    }
}

/// What a signal does to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It neither handles nor ignores nor blocks it.
    Default,
    /// It blocks it for now.
    Blocked {
        /// One has been sent and not been delivered.
        pending: bool,
    },
    /// It handles or ignores it, or that cannot be told.
    Other,
}

/// What `signal` does to PID 1 of the container.
pub fn disposition(signal: u8) -> Disposition {
    let mut text = [0; 4096];
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let read = openat(CWD, "/proc/1/status", flags, Mode::empty()).and_then(|file| io::read(file, &mut text[..]));
    let status = read.ok().and_then(|count| text.get(..count));
    status.and_then(|status| parse_disposition(status, signal)).unwrap_or(Disposition::Other)
}

/// Signals whose default is to end the process.
pub fn ends_by_default(signal: Signal) -> bool {
    let harmless = [
        Signal::CHILD,
        Signal::CONT,
        Signal::STOP,
        Signal::TSTP,
        Signal::TTIN,
        Signal::TTOU,
        Signal::URG,
        Signal::WINCH,
    ];
    !harmless.contains(&signal)
}

/// What /proc/PID/status says of a signal. `None` if it does not say.
fn parse_disposition(status: &[u8], signal: u8) -> Option<Disposition> {
    let text = core::str::from_utf8(status).ok()?;
    let bit = bit(signal)?;
    let has = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(line.trim(), 16).ok().map(|mask| mask & bit != 0)
    };
    let (blocked, ignored, caught) = (has("SigBlk:")?, has("SigIgn:")?, has("SigCgt:")?);
    Some(match (ignored, blocked, caught) {
        (true, ..) | (false, false, true) => Disposition::Other,
        (false, true, _) => Disposition::Blocked { pending: has("ShdPnd:")? || has("SigPnd:")? },
        (false, false, false) => Disposition::Default,
    })
}

/// A signal's place in the kernel's masks.
fn bit(signal: u8) -> Option<u64> {
    1u64.checked_shl(u32::from(signal.checked_sub(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn signal_masks_are_read() {
        let status = b"Name:\tsh\nSigQ:\t0/1\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000020\n\
            SigBlk:\t0000000000000031\nSigIgn:\t0000000000000012\nSigCgt:\t0000000000004020\n";
        let blocked = |pending| Some(Disposition::Blocked { pending });
        for (signal, expected) in [
            (1, blocked(false)),
            (2, Some(Disposition::Other)),
            (5, Some(Disposition::Other)),
            (6, blocked(true)),
            (9, Some(Disposition::Default)),
            (15, Some(Disposition::Other)),
            (0, None),
        ] {
            assert_eq!(parse_disposition(status, signal), expected, "{signal}");
        }
        assert_eq!(parse_disposition(b"SigBlk:\t00\nSigIgn:\tzz\nSigCgt:\t00\n", 1), None);
        assert_eq!(parse_disposition(&[0xff], 1), None);
    }

    #[test]
    fn a_terminal_is_given_time_to_send_its_signal() {
        let mut watch = Watch::default();
        watch.add(15);
        watch.expect(2);
        assert!(!watch.is_open(15, false) && watch.is_open(15, true));
        assert!(watch.is_open(2, false) && watch.is_open(2, false));
        // Once it has come, one that is not pending any more has been delivered.
        assert!(watch.is_open(2, true) && !watch.is_open(2, false));
        watch.remove(2);
        watch.expect(3);
        (0..20).for_each(|_| watch.wait_longer());
        assert!(!watch.is_open(3, false), "it has not come for half a second");
    }

    #[test]
    fn watched_signals_are_looked_at_less_and_less_often() {
        let mut watch = Watch::default();
        assert!(watch.delay().is_none() && !watch.is_due());
        [15, 64, 0].into_iter().for_each(|signal| watch.add(signal));
        assert_eq!(watch.signals().collect::<Vec<_>>(), [15, 64]);
        let intervals: Vec<_> = (0..20).map(|_| (watch.interval_ns, watch.wait_longer()).0).collect();
        assert!(intervals.is_sorted() && intervals[0] == Watch::FIRST_NS && intervals[19] == Watch::LONGEST_NS);
        assert!(watch.delay().is_some());
        watch.remove(15);
        watch.remove(64);
        assert!(watch.delay().is_none());
    }
}
