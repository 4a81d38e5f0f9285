//! `bulkhead run` as a user types it, booting and from a template: the same command, in turns, in one run.
//!
//! Times are the whole process's as its parent sees them; the parts are those that `run --verbose` tells.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::process::{BenchError, floor, io_error};
use crate::stats::{Summary, summarise};

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// With `--cold`.
    pub cold: Series,
    /// From a template.
    pub warm: Series,
    /// `cold.total.p50_us / warm.total.p50_us`.
    pub ratio: f64,
    /// A process that does nothing.
    pub floor: Summary,
}

/// Runs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Process start to process exit.
    pub total: Summary,
    /// Where the time goes, in order.
    pub phases: Vec<(String, Summary)>,
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct What<'a> {
    /// The program.
    pub bulkhead: &'a Path,
    /// IMAGE and the command.
    pub arguments: &'a [String],
}

/// Runs it `runs` times each way.
pub fn run(what: What<'_>, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 {
        return Err(BenchError::NoRuns);
    }
    // The image is prepared and the template made, once; neither is a sample.
    sample(what, &[])?;
    let (mut cold, mut warm, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        cold.push(sample(what, &["--cold"])?);
        warm.push(sample(what, &[])?);
        floors.push(floor()?);
    }
    if let Some(last) = warm.iter().find(|sample| !sample.phases.iter().any(|(name, _)| name == "wake")) {
        return Err(BenchError::Machine(format!("a run did not start from a template: {:?}", last.phases)));
    }
    let (cold, warm) = (series(&cold).ok_or(BenchError::NoRuns)?, series(&warm).ok_or(BenchError::NoRuns)?);
    let ratio = cold.total.p50_us / warm.total.p50_us;
    Ok(Report { cold, warm, ratio, floor: summarise(&floors).ok_or(BenchError::NoRuns)? })
}

struct Sample {
    total: Duration,
    phases: Vec<(String, Duration)>,
}

fn sample(what: What<'_>, flags: &[&str]) -> Result<Sample, BenchError> {
    let began = Instant::now();
    let mut command = Command::new(what.bulkhead);
    command.args(["run", "--rm", "--verbose"]).args(flags).args(what.arguments).env_remove("BULKHEAD_LOG");
    let output = command.stdin(Stdio::null()).output().map_err(io_error("start of 'bulkhead run'"))?;
    let total = began.elapsed();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(BenchError::Machine(format!("{}: {}", output.status, stderr.trim())));
    }
    Ok(Sample { total, phases: phases(&stderr) })
}

/// The table of phases that `--verbose` prints: names and milliseconds, up to the sum.
pub(crate) fn phases(stderr: &str) -> Vec<(String, Duration)> {
    let table = stderr.lines().skip_while(|line| !line.contains("phases (ms)")).skip(1);
    let row = |line: &str| {
        let (name, ms) = line.trim().split_once(' ')?;
        Some((name.to_owned(), Duration::try_from_secs_f64(ms.trim().parse::<f64>().ok()? / 1e3).ok()?))
    };
    table.map_while(row).take_while(|(name, _)| name != "total").collect()
}

fn series(samples: &[Sample]) -> Option<Series> {
    let total = summarise(&samples.iter().map(|sample| sample.total).collect::<Vec<_>>())?;
    let names = samples.first()?.phases.iter().map(|(name, _)| name);
    let phase = |name: &String| {
        let of = |sample: &Sample| sample.phases.iter().find(|(other, _)| other == name).map(|(_, time)| *time);
        Some((name.clone(), summarise(&samples.iter().filter_map(of).collect::<Vec<_>>())?))
    };
    Some(Series { total, phases: names.filter_map(phase).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_phases_is_read() {
        let text = "INFO something\nbulkhead: phases (ms)\n  image          0.501\n  wake          22.000\n  total         22.501\n";
        let expected = [("image".to_owned(), Duration::from_micros(501)), ("wake".into(), Duration::from_millis(22))];
        assert_eq!(phases(text), expected);
        assert!(phases("nothing").is_empty() && phases("phases (ms)\n  image x\n").is_empty());
    }

    #[test]
    fn what_does_not_run_is_an_error() {
        let what = What { bulkhead: Path::new("false"), arguments: &[] };
        assert!(matches!(run(what, 0), Err(BenchError::NoRuns)));
        assert!(matches!(run(what, 1), Err(BenchError::Machine(_))));
    }
}
