//! The cost of a machine that does nothing: process start, one port write by a four-instruction guest, process exit.
//!
//! Each sample is a whole `bulkhead vmm` process with 128 MiB of guest RAM, on the same path that boots Linux. The floor
//! beside it is a process that does nothing at all (`true`), started the same way in the same run, samples alternating.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use vmm::events::{Event, Phase};

use crate::place::Place;
use crate::process::{BenchError, Child, Monitor, PHASES, floor, io_error, sample, start};
use crate::stats::{Summary, summarise};
use crate::{guest, memory};

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Guest RAM of each machine, MiB.
    pub memory_mib: u64,
    /// Process start to process exit, as the parent sees it.
    pub total: Summary,
    /// The same for a process that does nothing.
    pub floor: Summary,
    /// `total.p50_us / floor.p50_us`.
    pub ratio: f64,
    /// Where the time goes, in order.
    pub phases: Vec<(&'static str, Summary)>,
    /// The monitor's private memory while a guest is halted, beyond the guest's RAM, in KiB.
    pub private_kib: u64,
}

const MEMORY_MIB: u64 = 128;

/// Runs `runs` null machines.
pub fn run(monitor: Monitor<'_>, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 {
        return Err(BenchError::NoRuns);
    }
    let dir = Place::new()?;
    let null = dir.path().join("null");
    let halt = dir.path().join("halt");
    std::fs::write(&null, guest::elf(guest::NULL)).map_err(io_error("null guest"))?;
    std::fs::write(&halt, guest::elf(guest::HALT)).map_err(io_error("halting guest"))?;

    // The first of each pays for cold caches, once; it is not a sample.
    sample(monitor, &config(&null))?;
    floor()?;
    let (mut totals, mut floors) = (Vec::new(), Vec::new());
    let mut phases: [Vec<Duration>; PHASES.len()] = Default::default();
    for _ in 0..runs {
        let sample = sample(monitor, &config(&null))?;
        totals.push(sample.total);
        phases.iter_mut().zip(sample.phases).for_each(|(all, part)| all.push(part));
        floors.push(floor()?);
    }
    let (total, floor) = (summarise(&totals).ok_or(BenchError::NoRuns)?, summarise(&floors).ok_or(BenchError::NoRuns)?);
    let phases = PHASES.into_iter().zip(&phases).filter_map(|(name, all)| Some((name, summarise(all)?))).collect();
    let private_kib = private_memory(monitor, &halt)?;
    Ok(Report { memory_mib: MEMORY_MIB, total, floor, ratio: total.p50_us / floor.p50_us, phases, private_kib })
}

fn config(kernel: &Path) -> String {
    serde_json::json!({
        "boot-source": { "kernel_image_path": kernel },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
    })
    .to_string()
}

/// Private memory of a monitor whose guest is halted, without the guest's RAM, beside another one: what two of them have in
/// common, the program's text above all, is no microVM's own.
fn private_memory(monitor: Monitor<'_>, kernel: &Path) -> Result<u64, BenchError> {
    let _other = Halted::start(monitor, kernel)?;
    let halted = Halted::start(monitor, kernel)?;
    Ok(memory::of_process(halted.0.id(), MEMORY_MIB, None)?.monitor_kib)
}

/// A machine whose guest is halted. It has no end of its own; dropped, it is killed.
struct Halted(Child);

impl Halted {
    fn start(monitor: Monitor<'_>, kernel: &Path) -> Result<Self, BenchError> {
        let mut halted = Halted(start(monitor, &config(kernel))?);
        let stdout = halted.0.stdout.take().ok_or_else(|| BenchError::Machine("no output".into()))?;
        let runs = |line: &String| matches!(serde_json::from_str(line), Ok(Event::Phase { phase: Phase::Run, .. }));
        if BufReader::new(stdout).lines().map_while(Result::ok).any(|line| runs(&line)) {
            return Ok(halted);
        }
        let mut why = String::new();
        if let Some(mut stderr) = halted.0.stderr.take() {
            stderr.read_to_string(&mut why).map_err(io_error("output of the monitor"))?;
        }
        Err(BenchError::Machine(why.trim().to_owned()))
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_runs_is_an_error() {
        let nowhere = Path::new("/nonexistent");
        let monitor = Monitor { bulkhead: nowhere, cpuid_cache: nowhere };
        assert!(matches!(run(monitor, 0), Err(BenchError::NoRuns)));
        assert!(matches!(run(monitor, 1), Err(BenchError::Io { .. })));
    }
}
