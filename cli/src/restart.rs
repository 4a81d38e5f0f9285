//! Restart policies: whether a container is started again when it has ended, and how long after. Docker's rules, as far as they can
//! be kept without a daemon: it is the container's supervisor that does it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::containers::record::Cause;
use crate::containers::{Record, Status};

/// The first wait, which is doubled each time.
const FIRST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);
/// One that has run for so long begins with the first wait again.
const GOOD: Duration = Duration::from_secs(10);
const SIGKILL: u8 = 9;

/// What `--restart` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// It stays as it has ended.
    #[default]
    No,
    /// It is started again if it has failed, so many times at most.
    OnFailure(Option<u32>),
    /// It is started again.
    Always,
    /// The same; docker's daemon tells the two apart when it starts.
    UnlessStopped,
}

impl Policy {
    /// Docker's name.
    pub fn name(self) -> &'static str {
        match self {
            Policy::No => "no",
            Policy::OnFailure(_) => "on-failure",
            Policy::Always => "always",
            Policy::UnlessStopped => "unless-stopped",
        }
    }

    /// How often it may be started again at most; 0: no such limit.
    pub fn most(self) -> u32 {
        if let Policy::OnFailure(Some(most)) = self { most } else { 0 }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.most() {
            0 => f.write_str(self.name()),
            most => write!(f, "{}:{most}", self.name()),
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is none of no, on-failure, on-failure:TIMES, always, unless-stopped");
        Ok(match text {
            "no" => Policy::No,
            "always" => Policy::Always,
            "unless-stopped" => Policy::UnlessStopped,
            "on-failure" => Policy::OnFailure(None),
            _ => {
                let most = text.strip_prefix("on-failure:").and_then(|most| most.parse().ok()).ok_or_else(wrong)?;
                // As docker: 0 is no limit.
                Policy::OnFailure((most != 0).then_some(most))
            }
        })
    }
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> String {
        policy.to_string()
    }
}

/// Whether a container that has ended is to be started again: not one that was told to stop, and not one that has never run.
pub fn is_due(record: &Record) -> bool {
    let state = &record.state;
    let stopped = state.cause == Cause::Ordered
        || state.signals.iter().any(|&signal| signal == SIGKILL || signal == record.stop_signal);
    let wanted = match record.flags.restart {
        Policy::No => false,
        Policy::OnFailure(most) => state.exit_code != 0 && most.is_none_or(|most| state.restarts < most),
        Policy::Always | Policy::UnlessStopped => true,
    };
    wanted && !stopped && state.status == Status::Exited
}

/// How long to wait.
#[derive(Debug, Default)]
pub struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// After a life of this length.
    pub fn next(&mut self, ran: Duration) -> Duration {
        let last = self.last.filter(|_| ran < GOOD);
        let next = last.map_or(FIRST, |last| (last * 2).min(LONGEST));
        self.last = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Id;
    use crate::containers::record::tests::record;

    #[test]
    fn policies_are_written_as_in_docker() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        assert_eq!("on-failure:0".parse(), Ok(Policy::OnFailure(None)));
        for bad in ["", "yes", "on-failure:", "on-failure:-1", "always:3", "No"] {
            assert!(bad.parse::<Policy>().unwrap_err().contains("unless-stopped"), "{bad}");
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_good_life() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let waits: Vec<u128> = (0..12).map(|_| backoff.next(short).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(backoff.next(GOOD), FIRST);
        assert_eq!(backoff.next(short), FIRST * 2);
    }

    #[test]
    fn what_was_told_to_stop_stays_as_it_is() {
        let due = |policy: Policy, code: u8, change: fn(&mut Record)| {
            let mut record = record(&Id::random().unwrap());
            record.flags.restart = policy;
            record.start();
            record.end(code, Cause::Process, String::new());
            change(&mut record);
            is_due(&record)
        };
        let as_is = |_: &mut Record| {};
        assert!(due(Policy::Always, 0, as_is) && due(Policy::UnlessStopped, 1, as_is) && !due(Policy::No, 1, as_is));
        assert!(due(Policy::OnFailure(None), 1, as_is) && !due(Policy::OnFailure(None), 0, as_is));
        let twice = |record: &mut Record| record.state.restarts = 2;
        assert!(due(Policy::OnFailure(Some(3)), 1, twice) && !due(Policy::OnFailure(Some(2)), 1, twice));
        assert!(!due(Policy::Always, 143, |record| record.signalled(15)));
        assert!(!due(Policy::Always, 137, |record| record.signalled(SIGKILL)));
        assert!(due(Policy::Always, 0, |record| record.signalled(1)));
        assert!(!due(Policy::Always, 137, |record| record.state.cause = Cause::Ordered));
        assert!(!due(Policy::Always, 127, |record| record.state.status = Status::Created));
    }
}
