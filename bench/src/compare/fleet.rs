//! How many instances there can be: idle ones are added, one after the other, as long as starts stay within an objective and memory
//! lasts. Then all go, and what the host has not got back is told.

use std::time::Duration;

use super::arm::{Arm, Instance};
use super::idle::{IDLE, processes_kib};
use super::rows::{Session, finish, shell};
use super::{Fleet, milliseconds};
use crate::memory::available_kib;
use crate::process::BenchError;

/// Memory that is left to the host, KiB: no instance is started where there is less.
const RESERVE_KIB: u64 = 2 << 20;

/// What came of it.
pub(super) struct Filled {
    /// Start to first output of each, milliseconds.
    pub starts: Vec<f64>,
    /// Memory of all, by instance, KiB.
    pub each_kib: f64,
    /// What the host has less after all have gone, KiB.
    pub left_kib: f64,
    /// Why there were no more.
    pub why: String,
}

impl Session<'_> {
    /// Starts instances until something speaks against more of them.
    pub(super) fn fill(&self, arm: &dyn Arm, fleet: Fleet) -> Result<Filled, BenchError> {
        let before = available_kib()?;
        let mut running: Vec<Instance<'_>> = Vec::new();
        let mut starts = Vec::new();
        let mut each_kib = 0.0;
        let why = loop {
            if running.len() >= fleet.most {
                break format!("{} were asked for (--most)", fleet.most);
            }
            if available_kib()? < RESERVE_KIB {
                break "the host has less than 2 GiB of memory left".to_owned();
            }
            match self.start_idle(arm) {
                Ok((instance, took)) => {
                    running.push(instance);
                    starts.push(milliseconds(took));
                }
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                // The first must do; that a later one does not is an answer.
                Err(error) if running.is_empty() => return Err(error),
                Err(error) => break error.to_string(),
            }
            if let Some(missed) = fleet.objective.missed(&starts) {
                break missed;
            }
            // Looking at all takes its time: at 1, 2, 4, and so on, and when it may be enough by what was seen last.
            let count = running.len();
            let budget = (self.what.memory_mib << 10) as f64;
            if count.is_power_of_two() || each_kib * count as f64 >= budget {
                each_kib = running.iter().map(processes_kib).sum::<f64>() / count as f64;
                if each_kib * count as f64 >= budget {
                    break format!("they have {} MiB of memory (--memory-budget)", self.what.memory_mib);
                }
            }
        };
        each_kib = running.iter().map(processes_kib).sum::<f64>() / running.len() as f64;
        let mut killed = 0;
        for mut instance in running {
            let Some(mut child) = instance.running.take() else { continue };
            child.close_input();
            match finish(arm, child, &instance.id, self.patience) {
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                // It is gone all the same, and what was measured stays.
                Err(_) => killed += 1,
                Ok(_) => {}
            }
        }
        let left_kib = before.saturating_sub(available_kib()?) as f64;
        let why = if killed > 0 { format!("{why}; {killed} did not end by themselves") } else { why };
        Ok(Filled { starts, each_kib, left_kib, why })
    }

    fn start_idle<'i>(&self, arm: &'i dyn Arm) -> Result<(Instance<'i>, Duration), BenchError> {
        let mut instance = self.instance(arm, &shell(IDLE), true)?;
        let took = match &mut instance.running {
            Some(child) => child.line(1, self.patience)?,
            None => Duration::ZERO,
        };
        Ok((instance, took))
    }
}
