//! `bulkhead bench compare`, `ablate`, `diff` and `report`: what was measured, shown.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use bench::compare::{Fleet, Scope};
use bench::report::Document;
use bench::report::diff::{self, Verdict};
use bench::report::metric::VARIANTS;
use bench::report::page::{figure, page};
use bench::report::trace::trace;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::measuring::{Wish, measure};
use super::results;
use crate::args::{BenchAblate, BenchCompare, BenchDensity, BenchDiff, BenchReport, Format, ResultFormat, Shown, Talk};
use crate::failure::{Failure, Outcome, sanitize};
use crate::output;

/// A condition does not hold, or something has become worse.
const NO: u8 = 1;

/// Measures containers and microVMs, and shows the result.
pub fn compare(args: &BenchCompare, talk: Talk) -> Outcome {
    check_all_writable(args.out.as_deref(), &args.shown)?;
    let wish = Wish {
        scope: Scope::Arms,
        image_and_command: &args.image_and_command,
        arms: &args.arms,
        monitors: &args.monitors,
        kernel: args.kernel.as_deref(),
        rows: &args.rows,
        samples: args.samples,
        budget: args.budget,
        instances: args.instances,
        timeout: args.timeout,
        seed: args.seed,
        memory_budget: args.memory_budget,
    };
    let (document, signal) = measure(&wish, talk)?;
    save(args.out.as_deref(), &document)?;
    conclude(signal, show(&document, &args.shown))
}

/// Measures microVMs with one thing switched at a time, and shows what each adds.
pub fn ablate(args: &BenchAblate, talk: Talk) -> Outcome {
    args.out.iter().try_for_each(|path| check_writable(path))?;
    let base = VARIANTS[0].name;
    let mut arms = args.variants.clone();
    if !arms.is_empty() && !arms.contains(&base) {
        arms.push(base);
    }
    let wish = Wish {
        scope: Scope::Variants,
        image_and_command: &args.image_and_command,
        arms: &arms,
        monitors: &[],
        kernel: None,
        rows: &[],
        samples: args.samples,
        budget: args.budget,
        instances: 1,
        timeout: args.timeout,
        seed: args.seed,
        memory_budget: None,
    };
    let (document, signal) = measure(&wish, talk)?;
    save(args.out.as_deref(), &document)?;
    let shown = match args.format {
        Format::Json => output::json(&document.with_estimates()?),
        Format::Table => output::print(&results::variants(&document, base)),
    };
    conclude(signal, shown.map(|()| 0).map_err(Failure::from))
}

/// Counts how many instances there can be, and shows the result.
pub fn density(args: &BenchDensity, talk: Talk) -> Outcome {
    check_all_writable(args.out.as_deref(), &args.shown)?;
    let scope = Scope::Fleets(Fleet { objective: args.slo, most: args.most as usize });
    let once = Wish::once(scope, std::slice::from_ref(&args.image), &args.arms, args.timeout);
    let wish = Wish { memory_budget: args.memory_budget, ..once };
    let (document, signal) = measure(&wish, talk)?;
    save(args.out.as_deref(), &document)?;
    conclude(signal, show(&document, &args.shown))
}

/// What was measured is told in any case; that it is not all, too.
fn conclude(signal: Option<u8>, shown: Outcome) -> Outcome {
    match signal {
        Some(signal) => shown.and(Err(Failure::silent(128 + signal))),
        None => shown,
    }
}

fn save(path: Option<&Path>, document: &Document) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    write(path, &(serde_json::to_string_pretty(&document.with_estimates()?)? + "\n"))
}

/// Shows a result once more.
pub fn report(args: &BenchReport) -> Outcome {
    check_all_writable(None, &args.shown)?;
    show(&Document::read(&args.result)?, &args.shown)
}

/// Shows what has changed between two results.
pub fn diff(args: &BenchDiff) -> Outcome {
    let diff = diff::diff(&Document::read(&args.old)?, &Document::read(&args.new)?);
    match args.format {
        Format::Json => output::json(&diff)?,
        Format::Table => {
            let rows = diff.rows.iter().map(|row| {
                let interval = row.interval.map_or_else(|| "-".into(), |i| format!("{:.3}–{:.3}", i.low, i.high));
                let ratio = row.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
                let [old, new] = [row.old, row.new].map(|value| figure(value, row.unit));
                [sanitize(&row.arm), row.metric.to_owned(), old, new, ratio, interval, row.verdict.text().to_owned()]
            });
            output::table(["ARM", "ROW", "OLD P50", "NEW P50", "RATIO", "99 %", ""], rows)?;
            for difference in &diff.differences {
                output::print(&format!("not alike: {}\n", sanitize(difference)))?;
            }
        }
    }
    let worse = diff.rows.iter().any(|row| row.verdict == Verdict::Worse);
    Ok(if args.check && worse { NO } else { 0 })
}

fn show(document: &Document, shown: &Shown) -> Outcome {
    if let Some(path) = &shown.html {
        write(path, &page(document)?)?;
    }
    if let Some(path) = &shown.trace {
        write(path, &serde_json::to_string(&trace(document))?)?;
    }
    match shown.format {
        ResultFormat::Json => output::json(&document.with_estimates()?)?,
        ResultFormat::Table => output::print(&results::table(document))?,
        ResultFormat::Markdown => output::print(&results::markdown(document))?,
    }
    let mut failed = Vec::new();
    for assertion in &shown.assert {
        let checked = assertion.check(document).with_context(|| "--assert")?;
        if !checked.holds {
            failed.push(format!("--assert '{}' does not hold: {}", assertion.text(), checked.figures));
        }
    }
    if failed.is_empty() { Ok(0) } else { Err(Failure::with_code(NO, anyhow!(failed.join("; ")))) }
}

/// Better now than after some minutes of measuring.
fn check_all_writable(out: Option<&Path>, shown: &Shown) -> anyhow::Result<()> {
    let paths = [out, shown.html.as_deref(), shown.trace.as_deref()];
    paths.into_iter().flatten().try_for_each(check_writable)
}

fn check_writable(path: &Path) -> anyhow::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot write '{}': its directory", path.display()))?;
    if path.is_dir() {
        return Err(anyhow!("cannot write '{}': it is a directory; name a file", path.display()));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write '{}'", path.display()))
}
