//! The memory balloon (virtio 1.3, 5.5): the guest gives pages of its memory back to the host.
//!
//! - [`config`]: the section and flag, and how they become a device;
//! - [`pages`]: what becomes of a page; [`statistics`]: what the guest tells of its memory;
//! - this file: the device.
//!
//! There are two ways. The host asks for a balloon of so many pages, and the driver fills it, or lets air out; with
//! `deflate_on_oom` also when it has nothing else left. And with `free_page_reporting` the driver tells of pages that are
//! free anyway. Whatever it gives, by mistake or on purpose, is its own: a page that it still uses is lost to it alone.
//! What it takes back it need not ask for, so the queue for that asks nothing of the device.
//!
//! `PAGE_POISON` is not offered: a driver that needs to find its free pages as it left them does not report them then.

mod config;
mod pages;
mod statistics;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde_json::Value;

pub use config::KIND;
use statistics::Statistics;

use super::chain::Chain;
use super::table::check_state_version;
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};
use crate::GuestRam;

const NAME: &str = "balloon";
const SECTION: &str = "balloon";
const STATE_VERSION: u32 = 1;

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
/// A driver has one request of each kind at a time; one that reports pages has 32 descriptors.
const QUEUE_SIZES: [u16; 5] = [QUEUE_SIZE as u16; 5];
const QUEUE_SIZE: usize = 32;

/// Where `actual` is in the configuration space (5.5.4), after `num_pages`.
const ACTUAL: std::ops::Range<usize> = 4..8;

/// What the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    /// Pages that the balloon is to have.
    pages: u32,
    deflate_on_oom: bool,
    /// Seconds between two statistics; 0: none.
    interval_s: u32,
    reporting: bool,
}

/// The device.
struct Balloon {
    options: Options,
    /// What the driver has accepted.
    features: u64,
    /// `num_pages` and `actual`.
    config: [u8; 8],
    statistics: Statistics,
    /// The driver's buffer that holds the statistics: given back when there are to be new ones.
    held: Option<u16>,
    /// There are statistics.
    timer: Option<OwnedFd>,
    /// The driver does not know of `num_pages` yet.
    unannounced: bool,
}

/// What a queue is for.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
    Nothing,
}

impl Balloon {
    fn new(options: Options) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = || rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags);
        let timer = (options.interval_s > 0).then(timer).transpose()?;
        let mut config = [0; 8];
        config[..ACTUAL.start].copy_from_slice(&options.pages.to_le_bytes());
        let statistics = Statistics::default();
        Ok(Balloon { options, features: 0, config, statistics, held: None, timer, unannounced: false })
    }

    /// The specification numbers queues whether they are there or not (5.5.2): 3 is for a feature that is not offered, and
    /// 4 for reporting. Linux leaves no gaps on this transport: there, reporting comes after the last that is there. Both
    /// are answered.
    fn role(&self, queue: usize) -> Role {
        match queue {
            INFLATE => Role::Inflate,
            DEFLATE => Role::Deflate,
            STATISTICS if self.features & F_STATS_VQ != 0 => Role::Statistics,
            _ if self.features & F_REPORTING != 0 => Role::Reporting,
            _ => Role::Nothing,
        }
    }

    /// Answers all chains of a queue, and publishes them together.
    fn answer(
        queue: usize,
        io: &mut Io,
        each: impl Fn(&Chain, &GuestRam) -> Result<(), DeviceFault>,
    ) -> Result<(), DeviceFault> {
        let mut used = [(0, 0); QUEUE_SIZE];
        let mut count = 0;
        let result = loop {
            match io.queues[queue].pop(io.mem) {
                Ok(Some(chain)) => {
                    if let Err(fault) = each(&chain, io.mem) {
                        break Err(fault);
                    }
                    used[count] = (chain.head(), 0);
                    count += 1;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
            if count == used.len() {
                io.queues[queue].push_together(io.mem, &used)?;
                count = 0;
            }
        };
        let published = io.queues[queue].push_together(io.mem, &used[..count]);
        result.and(published.map_err(DeviceFault::from))
    }

    /// Reads the statistics that the driver has made, and keeps its buffer.
    fn collect(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[STATISTICS].pop(io.mem)? {
            self.statistics = Statistics::read(chain.readable());
            if let Some(before) = self.held.replace(chain.head()) {
                io.queues[STATISTICS].push(io.mem, before, 0)?;
            }
        }
        Ok(())
    }

    /// Sets the timer; an interval of 0 stops it.
    fn arm(&self, interval: Duration) -> Result<(), DeviceFault> {
        let Some(timer) = &self.timer else { return Ok(()) };
        let time = Timespec { tv_sec: interval.as_secs() as i64, tv_nsec: 0 };
        let times = Itimerspec { it_interval: time, it_value: time };
        rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &times)
            .map(drop)
            .map_err(|e| DeviceFault::Host { what: "timerfd_settime", source: e.into() })
    }
}

impl VirtioDevice for Balloon {
    fn info(&self) -> DeviceInfo {
        let Options { deflate_on_oom, interval_s, reporting, .. } = self.options;
        let offered = [(interval_s > 0, F_STATS_VQ), (deflate_on_oom, F_DEFLATE_ON_OOM), (reporting, F_REPORTING)];
        let features = offered.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, feature)| all | feature);
        let queues = if reporting { QUEUE_SIZES.len() } else { STATISTICS + usize::from(interval_s > 0) };
        DeviceInfo { name: NAME, id: 5, features, queue_sizes: &QUEUE_SIZES[..queues], prompt: true }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if ACTUAL.contains(&at) {
                self.config[at] = *byte;
            }
        }
    }

    fn fds(&self) -> Vec<DeviceFd> {
        self.timer.iter().map(|timer| DeviceFd { fd: timer.as_raw_fd(), token: 0 }).collect()
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFault> {
        self.features = features;
        let wanted = features & F_STATS_VQ != 0;
        self.arm(Duration::from_secs(if wanted { self.options.interval_s.into() } else { 0 }))
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        io.config_changed |= std::mem::take(&mut self.unannounced);
        match self.role(index) {
            Role::Inflate => Self::answer(index, io, |chain, mem| pages::give_back_numbered(chain.readable(), mem)),
            Role::Deflate => Self::answer(index, io, |_, _| Ok(())),
            Role::Statistics => self.collect(io),
            Role::Reporting => Self::answer(index, io, |chain, _| {
                chain.writable().slices().for_each(|slice| pages::give_back(&slice));
                Ok(())
            }),
            Role::Nothing => Ok(()),
        }
    }

    fn process_fd(&mut self, _: u16, io: &mut Io) -> Result<(), DeviceFault> {
        if let Some(timer) = &self.timer {
            // Nothing to read: it has been set anew since.
            let _ = rustix::io::read(timer, &mut [0; 8]);
        }
        if self.role(STATISTICS) != Role::Statistics {
            return Ok(());
        }
        // After a snapshot the buffer lies in the queue, where nobody announces it again.
        self.collect(io)?;
        match self.held.take() {
            Some(head) => Ok(io.queues[STATISTICS].push(io.mem, head, 0)?),
            None => Ok(()),
        }
    }

    fn quiesce(&mut self, io: &mut Io, forget: bool) -> Result<(), DeviceFault> {
        if let (Some(head), Some(queue)) = (self.held.take(), io.queues.get_mut(STATISTICS)) {
            queue.undo_pop(head);
        }
        if forget { self.arm(Duration::ZERO) } else { Ok(()) }
    }

    fn save(&self) -> Result<Value, StateError> {
        let [_, _, _, _, actual @ ..] = self.config;
        Ok(serde_json::json!({
            "version": STATE_VERSION, "pages": self.options.pages, "actual": u32::from_le_bytes(actual),
            "statistics": self.statistics.to_json(),
        }))
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version(NAME, state, STATE_VERSION)?;
        let wrong = |what: &str| StateError { device: NAME, reason: format!("{what} is not what it should be") };
        let number = |name: &str| {
            let number = state.get(name).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
            number.ok_or_else(|| wrong(name))
        };
        let (pages, actual) = (number("pages")?, number("actual")?);
        let statistics = state.get("statistics").and_then(Statistics::from_json);
        self.statistics = statistics.ok_or_else(|| wrong("statistics"))?;
        self.config[ACTUAL].copy_from_slice(&actual.to_le_bytes());
        self.unannounced = pages != self.options.pages;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
