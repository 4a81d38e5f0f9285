//! What a comparison comes to as text: a table for a terminal, one for a document, and one of what variants add.

use bench::report::Document;
use bench::report::estimate::{Estimate, difference};
use bench::report::metric::{Metric, Unit, kind};
use bench::report::page::{figure, span};
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::failure::sanitize;

/// A row a line, an arm a column, with the tails of times, and all that is to be known beside.
pub fn table(document: &Document) -> String {
    let arms = document.measured();
    let mut rows = Vec::new();
    for row in document.rows() {
        let line = |name: &str, cell: &dyn Fn(&str) -> String| {
            [sanitize(name)].into_iter().chain(arms.iter().map(|arm| cell(arm))).collect::<Vec<_>>()
        };
        let of = |arm: &str, what: &dyn Fn(Estimate) -> String| {
            document.estimate(arm, row.key).map_or_else(|| "-".to_owned(), what)
        };
        let best = document.winner(row);
        rows.push(line(row.title, &|arm| cell(document, arm, row, if best == Some(arm) { "*" } else { "" })));
        if row.unit == Unit::Ms {
            rows.push(line("- p90", &|arm| of(arm, &|all| figure(all.p90.value, row.unit))));
            rows.push(line("- p99", &|arm| of(arm, &|all| figure(all.p99.value, row.unit))));
            rows.push(line("- outliers", &|arm| of(arm, &|all| format!("{} of {}", all.outliers, all.samples))));
        }
    }
    let best = "\n* surely the best, the bare process apart: its interval has nothing in common with another's\n";
    columns(["P50 (95 % INTERVAL)"].into_iter().chain(arms.iter().copied()), rows) + best + &remarks(document)
}

/// A table in Markdown, with the host and the command under it.
pub fn markdown(document: &Document) -> String {
    let arms = document.measured();
    let mut text = format!("| | {} |\n|---|{}\n", arms.join(" | "), "---|".repeat(arms.len()));
    let mut add = |name: &str, cell: &dyn Fn(&str) -> String| {
        let cells: Vec<String> = arms.iter().map(|arm| cell(arm)).collect();
        text += &format!("| {name} | {} |\n", cells.join(" | "));
    };
    for row in document.rows() {
        let best = document.winner(row);
        add(row.title, &|arm| cell(document, arm, row, if best == Some(arm) { "**" } else { "" }));
        if row.key == "start" {
            let p99 = |arm: &str| Some(figure(document.estimate(arm, row.key)?.p99.value, row.unit));
            add("the same, p99", &|arm| p99(arm).unwrap_or_else(|| "-".into()));
        }
    }
    let command = sanitize(&document.command.join(" ")).replace('`', "'");
    text + &format!(
        "\nMedians, with intervals of 95 %; `{command}`; {}; {}\n",
        sanitize(&document.began),
        host(document)
    )
}

/// What each variant adds to the base.
pub fn variants(document: &Document, base: &str) -> String {
    let rows = document.measured().into_iter().map(|name| {
        let median =
            |key, unit| document.estimate(name, key).map_or_else(|| "-".into(), |all| figure(all.p50.value, unit));
        let more = |key, unit| {
            let of = difference(document.samples(base, key), document.samples(name, key), document.seed);
            match of.filter(|_| name != base) {
                Some((more, interval)) => format!("{} ({})", signed(more, unit), span(interval, unit)),
                None => String::new(),
            }
        };
        let memory = |name| Some(document.estimate(name, "memory-first")?.p50.value);
        let grows = memory(name).zip(memory(base)).filter(|_| name != base);
        let grows = grows.map_or_else(String::new, |(memory, base)| signed(memory - base, Unit::Kib));
        let what = kind(name).map_or("", |kind| kind.what).to_owned();
        let [start, run] = ["start", "run"].map(|key| (median(key, Unit::Ms), more(key, Unit::Ms)));
        vec![name.to_owned(), start.0, start.1, run.0, run.1, median("memory-first", Unit::Kib), grows, what]
    });
    let head = ["P50", "START", "MORE (99 %)", "RUN", "MORE (99 %)", "MEMORY", "MORE", ""];
    columns(head.into_iter(), rows.collect()) + &remarks(document)
}

fn columns<'a>(head: impl Iterator<Item = &'a str>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn signed(value: f64, unit: Unit) -> String {
    format!("{}{}", if value > 0.0 { "+" } else { "" }, figure(value, unit))
}

fn cell(document: &Document, arm: &str, row: &Metric, mark: &str) -> String {
    let Some(all) = document.estimate(arm, row.key) else { return "-".into() };
    let interval = all.p50.interval.map_or_else(String::new, |interval| format!(" ({})", span(interval, row.unit)));
    let value = figure(all.p50.value, row.unit);
    match mark {
        "**" => format!("**{value}**{interval}"),
        mark => format!("{value}{mark}{interval}"),
    }
}

fn host(document: &Document) -> String {
    let fixed = document.host.fixed();
    let host: Vec<String> = fixed.iter().map(|(what, value)| format!("{what} {}", sanitize(value))).collect();
    let [before, after] = document.host.load;
    format!("host: {}; load {before:.1} before, {after:.1} after", host.join("; "))
}

fn remarks(document: &Document) -> String {
    let mut text = String::from("\n");
    for arm in &document.arms {
        let version = arm.version.as_ref().map_or_else(String::new, |version| format!(", {}", sanitize(version)));
        let problem = arm.problem.as_ref().map_or_else(String::new, |problem| format!(": {}", sanitize(problem)));
        text += &format!("{}: {}{version}{problem}\n", sanitize(&arm.name), sanitize(&arm.what));
    }
    text += &(host(document) + "\n");
    for note in &document.notes {
        text += &format!("note: {}\n", sanitize(note));
    }
    let broken = if document.interrupted { ", interrupted" } else { "" };
    text + &format!("{}, {:.0} s, seed {}{broken}\n", sanitize(&document.began), document.took_s, document.seed)
}
