//! The device status machine (virtio 1.3, 2.1 and 3.1.1) as a table.
//!
//! ```text
//! 0 ──► ACKNOWLEDGE ──► DRIVER ──► FEATURES_OK ──► DRIVER_OK      any ──write 0──► 0 (reset)
//! └───────────────────────┘        (if acceptable)                any ──FAILED──► dead until reset
//!                                                                 any ──our fault─► NEEDS_RESET, dead until reset
//! ```

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;
pub const FAILED: u32 = 0x80;

const LOADED: u32 = ACKNOWLEDGE | DRIVER;
const NEGOTIATED: u32 = LOADED | FEATURES_OK;
const RUNNING: u32 = NEGOTIATED | DRIVER_OK;

/// From, to: the steps a driver may take. Bits are never cleared but by a reset.
const STEPS: [(u32, u32); 5] =
    [(0, ACKNOWLEDGE), (0, LOADED), (ACKNOWLEDGE, LOADED), (LOADED, NEGOTIATED), (NEGOTIATED, RUNNING)];

/// What a write to the status register comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The device is to be reset; the status is left for the reset to clear.
    Reset,
    /// The device is to be activated.
    Activate,
    /// The driver has given the device up, until it is reset.
    GivenUp,
    /// Nothing to do besides.
    Quiet,
    /// The write changed nothing.
    Refused,
}

/// The status register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status(u32);

impl Status {
    /// A saved status, if it is one that can be reached.
    pub fn restore(bits: u32) -> Option<Self> {
        let steps = bits & !(NEEDS_RESET | FAILED);
        (bits <= 0xff && (steps == 0 || STEPS.iter().any(|step| step.1 == steps))).then_some(Status(bits))
    }

    pub fn bits(self) -> u32 {
        self.0
    }

    /// The driver writes `value`; `acceptable` says whether the features it chose are.
    pub fn step(&mut self, value: u32, acceptable: bool) -> Step {
        if value == 0 {
            return Step::Reset;
        }
        // The driver writes back what it read, so NEEDS_RESET may be in it; it is not the driver's to set.
        let wanted = value & !NEEDS_RESET;
        if wanted & FAILED != 0 && wanted & !FAILED == self.0 & !(NEEDS_RESET | FAILED) {
            self.0 |= FAILED;
            return Step::GivenUp;
        }
        if self.is_dead() || !STEPS.contains(&(self.0, wanted)) {
            return Step::Refused;
        }
        if wanted == NEGOTIATED && !acceptable {
            return Step::Refused;
        }
        self.0 = wanted;
        if wanted == RUNNING { Step::Activate } else { Step::Quiet }
    }

    pub fn set_needs_reset(&mut self) {
        self.0 |= NEEDS_RESET;
    }

    /// The device works on its queues.
    pub fn is_live(self) -> bool {
        self.0 == RUNNING
    }

    /// The device waits for a reset, and does nothing else.
    pub fn is_dead(self) -> bool {
        self.0 & (NEEDS_RESET | FAILED) != 0
    }

    /// The device was activated since the last reset, whatever came of it.
    pub fn was_activated(self) -> bool {
        self.0 & DRIVER_OK != 0
    }

    /// Feature bits may change.
    pub fn may_negotiate(self) -> bool {
        self.0 == LOADED
    }

    /// Queues may be set up.
    pub fn may_configure(self) -> bool {
        self.0 == NEGOTIATED
    }

    /// The driver may write the configuration space.
    pub fn may_write_config(self) -> bool {
        self.0 & DRIVER != 0 && !self.is_dead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_steps_of_the_table_are_taken() {
        for from in [0, ACKNOWLEDGE, LOADED, NEGOTIATED, RUNNING] {
            for value in 1..=0x1ff {
                let mut status = Status(from);
                let step = status.step(value, true);
                if value & !NEEDS_RESET == from | FAILED {
                    assert_eq!((step, status.0), (Step::GivenUp, from | FAILED));
                } else if STEPS.contains(&(from, value & !NEEDS_RESET)) {
                    assert_eq!(status.0, value & !NEEDS_RESET);
                } else {
                    assert_eq!((step, status.0), (Step::Refused, from), "{from:#x} -> {value:#x}");
                }
            }
        }
    }

    #[test]
    fn features_can_be_refused_and_tried_again() {
        let mut status = Status(LOADED);
        assert_eq!(status.step(NEGOTIATED, false), Step::Refused);
        assert_eq!(status.bits() & FEATURES_OK, 0);
        assert_eq!(status.step(NEGOTIATED, true), Step::Quiet);
        assert_eq!(status.step(RUNNING, true), Step::Activate);
    }

    #[test]
    fn a_device_that_needs_reset_takes_only_that() {
        let mut status = Status(NEGOTIATED);
        status.set_needs_reset();
        assert_eq!(status.step(RUNNING | NEEDS_RESET, true), Step::Refused);
        assert!(!status.is_live());
        assert_eq!(status.step(0, true), Step::Reset);
    }

    #[test]
    fn impossible_saved_statuses_are_refused() {
        for bits in 0..0x200 {
            let reachable = [0, ACKNOWLEDGE, LOADED, NEGOTIATED, RUNNING].contains(&(bits & !(NEEDS_RESET | FAILED)));
            assert_eq!(Status::restore(bits).is_some(), reachable && bits < 0x100, "{bits:#x}");
        }
    }
}
