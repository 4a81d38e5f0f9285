//! A disk's speed: random reads of 4 KiB by a guest in ring 3, without Linux in the way, beside fio on the same file.
//!
//! The guest (package `bench-guest`) keeps so many requests under way and looks for their ends, so what is measured is the device
//! and what is behind it. The file is in the page cache. What the machine's threads but the vCPU's use of the processor is the
//! device's cost. fio, where it is installed, does the same by io_uring on the host, half of its depth at a time. System calls are
//! counted in a run of their own, which is slower for it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use bench_guest::disk::BLOCK;
use serde::Serialize;
use serde_json::{Value, json};
use vmm::Console;

use crate::calls::Counting;
use crate::guest;
use crate::machine::{Bell, with_machine};
use crate::place::Place;
use crate::process::{BenchError, io_error};
use crate::stats::median;
use crate::threads;

/// Most requests under way at a time.
pub const MOST: usize = bench_guest::disk::MOST;
/// What threads are called that do a disk's work.
const THREADS: &[&str] = &["events", "disk", "iou-"];
/// Bytes of the file.
const FILE: usize = 256 << 20;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct What<'a> {
    /// Where to put the file: its file system is measured, too.
    pub dir: &'a Path,
    /// Requests under way at a time: each 1 to [`MOST`].
    pub depths: &'a [usize],
    /// Requests of a run.
    pub requests: u64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Runs of each.
    pub runs: usize,
    /// Requests of a run.
    pub requests: u64,
    /// One for each depth.
    pub rows: Vec<Row>,
}

/// Medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Requests under way at a time.
    pub depth: usize,
    /// Requests a second, of the guest.
    pub guest: f64,
    /// Processor time of the monitor for a request, without the vCPU's, nanoseconds.
    pub monitor_ns: f64,
    /// Kicks for a request, each of which takes the vCPU out of the guest.
    pub kicks: f64,
    /// System calls of the monitor for a request; none where perf cannot count them.
    pub calls: Option<f64>,
    /// Requests a second, of fio; none where it is not installed.
    pub fio: Option<f64>,
    /// Processor time of fio for a request, nanoseconds.
    pub fio_ns: Option<f64>,
    /// `guest` by `fio`.
    pub ratio: Option<f64>,
}

/// Runs each `runs` times, in turns.
pub fn run(what: What<'_>, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 || what.requests == 0 || what.depths.iter().any(|depth| !(1..=MOST).contains(depth)) {
        return Err(BenchError::NoRuns);
    }
    let place = Place::within(what.dir)?;
    let (kernel, disk) = (place.path().join("guest"), place.path().join("disk"));
    fs::write(&kernel, guest::ANSWER).map_err(io_error("guest"))?;
    fill(&disk).map_err(io_error("file for the disk"))?;
    let mut series: Vec<_> = what
        .depths
        .iter()
        .map(|depth| Series { depth: *depth, guest: Vec::new(), calls: None, fio: Vec::new() })
        .collect();
    // The first of each pays for cold caches, once.
    for round in 0..=runs {
        for series in &mut series {
            let guest = sample(&kernel, &disk, series.depth, what.requests, round == 0)?;
            let fio = fio(&disk, series.depth, what.requests)?;
            if round > 0 {
                series.guest.push(guest);
                series.fio.extend(fio);
            } else {
                series.calls = guest.calls;
            }
        }
    }
    let rows = series.iter().map(Series::row).collect::<Option<_>>().ok_or(BenchError::NoRuns)?;
    Ok(Report { runs, requests: what.requests, rows })
}

/// The samples of one depth.
struct Series {
    depth: usize,
    guest: Vec<Sample>,
    /// System calls for a request.
    calls: Option<f64>,
    fio: Vec<Sample>,
}

/// One run.
struct Sample {
    /// Requests a second.
    rate: f64,
    /// Processor time of a request, nanoseconds.
    cost: f64,
    /// Kicks for a request.
    kicks: f64,
    /// System calls for a request, if they were counted.
    calls: Option<f64>,
}

impl Series {
    fn row(&self) -> Option<Row> {
        let of = |samples: &[Sample], what: fn(&Sample) -> f64| median(&samples.iter().map(what).collect::<Vec<_>>());
        let (guest, fio) = (of(&self.guest, |s| s.rate)?, of(&self.fio, |s| s.rate));
        Some(Row {
            depth: self.depth,
            guest,
            monitor_ns: of(&self.guest, |s| s.cost)?,
            kicks: of(&self.guest, |s| s.kicks)?,
            calls: self.calls,
            fio,
            fio_ns: of(&self.fio, |s| s.cost),
            ratio: fio.map(|fio| guest / fio),
        })
    }
}

/// A file without holes, in the page cache.
fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 512 + n) as u8).collect();
    (0..FILE / block.len()).try_for_each(|_| file.write_all(&block))?;
    file.sync_all()
}

/// A run of a guest, in which system calls are counted or not. The time of its vCPU is not counted.
fn sample(kernel: &Path, disk: &Path, depth: usize, requests: u64, count: bool) -> Result<Sample, BenchError> {
    let config = json!({
        "boot-source": { "kernel_image_path": kernel },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 16 },
        // The guest reads there what it is to do.
        "drives": [{ "drive_id": format!("{depth} {requests}"), "path_on_host": disk }],
    });
    let (bell, output) = Bell::new();
    with_machine(&config, Console { input: None, output }, |handle| {
        // Of the disk's queues: kicks, and requests that are done.
        let queues = || handle.devices().into_iter().flat_map(|device| device.reading.queues);
        let numbers = || queues().fold((0, 0), |sum, queue| (sum.0 + queue.kicks, sum.1 + queue.operations));
        bell.wait()?;
        let counting = if count { Counting::start(THREADS) } else { None };
        let (began, before, counted) = (Instant::now(), threads::time(THREADS)?, numbers());
        bell.wait()?;
        let (took, used) = (began.elapsed(), threads::time(THREADS)?.saturating_sub(before));
        let calls = counting.and_then(Counting::end);
        // Those that were done while perf was started are nobody's.
        let (kicks, done) = (numbers().0 - counted.0, (numbers().1 - counted.1).max(1) as f64);
        let requests = requests as f64;
        Ok(Sample {
            rate: requests / took.as_secs_f64(),
            cost: used.as_nanos() as f64 / requests,
            kicks: kicks as f64 / done,
            calls: calls.map(|calls| calls as f64 / done),
        })
    })
}

/// A run of fio; `None` if there is none.
fn fio(disk: &Path, depth: usize, requests: u64) -> Result<Option<Sample>, BenchError> {
    let mut command = Command::new("fio");
    command.args(["--name=read", "--rw=randread", "--ioengine=io_uring", "--registerfiles=1", "--direct=0"]);
    // Otherwise it drops the file's page cache, and remembers which blocks it has read.
    command.args(["--invalidate=0", "--norandommap", "--thread", "--output-format=json"]);
    command.arg(format!("--filename={}", disk.display())).arg(format!("--bs={BLOCK}"));
    command.arg(format!("--iodepth={depth}")).arg(format!("--io_size={}", requests * BLOCK as u64));
    let half = depth.div_ceil(2);
    command.arg(format!("--iodepth_batch_submit={half}")).arg(format!("--iodepth_batch_complete_min={half}"));
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_error("start of 'fio'"))?,
    };
    let broken =
        || BenchError::Container(format!("fio: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    let report: Value = serde_json::from_slice(&output.stdout).map_err(|_| broken())?;
    let job = &report["jobs"][0];
    let number = |value: &Value| value.as_f64().ok_or_else(broken);
    let (percent, ms) = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?, number(&job["job_runtime"])?);
    Ok(Some(Sample {
        rate: number(&job["read"]["iops"])?,
        cost: percent / 100.0 * ms * 1e6 / requests as f64,
        kicks: 0.0,
        calls: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_runs_is_an_error() {
        let what = What { dir: Path::new("/nonexistent"), depths: &[1], requests: 1 };
        assert!(matches!(run(what, 0), Err(BenchError::NoRuns)));
        assert!(matches!(run(What { requests: 0, ..what }, 1), Err(BenchError::NoRuns)));
        assert!(matches!(run(What { depths: &[33], ..what }, 1), Err(BenchError::NoRuns)));
        assert!(matches!(run(what, 1), Err(BenchError::Io { .. })));
    }
}
