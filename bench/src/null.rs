//! The cost of a machine that does nothing: process start, one port write by a four-instruction guest, process exit.
//!
//! Each sample is a whole `bulkhead vmm` process with 128 MiB of guest RAM, on the same path that boots Linux. The floor
//! beside it is a process that does nothing at all (`true`), started the same way in the same run, samples alternating.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use vmm::events::{Event, Phase, monotonic_ns};

use crate::guest;
use crate::stats::{Summary, summarise};

/// A benchmark that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum NullError {
    /// A process could not be started, or its pipes broke.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The machine did not end as it should.
    #[error("the null machine failed: {0}")]
    Machine(String),
    /// No samples were asked for.
    #[error("at least one run is needed")]
    NoRuns,
}

fn io_error(what: &'static str) -> impl FnOnce(std::io::Error) -> NullError {
    move |source| NullError::Io { what, source }
}

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
const PHASES: [&str; 5] = ["start", "build", "load", "guest", "exit"];

/// The monitor to measure.
#[derive(Clone, Copy)]
struct Monitor<'a> {
    bulkhead: &'a Path,
    /// As every microVM gets it.
    cpuid_cache: &'a Path,
}

/// Runs `runs` null machines with the monitor `bulkhead`, which keeps KVM's CPUID leaves in `cpuid_cache`.
pub fn run(bulkhead: &Path, cpuid_cache: &Path, runs: usize) -> Result<Report, NullError> {
    if runs == 0 {
        return Err(NullError::NoRuns);
    }
    let monitor = Monitor { bulkhead, cpuid_cache };
    let dir = tempfile::tempdir().map_err(io_error("temporary directory"))?;
    let null = dir.path().join("null");
    let halt = dir.path().join("halt");
    std::fs::write(&null, guest::elf(guest::NULL)).map_err(io_error("null guest"))?;
    std::fs::write(&halt, guest::elf(guest::HALT)).map_err(io_error("halting guest"))?;

    // The first of each pays for cold caches, once; it is not a sample.
    sample(monitor, &null)?;
    floor()?;
    let (mut totals, mut floors) = (Vec::new(), Vec::new());
    let mut phases: [Vec<Duration>; PHASES.len()] = Default::default();
    for _ in 0..runs {
        let (total, parts) = sample(monitor, &null)?;
        totals.push(total);
        phases.iter_mut().zip(parts).for_each(|(all, part)| all.push(part));
        floors.push(floor()?);
    }
    let (total, floor) = (summarise(&totals).ok_or(NullError::NoRuns)?, summarise(&floors).ok_or(NullError::NoRuns)?);
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

fn start(monitor: Monitor<'_>, kernel: &Path) -> Result<Child, NullError> {
    let mut command = Command::new(monitor.bulkhead);
    // A benchmark that is killed must not leave machines.
    command.args(["vmm", "--config-fd", "0", "--parent", &std::process::id().to_string()]);
    command.arg("--cpuid-cache").arg(monitor.cpuid_cache);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io_error("start of the monitor"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config(kernel).as_bytes()).map_err(io_error("configuration"))?;
    }
    Ok(child)
}

/// One machine: its whole time, and its parts as in [`PHASES`].
fn sample(monitor: Monitor<'_>, kernel: &Path) -> Result<(Duration, [Duration; PHASES.len()]), NullError> {
    let began = monotonic_ns();
    let output = start(monitor, kernel)?.wait_with_output().map_err(io_error("output of the monitor"))?;
    let ended = monotonic_ns();
    let events: Vec<Event> =
        output.stdout.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let phase = |wanted| {
        events.iter().find_map(|event| match event {
            Event::Phase { phase, at_ns } if *phase == wanted => Some(*at_ns),
            _ => None,
        })
    };
    let exit = events.iter().find_map(|event| match event {
        Event::Exit { at_ns, .. } => Some(*at_ns),
        _ => None,
    });
    let (Some(build), Some(load), Some(run), Some(exit)) =
        (phase(Phase::Build), phase(Phase::Load), phase(Phase::Run), exit)
    else {
        return Err(NullError::Machine(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    };
    let marks = [began, build, load, run, exit, ended];
    let between = |i: usize| Duration::from_nanos(marks[i + 1].saturating_sub(marks[i]));
    Ok((Duration::from_nanos(ended.saturating_sub(began)), std::array::from_fn(between)))
}

fn floor() -> Result<Duration, NullError> {
    let began = Instant::now();
    let mut command = Command::new("true");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().and_then(Child::wait_with_output).map_err(io_error("start of 'true'"))?;
    Ok(began.elapsed())
}

/// Private memory of a monitor whose guest is halted, without the guest's RAM.
fn private_memory(monitor: Monitor<'_>, kernel: &Path) -> Result<u64, NullError> {
    let mut child = start(monitor, kernel)?;
    let result = (|| {
        let stdout = child.stdout.take().ok_or_else(|| NullError::Machine("no output".into()))?;
        let runs = |line: &String| matches!(serde_json::from_str(line), Ok(Event::Phase { phase: Phase::Run, .. }));
        if !BufReader::new(stdout).lines().map_while(Result::ok).any(|line| runs(&line)) {
            let mut why = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut why).map_err(io_error("output of the monitor"))?;
            }
            return Err(NullError::Machine(why.trim().to_owned()));
        }
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", child.id())).map_err(io_error("smaps"))?;
        Ok(private_kib(&maps, MEMORY_MIB * 1024))
    })();
    // It has no end of its own; whatever came before, it must not stay.
    let _ = child.kill();
    let _ = child.wait();
    result
}

/// Sum of the Private_* lines of `smaps` over all mappings but those of `guest_kib` KiB.
fn private_kib(smaps: &str, guest_kib: u64) -> u64 {
    let mut sum = 0;
    let mut is_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (key, value) = (words.next().unwrap_or(""), words.next().and_then(|v| v.parse::<u64>().ok()));
        match (key, value) {
            ("Size:", Some(size)) => is_guest = size == guest_kib,
            ("Private_Clean:" | "Private_Dirty:", Some(kib)) if !is_guest => sum += kib,
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count_as_the_monitors() {
        let smaps = "7f00-7f01 rw-p 0 00:00 0 \nSize: 131072 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 9000 kB\n\
                     55-56 r--p 0 00:00 0 /x\nSize: 300 kB\nPrivate_Clean: 3 kB\nPrivate_Dirty: 5 kB\nShared_Clean: 7 kB\n";
        assert_eq!(private_kib(smaps, 131_072), 8);
    }

    #[test]
    fn no_runs_is_an_error() {
        assert!(matches!(run(Path::new("/nonexistent"), Path::new("/nonexistent"), 0), Err(NullError::NoRuns)));
        assert!(matches!(run(Path::new("/nonexistent"), Path::new("/nonexistent"), 1), Err(NullError::Io { .. })));
    }
}
