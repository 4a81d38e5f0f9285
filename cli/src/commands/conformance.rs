//! `bulkhead conformance`: whether docker's habits come to the same here and with another engine.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bench::compare::conformance::{Bout, Difference, Habit, Lent, Verdict, find, habits, try_habit};
use bench::process::BenchError;
use serde_json::json;

use super::measuring::{Saying, Stop};
use crate::args::{Conformance, Format, Talk};
use crate::failure::{Failure, Outcome, sanitize};
use crate::output;

/// This program.
const OURS: &str = "/proc/self/exe";
/// Those that have docker's commands.
const ENGINES: [&str; 2] = ["podman", "docker"];
/// What is shown of an output that differs, characters.
const SHOWN: usize = 300;

/// Has both do what the habits are, and tells what differs.
pub fn conformance(args: &Conformance, talk: Talk) -> Outcome {
    let (name, theirs) = engine(args)?;
    let wanted: Vec<_> =
        habits().filter(|habit| args.only.as_ref().is_none_or(|text| habit.title.contains(text))).collect();
    if wanted.is_empty() {
        return Err(anyhow!("no habit has that in its title; without --only there are {}", habits().count()).into());
    }
    let stop = Stop::new().context("cannot wait for signals")?;
    let limit = Duration::from_secs(args.timeout);
    let say = Saying::new(talk);
    let lent = Lent::new(&args.image, Path::new(OURS), &theirs, limit, stop.readable.as_fd())?;
    let bout = Bout {
        ours: Path::new(OURS),
        theirs: &theirs,
        image: &lent.name,
        limit,
        stop: stop.readable.as_fd(),
        say: &|text| say.say(text),
    };
    let (verdicts, broken_off) = try_all(&wanted, &bout);
    drop((say, lent));
    match args.format {
        Format::Json => output::json(&json!({ "with": name, "habits": verdicts }))?,
        Format::Table => show(&verdicts, &name)?,
    }
    match (broken_off, stop.signal()) {
        (Some(BenchError::Interrupted), Some(signal)) => Err(Failure::silent(128 + signal)),
        (Some(error), _) => Err(error.into()),
        (None, _) => Ok(u8::from(verdicts.iter().any(Verdict::is_open))),
    }
}

fn engine(args: &Conformance) -> anyhow::Result<(String, PathBuf)> {
    if let Some(program) = &args.with {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        return Ok((name, program.clone()));
    }
    let (name, program) = find(&ENGINES)
        .with_context(|| format!("neither of {} is installed: there is nothing to compare with", ENGINES.join(", ")))?;
    Ok((name.to_owned(), program))
}

/// What was found until all had been tried, or it was broken off.
fn try_all(habits: &[&'static Habit], bout: &Bout<'_>) -> (Vec<Verdict>, Option<BenchError>) {
    let mut verdicts = Vec::new();
    for (number, habit) in habits.iter().enumerate() {
        match try_habit(habit, number, bout) {
            Ok(verdict) => verdicts.push(verdict),
            Err(error) => return (verdicts, Some(error)),
        }
    }
    (verdicts, None)
}

fn show(verdicts: &[Verdict], with: &str) -> std::io::Result<()> {
    let result = |verdict: &Verdict| match (verdict.differences.len(), verdict.explained) {
        (0, _) => "the same".to_owned(),
        (_, Some(why)) => format!("differs: {why}"),
        (count, None) => format!("DIFFERS in {count}"),
    };
    output::table(["HABIT", "RESULT"], verdicts.iter().map(|verdict| [verdict.habit.to_owned(), result(verdict)]))?;
    let open: Vec<_> = verdicts.iter().filter(|verdict| verdict.is_open()).collect();
    for verdict in &open {
        output::print(&format!("\n{}\n", verdict.habit))?;
        for Difference { command, what, ours, theirs } in &verdict.differences {
            let (ours, theirs) = (shown(ours), shown(theirs));
            output::print(&format!(
                "  {}\n    {what}, bulkhead: {ours}\n    {what}, {with}: {theirs}\n",
                shown(command)
            ))?;
        }
    }
    let explained = verdicts.iter().filter(|verdict| verdict.explained.is_some()).count();
    let same = verdicts.len() - explained - open.len();
    output::print(&format!("\n{same} the same, {explained} explained, {} that differ\n", open.len()))
}

/// In one line, and not all of it if it is long.
fn shown(text: &str) -> String {
    let mut line = sanitize(&text.trim_end().replace('\n', " | "));
    if let Some((end, _)) = line.char_indices().nth(SHOWN) {
        line.truncate(end);
        line.push('…');
    }
    line
}
