//! What a machine tells the process around it: phases with their times, and how it ended.
//!
//! `bulkhead vmm` prints these as JSON lines; the CLI reads them back with the same types.

use serde::{Deserialize, Serialize};

/// Version of the event stream. A reader refuses a [`Event::Hello`] with another one.
pub const EVENTS_VERSION: u32 = 1;

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// First line: the version of the stream.
    Hello {
        /// [`EVENTS_VERSION`] of the writer.
        version: u32,
    },
    /// A phase of the machine's life begins.
    Phase {
        /// Which one.
        phase: Phase,
        /// CLOCK_MONOTONIC of the host, in nanoseconds.
        at_ns: u64,
    },
    /// Last line of a machine that ran: how it ended, and what its vCPUs did.
    Exit {
        /// Why the machine ended.
        reason: ExitReason,
        /// CLOCK_MONOTONIC of the host, in nanoseconds.
        at_ns: u64,
        /// Exits to user space by kind, and instructions completed there.
        counts: Counts,
    },
    /// Last line of a machine that could not be built, or broke: one line for the user.
    Failed {
        /// What failed, on what, why.
        message: String,
    },
}

/// The phases of a machine's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The configuration is checked; KVM objects are about to be made.
    Build,
    /// Memory and interrupt controller exist; devices, kernel and state of the vCPUs come next.
    Load,
    /// The vCPUs are about to run the guest's first instruction.
    Run,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset, which ends a microVM.
    Reset,
    /// The guest kernel panicked.
    Panic,
    /// A vCPU faulted while handling a fault (SDM vol. 3, 6.15, interrupt 8): a reset by crash, or by `reboot=t`.
    TripleFault,
    /// The host asked it to stop.
    Stopped,
}

/// What the vCPUs of a machine did, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Port I/O exits.
    pub pio: u64,
    /// MMIO exits.
    pub mmio: u64,
    /// Instructions completed in user space.
    pub completed: u64,
    /// All other returns from KVM_RUN.
    pub other: u64,
}

impl std::ops::Add for Counts {
    type Output = Counts;
    fn add(self, other: Counts) -> Counts {
        Counts {
            pio: self.pio + other.pio,
            mmio: self.mmio + other.mmio,
            completed: self.completed + other.completed,
            other: self.other + other.other,
        }
    }
}

/// CLOCK_MONOTONIC of the host, in nanoseconds: the clock of all phase times, also across processes.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the call to fill; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_json_lines_that_read_back() {
        let all = [
            Event::Hello { version: EVENTS_VERSION },
            Event::Phase { phase: Phase::Run, at_ns: 7 },
            Event::Exit { reason: ExitReason::PowerOff, at_ns: 9, counts: Counts { pio: 1, ..Counts::default() } },
            Event::Failed { message: "kernel /x: not an ELF file".into() },
        ];
        for event in all {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }

    #[test]
    fn the_clock_goes_forward() {
        let first = monotonic_ns();
        assert!(first > 0 && monotonic_ns() >= first);
    }
}
