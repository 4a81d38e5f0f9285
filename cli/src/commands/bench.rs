//! `bulkhead bench`: prints what the bench library measures.

use std::fs;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use bench::process::{BenchError, Monitor};
use bench::stats::Summary;
use bench::{blk, clones, disturb, layers, mover, neighbours, null, replay, restore, run, snapshot, vsock};
use guest_images::{Layer, Store, kernel};
use serde::Serialize;
use vmm::host;
use vmm::trace::{MOST_TEXT, Trace};

use super::compare;
use crate::args::{Bench, BenchWhat, Format, Talk};
use crate::cgroup::{Group, Limits};
use crate::failure::{FAILED, Outcome};
use crate::life::kernel_kind;
use crate::output::Progress;
use crate::rundir::RunDir;
use crate::{monitor, net, output, paths, rundir};

/// Measures, and prints the report.
pub fn bench(args: &Bench, talk: Talk) -> Outcome {
    // These run in containers, or are killed, and leave nothing.
    if !matches!(args.what, BenchWhat::Move { .. } | BenchWhat::Disturb { .. }) {
        rundir::ensure(&paths::run())?;
    }
    let cpuid_cache = paths::cpuid_cache();
    let program = monitor::program();
    let monitor = Monitor { bulkhead: &program, cpuid_cache: &cpuid_cache };
    match &args.what {
        BenchWhat::Compare(args) => return compare::compare(args, talk),
        BenchWhat::Ablate(args) => return compare::ablate(args, talk),
        BenchWhat::Density(args) => return compare::density(args, talk),
        BenchWhat::Diff(args) => return compare::diff(args),
        BenchWhat::Report(args) => return compare::report(args),
        BenchWhat::Move { order } => move_data(order)?,
        BenchWhat::Disturb { way, file } => {
            disturb::disturb(*way, file).with_context(|| format!("'{}'", file.display()))?;
        }
        &BenchWhat::Null { runs, format } => {
            let report = null::run(monitor, runs as usize)?;
            show(format, &report, print_null)?;
        }
        &BenchWhat::Restore { runs, format } => {
            let report = restore::run(monitor, runs as usize)?;
            show(format, &report, print_restore)?;
        }
        BenchWhat::Snapshot { runs, resident, dir, format } => {
            let dir = dir.clone().unwrap_or_else(std::env::temp_dir);
            let what = snapshot::What { resident_mib: resident.clone(), dir };
            let report = snapshot::run(&what, *runs as usize)?;
            show(*format, &report, print_snapshot)?;
        }
        &BenchWhat::Clones { number, memory, parallel, most, format } => {
            let parallel = parallel.map_or_else(processors, |parallel| parallel as usize);
            let what = clones::What { number: number as usize, memory_mib: memory, parallel, most };
            let report = clones::run(monitor, what)?;
            show(format, &report, print_clones)?;
        }
        BenchWhat::Neighbours { rounds, neighbours, no_groups, dir, format } => {
            let dir = dir.clone().unwrap_or_else(std::env::temp_dir);
            let number = neighbours.map_or_else(processors, |number| number as usize);
            let mut group = |pid| grouped(pid, !no_groups);
            let what = neighbours::What { neighbours: number, processors: processors(), dir: &dir, group: &mut group };
            let report = neighbours::run(monitor, what, *rounds as usize)?;
            show(*format, &report, print_neighbours)?;
        }
        BenchWhat::Blk { runs, requests, depth, dir, format } => {
            let dir = dir.clone().unwrap_or_else(std::env::temp_dir);
            let depths: Vec<_> = depth.iter().map(|depth| *depth as usize).collect();
            let what = blk::What { dir: &dir, depths: &depths, requests: u64::from(*requests) };
            let report = blk::run(what, *runs as usize)?;
            show(*format, &report, print_blk)?;
        }
        &BenchWhat::Net { runs, size, format } => {
            let what = bench::net::What { network: net::free_network()?, bytes: size << 20 };
            let report = bench::net::run(what, runs as usize)?;
            show(format, &report, print_net)?;
        }
        &BenchWhat::Vsock { runs, size, format } => {
            let report = vsock::run(size, runs as usize)?;
            show(format, &report, print_vsock)?;
        }
        BenchWhat::Layers { runs, format, image } => {
            let report = layers_of(image, *runs as usize, talk)?;
            show(*format, &report, print_layers)?;
        }
        BenchWhat::Replay { runs, format, traces } => {
            let report = replay::run(&read_traces(traces)?, *runs as usize)?;
            show(*format, &report, print_replay)?;
        }
        BenchWhat::Record { config, directory } => {
            let text = fs::read(config).with_context(|| format!("'{}'", config.display()))?;
            let recorded = replay::record(&text, directory)?;
            recorded.files.iter().for_each(|file| eprintln!("{}", file.display()));
            return Ok(recorded.signal.map_or(0, |signal| u8::try_from(128 + signal).unwrap_or(FAILED)));
        }
        BenchWhat::Run { runs, format, image_and_command } => {
            let what = run::What { bulkhead: Path::new("/proc/self/exe"), arguments: image_and_command };
            let report = run::run(what, *runs as usize)?;
            show(*format, &report, print_run)?;
        }
    }
    Ok(0)
}

fn move_data(order: &str) -> anyhow::Result<()> {
    let order: mover::Order = serde_json::from_str(order).context("no order of `bench compare`")?;
    // If nobody hears it, there is nobody to tell.
    mover::carry_out(&order, &mut |line| {
        let _ = output::print(&format!("{line}\n"));
    });
    Ok(())
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Puts a microVM's process into a control group, as all verbs do: it goes with a run directory of its own.
fn grouped(pid: u32, wanted: bool) -> Result<neighbours::Hold, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Machine(error.to_string());
    if !wanted {
        return Ok(Box::new(()));
    }
    let directory = RunDir::create(&paths::run(), None).map_err(|error| failed(&error))?;
    let limits = Limits { vcpus: 1, memory_mib: neighbours::MEMORY_MIB, quota: None };
    match Group::make(&directory.path(), pid, limits).missing() {
        Some(missing) => Err(failed(&format!("this host gives no {missing}; --no-groups measures without"))),
        None => Ok(Box::new(directory)),
    }
}

/// Measures the largest layer of an image, which keeps it meanwhile.
fn layers_of(image: &str, runs: usize, talk: Talk) -> anyhow::Result<layers::Report> {
    let reference = image.parse().map_err(guest_images::ImageError::from)?;
    let image = Store::open(paths::store())?.prepare(&reference, &mut Progress::new(talk))?;
    let bytes = |layer: &&Layer| fs::metadata(&layer.path).map_or(0, |meta| meta.len());
    let layer = image.layers.iter().max_by_key(bytes).ok_or_else(|| anyhow!("the image has no layers"))?;
    let kernel = kernel::find(kernel_kind(host::kind()))?;
    Ok(layers::run(layers::What { kernel: &kernel.path, words: &kernel.cmdline, layer: &layer.path }, runs)?)
}

/// The traces of these files, or those that come with the benchmark.
fn read_traces(files: &[PathBuf]) -> anyhow::Result<Vec<(String, Trace)>> {
    if files.is_empty() {
        return replay::TRACES.iter().map(|(name, text)| Ok(((*name).to_owned(), text.parse()?))).collect();
    }
    let read = |file: &PathBuf| {
        let name = file.display().to_string();
        // A file that is no text, or too long, is read no further than that shows.
        let mut text = String::new();
        let opened = fs::File::open(file).with_context(|| format!("'{name}'"))?;
        opened.take(MOST_TEXT as u64 + 1).read_to_string(&mut text).with_context(|| format!("'{name}'"))?;
        let trace = text.parse().with_context(|| format!("'{name}'"))?;
        Ok((name, trace))
    };
    files.iter().map(read).collect()
}

fn print_replay(report: &replay::Report) -> io::Result<()> {
    const HEAD: [&str; 9] =
        ["TRACE", "OPERATIONS", "A SECOND", "BYTES EACH", "NS EACH", "IDLE NS", "KICKS", "INTERRUPTS", "CALLS"];
    let rows = report.rows.iter().map(|row| {
        let calls = row.calls.map_or_else(|| "-".into(), |calls| format!("{calls:.2}"));
        [
            row.trace.clone(),
            row.operations.to_string(),
            format!("{:.0}", row.rate),
            format!("{:.0}", row.bytes),
            format!("{:.0}", row.device_ns),
            format!("{:.0}", row.idle_ns),
            format!("{:.2}", row.kicks),
            format!("{:.2}", row.interrupts),
            calls,
        ]
    });
    output::table(HEAD, rows)?;
    output::print(&format!("medians of {} runs\n", report.runs))
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
        let answer = row(&format!("{} MiB: answer of a process", size.memory_mib), &size.answer);
        [first].into_iter().chain(phases).chain([row("  all", &size.total), answer])
    });
    let runc = report.runc.iter().map(|summary| row("runc run of an empty process", summary));
    output::table(HEAD, rows.chain(runc).chain([row("floor: an empty process", &report.floor)]))?;
    let beside = match (report.sizes.first(), report.answer_by_runc) {
        (Some(size), Some(ratio)) => format!("an answer at {} MiB takes {ratio:.2} times runc's run", size.memory_mib),
        _ => "runc is not installed, so nothing stands beside the answers".to_owned(),
    };
    output::print(&format!("{} runs of each size; {beside}\n", report.floor.samples))
}

fn print_snapshot(report: &snapshot::Report) -> io::Result<()> {
    let rows = report.rows.iter().flat_map(|r| {
        let name = format!("{} MiB: {} snapshot", r.resident_mib, r.kind);
        [
            row(&name, &r.snapshot),
            row("  pause", &r.pause),
            row("  plain write", &r.write),
            row("  plain write, not synced", &r.write_unsynced),
        ]
    });
    output::table(HEAD, rows)?;
    for r in &report.rows {
        let mib = r.bytes as f64 / f64::from(1 << 20);
        let (size, kind) = (r.resident_mib, r.kind);
        output::print(&format!("{size} MiB, {kind}: {mib:.1} MiB in {:.2} times the plain write\n", r.ratio))?;
    }
    Ok(())
}

fn print_clones(report: &clones::Report) -> io::Result<()> {
    let rows = [row("start to answer", &report.answer), row("asked again, all at once", &report.again)];
    output::table(HEAD, rows)?;
    output::print(&format!(
        "{} microVMs of {} MiB at the same time, {} starting at a time; {:.0} ms from the first start to the last answer\n\
         each: {} KiB private memory of the monitor (most: {}), {} KiB of guest pages of its own (most: {}); the host has \
         {:.0} KiB less\n",
        report.clones,
        report.memory_mib,
        report.parallel,
        report.total_ms,
        report.monitor_kib.p50,
        report.monitor_kib.max,
        report.guest_kib.p50,
        report.guest_kib.max,
        report.host_kib,
    ))?;
    match &report.stopped {
        Some(reason) => output::print(&format!("no more: {reason}\n")),
        None => Ok(()),
    }
}

fn print_blk(report: &blk::Report) -> io::Result<()> {
    let or_none =
        |value: Option<f64>, digits| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
    let rows = report.rows.iter().map(|row| {
        let [guest, monitor] = [row.guest, row.monitor_ns].map(|value| format!("{value:.0}"));
        let (kicks, calls) = (format!("{:.3}", row.kicks), or_none(row.calls, 3));
        let beside = [or_none(row.fio, 0), or_none(row.ratio, 2), monitor, or_none(row.fio_ns, 0)];
        let [fio, ratio, monitor, fio_ns] = beside;
        [row.depth.to_string(), guest, fio, ratio, monitor, fio_ns, kicks, calls]
    });
    let head = ["AT A TIME", "GUEST/S", "FIO/S", "RATIO", "MONITOR NS EACH", "FIO NS EACH", "KICKS", "CALLS"];
    output::table(head, rows)?;
    let beside = if report.rows.iter().any(|row| row.fio.is_none()) { "; fio is not installed" } else { "" };
    output::print(&format!("medians of {} runs of {} requests{beside}\n", report.runs, report.requests))
}

fn print_layers(report: &layers::Report) -> io::Result<()> {
    let rows = report.rows.iter().map(|row| {
        let [start, read, again] = [row.start_ms, row.read_ms, row.again_ms].map(|ms| format!("{ms:.0}"));
        let [begins, has_read] = [row.start_kib, row.read_kib].map(|kib| format!("{:.1}", kib / 1024.0));
        [row.way.to_owned(), start, begins, read, has_read, again]
    });
    let head = ["LAYER AS", "START MS", "MIB THEN", "READ MS", "MIB THEN", "AGAIN MS"];
    output::table(head, rows)?;
    let mib = report.bytes as f64 / f64::from(1 << 20);
    output::print(&format!("medians of {} runs; the layer has {mib:.0} MiB\n", report.runs))
}

fn print_net(report: &bench::net::Report) -> io::Result<()> {
    let rows = report.rows.iter().map(|row| {
        let rates = [row.guest, row.floor].map(|rate| format!("{rate:.1}"));
        let [monitor, floor, packet] = [row.monitor_ns, row.floor_ns, row.packet].map(|value| format!("{value:.0}"));
        let [kicks, calls] = [row.kicks, row.calls].map(|count| format!("{count:.3}"));
        let [guest, beside] = rates;
        [row.way.to_owned(), guest, beside, format!("{:.2}", row.ratio), packet, monitor, floor, kicks, calls]
    });
    let head = [
        "TCP",
        "GUEST GB/S",
        "FLOOR GB/S",
        "RATIO",
        "BYTES EACH",
        "MONITOR NS EACH",
        "FLOOR NS EACH",
        "KICKS",
        "CALLS",
    ];
    output::table(head, rows)?;
    let mib = report.bytes >> 20;
    output::print(&format!(
        "medians of {} runs of {mib} MiB; \"each\" is a packet, acknowledgements too\n",
        report.runs
    ))
}

fn print_vsock(report: &vsock::Report) -> io::Result<()> {
    let rows = report.rows.iter().map(|row| {
        let numbers = [(row.gbits, 1), (row.ratio, 2), (row.monitor_ns, 0), (row.packet, 0), (row.kicks, 3)];
        let [gbits, ratio, cost, packet, kicks] = numbers.map(|(value, digits)| format!("{value:.digits$}"));
        [row.direction.to_owned(), gbits, ratio, cost, packet, kicks]
    });
    output::table(["DIRECTION", "GBIT/S", "BY THE FLOOR", "MONITOR NS A KIB", "BYTES EACH", "KICKS"], rows)?;
    let (runs, mib) = (report.runs, report.bytes >> 20);
    output::print(&format!(
        "medians of {runs} runs of {mib} MiB; floor, process to process: {:.1} Gbit/s\n",
        report.floor
    ))
}

fn print_neighbours(report: &neighbours::Report) -> io::Result<()> {
    let rows = report.rows.iter().map(|row| {
        let ms = |times: &Summary| [times.p50_us, times.p99_us].map(|us| format!("{:.2}", us / 1e3));
        let ([answer, late], [work, slow], [write, stuck]) = (ms(&row.answer), ms(&row.work), ms(&row.write));
        [row.neighbours.to_owned(), answer, late, work, slow, format!("{:.2}", row.ratio), write, stuck]
    });
    let head = ["MS, NEIGHBOURS", "ANSWER", "P99", "WORK", "P99", "TIMES", "DURABLE WRITE", "P99"];
    output::table(head, rows)?;
    output::print(&format!(
        "{} rounds; {} neighbours and {} processors; \"times\" is by how much longer work took than a processor was at it: {:.2} by an even share\n",
        report.rounds, report.neighbours, report.processors, report.share
    ))
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
