//! Devices without a guest: what Linux has asked of each, recorded ([`vmm::trace`]), asked again of the device behind its transport.
//!
//! The traces that come with the benchmark are of one Linux, each of a few hundred requests (`bench/traces/record` makes them); others
//! are recorded by [`record`]. Each run has a device of its own, with what it needs of the host ([`stage`]), and beside it runs one
//! that does nothing ([`vmm::trace::replay::Idle`]): what queues, transport and event loop take is the floor.

mod stage;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use vmm::api::Draft;
use vmm::config::SerialConfig;
use vmm::session::{self, Ended, Options};
use vmm::trace::Trace;
use vmm::trace::replay::{Idle, Replay, THREAD, device};

use crate::calls::Counting;
use crate::machine::failed;
use crate::place::Place;
use crate::process::BenchError;
use crate::stats::median;
use crate::threads;

use stage::Stage;
pub use stage::TRACES;

/// What threads are called that do a device's work.
const THREADS: &[&str] = &[THREAD, "disk", "iou-", "fs", "console"];

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Runs of each trace.
    pub runs: usize,
    /// One for each trace.
    pub rows: Vec<Row>,
}

/// Medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Where the trace is from: a file, or the name of a device, whose trace comes with the benchmark.
    pub trace: String,
    /// The device.
    pub device: String,
    /// Chains that it gives back in a run: requests, packets, and what it has put into the guest's room for such.
    pub operations: u64,
    /// Of those, how many with an error.
    pub errors: u64,
    /// Chains a second.
    pub rate: f64,
    /// Bytes of a chain, both ways.
    pub bytes: f64,
    /// Processor time for a chain, nanoseconds: of all the device's threads, without the driver's.
    pub device_ns: f64,
    /// The same of the device that does nothing.
    pub idle_ns: f64,
    /// Notifications of the driver's for a chain, each of which takes a vCPU out of its guest.
    pub kicks: f64,
    /// Interrupts for a chain.
    pub interrupts: f64,
    /// System calls of the device's threads for a chain; none where perf cannot count them.
    pub calls: Option<f64>,
}

/// Plays each trace `runs` times, in turns.
///
/// # Errors
/// There is nothing to run, a device cannot be had here, or a trace is not one of such a device.
pub fn run(traces: &[(String, Trace)], runs: usize) -> Result<Report, BenchError> {
    if runs == 0 || traces.is_empty() {
        return Err(BenchError::NoRuns);
    }
    let mut series: Vec<_> = traces.iter().map(|(name, trace)| Series::new(name, trace)).collect();
    // The first of each pays for cold caches, and for the counting of its system calls.
    for round in 0..=runs {
        for series in &mut series {
            series.round(round == 0)?;
        }
    }
    let rows = series.iter().map(Series::row).collect::<Option<_>>().ok_or(BenchError::NoRuns)?;
    Ok(Report { runs, rows })
}

/// What [`record`] has made.
#[derive(Debug)]
pub struct Recorded {
    /// A trace of each device.
    pub files: Vec<PathBuf>,
    /// The signal that ended the machine.
    pub signal: Option<i32>,
}

/// Boots the machine of a configuration file, read as that of `bulkhead vmm` is: its serial port is this process's stdin and stdout,
/// unless the file says otherwise. Records its devices' queues, into a file each in a directory that is there, until the guest ends or
/// SIGINT, SIGTERM or SIGHUP comes: a guest may wait for ever. To be called before other threads start.
///
/// # Errors
/// The machine cannot be had or fails, or a file of that name is there.
pub fn record(config: &[u8], directory: &Path) -> Result<Recorded, BenchError> {
    let draft = Draft::from_file(config, SerialConfig::Stdio).map_err(failed)?;
    let options = Options { draft, start: true, record: Some(directory.to_owned()), ..Options::default() };
    let begun = session::begin(false, false).map_err(failed)?;
    let Ended { recorded, signal, remains, .. } = session::run(begun, options, &mut |_| {}).map_err(failed)?;
    drop(remains);
    Ok(Recorded { files: recorded, signal })
}

/// The samples of one trace.
struct Series<'a> {
    name: &'a str,
    trace: &'a Trace,
    device: Vec<Sample>,
    idle: Vec<Sample>,
    calls: Option<f64>,
}

/// One run. All but the first two are for a chain.
struct Sample {
    operations: u64,
    errors: u64,
    seconds: f64,
    bytes: f64,
    cost: f64,
    kicks: f64,
    interrupts: f64,
    calls: Option<f64>,
}

impl<'a> Series<'a> {
    fn new(name: &'a str, trace: &'a Trace) -> Self {
        Series { name, trace, device: Vec::new(), idle: Vec::new(), calls: None }
    }

    fn round(&mut self, first: bool) -> Result<(), BenchError> {
        let said = |error: BenchError| BenchError::Machine(format!("{}: {error}", self.name));
        let played = sample(self.trace, false, first).map_err(said)?;
        let idle = sample(self.trace, true, false).map_err(said)?;
        if first {
            self.calls = played.calls;
        } else {
            self.device.push(played);
            self.idle.push(idle);
        }
        Ok(())
    }

    fn row(&self) -> Option<Row> {
        let of = |what: fn(&Sample) -> f64| median(&self.device.iter().map(what).collect::<Vec<_>>());
        Some(Row {
            trace: self.name.to_owned(),
            device: self.trace.device.clone(),
            operations: of(|sample| sample.operations as f64)? as u64,
            errors: of(|sample| sample.errors as f64)? as u64,
            rate: 1.0 / of(|sample| sample.seconds)?,
            bytes: of(|sample| sample.bytes)?,
            device_ns: of(|sample| sample.cost)?,
            idle_ns: median(&self.idle.iter().map(|sample| sample.cost).collect::<Vec<_>>())?,
            kicks: of(|sample| sample.kicks)?,
            interrupts: of(|sample| sample.interrupts)?,
            calls: self.calls,
        })
    }
}

/// A device made and run once, or one that does nothing in its place; its system calls are counted, or not.
fn sample(trace: &Trace, idle: bool, count: bool) -> Result<Sample, BenchError> {
    let place = Place::new()?;
    let stage = Stage::set(trace, place.path())?;
    let mut device = device(trace, &stage.section, stage.given()?).map_err(failed)?;
    if idle {
        device = Box::new(Idle::like(device.as_ref(), &stage.keeps));
    }
    let mut replay = Replay::start(trace, device, &stage.keeps).map_err(failed)?;
    let counting = if count { Counting::start(THREADS) } else { None };
    let (began, before) = (Instant::now(), threads::time(THREADS)?);
    replay.run(trace).map_err(failed)?;
    let (took, used) = (began.elapsed(), threads::time(THREADS)?.saturating_sub(before));
    let calls = counting.and_then(Counting::end);
    let reading = replay.reading();
    let (mut operations, mut errors, mut bytes, mut kicks) = (0, 0, 0, 0);
    for queue in &reading.queues {
        operations += queue.operations;
        errors += queue.errors;
        bytes += queue.bytes_from_guest + queue.bytes_to_guest;
        kicks += queue.kicks;
    }
    // A trace without requests is done in no time, and tells nothing.
    let each = |number: f64| number / operations.max(1) as f64;
    Ok(Sample {
        operations,
        errors,
        seconds: each(took.as_secs_f64()),
        bytes: each(bytes as f64),
        cost: each(used.as_nanos() as f64),
        kicks: each(kicks as f64),
        interrupts: each(reading.interrupts as f64),
        calls: calls.map(|calls| each(calls as f64)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_runs_is_an_error() {
        let trace = TRACES[0].1.parse::<Trace>().unwrap();
        assert!(matches!(run(&[], 1), Err(BenchError::NoRuns)));
        assert!(matches!(run(&[("a".into(), trace)], 0), Err(BenchError::NoRuns)));
    }

    #[test]
    fn what_comes_with_the_benchmark_is_done_again_by_every_device() {
        let traces: Vec<_> = TRACES.iter().map(|(name, text)| ((*name).to_owned(), text.parse().unwrap())).collect();
        let report = run(&traces, 1).unwrap();
        for row in &report.rows {
            assert_eq!(row.trace, row.device);
            assert!(row.operations > 0 && row.rate > 0.0 && row.kicks > 0.0, "{row:?}");
            match row.device.as_str() {
                // It is for reading: each flush of what was written is refused.
                "pmem" => assert!(row.errors > 0, "{row:?}"),
                // Packets for a connection that the other end has closed are errors, and it may be sooner or later.
                "vsock" => assert!(row.errors * 4 < row.operations, "{row:?}"),
                _ => assert_eq!(row.errors, 0, "{row:?}"),
            }
        }
    }

    #[test]
    fn a_trace_that_does_not_fit_names_itself() {
        let trace = "bulkhead queue trace 1\ndevice rng\nfeatures 0x100000000\nmemory 0\nconfig \nchain 7 w1\n";
        let error = run(&[("mine".into(), trace.parse().unwrap())], 1).unwrap_err().to_string();
        assert!(error.contains("mine: ") && error.contains("no queue 7"), "{error}");
        let toaster = trace.replace("rng", "toaster").parse().unwrap();
        let error = run(&[("mine".into(), toaster)], 1).unwrap_err().to_string();
        assert!(error.contains("a device 'toaster'; there are"), "{error}");
    }
}
