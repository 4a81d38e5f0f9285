//! A result as one page of HTML that needs nothing beside it: tables, and plots as SVG in it.

mod plots;

use std::fmt::Write as _;

use super::Document;
use super::estimate::{Interval, Percentile};
use super::metric::{Metric, Unit};

/// The page cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be drawn: {0}")]
pub struct PageError(String);

/// Rows of which all samples are drawn.
const TIMES: [&str; 14] = [
    "start",
    "run",
    "teardown",
    "compute",
    "syscalls",
    "disk-write",
    "disk-read",
    "disk-sync",
    "volume-write",
    "volume-read",
    "volume-sync",
    "net-out",
    "net-in",
    "net-trip",
];
/// Rows that are drawn as bars.
const AMOUNTS: [&str; 7] = ["memory-first", "memory-next", "image-disk", "rate", "density", "fleet", "fleet-memory"];

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem}table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}\
td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}\
td:first-child,th:first-child{text-align:left}small{color:#666;white-space:nowrap}.best{font-weight:bold}.left td{text-align:left}\
.wide{overflow-x:auto}svg{max-width:100%;height:auto}code{background:#f3f3f3;padding:0 .2rem}";

/// The page.
///
/// # Errors
/// A plot cannot be drawn.
pub fn page(document: &Document) -> Result<String, PageError> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}: VMs and containers</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escape(&document.image)
    );
    let command = escape(&document.command.join(" "));
    let broken = if document.interrupted { " It was interrupted: what follows was measured until then." } else { "" };
    push(
        &mut page,
        format_args!(
            "<p><code>{command}</code>, measured {} in {:.0} s.{broken}</p>\n",
            escape(&document.began),
            document.took_s
        ),
    );
    table(&mut page, document);
    arms(&mut page, document);
    for key in TIMES {
        if let Some(row) = document.rows().find(|row| row.key == key) {
            push(&mut page, format_args!("<h2>{}</h2>\n{}", escape(row.title), plots::samples(document, row)?));
        }
    }
    waterfalls(&mut page, document)?;
    if let Some(row) = document.rows().find(|row| row.key == "fleet-start") {
        let curve = plots::curve(document, row)?;
        push(&mut page, format_args!("<h2>{}</h2>\n<p>By how many run already.</p>\n{curve}", escape(row.title)));
    }
    for key in AMOUNTS {
        if let Some(row) = document.rows().find(|row| row.key == key) {
            push(&mut page, format_args!("<h2>{}</h2>\n{}", escape(row.title), plots::amounts(document, row)?));
        }
    }
    conditions(&mut page, document);
    page.push_str("</body></html>\n");
    Ok(page)
}

/// Writing to a string does not fail.
fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text);
}

/// Text of unknown origin for HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A figure for people, with its unit.
#[must_use]
pub fn figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Ms if value.abs() >= 10_000.0 => format!("{:.1} s", value / 1e3),
        Unit::Ms if value.abs() >= 1000.0 => format!("{:.2} s", value / 1e3),
        Unit::Ms if value.abs() >= 100.0 => format!("{value:.0} ms"),
        Unit::Ms if value.abs() >= 10.0 => format!("{value:.1} ms"),
        Unit::Ms if value.abs() >= 1.0 || value == 0.0 => format!("{value:.2} ms"),
        Unit::Ms => format!("{:.0} µs", value * 1e3),
        Unit::Kib if value.abs() >= 10_240.0 => format!("{:.0} MiB", value / 1024.0),
        Unit::Kib if value.abs() >= 1024.0 => format!("{:.1} MiB", value / 1024.0),
        Unit::Kib => format!("{value:.0} KiB"),
        Unit::MibPerSecond if value < 10.0 => format!("{value:.2} MiB/s"),
        Unit::MibPerSecond => format!("{value:.0} MiB/s"),
        Unit::PerMinute if value < 100.0 => format!("{value:.1}/min"),
        Unit::PerMinute => format!("{value:.0}/min"),
        Unit::Count => format!("{value:.0}"),
    }
}

/// An interval in the same unit, which is written once if it can be.
#[must_use]
pub fn span(interval: Interval, unit: Unit) -> String {
    let (low, high) = (figure(interval.low, unit), figure(interval.high, unit));
    match (low.split_once(' '), high.split_once(' ')) {
        (Some((number, of_low)), Some((_, of_high))) if of_low == of_high => format!("{number}–{high}"),
        _ => format!("{low}–{high}"),
    }
}

fn table(page: &mut String, document: &Document) {
    let arms = document.measured();
    page.push_str("<div class=\"wide\"><table><tr><th>median <small>interval of 95 %</small></th>");
    arms.iter().for_each(|arm| push(page, format_args!("<th>{}</th>", escape(arm))));
    page.push_str("</tr>\n");
    for row in document.rows() {
        let best = document.winner(row);
        push(page, format_args!("<tr><td>{}</td>", escape(row.title)));
        for arm in &arms {
            let class = if best == Some(arm) { " class=\"best\"" } else { "" };
            let text = document.estimate(arm, row.key).map_or_else(|| "-".into(), |all| cell(&all.p50, row));
            push(page, format_args!("<td{class}>{text}</td>"));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n<p><small>Bold: surely the best, the bare process apart: its interval has nothing in common with the others'.</small></p>\n");
}

fn cell(percentile: &Percentile, row: &Metric) -> String {
    let span = percentile
        .interval
        .map_or_else(String::new, |interval| format!("<br><small>{}</small>", span(interval, row.unit)));
    figure(percentile.value, row.unit) + &span
}

fn arms(page: &mut String, document: &Document) {
    page.push_str("<h2>what was compared</h2>\n<table class=\"left\">\n");
    for arm in &document.arms {
        let state = match &arm.problem {
            Some(problem) => format!("<b>{}</b>", escape(problem)),
            None => match document.samples(&arm.name, "run").len() {
                0 => String::new(),
                count => format!("{count} runs"),
            },
        };
        let version = arm.version.as_deref().unwrap_or("-");
        let (name, what) = (escape(&arm.name), escape(&arm.what));
        push(
            page,
            format_args!("<tr><td>{name}</td><td>{what}</td><td>{}</td><td>{state}</td></tr>\n", escape(version)),
        );
    }
    page.push_str("</table>\n");
}

fn waterfalls(page: &mut String, document: &Document) -> Result<(), PageError> {
    if document.phases.is_empty() {
        return Ok(());
    }
    page.push_str("<h2>where the time goes</h2>\n<p>Medians of the phases, each arm on a scale of its own. What a container's phases are comes from \
        create, start and delete, asked for one by one.</p>\n");
    for arm in document.measured() {
        if let Some(plot) = plots::waterfall(document, arm)? {
            push(page, format_args!("<h3>{}</h3>\n{plot}", escape(arm)));
        }
    }
    Ok(())
}

fn conditions(page: &mut String, document: &Document) {
    page.push_str("<h2>conditions</h2>\n<table class=\"left\">\n");
    let [before, after] = document.host.load;
    let more = [
        ("load before, after", format!("{before:.1}, {after:.1}")),
        ("samples, seconds for an arm", format!("{}, {}", document.asked, document.budget_s)),
        ("instances for the memory", document.instances.to_string()),
        ("seed", document.seed.to_string()),
    ];
    for (what, value) in document.host.fixed().iter().chain(&more) {
        push(page, format_args!("<tr><td>{}</td><td>{}</td></tr>\n", escape(what), escape(value)));
    }
    page.push_str("</table>\n<ul>\n");
    document.notes.iter().for_each(|note| push(page, format_args!("<li>{}</li>\n", escape(note))));
    page.push_str("</ul>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Phase;
    use crate::report::tests::document;

    #[test]
    fn the_page_is_whole_and_needs_nothing() {
        let mut all = document(&[
            ("runc", "start", vec![40.0, 41.0, 42.0, 43.0, 44.0, 45.0, 90.0]),
            ("vm-warm", "start", vec![1500.0; 30]),
            ("runc", "memory-next", vec![800.0]),
            ("vm-warm", "memory-next", vec![0.0]),
        ]);
        all.image = "<script>x".into();
        all.phases.push(Phase { arm: "runc".into(), phase: "create".into(), samples: vec![20.0] });
        all.phases.push(Phase { arm: "runc".into(), phase: "start & more".into(), samples: vec![10.0] });
        let page = page(&all).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert_eq!((page.matches("<svg").count(), page.matches("</svg>").count()), (3, 3));
        assert!(page.contains("&lt;script&gt;x") && !page.contains("<script"));
        let outside = page.matches("http").count() - page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
        assert_eq!(outside, 0, "nothing is fetched");
        assert!(page.contains("class=\"best\">42.0 ms") || page.contains("class=\"best\">43.0 ms"), "{page}");
    }

    #[test]
    fn a_result_without_anything_is_a_page_too() {
        assert!(page(&document(&[])).unwrap().contains("</html>"));
        let zeros = document(&[("runc", "start", vec![0.0]), ("crun", "start", vec![0.0])]);
        assert!(page(&zeros).unwrap().contains("<svg"));
    }

    #[test]
    fn figures_are_for_people() {
        let got = [
            (0.05, Unit::Ms),
            (9.876, Unit::Ms),
            (41.26, Unit::Ms),
            (1534.0, Unit::Ms),
            (900.0, Unit::Kib),
            (20_480.0, Unit::Kib),
        ];
        let got = got.map(|(value, unit)| figure(value, unit));
        assert_eq!(got, ["50 µs", "9.88 ms", "41.3 ms", "1.53 s", "900 KiB", "20 MiB"]);
        let spans = [(1.0, 2.5), (900.0, 1100.0)].map(|(low, high)| span(Interval { low, high }, Unit::Ms));
        assert_eq!(spans, ["1.00–2.50 ms", "900 ms–1.10 s"]);
    }
}
