//! `bulkhead bench`: prints what the bench library measures.

use std::path::Path;

use bench::null::{self, Report};
use bench::stats::Summary;

use crate::args::{Bench, BenchWhat, Format};
use crate::failure::Outcome;
use crate::{output, paths, rundir};

/// Measures, and prints the report.
pub fn bench(args: &Bench) -> Outcome {
    let BenchWhat::Null { runs, format } = args.what;
    rundir::ensure(&paths::run())?;
    let report = null::run(Path::new("/proc/self/exe"), &paths::cpuid_cache(), runs as usize)?;
    match format {
        Format::Json => output::json(&report)?,
        Format::Table => print(&report)?,
    }
    Ok(0)
}

fn print(report: &Report) -> std::io::Result<()> {
    let row = |name: &str, s: &Summary| {
        let ms = |us: f64| format!("{:.3}", us / 1e3);
        [name.to_owned(), ms(s.min_us), ms(s.p50_us), ms(s.p99_us), ms(s.max_us)]
    };
    let phases = report.phases.iter().map(|(name, summary)| row(&format!("  {name}"), summary));
    let rows = [row("null microVM", &report.total)]
        .into_iter()
        .chain(phases)
        .chain([row("floor: an empty process", &report.floor)]);
    output::table(["MS", "MIN", "P50", "P99", "MAX"], rows)?;
    output::print(&format!(
        "{} runs, {} MiB of guest memory each; {:.1} times the floor; {} KiB private memory of the monitor\n",
        report.total.samples, report.memory_mib, report.ratio, report.private_kib
    ))
}
