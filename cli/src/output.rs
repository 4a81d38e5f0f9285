//! Results on stdout, talk on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::args::Talk;
use crate::failure::{Failure, Outcome};
use crate::template::Template;

/// Work shorter than this shows no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints a result as JSON, one document and a line end.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    print(&text)
}

/// Prints rows under a head, in columns without lines, as docker does.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> io::Result<()> {
    wide_table(&head, rows)
}

/// The same where how many columns there are is not known before.
pub fn wide_table<R: IntoIterator<Item = String>>(head: &[&str], rows: impl IntoIterator<Item = R>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    print(&text)
}

/// The columns of a listing: what is above them, and which field of a row is in each.
pub struct Columns<const N: usize> {
    pub head: [&'static str; N],
    pub fields: [&'static str; N],
}

/// Prints rows as `--format` says, as docker does: `table`, `table TEMPLATE`, `json` (an object a line), or a template.
pub fn listing<const N: usize>(format: &str, columns: &Columns<N>, rows: impl IntoIterator<Item = Value>) -> Outcome {
    let rows = rows.into_iter();
    match format {
        "table" => table(columns.head, rows.map(|row| columns.fields.map(|field| text(&row, field))))?,
        "json" => print(&rows.map(|row| format!("{row}\n")).collect::<String>())?,
        format => {
            let wrong = |problem| Failure::with_code(1, anyhow!("--format: {problem}"));
            let (head, template) = match format.strip_prefix("table ") {
                Some(template) => (true, template),
                None => (false, format),
            };
            let template = Template::parse(template).map_err(wrong)?;
            let mut lines: String = if head { template.head() + "\n" } else { String::new() };
            for row in rows {
                lines += &(template.render(&row).map_err(wrong)? + "\n");
            }
            print(&lines)?;
        }
    }
    Ok(0)
}

/// A row's field, if it is text.
pub fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_owned()
}

/// Prints a result. A reader that is gone is an error like any other: see [`crate::failure::Failure`].
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Progress of preparing an image: on stderr, only if that is a terminal, and only after a second.
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    show: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new(talk: Talk) -> Self {
        let show = !talk.quiet && io::stderr().is_terminal();
        Progress { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), began: Instant::now(), show }
    }

    fn visible(&mut self) -> bool {
        if self.show && self.bar.is_hidden() && self.began.elapsed() >= PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.show
    }
}

impl guest_images::Progress for Progress {
    fn layer(&mut self, index: usize, count: usize, cached: bool) {
        if self.visible() && !cached {
            self.bar.set_message(format!("layer {}/{count}", index + 1));
            self.bar.set_position(0);
        }
    }

    fn bytes(&mut self, done: u64, total: Option<u64>) {
        if !self.visible() {
            return;
        }
        match total {
            Some(total) if self.bar.length() != Some(total) => {
                self.bar.set_length(total);
                // A wrong template only means that the default one is used.
                if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}") {
                    self.bar.set_style(style);
                }
            }
            None if self.bar.length().is_some() => self.bar.unset_length(),
            _ => {}
        }
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
