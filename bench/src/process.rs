//! Monitor processes, started and timed.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmm::events::{Event, Phase, monotonic_ns};

/// The phases of a monitor whose guest ends the machine at once, in order.
pub const PHASES: [&str; 5] = ["start", "build", "load", "guest", "exit"];

/// A benchmark that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A process could not be started, or its pipes broke.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The machine did not end as it should.
    #[error("the microVM failed: {0}")]
    Machine(String),
    /// The program beside it did not run.
    #[error("{0}")]
    Container(String),
    /// It was told to stop.
    #[error("interrupted")]
    Interrupted,
    /// No samples were asked for.
    #[error("at least one run is needed")]
    NoRuns,
}

/// For `map_err`.
pub(crate) fn io_error(what: &'static str) -> impl FnOnce(std::io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}

/// The error that a monitor's last words are, if it has some.
pub(crate) fn words(error: BenchError, stderr: &[u8]) -> BenchError {
    let said = String::from_utf8_lossy(stderr);
    if said.trim().is_empty() { error } else { BenchError::Machine(said.trim().to_owned()) }
}

/// The monitor to measure.
#[derive(Debug, Clone, Copy)]
pub struct Monitor<'a> {
    /// The program.
    pub bulkhead: &'a Path,
    /// Where it keeps KVM's CPUID leaves, as every microVM gets it.
    pub cpuid_cache: &'a Path,
}

/// One machine's life.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Process start to process exit, as the parent sees it.
    pub total: Duration,
    /// Process start to the effect of the guest's first instructions, the end of the machine.
    pub guest: Duration,
    /// The parts of `total`, as in [`PHASES`].
    pub phases: [Duration; PHASES.len()],
}

/// Starts a monitor, and gives it its configuration.
pub fn start(monitor: Monitor<'_>, config: &str) -> Result<Child, BenchError> {
    let mut command = Command::new(monitor.bulkhead);
    // A benchmark that is killed must not leave machines.
    command.args(["vmm", "--config-fd", "0", "--parent", &std::process::id().to_string()]);
    command.arg("--cpuid-cache").arg(monitor.cpuid_cache);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io_error("start of the monitor"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.as_bytes()).map_err(io_error("configuration"))?;
    }
    Ok(child)
}

/// Runs one machine to its end.
pub fn sample(monitor: Monitor<'_>, config: &str) -> Result<Sample, BenchError> {
    let began = monotonic_ns();
    let output = start(monitor, config)?.wait_with_output().map_err(io_error("output of the monitor"))?;
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
        return Err(BenchError::Machine(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    };
    let marks = [began, build, load, run, exit, ended];
    let between = |i: usize| Duration::from_nanos(marks[i + 1].saturating_sub(marks[i]));
    let guest = Duration::from_nanos(exit.saturating_sub(began));
    Ok(Sample { total: Duration::from_nanos(ended.saturating_sub(began)), guest, phases: std::array::from_fn(between) })
}

/// A process that does nothing, started the same way.
pub fn floor() -> Result<Duration, BenchError> {
    let began = Instant::now();
    let mut command = Command::new("true");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().and_then(Child::wait_with_output).map_err(io_error("start of 'true'"))?;
    Ok(began.elapsed())
}
