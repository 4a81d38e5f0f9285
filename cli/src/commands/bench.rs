//! `bulkhead bench`: prints what the bench library measures.

use std::io;
use std::path::Path;

use bench::process::Monitor;
use bench::stats::Summary;
use bench::{null, restore, run};
use serde::Serialize;

use crate::args::{Bench, BenchWhat, Format};
use crate::failure::Outcome;
use crate::{monitor, output, paths, rundir};

/// Measures, and prints the report.
pub fn bench(args: &Bench) -> Outcome {
    rundir::ensure(&paths::run())?;
    let cpuid_cache = paths::cpuid_cache();
    let program = monitor::program();
    let monitor = Monitor { bulkhead: &program, cpuid_cache: &cpuid_cache };
    match &args.what {
        &BenchWhat::Null { runs, format } => {
            let report = null::run(monitor, runs as usize)?;
            show(format, &report, print_null)?;
        }
        &BenchWhat::Restore { runs, format } => {
            let report = restore::run(monitor, runs as usize)?;
            show(format, &report, print_restore)?;
        }
        BenchWhat::Run { runs, format, image_and_command } => {
            let what = run::What { bulkhead: Path::new("/proc/self/exe"), arguments: image_and_command };
            let report = run::run(what, *runs as usize)?;
            show(*format, &report, print_run)?;
        }
    }
    Ok(0)
}

fn show<T: Serialize>(format: Format, report: &T, print: fn(&T) -> io::Result<()>) -> io::Result<()> {
    match format {
        Format::Json => output::json(report),
        Format::Table => print(report),
    }
}

fn row(name: &str, s: &Summary) -> [String; 5] {
    let ms = |us: f64| format!("{:.3}", us / 1e3);
    [name.to_owned(), ms(s.min_us), ms(s.p50_us), ms(s.p99_us), ms(s.max_us)]
}

const HEAD: [&str; 5] = ["MS", "MIN", "P50", "P99", "MAX"];

fn print_run(report: &run::Report) -> io::Result<()> {
    let series = |name: &str, series: &run::Series| {
        let phases = series.phases.iter().map(|(name, summary)| row(&format!("  {name}"), summary));
        [row(name, &series.total)].into_iter().chain(phases).collect::<Vec<_>>()
    };
    let rows = [series("cold", &report.cold), series("warm", &report.warm)].concat();
    output::table(HEAD, rows.into_iter().chain([row("floor: an empty process", &report.floor)]))?;
    output::print(&format!("{} runs of each; cold is {:.1} times warm\n", report.floor.samples, report.ratio))
}

fn print_restore(report: &restore::Report) -> io::Result<()> {
    let rows = report.sizes.iter().flat_map(|size| {
        let first = row(&format!("{} MiB: first instruction", size.memory_mib), &size.guest);
        let phases = size.phases.iter().map(|(name, summary)| row(&format!("  {name}"), summary));
        [first].into_iter().chain(phases).chain([row("  all", &size.total)])
    });
    output::table(HEAD, rows.chain([row("floor: an empty process", &report.floor)]))?;
    output::print(&format!("{} runs of each size\n", report.floor.samples))
}

fn print_null(report: &null::Report) -> io::Result<()> {
    let phases = report.phases.iter().map(|(name, summary)| row(&format!("  {name}"), summary));
    let rows = [row("null microVM", &report.total)]
        .into_iter()
        .chain(phases)
        .chain([row("floor: an empty process", &report.floor)]);
    output::table(HEAD, rows)?;
    output::print(&format!(
        "{} runs, {} MiB of guest memory each; {:.1} times the floor; {} KiB private memory of the monitor\n",
        report.total.samples, report.memory_mib, report.ratio, report.private_kib
    ))
}
