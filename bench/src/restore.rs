//! A machine that goes on from a snapshot: process start to the guest's first instruction.
//!
//! The guest was saved while it waited for a byte in its memory. The byte is set in the snapshot's memory file, so the first
//! instructions of a restored guest find it and end the machine: their effect is what is timed. Machines of several
//! sizes take turns, with a process that does nothing as the floor, so that all share the same moments of the host.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use serde::Serialize;
use vmm::api::{SnapshotKind, SnapshotRequest};
use vmm::{Console, Machine, VmConfig};

use crate::guest;
use crate::process::{BenchError, Monitor, PHASES, floor, io_error, sample};
use crate::stats::{Summary, summarise};

/// Sizes of machines, MiB.
pub const SIZES: [u64; 3] = [128, 1024, 4096];
/// A guest of a few instructions that has not run by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// One for each of [`SIZES`] that this host has memory for.
    pub sizes: Vec<Size>,
    /// A process that does nothing.
    pub floor: Summary,
}

/// Machines of one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Size {
    /// Guest RAM, MiB.
    pub memory_mib: u64,
    /// Process start to the effect of the guest's first instructions.
    pub guest: Summary,
    /// Process start to process exit.
    pub total: Summary,
    /// The parts of `total`, in order.
    pub phases: Vec<(&'static str, Summary)>,
    /// Taking the snapshot: how long the guest stood still, microseconds.
    pub pause_us: f64,
    /// Bytes of memory in the snapshot.
    pub memory_bytes: u64,
}

/// Runs `runs` machines of each size.
pub fn run(monitor: Monitor<'_>, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 {
        return Err(BenchError::NoRuns);
    }
    let dir = tempfile::tempdir().map_err(io_error("temporary directory"))?;
    let kernel = dir.path().join("guest");
    std::fs::write(&kernel, guest::elf(guest::WAIT)).map_err(io_error("guest"))?;
    let host = vmm::host::memory_mib();
    let mut series = Vec::new();
    for memory_mib in SIZES.into_iter().filter(|&size| size <= host) {
        series.push(Series::prepare(monitor, &kernel, &dir.path().join(memory_mib.to_string()), memory_mib)?);
    }
    let mut floors = Vec::new();
    for _ in 0..runs {
        for series in &mut series {
            series.add(monitor)?;
        }
        floors.push(floor()?);
    }
    let sizes = series.iter().map(Series::size).collect::<Option<_>>().ok_or(BenchError::NoRuns)?;
    Ok(Report { sizes, floor: summarise(&floors).ok_or(BenchError::NoRuns)? })
}

/// The samples of one size.
struct Series {
    memory_mib: u64,
    config: String,
    pause_ns: u64,
    memory_bytes: u64,
    guests: Vec<Duration>,
    totals: Vec<Duration>,
    phases: [Vec<Duration>; PHASES.len()],
}

impl Series {
    fn prepare(monitor: Monitor<'_>, kernel: &Path, snapshot: &Path, memory_mib: u64) -> Result<Self, BenchError> {
        let report = save(kernel, snapshot, memory_mib)?;
        let memory = OpenOptions::new().write(true).open(snapshot.join("memory")).map_err(io_error("memory file"))?;
        // RAM begins at address 0, and so does the file.
        memory.write_all_at(&[1], guest::GO).map_err(io_error("memory file"))?;
        let config = serde_json::json!({ "snapshot": { "path": snapshot } }).to_string();
        // The first pays for cold caches, once.
        sample(monitor, &config)?;
        Ok(Series {
            memory_mib,
            config,
            pause_ns: report.pause_ns,
            memory_bytes: report.bytes,
            guests: Vec::new(),
            totals: Vec::new(),
            phases: Default::default(),
        })
    }

    fn add(&mut self, monitor: Monitor<'_>) -> Result<(), BenchError> {
        let sample = sample(monitor, &self.config)?;
        self.guests.push(sample.guest);
        self.totals.push(sample.total);
        self.phases.iter_mut().zip(sample.phases).for_each(|(all, part)| all.push(part));
        Ok(())
    }

    fn size(&self) -> Option<Size> {
        let phases = PHASES.into_iter().zip(&self.phases).filter_map(|(name, all)| Some((name, summarise(all)?)));
        Some(Size {
            memory_mib: self.memory_mib,
            guest: summarise(&self.guests)?,
            total: summarise(&self.totals)?,
            phases: phases.collect(),
            pause_us: self.pause_ns as f64 / 1e3,
            memory_bytes: self.memory_bytes,
        })
    }
}

/// Tells of each byte of serial output.
struct Tell(Sender<()>);

impl Write for Tell {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whoever waited has heard enough.
        let _ = self.0.send(());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Boots the guest in this process, and takes the snapshot when it waits.
fn save(kernel: &Path, snapshot: &Path, memory_mib: u64) -> Result<vmm::api::SnapshotReport, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Machine(error.to_string());
    let json = serde_json::json!({ "boot-source": { "kernel_image_path": kernel },
                                   "machine-config": { "vcpu_count": 1, "mem_size_mib": memory_mib } });
    let config = VmConfig::from_json(&json.to_string()).map_err(|e| failed(&e))?;
    let (sender, output) = mpsc::channel();
    let console = Console { input: None, output: Box::new(Tell(sender)) };
    let machine = Machine::build(&config, Some(console), &mut |_| {}).map_err(|e| failed(&e))?;
    let handle = machine.handle();
    std::thread::scope(|scope| {
        let runner = scope.spawn(move || machine.run(&mut |_| {}));
        let waits = output.recv_timeout(PATIENCE).map_err(|_| BenchError::Machine("its guest does not run".into()));
        let request = SnapshotRequest { path: snapshot.to_owned(), kind: SnapshotKind::Full, base_of_next: false };
        let report = waits.and_then(|()| handle.snapshot(&request).map_err(|e| failed(&e)));
        handle.stop();
        match runner.join() {
            Ok(Ok(_)) => report,
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(BenchError::Machine("it panicked".into())),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_runs_is_an_error() {
        let monitor = Monitor { bulkhead: Path::new("/nonexistent"), cpuid_cache: Path::new("/nonexistent") };
        assert!(matches!(run(monitor, 0), Err(BenchError::NoRuns)));
    }
}
