//! A machine that goes on from a snapshot: process start to the guest's first instruction, and to the answer of a process in it.
//!
//! For the first, the guest was saved while it waited for a byte in its memory. The byte is set in the snapshot's memory file, so the
//! first instructions of a restored guest find it and end the machine: their effect is what is timed. The second is
//! [`crate::answer`], beside `runc run` of a container that does nothing. Machines of several sizes take turns, with a process
//! that does nothing as the floor, so that all share the same moments of the host.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vmm::Console;
use vmm::api::{SnapshotKind, SnapshotReport};

use crate::container::Bundle;
use crate::machine::{Bell, save, with_machine};
use crate::place::Place;
use crate::process::{BenchError, Monitor, PHASES, floor, io_error, sample};
use crate::stats::{Summary, summarise};
use crate::{answer, guest};

/// Sizes of machines, MiB.
pub const SIZES: [u64; 3] = [128, 1024, 4096];

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// One for each of [`SIZES`] that this host has memory for.
    pub sizes: Vec<Size>,
    /// A process that does nothing.
    pub floor: Summary,
    /// `runc run` of a container that does nothing, process start to process exit; none where runc is not installed.
    pub runc: Option<Summary>,
    /// The median answer of the smallest machine by that of runc.
    pub answer_by_runc: Option<f64>,
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
    /// Process start to the answer of a process in ring 3 of another guest, over vsock.
    pub answer: Summary,
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
    let dir = Place::new()?;
    let kernel = dir.path().join("guest");
    std::fs::write(&kernel, guest::elf(guest::WAIT)).map_err(io_error("guest"))?;
    let host = vmm::host::memory_mib();
    let mut series = Vec::new();
    for memory_mib in SIZES.into_iter().filter(|&size| size <= host) {
        series.push(Series::prepare(monitor, &kernel, &dir.path().join(memory_mib.to_string()), memory_mib)?);
    }
    let mut bundle = Bundle::prepare(&dir.path().join("bundle"))?;
    let (mut floors, mut containers) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        for series in &mut series {
            series.add(monitor)?;
        }
        // The first one finds the caches as other programs have left them.
        series.rotate_left(1);
        if let Some(bundle) = &mut bundle {
            containers.push(bundle.sample()?);
        }
        floors.push(floor()?);
    }
    series.sort_by_key(|series| series.memory_mib);
    let sizes: Vec<Size> = series.iter().map(Series::size).collect::<Option<_>>().ok_or(BenchError::NoRuns)?;
    let runc = summarise(&containers);
    let answer_by_runc = sizes.first().zip(runc).map(|(size, runc)| size.answer.p50_us / runc.p50_us);
    Ok(Report { sizes, floor: summarise(&floors).ok_or(BenchError::NoRuns)?, runc, answer_by_runc })
}

/// The samples of one size.
struct Series {
    memory_mib: u64,
    config: String,
    answering: PathBuf,
    report: SnapshotReport,
    guests: Vec<Duration>,
    totals: Vec<Duration>,
    phases: [Vec<Duration>; PHASES.len()],
    answers: Vec<Duration>,
}

impl Series {
    fn prepare(monitor: Monitor<'_>, kernel: &Path, dir: &Path, memory_mib: u64) -> Result<Self, BenchError> {
        std::fs::create_dir(dir).map_err(io_error("temporary directory"))?;
        let (waiting, answering) = (dir.join("waiting"), dir.join("answering-snapshot"));
        let report = save_waiting(kernel, &waiting, memory_mib)?;
        let memory = OpenOptions::new().write(true).open(waiting.join("memory")).map_err(io_error("memory file"))?;
        // RAM begins at address 0, and so does the file.
        memory.write_all_at(&[1], guest::GO).map_err(io_error("memory file"))?;
        answer::prepare(dir, &answering, memory_mib)?;
        let config = serde_json::json!({ "snapshot": { "path": waiting } }).to_string();
        // The first of each pays for cold caches, once.
        sample(monitor, &config)?;
        answer::sample(monitor, &answering, &dir.join("a"))?;
        Ok(Series {
            memory_mib,
            config,
            answering,
            report,
            guests: Vec::new(),
            totals: Vec::new(),
            phases: Default::default(),
            answers: Vec::new(),
        })
    }

    fn add(&mut self, monitor: Monitor<'_>) -> Result<(), BenchError> {
        let sample = sample(monitor, &self.config)?;
        self.guests.push(sample.guest);
        self.totals.push(sample.total);
        self.phases.iter_mut().zip(sample.phases).for_each(|(all, part)| all.push(part));
        self.answers.push(answer::sample(monitor, &self.answering, &self.answering.with_file_name("a"))?);
        Ok(())
    }

    fn size(&self) -> Option<Size> {
        let phases = PHASES.into_iter().zip(&self.phases).filter_map(|(name, all)| Some((name, summarise(all)?)));
        Some(Size {
            memory_mib: self.memory_mib,
            guest: summarise(&self.guests)?,
            total: summarise(&self.totals)?,
            phases: phases.collect(),
            answer: summarise(&self.answers)?,
            pause_us: self.report.pause_ns as f64 / 1e3,
            memory_bytes: self.report.bytes,
        })
    }
}

/// Boots the guest in this process, and takes the snapshot when it waits.
fn save_waiting(kernel: &Path, snapshot: &Path, memory_mib: u64) -> Result<SnapshotReport, BenchError> {
    let config = serde_json::json!({ "boot-source": { "kernel_image_path": kernel },
                                     "machine-config": { "vcpu_count": 1, "mem_size_mib": memory_mib } });
    let (bell, output) = Bell::new();
    with_machine(&config, Console { input: None, output }, |handle| {
        bell.wait()?;
        save(handle, snapshot, SnapshotKind::Full)
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
